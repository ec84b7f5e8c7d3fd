"""Flower's own client mods and privacy wrappers compose with the audit and with our defenses."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp import NeighboringRelation, PrivacyConfig, RdpAccountant, SamplingMethod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Strategy,
)
from torch import Tensor

from attacks.facts import Fact, GaussianMechanism
from fl_sim.capture.update import Update
from fl_sim.errors import NothingAccepted
from fl_sim.federation import Federation
from fl_sim.flower import client
from fl_sim.flower.client import to_arrays, train_locally
from fl_sim.flower.engines.local import LocalGrid
from fl_sim.flower.strategy import LeakageAudit, ReplyGuard
from fl_sim.flower.wire import LocalTraining, wire_tensors
from fl_sim.leakage.plan import AttackPlan
from fl_sim.leakage.records import LeakageRecord
from fl_sim.replay_judge import ReplayJudge
from fl_sim.scenario import Scenario

Tiny = Callable[..., Scenario]
pytestmark = pytest.mark.usefixtures("moves_generators")  # Flower draws its noise from NumPy's
NORM = 0.02
CLIENTS = 3


class Clients:
    """Our clients behind mods of Flower's, and what an audit sees of them."""

    def __init__(self, scenario: Scenario, *mods: Any, broken: Sequence[int] = ()) -> None:
        self.scenario = scenario
        self.federation = Federation.of(scenario)
        self.model = self.federation.build_model()
        self.updates: list[Update] = []
        self.records: list[LeakageRecord] = []
        app = ClientApp(mods=list(mods))

        @app.train()
        def train(message: Message, context: Context) -> Message:
            if context.node_config["partition-id"] in broken:
                raise RuntimeError("out of battery")
            return client.train(message, context)

        self.grid = LocalGrid(app, CLIENTS, {"scenario": scenario.to_json()})

    def audit(self, base: Strategy, *, knowledge: tuple[Fact, ...] = ()) -> LeakageAudit:
        return LeakageAudit(
            base,
            model=self.model,
            attacks=[AttackPlan.by_name("soft-label", knowledge=knowledge)],
            training=LocalTraining(lr=self.scenario.client.lr, batch_size=1),
            input_shape=(1, 4, 4),
            log=lambda _, findings: self.records.extend(finding.record for finding in findings),
            clients={node: node - 1 for node in self.grid.get_node_ids()},
            judge=ReplayJudge.of(self.federation),
            take_over=lambda update, _: self.updates.append(update),
        )

    def start(self, strategy: Strategy, rounds: int = 1) -> dict[str, Tensor]:
        """Train; Flower draws the same clients and the same noise each time."""
        random.seed(0)
        np.random.seed(0)
        arrays = to_arrays(wire_tensors(self.model, "eval"))
        return tensors(strategy.start(self.grid, arrays, num_rounds=rounds).arrays)

    def own(self, update: Update) -> Tensor:
        """Return what a client made of what it received, before any mod."""
        trained = train_locally(
            self.scenario, update.client, update.server_round, update.received
        ).weights
        return difference(update.received, trained)


def tensors(arrays: ArrayRecord) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array.numpy()) for name, array in arrays.items()}


def difference(received: Mapping[str, Tensor], sent: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([(sent[name].double() - received[name]).flatten() for name in received])


def change(update: Update) -> Tensor:
    return difference(update.received, update.sent)


def fed_avg() -> FedAvg:
    return FedAvg(fraction_evaluate=0.0)


def fixed_on_clients(base: Strategy) -> Strategy:
    return DifferentialPrivacyClientSideFixedClipping(base, 0.5, NORM, CLIENTS)


def adaptive_on_clients(base: Strategy) -> Strategy:
    return DifferentialPrivacyClientSideAdaptiveClipping(
        base, 0.1, CLIENTS, initial_clipping_norm=NORM, clipped_count_stddev=1.0
    )


def fixed_on_server(base: Strategy) -> Strategy:
    return DifferentialPrivacyServerSideFixedClipping(base, 0.5, NORM, CLIENTS)


def adaptive_on_server(base: Strategy) -> Strategy:
    return DifferentialPrivacyServerSideAdaptiveClipping(
        base, 0.1, CLIENTS, initial_clipping_norm=NORM, clipped_count_stddev=1.0
    )


WRAPPERS = {
    "fixed on clients": (fixed_on_clients, [fixedclipping_mod]),
    "adaptive on clients": (adaptive_on_clients, [adaptiveclipping_mod]),
    "fixed on server": (fixed_on_server, []),
    "adaptive on server": (adaptive_on_server, []),
}


@pytest.mark.parametrize("is_outside", [False, True])
@pytest.mark.parametrize("name", WRAPPERS)
def test_the_audit_changes_no_bit_of_what_a_wrapper_aggregates(
    tiny: Tiny, name: str, is_outside: bool
) -> None:
    """Over three rounds, noise and adapted norms included, on either side of it."""
    wrap, mods = WRAPPERS[name]
    audited, plain = Clients(tiny(), *mods), Clients(tiny(), *mods)
    strategy = wrap(audited.audit(fed_avg())) if is_outside else audited.audit(wrap(fed_avg()))
    found = audited.start(ReplyGuard(strategy), rounds=3)
    expected = plain.start(ReplyGuard(wrap(fed_avg())), rounds=3)
    assert len(audited.records) == len(audited.updates) == 3 * CLIENTS
    assert found.keys() == expected.keys() == dict(plain.model.named_parameters()).keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


OURS = {
    "none": "defense=[]",
    "label-smoothing": 'defense=[{name="label-smoothing", smoothing=0.3}]',
    "dp-noise": 'defense=[{name="dp-noise", clipping_norm=0.05, noise_multiplier=0.1}]',
    "pruning": 'defense=[{name="pruning", sparsity=0.5}]',
    "sign": 'defense=[{name="sign"}]',
}


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("name", ["fixed on clients", "adaptive on clients"])
def test_the_audit_sees_what_a_mod_made_of_what_our_defenses_sent(
    tiny: Tiny, name: str, ours: str
) -> None:
    wrap, mods = WRAPPERS[name]
    clients = Clients(tiny(OURS[ours]), *mods)
    clients.start(clients.audit(wrap(fed_avg())))
    assert [update.client for update in clients.updates] == [0, 1, 2]
    for update in clients.updates:
        own = clients.own(update)
        assert own.norm() > 2 * NORM
        # Weights of size 1 are sent in float32.
        torch.testing.assert_close(change(update), own * NORM / own.norm(), atol=3e-7, rtol=0)


def test_the_audit_follows_the_norm_that_adapts(tiny: Tiny) -> None:
    clients, norms = Clients(tiny(), adaptiveclipping_mod), []

    class Adaptive(DifferentialPrivacyClientSideAdaptiveClipping):
        def configure_train(self, *args: Any) -> Any:
            norms.append(self.clipping_norm)
            return super().configure_train(*args)

    wrapper = Adaptive(fed_avg(), 0.0, CLIENTS, initial_clipping_norm=NORM)
    clients.start(clients.audit(wrapper), rounds=3)
    assert len(set(norms)) == 3
    seen = torch.stack([change(update).norm() for update in clients.updates])
    torch.testing.assert_close(
        seen, torch.tensor(norms).double().repeat_interleave(CLIENTS), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("name", ["fixed on server", "adaptive on server"])
def test_a_server_that_clips_has_seen_what_it_clips(tiny: Tiny, name: str) -> None:
    """Around the wrapper the audit sees raw updates, inside of it clipped ones."""
    wrap, _ = WRAPPERS[name]
    around, inside = Clients(tiny()), Clients(tiny())
    around.start(around.audit(wrap(fed_avg())))
    inside.start(wrap(inside.audit(fed_avg())))
    for raw, clipped in zip(around.updates, inside.updates, strict=True):
        own = around.own(raw)
        assert torch.equal(change(raw), own)
        torch.testing.assert_close(change(clipped), own * NORM / own.norm(), atol=3e-7, rtol=0)


def test_a_mods_clipping_hides_no_label(tiny: Tiny) -> None:
    """Of fewer than five classes a factor on the gradient can't be told."""
    clients = Clients(tiny("data.options.classes=10"), fixedclipping_mod)
    clients.start(clients.audit(fixed_on_clients(fed_avg())))
    assert len(clients.records) == CLIENTS
    for update, record in zip(clients.updates, clients.records, strict=True):
        assert record.label_status == "RECOVERED", record.label_reason
        assert record.label_linf is not None
        assert record.label_linf < 1e-2  # what RECOVERED claims
        factor = NORM / float(clients.own(update).norm())
        assert record.gradient_scale == pytest.approx(factor, rel=1e-2)


def test_the_audit_sees_local_noise_and_an_aware_attacker_reckons_with_it(tiny: Tiny) -> None:
    norm, sensitivity, epsilon, delta = 0.1, 1e-3, 10.0, 1e-5
    std = sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / epsilon
    clients = Clients(
        tiny("data.options.classes=10"), LocalDpMod(norm, sensitivity, epsilon, delta)
    )
    audit = clients.audit(fed_avg(), knowledge=(GaussianMechanism(norm, std),))
    clients.start(audit, rounds=3)
    own = torch.stack([clients.own(update) for update in clients.updates])
    assert own.norm(dim=1).min() > norm
    clipped = own * norm / own.norm(dim=1, keepdim=True)
    noise = torch.stack([change(update) for update in clients.updates]) - clipped
    # Five standard deviations of a sample's mean and of its standard deviation.
    assert abs(float(noise.mean())) < 5 * std / noise.numel() ** 0.5
    assert abs(float(noise.std()) / std - 1) < 5 / (2 * noise.numel()) ** 0.5
    assert len(clients.records) == 3 * CLIENTS
    for record in clients.records:
        assert record.unused_facts is None
        assert "noise leaves the label uncertain" in (record.label_reason or "")
        assert record.label_bar is not None
        assert record.label_linf is not None
        assert record.label_linf < record.label_bar


def test_a_mod_without_its_wrapper_is_named_in_every_record(tiny: Tiny) -> None:
    clients = Clients(tiny(), fixedclipping_mod)
    sentence = "the client failed: fixedclipping_mod requires the key 'clipping_norm'"
    with pytest.raises(NothingAccepted, match=sentence):
        clients.start(ReplyGuard(fed_avg()))
    clients.start(clients.audit(fed_avg()))
    assert len(clients.records) == CLIENTS
    assert all(sentence in (record.label_reason or "") for record in clients.records)


def test_flowers_accountant_counts_inside_the_audit_alone(tiny: Tiny) -> None:
    """It wants Flower's own FedAvg within: Flower refuses an audit there."""
    accountant = RdpAccountant(
        PrivacyConfig(
            1e-5, CLIENTS, NeighboringRelation.ADD_OR_REMOVE_ONE, SamplingMethod.NO_AMPLIFICATION
        )
    )

    def accounted(base: Strategy) -> Strategy:
        return DifferentialPrivacyServerSideFixedClipping(
            base, 0.5, NORM, CLIENTS, accountant=accountant
        )

    clients = Clients(tiny())
    clients.start(ReplyGuard(clients.audit(accounted(fed_avg()))), rounds=2)
    assert accountant.num_releases == 2
    assert len(clients.records) == 2 * CLIENTS
    with pytest.raises(ValueError, match=r"requires a strategy using FedAvg\.aggregate_train"):
        accounted(clients.audit(fed_avg()))


def test_a_guard_keeps_a_round_that_a_wrapper_would_skip(tiny: Tiny) -> None:
    """Flower's wrappers drop a round with a failed client; the guard leaves the client out."""
    clients = Clients(tiny(), broken=[1])
    skipped = clients.start(clients.audit(fixed_on_server(fed_avg())))
    assert not skipped
    kept = clients.start(ReplyGuard(clients.audit(fixed_on_server(fed_avg()))))
    assert kept.keys() == dict(clients.model.named_parameters()).keys()
