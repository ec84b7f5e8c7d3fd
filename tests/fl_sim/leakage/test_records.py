"""Lines of a run's logs: what is written, what a kill leaves, and what resuming cuts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fl_sim.leakage.records import SCHEMA, LeakageRecord, append_lines, read_lines, truncate_after

WHOLE = '{"round": 1, "reason": "ε"}\n{"round": 2}\n'


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "leakage.jsonl"


def test_a_record_is_one_flat_line() -> None:
    line = LeakageRecord(round=3, client=1, label_reason="two\nlines", psnr_db=50.5).to_json()
    assert "\n" not in line
    values = json.loads(line)
    assert (values["schema"], values["round"], values["client"]) == (SCHEMA, 3, 1)
    assert (values["psnr_db"], values["label_reason"]) == (50.5, "two\nlines")
    assert not [value for value in values.values() if isinstance(value, (dict, list))]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), None])
def test_what_is_not_finite_becomes_null(value: float | None) -> None:
    line = LeakageRecord(round=1, client=None, label_linf=value).to_json()
    assert json.loads(line, parse_constant=pytest.fail)["label_linf"] is None


def test_lines_come_back(log: Path) -> None:
    records = [LeakageRecord(round=r, client=0, label_reason="größer") for r in (1, 2)]
    append_lines(log, [records[0].to_json()])
    append_lines(log, (record.to_json() for record in records[1:]))
    append_lines(log, [])
    assert [LeakageRecord(**line) for line in read_lines(log)] == records


def test_lines_are_on_the_disk_when_append_returns(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: sizes.append(os.fstat(file).st_size))
    append_lines(log, ['{"a": 1}', '{"a": 2}'])
    assert sizes == [18]


def test_a_missing_file_has_no_lines(log: Path) -> None:
    assert read_lines(log) == []
    truncate_after(log, lambda line: True)
    assert not log.exists()


@pytest.mark.parametrize(
    "torn",
    [
        b"",
        b"{",
        b'{"round": 3}',
        b'{"round": 3, "reason": "\xce',  # half of an ε
        b'{"round": 3, "rea\n',
        b'{"round": 3, "reason": "\xce\n',
        b"\0\0\0\0\n",
        b"3\n",
    ],
)
def test_a_torn_last_line_is_left_out(log: Path, torn: bytes) -> None:
    log.write_bytes(WHOLE.encode() + torn)
    assert [line["round"] for line in read_lines(log)] == [1, 2]
    truncate_after(log, lambda line: True)
    assert log.read_bytes() == WHOLE.encode()


def test_every_cut_through_a_file_can_be_read(log: Path) -> None:
    whole = WHOLE.encode()
    for length in range(len(whole) + 1):
        log.write_bytes(whole[:length])
        assert len(read_lines(log)) == whole[:length].count(b"\n")


@pytest.mark.parametrize(
    "text", ['{"a": 1}\nnot json\n{"a": 2}\n', '{"a": 1}\nnot json\n{"a"', '{"a": 1}\n[2]\n{}\n']
)
def test_a_broken_line_before_the_last_is_an_error(log: Path, text: str) -> None:
    log.write_text(text)
    with pytest.raises(ValueError, match=r"leakage\.jsonl: line 2 must be a JSON object, found b'"):
        read_lines(log)
    with pytest.raises(ValueError, match="line 2"):
        truncate_after(log, lambda line: True)
    assert log.read_text() == text


@pytest.mark.parametrize(
    ("committed", "kept"), [(0, []), (1, [1, 1]), (2, [1, 1, 2]), (9, [1, 1, 2, 3, 1])]
)
def test_truncation_keeps_the_leading_run(log: Path, committed: int, kept: list[int]) -> None:
    append_lines(log, [json.dumps({"round": r}) for r in (1, 1, 2, 3, 1)])

    def keep(line: dict[str, Any]) -> bool:
        return bool(line["round"] <= committed)

    truncate_after(log, keep)
    assert [line["round"] for line in read_lines(log)] == kept
    assert os.listdir(log.parent) == [log.name]


def test_a_kill_during_truncation_leaves_the_old_file(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    log.write_text(WHOLE)
    for point in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, point, killed)
            with pytest.raises(KeyboardInterrupt):
                truncate_after(log, lambda line: False)
        assert log.read_text() == WHOLE
    truncate_after(log, lambda line: False)
    assert log.read_bytes() == b""
