"""TensorBoard: curves of accuracy, ε and leakage, in the run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from fl_sim.trackers.base import TrackedRun, Tracker

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError as error:
    raise ImportError(
        "tracker 'tensorboard' needs its package: pip install 'fl-sim[tensorboard]'"
    ) from error


class TensorBoard(Tracker):
    """Write event files; `tensorboard --logdir runs` shows all runs beside each other.

    Args:
        folder: where to write, absolute or in the run folder.
    """

    def __init__(self, *, folder: str = "tensorboard") -> None:
        if not folder:
            raise ValueError("folder must name a folder, found ''")
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def start(self, run: TrackedRun) -> None:
        """Open the event file; of a run that goes on, points from its last round on are void."""
        folder = run.path / self._folder
        self._writer = SummaryWriter(str(folder), purge_step=run.committed)
        if run.committed is None:
            text = json.dumps(run.scenario, indent=2)
            self._writer.add_text("scenario", f"```json\n{text}\n```", 0)

    def log_round(self, server_round: int, numbers: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        assert self._writer is not None
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, server_round)
        self._writer.flush()

    def finish(self, files: Sequence[Path]) -> None:
        """Name the files that the run left, and close the event file."""
        assert self._writer is not None
        listed = "\n".join(f"- `{path.absolute()}`" for path in files)
        self._writer.add_text("files", listed)
        self._writer.close()
