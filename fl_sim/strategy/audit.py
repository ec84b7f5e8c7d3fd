"""`LeakageAudit`: what a server learns from each update, beside any Flower strategy."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from attacks import Status
from fl_sim.audit import AttackPlan, Finding, Judge, audit_leak
from fl_sim.records import LeakageRecord, append_lines
from fl_sim.strategy.wrapper import Wrapper
from fl_sim.wire import LocalTraining, gradient_leak, load_tensors

if TYPE_CHECKING:
    from attacks import GradientLeak

logger = logging.getLogger(__name__)
Log = Callable[[int, list[Finding]], None]


class LeakageAudit(Wrapper):
    """Attack every client's update before the strategy aggregates it, and log what it leaks.

    The strategy gets the replies as they came; the aggregate is bit for bit what it would be
    without the audit. Put it around the strategy that sees raw updates: whatever the strategy adds
    afterwards doesn't protect the clients from the server.

    Args:
        base: any Flower strategy of the message API.
        model: the network; its weights are replaced by those that were sent.
        attacks: plans, names of label attacks, or pairs of a label and an image attack's names.
        training: how the clients train, as the server configured them.
        input_shape: (C, H, W) of one image.
        log: a path that gets one line of JSON for each record, or a function of the server round
            and its findings.
        clients: node id -> client number, for the records; None takes the node ids.
        defenses: the clients' defenses, in words, for the records.
        judge: holds the truth, in a simulation; None leaves the scores empty.
        seed: of the attacks' random draws.

    Raises:
        ValueError: an attack's name is unknown.

    Example:
        >>> from flwr.serverapp.strategy import FedAvg
        >>> strategy = LeakageAudit(
        ...     FedAvg(),
        ...     model=nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
        ...     attacks=["soft-label"],
        ...     training=LocalTraining(lr=0.1, batch_size=1),
        ...     input_shape=(1, 28, 28),
        ...     log="leakage.jsonl",
        ... )
    """

    def __init__(
        self,
        base: Strategy,
        *,
        model: nn.Module,
        attacks: Sequence[AttackPlan | str | tuple[str, str]],
        training: LocalTraining,
        input_shape: tuple[int, int, int],
        log: str | Path | Log,
        clients: Mapping[int, int] | None = None,
        defenses: str = "unknown",
        judge: Judge | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(base)
        self.model = model
        self.plans = [_plan(attack) for attack in attacks]
        self.training = training
        self.input_shape = input_shape
        self.log = log if callable(log) else _file_log(Path(log))
        self.clients = clients
        self.defenses = defenses
        self.judge = judge
        self.seed = seed
        self._sent: dict[int, ArrayRecord] = {}
        self._loaded: tuple[ArrayRecord, nn.Module] | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what is sent to each node: a strategy may send different weights to each."""
        messages = list(self.base.configure_train(server_round, arrays, config, grid))
        self._sent = {
            message.metadata.dst_node_id: next(iter(message.content.array_records.values()))
            for message in messages
        }
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Attack the replies first: a strategy may change them."""
        replies = list(replies)
        findings = [
            finding
            for reply in sorted(replies, key=lambda reply: self._client(reply))
            for finding in self._audit(server_round, reply)
        ]
        self.log(server_round, findings)
        return self.base.aggregate_train(server_round, replies)

    def _client(self, reply: Message) -> int:
        node = reply.metadata.src_node_id
        return node if self.clients is None else self.clients[node]

    def _audit(self, server_round: int, reply: Message) -> list[Finding]:
        """Run all plans on one reply; whatever goes wrong costs a record, never the round."""
        client = self._client(reply)
        place = LeakageRecord(round=server_round, client=client, defenses=self.defenses)
        findings = []
        leak: GradientLeak | str | None = None
        for index, plan in enumerate(self.plans):
            if not plan.covers(server_round, client):
                continue
            here = dataclasses.replace(
                place,
                attack=index,
                attacker=plan.attacker,
                label_attack=plan.label_name,
                image_attack=plan.image_name,
            )
            if leak is None:
                leak = self._translate(server_round, reply)
            if isinstance(leak, str):
                status = Status.NOT_APPLICABLE.value
                record = dataclasses.replace(here, label_status=status, label_reason=leak)
                findings.append(Finding(record))
            else:
                known = dataclasses.replace(leak, knowledge=plan.knowledge)
                findings += audit_leak(known, plan, here, seed=self.seed, judge=self.judge)
        return findings

    def _translate(self, server_round: int, reply: Message) -> GradientLeak | str:
        """Return the leak behind a reply, or why there is none."""
        if reply.has_error():
            return f"the client failed: {reply.error.reason}"
        obstacle = self.training.obstacle(server_round)
        if obstacle is not None:
            return obstacle
        try:
            received = self._sent[reply.metadata.src_node_id]
            arrays = next(iter(reply.content.array_records.values()))
            return gradient_leak(
                self._model_at(received),
                _tensors(arrays),
                self.training,
                input_shape=self.input_shape,
            )
        except Exception as error:  # whatever a client sent, it costs a record and no more
            logger.warning("an update of round %d can't be audited: %s", server_round, error)
            return f"the update can't be translated: {error}"

    def _model_at(self, received: ArrayRecord) -> nn.Module:
        """Return the network at the weights that a node received; one copy for all that share."""
        if self._loaded is None or self._loaded[0] is not received:
            model = copy.deepcopy(self.model)
            load_tensors(model, _tensors(received))
            self._loaded = (received, model.eval())
        return self._loaded[1]


def _tensors(arrays: ArrayRecord) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array.numpy()) for name, array in arrays.items()}


def _plan(attack: AttackPlan | str | tuple[str, str]) -> AttackPlan:
    if isinstance(attack, AttackPlan):
        return attack
    names = (attack,) if isinstance(attack, str) else attack
    return AttackPlan.by_name(*names)


def _file_log(path: Path) -> Log:
    def log(server_round: int, findings: list[Finding]) -> None:
        append_lines(path, [finding.record.to_json() for finding in findings])

    return log
