"""The run folder that an audit of one's own app leaves, for `fl-sim report`."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_sim.errors import UserError
from fl_sim.leakage.findings import Finding
from fl_sim.leakage.kept_tensors import keep_some
from fl_sim.leakage.records import append_lines, read_lines
from fl_sim.leakage.table import table_text
from fl_sim.origin import AUDIT, when_and_with

LABELS_KEPT = 20
"""Most labels of a round that are kept as a whole; records hold the class of each."""
logger = logging.getLogger("flwr")  # whose lines a Flower app's user sees


class AuditFolder:
    """Writes `scenario.json`, `leakage.jsonl`, `rounds.jsonl` and `images/` of one audited run.

    The folder is made when the first round begins, so that an app that never starts leaves none.

    Args:
        path: a folder that is new or empty.
        described: what is audited, for `scenario.json`.
        keep_images: most images of a round that are kept; None keeps all.

    Raises:
        UserError: the folder holds something, or can't be one.
    """

    def __init__(
        self, path: Path, described: Mapping[str, Any], *, keep_images: int | None
    ) -> None:
        _require_empty(path)
        self.path = path
        self._described: dict[str, Any] = {
            "scenario": {"name": path.resolve().name, **described},
            "kind": AUDIT,
        }
        self._leakage, self._images = path / "leakage.jsonl", path / "images"
        self._keep_images = keep_images
        self._last_round = 0
        self._started = time.perf_counter()
        self._has_ended = True

    def begin_round(self, server_round: int) -> None:
        """Make the folder, if this is the first round.

        Raises:
            UserError: the folder holds another run, or can't be written.
        """
        if server_round <= self._last_round:
            raise UserError(
                f"out {self.path} holds round {server_round} already: a second run needs a "
                "LeakageAudit of its own, with another out"
            )
        if not self._last_round:
            self._make()
        self._last_round, self._started = server_round, time.perf_counter()
        self._has_ended = False

    def end_round(self, findings: Sequence[Finding], *, replies: int, left_out: int) -> None:
        """Write a round down: labels and images, then records, last its line.

        Args:
            findings: of all attacks.
            replies: how many clients answered.
            left_out: how many failed.
        """
        keep_some(self._images, findings, labels=LABELS_KEPT, images=self._keep_images)
        append_lines(self._leakage, [finding.record.to_json() for finding in findings])
        line = {
            "round": self._last_round,
            "replies": replies,
            "quarantined": left_out,
            "seconds": time.perf_counter() - self._started,
        }
        append_lines(self.path / "rounds.jsonl", [json.dumps(line)])

    def end(self) -> None:
        """Log what the run leaked, once, and how to make the page of it."""
        if self._has_ended:
            return
        self._has_ended = True
        from fl_sim.report import headline  # it loads matplotlib, which takes a second

        has_truth = bool(self._described["scenario"]["has_judge"])
        table = table_text(read_lines(self._leakage), has_truth=has_truth)
        for line in (*table.splitlines(), "", headline(self.path)):
            logger.info("%s", line)
        logger.info("`fl-sim report %s` makes a page of this audit", self.path.absolute())

    def _make(self) -> None:
        _require_empty(self.path)
        try:
            self._images.mkdir(parents=True)
            described = json.dumps(self._described | when_and_with(), indent=2) + "\n"
            with (self.path / "scenario.json").open("x", encoding="utf-8") as file:
                file.write(described)
        except FileExistsError as error:
            raise UserError(f"out {self.path} is in use by another run: name another") from error
        except OSError as error:
            raise UserError(f"out {self.path} can't be written: {error.strerror}") from error


def _require_empty(path: Path) -> None:
    """Raise unless a folder is new or empty: a run never adds to another.

    Raises:
        UserError: it isn't.
    """
    rule = f"out must be a new or an empty folder, and {path}"
    if path.exists() and not path.is_dir():
        raise UserError(f"{rule} is a file: name another")
    held = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    if "scenario.json" in held:
        raise UserError(f"{rule} holds another run: name another, or remove it")
    if held:
        raise UserError(f"{rule} holds {held[0]!r}: name another")
