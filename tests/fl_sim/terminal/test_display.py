"""What waits for its attacks, as a bar shows it."""

from __future__ import annotations

import threading

from fl_sim.errors import UserError
from fl_sim.terminal.display import watch_backlog


def test_a_backlog_that_grows_and_shrinks_is_shown_as_done_of_all() -> None:
    counts, ended = [3, 5, 2, None, 0], threading.Event()
    shown: list[tuple[int, int]] = []

    def left() -> int:
        now = counts.pop(0)
        if not counts:
            ended.set()
        if now is None:
            raise UserError("a file is gone meanwhile")
        return now

    watch_backlog(left, lambda done, total: shown.append((done, total)), ended, seconds=0.0)
    assert shown == [(0, 3), (0, 5), (3, 5), (5, 5)]
