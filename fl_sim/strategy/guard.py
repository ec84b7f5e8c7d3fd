"""`ReplyGuard`: validates, orders and samples on behalf of any Flower strategy."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.proto.node_pb2 import NodeInfo  # the type that Grid.get_nodes returns
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore.run import Run

from fl_sim.strategy.wrapper import Wrapper

WEIGHT_KEY = "num-examples"
FLOATS = (np.float16, np.float32, np.float64)
LONGEST_REASON = 300


class ReplyGuard(Wrapper):
    """Quarantine malformed replies and put the rest in order, before a strategy sees them.

    Without it, one reply with a missing array ends a Flower run, and one with NaN ends in the
    global model. Clients are sampled from `sample`, not by the strategy's own draw from Python's
    global generator, and replies are ordered by client, so that float sums don't depend on who was
    faster.

    `accepted` is the number of replies handed on in the last round.

    Args:
        base: the strategy to guard.
        clients: node id -> client number. None: nodes are numbered by their id's rank.
        sample: server round -> the clients that take part; None leaves it to the strategy.
        on_quarantine: called with (server round, client, reason) for each reply left out.
        round_offset: rounds that an earlier, interrupted run has finished.
    """

    def __init__(
        self,
        base: Strategy,
        *,
        clients: Mapping[int, int] | None = None,
        sample: Callable[[int], Sequence[int]] | None = None,
        on_quarantine: Callable[[int, int, str], None] | None = None,
        round_offset: int = 0,
    ) -> None:
        super().__init__(base)
        self.clients = clients
        self.sample = sample
        self.on_quarantine = on_quarantine
        self.round_offset = round_offset
        self._expected: dict[str, tuple[int, ...]] = {}
        self._asked: set[int] = set()
        self.accepted = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Offer the strategy the sampled clients, and order its messages by client."""
        server_round += self.round_offset
        if self.sample is not None:
            chosen = set(self.sample(server_round))
            nodes = [n for n in sorted(grid.get_node_ids()) if self._is_among(n, chosen)]
            if not nodes:  # a strategy would wait for them for ever
                self._asked = set()
                return []
            grid = _SubGrid(grid, nodes)
        with contextlib.nullcontext() if self.sample is None else _python_draws(server_round):
            messages = list(self.base.configure_train(server_round, arrays, config, grid))
        messages.sort(key=lambda message: self._client(message.metadata.dst_node_id))
        self._asked = {message.metadata.dst_node_id for message in messages}
        self._expected = {name: tuple(array.shape) for name, array in arrays.items()}
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Hand the well-formed replies on, by client; without any, leave the model as it is."""
        server_round += self.round_offset
        ordered = sorted(replies, key=lambda reply: self._client(reply.metadata.src_node_id))
        problems = [self._problem(reply) for reply in ordered]
        good = [r for r, problem in zip(ordered, problems, strict=True) if problem is None]
        usual = _majority([_layout(reply.content) for reply in good])
        kept = []
        for reply, problem in zip(ordered, problems, strict=True):
            if problem is None and _layout(reply.content) != usual:
                problem = f"its records and metrics are {', '.join(_layout(reply.content))}, "
                problem += f"most clients' {', '.join(usual)}"
            if problem is None:
                kept.append(reply)
            else:
                self._report(server_round, reply.metadata.src_node_id, problem)
        for node in sorted(self._asked - {r.metadata.src_node_id for r in ordered}):
            self._report(server_round, node, "the client didn't reply in time")
        self.accepted = len(kept)
        if not kept:
            return None, None
        return self.base.aggregate_train(server_round, kept)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Pass on, counting from the first run's first round."""
        return self.base.configure_evaluate(server_round + self.round_offset, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Pass on, counting from the first run's first round."""
        return self.base.aggregate_evaluate(server_round + self.round_offset, replies)

    def _is_among(self, node: int, chosen: set[int]) -> bool:
        """Say whether a node is a chosen client; one that joined late is none."""
        known = self.clients is None or node in self.clients
        return known and self._client(node) in chosen

    def _client(self, node: int) -> int:
        return node if self.clients is None else self.clients[node]

    def _report(self, server_round: int, node: int, reason: str) -> None:
        if self.on_quarantine is not None:
            # A client may have written parts of it.
            sentence = " ".join(reason.split())[:LONGEST_REASON]
            self.on_quarantine(server_round, self._client(node), sentence)

    def _problem(self, reply: Message) -> str | None:
        """Return what is wrong with a reply, in one sentence, or None."""
        if reply.has_error():
            return f"the client failed: {_first_line(reply.error.reason)}"
        records = list(reply.content.array_records.values())
        if len(records) != 1:
            return f"it must hold one array record, found {len(records)}"
        return _array_problem(records[0], self._expected) or _metric_problem(reply.content)


def _array_problem(record: ArrayRecord, expected: Mapping[str, tuple[int, ...]]) -> str | None:
    missing, extra = expected.keys() - record.keys(), record.keys() - expected.keys()
    if missing or extra:
        name = min(missing or extra)
        return f"array {name!r} is {'missing' if missing else 'not one that was sent'}"
    for name, array in record.items():
        if tuple(array.shape) != expected[name]:
            return (
                f"array {name!r} must have the shape {expected[name]}, found {tuple(array.shape)}"
            )
        try:
            values = np.asarray(array.numpy())
        except Exception as error:  # a client's bytes can make NumPy raise anything
            return f"array {name!r} can't be read: {_first_line(str(error))}"
        if values.shape != expected[name] or values.dtype not in FLOATS:
            return (
                f"array {name!r} must hold {expected[name]} floats of 16, 32 or 64 bits, found "
                f"{values.shape} of {values.dtype}"
            )
        if not np.isfinite(values).all():
            return f"array {name!r} has NaN or infinite entries"
    return None


def _metric_problem(content: RecordDict) -> str | None:
    records = list(content.metric_records.values())
    if len(records) != 1:
        return f"it must hold one metric record, found {len(records)}"
    weight = records[0].get(WEIGHT_KEY)
    if not isinstance(weight, (int, float)):
        return f"metric {WEIGHT_KEY!r} must be a number, found {weight}"
    if not (np.isfinite(weight) and weight > 0):
        return f"metric {WEIGHT_KEY!r} must be above 0 and finite, found {weight}"
    for name, value in records[0].items():
        if not np.isfinite(np.asarray(value, dtype=float)).all():
            return f"metric {name!r} must be finite, found {value}"
    return None


def _layout(content: RecordDict) -> tuple[str, ...]:
    """Return the names of a reply's records and of its metrics, a list's with its length.

    Strategies look records up by the first reply's names, and add lists up entry by entry.
    """
    [metrics] = content.metric_records.values()
    entries = [
        f"{name}[{len(value)}]" if isinstance(value, list) else name
        for name, value in metrics.items()
    ]
    return (*content.array_records, *content.metric_records, *sorted(entries))


def _majority(layouts: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the most frequent layout, the first of those that tie."""
    return max(layouts, key=layouts.count, default=())


def _first_line(text: str | None) -> str:
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"


@contextlib.contextmanager
def _python_draws(server_round: int) -> Iterator[None]:
    """Let a strategy draw from Python's global generator, by the round; then put it back."""
    before = random.getstate()
    random.seed(server_round)
    try:
        yield
    finally:
        random.setstate(before)


class _SubGrid(Grid):
    """A grid that shows some of another's nodes."""

    def __init__(self, grid: Grid, nodes: Sequence[int]) -> None:
        self._grid = grid
        self._nodes = nodes

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return self._grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._nodes)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node) for node in self._nodes]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout)
