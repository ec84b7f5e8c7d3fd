"""Claims of a chain, and what a run has come to by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from defenses import Defense, LocalPlan, Privacy
from fl_sim.errors import UserError
from fl_sim.federation import Federation
from fl_sim.privacy import spent_epsilon
from fl_sim.privacy.claims import claims_of
from fl_sim.privacy.spending import PrivacySpending
from fl_sim.scenario import Scenario

Tiny = Callable[..., Scenario]
PLAN = LocalPlan(local_steps=2, batch_size=3, share_size=40)


@dataclass(frozen=True)
class Claims(Defense):
    """Claims what it is told to."""

    claim: Any

    def privacy(self, plan: LocalPlan) -> Any:
        """Claim."""
        return self.claim


@dataclass(frozen=True)
class Miscounts(Defense):
    """Claims a rate that depends on the plan, above 1 for small shares."""

    def privacy(self, plan: LocalPlan) -> Privacy:
        """Claim."""
        return Privacy(1.0, noise=1.0, sampling=100 * plan.batch_size / plan.share_size)


def named(*stages: Defense) -> list[tuple[str, Defense]]:
    return [(f"mine:{chr(ord('A') + index)}", stage) for index, stage in enumerate(stages)]


def test_stages_that_claim_nothing_are_left_out() -> None:
    update = Privacy(1.0, noise=2.0)
    assert claims_of(named(Defense(), Claims(update), Defense()), PLAN) == (update,)
    assert claims_of(named(Defense()), PLAN) == ()


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        (
            [Claims({"noise": 1.0})],
            "defense 'mine:A': privacy must return a Privacy or None, found {'noise': 1.0}",
        ),
        (
            [Defense(), Miscounts()],
            r"defense 'mine:B': its privacy claim's sampling must be in \[0, 1\], found 7.5",
        ),
        (
            [
                Claims(Privacy(1.0, noise=1.0)),
                Defense(),
                Claims(Privacy(1.0, noise=1.0, unit="example")),
            ],
            r"must have one unit, found 'update' of defense.0 \(mine:A\) and 'example' of "
            r"defense.2 \(mine:C\)",
        ),
    ],
)
def test_what_cant_be_composed_is_one_sentence(stages: list[Defense], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        claims_of(named(*stages), PLAN)


def spending_of(tiny: Tiny, *overrides: str) -> PrivacySpending:
    return PrivacySpending.of(Federation.of(tiny(*overrides)))


def test_the_claim_of_a_chain_counts_whatever_its_place(tiny: Tiny) -> None:
    stages = [
        '{name="label-smoothing", smoothing=0.1}',
        '{name="dp-noise", clipping_norm=0.1, noise_multiplier=5.0}',
    ]
    for order in (stages, stages[::-1]):
        spending = spending_of(tiny, f"defense=[{', '.join(order)}]")
        assert spending.epsilon(3) == spent_epsilon(Privacy(2.0, noise=5.0), 3)


def test_without_claims_there_is_no_epsilon(tiny: Tiny) -> None:
    assert spending_of(tiny).epsilon(3) is None
    clipping = 'defense=[{name="dp-noise", clipping_norm=1.0, noise_multiplier=0.0}]'
    assert spending_of(tiny, clipping).epsilon(3) is None


def test_the_client_of_whom_most_is_told_counts(tiny: Tiny) -> None:
    """A plug-in's sampled steps: the smallest share is seen at the largest rate."""
    spending = spending_of(
        tiny,
        'defense=[{name="third_party:NoisySteps", noise=4.0}]',
        "client.local_steps=3",
        "data.partition=dirichlet",
        "data.alpha=1.0",
    )
    smallest = min(len(share) for share in spending.federation.shares)
    claim = Privacy(1.0, noise=4.0, sampling=1 / smallest, unit="example")
    assert len(set(spending.claims)) > 1
    assert spending.epsilon(2) == spent_epsilon(claim, 6)


def test_epochs_take_every_example_whatever_rate_is_claimed(tiny: Tiny) -> None:
    """A batch that covers the share is no rate above 1, either."""
    noisy = 'defense=[{name="third_party:NoisySteps", noise=4.0}]'
    for size, steps in ((7, 3), (30, 1)):
        batches = (f"client.batch_size={size}", noisy)
        spending = spending_of(tiny, "client.local_epochs=2", *batches)
        claim = Privacy(1.0, noise=4.0, unit="example", releases=2 * steps)
        assert set(spending.claims) == {(claim,)}
        assert spending.epsilon(2) == spent_epsilon(claim, 2)
    never = Claims(Privacy(1.0, noise=1.0, sampling=0.0))
    [kept] = claims_of(named(never), replace(PLAN, local_epochs=1))
    assert kept.sampling == 0.0


def test_a_smaller_rate_but_more_rounds_may_be_most(tiny: Tiny) -> None:
    class Sampled:
        """Client 0 takes part in two rounds, client 1 in all."""

        scenario = tiny()

        def sampled_clients(self, server_round: int) -> list[int]:
            return [0, 1] if server_round <= 2 else [1]

    often, seldom = Privacy(1.0, noise=2.0, sampling=0.5), Privacy(1.0, noise=2.0, sampling=0.8)
    spending = PrivacySpending(Sampled(), [(seldom,), (often,)])  # type: ignore[arg-type]
    assert spending.epsilon(2) == spent_epsilon(seldom, 2)
    assert spending.epsilon(40) == spent_epsilon(often, 40)
