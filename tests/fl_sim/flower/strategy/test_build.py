"""Every strategy trains the same with the audit as without, and goes on the same after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, Krum, Strategy

from fl_sim.errors import UserError
from fl_sim.flower.engines import OnProgress
from fl_sim.flower.run import run
from fl_sim.flower.strategy import build_strategy
from fl_sim.scenario import Scenario
from fl_sim.scenario.sections import STRATEGIES

Tiny = Callable[..., Scenario]
OutcomeOf = Callable[[Path], dict[str, str | bytes]]
CLASSES: dict[str, type[Strategy]] = {
    "fedavg": FedAvg,
    "fedadam": FedAdam,
    "krum": Krum,
    "flwr.serverapp.strategy:FedMedian": FedMedian,
}
# Three of five clients each round, so that samples and the order of replies count.
SETTING = ("data.clients=5", "client.fraction=0.6", "images=1")
every_strategy = pytest.mark.parametrize("name", CLASSES)


def checkpoint_of(folder: Path) -> dict[str, bytes]:
    """Return the files that the last round left: the global model and the strategy's state."""
    return {path.name: path.read_bytes() for path in (folder / "checkpoint").iterdir()}


def accuracies_of(folder: Path) -> list[tuple[float, float]]:
    lines = map(json.loads, (folder / "rounds.jsonl").read_text().splitlines())
    return [(line["accuracy"], line["loss"]) for line in lines]


def stop_in(server_round: int) -> OnProgress:
    def stop(current: int, replies: int, clients: int) -> None:
        if current == server_round:
            raise KeyboardInterrupt

    return stop


def test_every_built_in_strategy_is_here() -> None:
    assert set(STRATEGIES) == {name for name in CLASSES if ":" not in name}


@every_strategy
def test_a_name_builds_its_class(name: str) -> None:
    assert type(build_strategy(name, {})) is CLASSES[name]


@every_strategy
def test_the_audit_changes_no_bit(name: str, tiny: Tiny, tmp_path: Path) -> None:
    strategy = f"server.strategy={name}"
    run(tiny(strategy, *SETTING), tmp_path / "audited")
    run(tiny(strategy, *SETTING, "attack=[]"), tmp_path / "plain")
    assert len((tmp_path / "audited" / "leakage.jsonl").read_text().splitlines()) == 3 * 3
    assert not (tmp_path / "plain" / "leakage.jsonl").exists()
    assert checkpoint_of(tmp_path / "audited") == checkpoint_of(tmp_path / "plain")
    assert accuracies_of(tmp_path / "audited") == accuracies_of(tmp_path / "plain")


def test_strategies_train_different_models(tiny: Tiny, tmp_path: Path) -> None:
    """Otherwise the comparison above would compare nothing."""
    for number, name in enumerate(CLASSES):
        run(tiny(f"server.strategy={name}", *SETTING, "attack=[]"), tmp_path / str(number))
    losses = {accuracies_of(tmp_path / str(number))[-1][1] for number in range(len(CLASSES))}
    assert len(losses) == len(CLASSES)


@every_strategy
@pytest.mark.parametrize("attack", ["", "attack=[]"], ids=["audited", "plain"])
def test_a_resumed_run_is_an_unbroken_one(
    name: str, attack: str, tiny: Tiny, outcome_of: OutcomeOf, tmp_path: Path
) -> None:
    scenario = tiny(f"server.strategy={name}", *SETTING, *filter(None, [attack]))
    run(scenario, tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        run(scenario, tmp_path / "broken", on_progress=stop_in(3))
    assert len(accuracies_of(tmp_path / "broken")) == 3  # the initial model and two rounds
    run(scenario, tmp_path / "broken", resume=True)
    assert outcome_of(tmp_path / "broken") == outcome_of(tmp_path / "unbroken")


def test_krum_takes_the_number_of_malicious_clients(tiny: Tiny, tmp_path: Path) -> None:
    strategy = build_strategy("krum", {"num_malicious_nodes": 1})
    assert isinstance(strategy, Krum) and strategy.num_malicious_nodes == 1
    run(tiny("server.strategy=krum", "server.options.num_malicious_nodes=1"), tmp_path)
    with pytest.raises(UserError, match=r"'krum': unknown option 'malicious'; .*num_malicious"):
        build_strategy("krum", {"malicious": 1})
