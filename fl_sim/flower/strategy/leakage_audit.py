"""`LeakageAudit`: what a server learns from each update, beside any Flower strategy."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from attacks import GradientLeak, Normalization
from attacks.intake import plain_model
from fl_sim.capture.update import Auditor, Update, untranslated
from fl_sim.flower.strategy.audit_folder import AuditFolder
from fl_sim.flower.strategy.audit_options import (
    Log,
    check_keeping,
    check_one_round_each,
    check_types,
    file_log,
    fitting_names,
    plan_of,
)
from fl_sim.flower.strategy.reply_content import (
    EXAMPLES_KEY,
    arrays_of,
    metrics_of,
    tensors_of,
    training_of,
)
from fl_sim.flower.strategy.secure_sum import groups_of, mean_of
from fl_sim.flower.strategy.wrapper import Wrapper
from fl_sim.flower.wire import LocalTraining, load_tensors
from fl_sim.leakage.findings import Finding, with_class_name
from fl_sim.leakage.judge import Judge
from fl_sim.leakage.plan import AttackPlan
from fl_sim.origin import describe_audit

TakeOver = Callable[[Update, Sequence[int]], None]
"""Takes an update, and the numbers of the attacks on it that are left to whoever takes it."""


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
        normalization: what the clients' loaders do to pixels in [0, 1]; None where that isn't
            known. A model that normalises in its first layer takes `Normalization.of_range(0, 1)`.
        out: the run folder, new or empty, which is made when the first round begins;
            `fl-sim report` makes its page. What the run leaked is logged when it ends.
        log: where records go beside or instead: a new file, with one line of JSON for each, or a
            function of the server round and its findings.
        capture: the name of what builds `model`, `module:attr` without arguments or with those that
            a scenario's model gets: what the server saw of every update then stays in
            `out/captures`, and `fl-sim attack` attacks it offline. None: nothing stays.
        clients: node id -> client number, for records and judge; None takes the node ids.
        defenses: the clients' defenses, in words, for the records.
        judge: holds the truth, in a rehearsal with data of one's own; None leaves the scores empty.
        class_names: what the K classes are called, in order, for the records and the page.
        keep_images: how many of a round's recovered images, beside the judge's, stay in `out`;
            True keeps all, and without being asked for none does.
        seed: of the attacks' random draws.
        take_over: called with each update and the numbers of the attacks that `after` leaves to
            it, before the round goes on; None: all attacks run in the round.
        after: numbers of such attacks.
        secure_aggregation: n: what is attacked are weighted means of so many clients' updates, in
            the order of their numbers; None: each client's.

    Raises:
        TypeError: base, model, attacks, training, judge, class_names or keep_images is of another
            type.
        ValueError: an attack's name is unknown, it takes rounds together that nobody keeps, or none
            is given; neither `out` nor `log` is, or one holds another run; class_names aren't K;
            keep_images comes without `out`, and so does capture, or it builds another network.

    Example:
        >>> from flwr.serverapp.strategy import FedAvg
        >>> strategy = LeakageAudit(
        ...     FedAvg(),
        ...     model=nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
        ...     attacks=["soft-label"],
        ...     training=LocalTraining(lr=0.1, batch_size=1),
        ...     input_shape=(1, 28, 28),
        ...     out="audit",
        ... )

    Note:
        The end of a run is that of `start`, of this strategy or of a `ReplyGuard` around it. Inside
        a wrapper of another's, call `end_run` for the summary.
    """

    def __init__(
        self,
        base: Strategy,
        *,
        model: nn.Module,
        attacks: Sequence[AttackPlan | str | tuple[str, str]],
        training: LocalTraining,
        input_shape: tuple[int, int, int],
        out: str | Path | None = None,
        log: str | Path | Log | None = None,
        capture: str | None = None,
        normalization: Normalization | None = None,
        clients: Mapping[int, int] | None = None,
        defenses: str = "unknown",
        judge: Judge | None = None,
        class_names: Sequence[str] | None = None,
        keep_images: int | bool = False,
        seed: int = 0,
        take_over: TakeOver | None = None,
        after: Collection[int] = (),
        secure_aggregation: int | None = None,
    ) -> None:
        super().__init__(base)
        keeps = not (take_over is None and capture is None)
        check_types(attacks, training, judge, may_be_none=keeps)
        check_keeping(keep_images, out, log)
        self.model = plain_model(model)
        self.plans = [plan_of(attack) for attack in attacks]
        check_one_round_each(self.plans, may_combine=take_over is not None)
        self.training = training
        self.input_shape = input_shape
        self.normalization = normalization
        # Its own checks, of shape and normalisation, before the first round.
        GradientLeak(self.model, {}, training.batch_size, input_shape, normalization=normalization)
        self.class_names = fitting_names(class_names, self.model, input_shape)
        self.log = log if log is None or callable(log) else file_log(Path(log))
        self.clients = clients
        self.defenses = defenses
        self.judge = judge
        self.seed = seed
        self._sent: dict[int, ArrayRecord] = {}
        self._metrics: dict[int, dict[str, Any]] = {}
        self._loaded: tuple[ArrayRecord, dict[str, Tensor], nn.Module] | None = None
        self.take_over = take_over
        self.after = frozenset(after)
        self.secure_aggregation = secure_aggregation
        self._auditor = Auditor(self.plans, defenses=defenses, seed=seed, judge=judge)
        keep = None if keep_images is True else int(keep_images)
        self.folder = (
            None if out is None else AuditFolder(Path(out), self._about(), keep_images=keep)
        )
        if capture is not None:
            self.take_over = self._keeping(capture)

    def _keeping(self, name: str) -> TakeOver:
        # It loads scenarios, which no other audit needs.
        from fl_sim.flower.strategy.audit_captures import AuditCaptures, check_capture

        check_capture(
            has_out=self.folder is not None,
            takes_over=self.take_over is not None,
            sums=self.secure_aggregation is not None,
            clients=None if self.clients is None else self.clients.values(),
        )
        assert self.folder is not None
        return AuditCaptures(
            self.folder.path / "captures",
            name,
            self.model,
            input_shape=self.input_shape,
            mode=self.training.mode,
        ).keep

    def _about(self) -> dict[str, Any]:
        return describe_audit(
            model=self.model,
            input_shape=self.input_shape,
            training=dataclasses.asdict(self.training),
            plans=self.plans,
            strategy=type(self.base).__name__,
            defenses=self.defenses,
            seed=self.seed,
            class_names=self.class_names,
            has_judge=self.judge is not None,
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what is sent to each node: a strategy may send different weights to each.

        Raises:
            UserError: the first round finds that `out` holds another run, or can't be written.
        """
        if self.folder is not None:
            self.folder.begin_round(server_round)
        messages = list(self.base.configure_train(server_round, arrays, config, grid))
        self._sent = {m.metadata.dst_node_id: arrays_of(m.content, self.model) for m in messages}
        return messages

    def note_replies(self, replies: Sequence[Message]) -> None:
        """Remember what clients report of their training; not all of them need to."""
        self._metrics = {r.metadata.src_node_id: metrics_of(r) for r in replies}
        super().note_replies(replies)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Attack the replies first: a strategy may change them."""
        replies = list(replies)
        ordered = sorted(replies, key=lambda reply: self._client(reply))
        if self.secure_aggregation is None:
            found = [self._audit(server_round, reply) for reply in ordered]
        else:
            groups = groups_of(sorted(map(self._number, self._sent)), self.secure_aggregation)
            found = [self._audit_mean(server_round, group, ordered) for group in groups]
        findings = [finding for each in found for finding in each]
        self._metrics = {}
        if self.class_names is not None:
            findings = [with_class_name(finding, self.class_names) for finding in findings]
        if self.folder is not None:
            failed = sum(reply.has_error() for reply in replies)
            self.folder.end_round(findings, replies=len(replies) - failed, left_out=failed)
        if self.log is not None:
            self.log(server_round, findings)
        return self.base.aggregate_train(server_round, replies)

    def end_run(self) -> None:
        """Log what the run leaked, and how to make the page of it."""
        if self.folder is not None:
            self.folder.end()
        super().end_run()

    def _client(self, reply: Message) -> int:
        return self._number(reply.metadata.src_node_id)

    def _number(self, node: int) -> int:
        return node if self.clients is None else self.clients[node]

    def _audit_mean(
        self, server_round: int, members: tuple[int, ...], replies: Sequence[Message]
    ) -> list[Finding]:
        """Run the round's plans on the mean of a group's updates."""
        chosen = [i for i, plan in enumerate(self.plans) if plan.covers(server_round, members[0])]
        if not chosen:
            return []
        own = [reply for reply in replies if self._client(reply) in members]
        pairs = [(self._update(server_round, reply), self._weight(reply)) for reply in own]
        whole = [(update, weight) for update, weight in pairs if isinstance(update, Update)]
        try:
            leak = self._leak(mean_of(whole, members))
        except ValueError as error:
            leak = str(error)
        return self._auditor.audit(
            leak, server_round=server_round, client=members[0], chosen=chosen, members=members
        )

    def _weight(self, reply: Message) -> float:
        return float(metrics_of(reply).get(EXAMPLES_KEY) or 1)

    def _audit(self, server_round: int, reply: Message) -> list[Finding]:
        """Run the round's plans on one reply; whatever goes wrong costs a record, no more."""
        client = self._client(reply)
        covering = [
            index
            for index, plan in enumerate(self.plans)
            if not plan.combines_rounds and plan.covers(server_round, client)
        ]
        if not covering and self.take_over is None:
            return []
        update = self._update(server_round, reply)
        chosen = covering
        if self.take_over is not None and isinstance(update, Update):
            self.take_over(update, [index for index in covering if index in self.after])
            chosen = [index for index in covering if index not in self.after]
        if not chosen:
            return []
        leak = update if isinstance(update, str) else self._leak(update)
        return self._auditor.audit(leak, server_round=server_round, client=client, chosen=chosen)

    def _update(self, server_round: int, reply: Message) -> Update | str:
        """Return the update in a reply, or why there is none."""
        if reply.has_error():
            return f"the client failed: {reply.error.reason}"
        try:
            metrics = {**metrics_of(reply), **self._metrics.get(reply.metadata.src_node_id, {})}
            received, _ = self._received(self._sent[reply.metadata.src_node_id])
            return Update(
                server_round,
                self._client(reply),
                received,
                tensors_of(arrays_of(reply.content, self.model)),
                training_of(self.training, metrics),
                self.input_shape,
                self.normalization,
            )
        except Exception as error:  # whatever a client sent, it costs a record and no more
            return untranslated(server_round, error)

    def _leak(self, update: Update) -> GradientLeak | str:
        assert self._loaded is not None
        _, received, model = self._loaded
        assert update.received is received
        return update.leak(model)

    def _received(self, record: ArrayRecord) -> tuple[dict[str, Tensor], nn.Module]:
        """Return what a node received, and the network at it; one copy for all that share it."""
        if self._loaded is None or self._loaded[0] is not record:
            model, received = copy.deepcopy(self.model), tensors_of(record)
            load_tensors(model, received)
            self._loaded = (record, received, model.eval())
        return self._loaded[1:]
