"""What belongs to a round of training until it is committed, and the order in which it is."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fl_sim.capture.backlog import Backlog
from fl_sim.flower.defended import Defended
from fl_sim.leakage.findings import Finding
from fl_sim.leakage.landing import land
from fl_sim.leakage.records import LeakageRecord
from fl_sim.run_folder import Arrays, RunFolder


@dataclass(frozen=True)
class Measured:
    """What the server measures at the end of a round.

    Args:
        accuracy: on the test images, in [0, 1].
        loss: mean on the test images; it may be infinite or NaN.
        epsilon: ε in nats so far; None without a guarantee.
        replies: number of replies that the round was made of.
        next_epsilon: ε after one more round; None where it has no target.
        canaries: what they bound from below, as `CanaryScores` names it; empty without any.
        defended: what the defenses of one client changed; None in rounds where it isn't measured.
    """

    accuracy: float
    loss: float
    epsilon: float | None
    replies: int
    next_epsilon: float | None = None
    canaries: Mapping[str, float | None] = field(default_factory=dict)
    defended: Defended | None = None


class RoundLedger:
    """Holds a round's findings, the replies left out and its start until the round is committed.

    The order is that of `fl_sim.run_folder`: records and images first, then the checkpoint, last
    the line that commits the round. Where attacks are left for later, all that the round found
    waits for them in `pending/`.

    Args:
        folder: of the run.
        defenses: the clients', in words, for the records.
        images: most findings of a round whose images are kept.
        committed: the last round that an earlier, interrupted run has committed; -1 for none.

    `backlog` takes what is left for later; None: nothing is.
    """

    def __init__(
        self, folder: RunFolder, *, defenses: str, images: int, committed: int = -1
    ) -> None:
        self._folder = folder
        self._defenses = defenses
        self._images = images
        self._committed = committed
        self.backlog: Backlog | None = None
        self._open()

    def _open(self) -> None:
        self._owed: dict[int, Sequence[int]] = {}
        self._findings: list[Finding] = []
        self._left_out: list[LeakageRecord] = []
        self._started = time.perf_counter()

    def add_findings(self, server_round: int, findings: Sequence[Finding]) -> None:
        """Take what an audit found in the round."""
        self._findings += findings

    def add_owed(self, client: int, plans: Sequence[int]) -> None:
        """Take the numbers of the attacks on a client that are left for after the round."""
        self._owed[client] = sorted({*self._owed.get(client, ()), *plans})

    def add_quarantined(self, server_round: int, client: int, reason: str) -> None:
        """Take a reply that was left out."""
        self._left_out.append(
            LeakageRecord(
                round=server_round,
                client=client,
                defenses=self._defenses,
                label_reason=f"reply left out: {reason}",
            )
        )

    def commit(
        self, server_round: int, measured: Measured, weights: Arrays, state: Mapping[str, Any]
    ) -> None:
        """Write the round down, unless it is already, and open the next one.

        Args:
            server_round: 0 for the initial model.
            measured: of the global model.
            weights: the global model's arrays.
            state: the strategy's, as `fl_sim.flower.strategy.state` packs it.
        """
        if server_round > self._committed:  # a resumed run starts at the end of a round
            self._write(server_round, measured, weights, state)
            self._committed = server_round
            if self.backlog is not None:
                self.backlog.go_on(server_round)
        self._open()

    def _write(
        self, server_round: int, measured: Measured, weights: Arrays, state: Mapping[str, Any]
    ) -> None:
        findings = [*self._findings, *map(Finding, self._left_out)]
        if self.backlog is None:
            self.land(findings)
        else:
            self.backlog.keep(server_round, findings, self._owed)
        line: dict[str, Any] = {
            "round": server_round,
            "accuracy": measured.accuracy,
            "loss": measured.loss if math.isfinite(measured.loss) else None,
            "epsilon": measured.epsilon,
            "replies": measured.replies,
            "quarantined": len(self._left_out),
            "seconds": time.perf_counter() - self._started,
            **measured.canaries,
        }
        if measured.next_epsilon is not None:
            line["next_epsilon"] = measured.next_epsilon
        if measured.defended is not None:
            line["update_snr_db"] = measured.defended.snr_db
            line["update_nonzero"] = measured.defended.nonzero
            line["update_bytes"] = measured.defended.sent_bytes
            line["unchanged_by"] = measured.defended.unchanged
        self._folder.commit(line, weights, state)

    def land(self, findings: Sequence[Finding]) -> None:
        """Write a whole round's findings to the log, and images of some."""
        land(findings, self._folder.log, self._folder.images, most=self._images)
