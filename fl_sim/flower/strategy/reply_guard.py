"""`ReplyGuard`: validates, orders and samples on behalf of any Flower strategy."""

from __future__ import annotations

import contextlib
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.proto.node_pb2 import NodeInfo  # the type that Grid.get_nodes returns
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.serverapp.strategy.result import Result
from flwr.supercore.run import Run

from fl_sim.errors import NothingAccepted
from fl_sim.flower.strategy.reply import Expected, align, problem_of
from fl_sim.flower.strategy.wrapper import Wrapper

logger = logging.getLogger(__name__)
LONGEST_REASON = 300


class ReplyGuard(Wrapper):
    """Quarantine malformed replies and put the rest in order, before a strategy sees them.

    Without it, one reply with a missing array ends a Flower run, and one with NaN ends in the
    global model. What was sent may come back, whatever its type; numbers must be finite where what
    was sent is. What only some replies hold beside that (another metric, another array) is left
    out of them. Clients are sampled from `sample`, not by the strategy's own draw from Python's
    global generator, and replies are ordered by client, so that float sums don't depend on who was
    faster.

    A round that loses all its replies is logged as an error, and leaves the model as it is.

    `accepted` is the number of replies handed on in the last round, `accepted_in_all` in all.

    Args:
        base: the strategy to guard.
        clients: node id -> client number. None: nodes are numbered by their id's rank.
        sample: server round -> the clients that take part; None leaves it to the strategy.
        on_quarantine: called with (server round, client, reason) for each reply left out; without
            it, each is logged as a warning.
        round_offset: rounds that an earlier, interrupted run has finished.
        accepted_before: replies handed on in these.
    """

    def __init__(
        self,
        base: Strategy,
        *,
        clients: Mapping[int, int] | None = None,
        sample: Callable[[int], Sequence[int]] | None = None,
        on_quarantine: Callable[[int, int, str], None] | None = None,
        round_offset: int = 0,
        accepted_before: int = 0,
    ) -> None:
        super().__init__(base)
        self.clients = clients
        self.sample = sample
        self.on_quarantine = on_quarantine
        self.round_offset = round_offset
        self.accepted = 0
        self.accepted_in_all = accepted_before
        self._expected: dict[int, Expected] = {}
        self._reasons: Counter[str] = Counter()

    def start(self, *args: Any, **kwargs: Any) -> Result:
        """Run the strategy, as `Strategy.start`.

        Raises:
            NothingAccepted: no reply of any round was.
        """
        result: Result = super().start(*args, **kwargs)
        if not self.accepted_in_all and self._reasons:
            reason, _ = self._reasons.most_common(1)[0]
            raise NothingAccepted(
                "no reply was accepted in any round, so the model is the initial one; the "
                f"commonest reason: {reason}"
            )
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Offer the strategy the sampled clients, and order its messages by client."""
        server_round += self.round_offset
        if self.sample is not None:
            chosen = set(self.sample(server_round))
            nodes = [n for n in sorted(grid.get_node_ids()) if self._is_among(n, chosen)]
            if not nodes:  # a strategy would wait for them for ever
                self._expected = {}
                return []
            grid = _SubGrid(grid, nodes)
        with contextlib.nullcontext() if self.sample is None else _python_draws(server_round):
            messages = list(self.base.configure_train(server_round, arrays, config, grid))
        messages.sort(key=lambda message: self._client(message.metadata.dst_node_id))
        # Mostly one record for all; a strategy may send different ones.
        records = {id(m.content): m.content for m in messages}
        expected = {key: Expected.of(content, arrays) for key, content in records.items()}
        self._expected = {m.metadata.dst_node_id: expected[id(m.content)] for m in messages}
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Hand the well-formed replies on, by client; without any, leave the model as it is."""
        server_round += self.round_offset
        ordered = sorted(replies, key=lambda reply: self._client(reply.metadata.src_node_id))
        needed = _metric_keys(self.base)
        kept, reasons = [], []
        for reply in ordered:
            node = reply.metadata.src_node_id
            problem = problem_of(reply, self._expected.get(node, Expected({})), needed)
            if problem is None:
                kept.append(reply)
            else:
                reasons.append(self._report(server_round, node, problem))
        silent = sorted(self._expected.keys() - {r.metadata.src_node_id for r in ordered})
        late = "the client didn't reply in time"
        reasons += [self._report(server_round, node, late) for node in silent]
        self.accepted = len(kept)
        self.accepted_in_all += len(kept)
        self._reasons.update(reasons)
        if not kept:
            self._log_loss(server_round, reasons)
            return None, None
        self.note_replies(kept)
        for dropped in align(kept, self._expected, needed[0]):
            logger.warning("round %d: %s", server_round, dropped)
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

    def _report(self, server_round: int, node: int, reason: str) -> str:
        """Tell of a reply that is left out; return why, in one sentence."""
        # A client may have written parts of it.
        sentence = " ".join(reason.split())[:LONGEST_REASON]
        client = self._client(node)
        if self.on_quarantine is not None:
            self.on_quarantine(server_round, client, sentence)
        else:
            logger.warning(
                "round %d: reply of client %d left out: %s", server_round, client, sentence
            )
        return sentence

    def _log_loss(self, server_round: int, reasons: Sequence[str]) -> None:
        if reasons:
            logger.error(
                "round %d: all %d replies were left out, and the model stays as it was; the "
                "commonest reason: %s",
                server_round,
                len(reasons),
                Counter(reasons).most_common(1)[0][0],
            )


def _metric_keys(strategy: Strategy) -> tuple[str, ...]:
    """Return the metrics that a strategy, or one that it wraps, reads from every reply.

    The first is what it weighs replies by.
    """
    weight, others = "num-examples", []
    inner: Any = strategy
    while inner is not None:
        weight = getattr(inner, "weighted_by_key", weight)
        others += [inner.train_loss_key] if hasattr(inner, "train_loss_key") else []
        inner = getattr(inner, "base", None) or getattr(inner, "strategy", None)
    return (weight, *others)


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
