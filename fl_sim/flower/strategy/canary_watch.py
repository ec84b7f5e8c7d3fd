"""`CanaryWatch`: canaries' updates as the server receives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl_sim.flower.strategy.reply_content import tensors_of
from fl_sim.flower.strategy.wrapper import Wrapper
from fl_sim.privacy.canaries import CanaryScores


class CanaryWatch(Wrapper):
    """Shows canaries' updates to their scores, before a strategy changes anything.

    Args:
        base: the strategy.
        scores: gathers them.
        clients: node id -> client number.
    """

    def __init__(self, base: Strategy, scores: CanaryScores, clients: Mapping[int, int]) -> None:
        super().__init__(base)
        self.scores = scores
        self.clients = clients
        self._sent: dict[int, ArrayRecord] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what is sent to each canary."""
        messages = list(self.base.configure_train(server_round, arrays, config, grid))
        canaries = self.scores.federation.scenario.canaries
        self._sent = {
            node: message.content.array_records["arrays"]
            for message in messages
            if self.clients[node := message.metadata.dst_node_id] in canaries
        }
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Look at the canaries' replies, then pass all on."""
        replies = list(replies)
        for reply in replies:
            node = reply.metadata.src_node_id
            if node in self._sent:
                sent, found = (
                    tensors_of(record)
                    for record in (self._sent[node], reply.content.array_records["arrays"])
                )
                difference = {name: found[name].double() - sent[name].double() for name in sent}
                self.scores.take_update(self.clients[node], difference)
        return self.base.aggregate_train(server_round, replies)
