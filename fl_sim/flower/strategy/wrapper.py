"""A Flower strategy that passes everything on to another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.serverapp.strategy.result import Result


class Wrapper(Strategy):
    """A strategy that passes everything on to another."""

    def __init__(self, base: Strategy) -> None:
        if not isinstance(base, Strategy):
            raise TypeError(
                f"{type(self).__name__} wraps a strategy of flwr.serverapp.strategy, Flower's "
                f"message API, found {type(base).__module__}.{type(base).__name__}"
            )
        self.base = base

    def start(self, *args: Any, **kwargs: Any) -> Result:
        """Run the strategy, as `Strategy.start`, and tell all wrappers when it has ended."""
        try:
            result: Result = super().start(*args, **kwargs)
            return result
        finally:
            self.end_run()

    def end_run(self) -> None:
        """Close what a run has opened; called at its end, however it ended."""
        if isinstance(self.base, Wrapper):
            self.base.end_run()

    def note_replies(self, replies: Sequence[Message]) -> None:
        """See well-formed replies as they came, before an outer wrapper makes them alike."""
        if isinstance(self.base, Wrapper):
            self.base.note_replies(replies)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Pass on."""
        return self.base.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Pass on."""
        return self.base.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Pass on."""
        return self.base.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Pass on."""
        return self.base.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Pass on."""
        self.base.summary()
