"""TensorBoard's own reader finds what the tracker wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fl_sim.errors import UserError
from fl_sim.flower.run import run
from fl_sim.scenario import Scenario
from fl_sim.trackers.feed import build_trackers

pytest.importorskip("tensorboard")
Tiny = Callable[..., Scenario]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def test_curves_are_those_of_the_run_also_when_it_goes_on(tiny: Tiny, tmp_path: Path) -> None:
    tracked = 'tracker=[{name="tensorboard"}]'
    folder = run(tiny("rounds=1", tracked), tmp_path / "run")
    run(tiny("rounds=2", tracked), tmp_path / "run", resume=True)
    found = curves(folder / "tensorboard")
    assert [step for step, _ in found["accuracy"]] == [0, 1, 2]
    assert found["attack.0/labels_right"] == [(1, 1.0), (2, 1.0)]


def test_a_folder_must_have_a_name() -> None:
    with pytest.raises(UserError, match="tracker 'tensorboard': folder must name a folder"):
        build_trackers([("tensorboard", {"folder": ""})])
