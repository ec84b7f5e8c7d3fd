"""The ledger writes a round's records, images, checkpoint and line, in this order, once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_sim import run_folder
from fl_sim.flower.round_ledger import Measured, RoundLedger
from fl_sim.leakage.findings import Finding
from fl_sim.leakage.records import LeakageRecord
from fl_sim.run_folder import RunFolder
from fl_sim.scenario import Scenario

Tiny = Callable[..., Scenario]
MEASURED = Measured(accuracy=0.5, loss=float("inf"), epsilon=None, replies=2)
WEIGHTS = {"weight": np.zeros(2)}


def finding(client: int, example: int | None, attack: int = 0) -> Finding:
    record = LeakageRecord(round=1, client=client, attack=attack, example=example)
    return Finding(record, {"label": torch.zeros(4)})


def lines_of(folder: RunFolder, log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.path / log).read_text().splitlines()]


def test_a_round_is_written_in_the_order_of_clients_attacks_and_examples(
    tiny: Tiny, tmp_path: Path
) -> None:
    with RunFolder.open(tmp_path, tiny(), resume=False) as folder:
        ledger = RoundLedger(folder, defenses="mixup", images=2)
        found = [finding(2, None), finding(2, 1), finding(2, 0), finding(0, 0, 1), finding(0, 0)]
        ledger.add_findings(1, found)
        ledger.add_quarantined(1, 1, "it holds NaN")
        ledger.commit(1, MEASURED, WEIGHTS, {})
        records = lines_of(folder, "leakage.jsonl")
        assert [(r["client"], r["attack"], r["example"]) for r in records] == [
            (0, 0, 0),
            (0, 1, 0),
            (1, None, None),
            (2, 0, 0),
            (2, 0, 1),
            (2, 0, None),
        ]
        assert records[2]["label_reason"] == "reply left out: it holds NaN"
        assert records[2]["defenses"] == "mixup"
        [line] = lines_of(folder, "rounds.jsonl")
        assert line.pop("seconds") >= 0
        assert line == {
            "round": 1,
            "accuracy": 0.5,
            "loss": None,
            "epsilon": None,
            "replies": 2,
            "quarantined": 1,
        }
        # The row without an example has no true image beside it.
        names = {path.name for path in folder.images.iterdir()}
        assert names == {"r0001-c0002-a0-e1.npz", "r0001-c0000-a1-e0.npz"}


def test_a_committed_round_is_dropped_and_the_next_one_starts_empty(
    tiny: Tiny, tmp_path: Path
) -> None:
    with RunFolder.open(tmp_path, tiny(), resume=False) as folder:
        ledger = RoundLedger(folder, defenses="none", images=2, committed=1)
        ledger.add_findings(1, [finding(0, 0)])
        ledger.commit(1, MEASURED, WEIGHTS, {})
        assert not folder.rounds.exists()
        ledger.commit(2, MEASURED, WEIGHTS, {})
        ledger.commit(2, MEASURED, WEIGHTS, {})
        assert [line["round"] for line in lines_of(folder, "rounds.jsonl")] == [2]
        assert not folder.leakage.exists()


def test_the_line_that_commits_comes_last(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    append_lines = run_folder.append_lines

    def append(path: Path, lines: Any) -> None:
        written.append(path.name)
        written.extend(file.name for file in path.parent.glob("checkpoint/*.safetensors"))
        append_lines(path, lines)

    monkeypatch.setattr(run_folder, "append_lines", append)
    with RunFolder.open(tmp_path, tiny(), resume=False) as folder:
        ledger = RoundLedger(folder, defenses="none", images=2)
        ledger.add_findings(0, [finding(0, 0)])
        ledger.commit(0, MEASURED, WEIGHTS, {})
    assert written == ["leakage.jsonl", "rounds.jsonl", "round-00000.safetensors"]
