"""The server: a Flower `ServerApp` that trains a model and audits every update."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from flwr.app import Array, ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from attacks import Normalization
from fl_sim.capture.backlog import Backlog, spare_cores
from fl_sim.capture.folder import CaptureFolder
from fl_sim.capture.pending import PendingRounds
from fl_sim.capture.plans import (
    Scene,
    combining,
    plan_of,
    require_shared_examples,
    runs_after,
)
from fl_sim.capture.update import Update
from fl_sim.errors import NothingAccepted, UserError
from fl_sim.federation import Federation
from fl_sim.flower.client import resolve_device, to_arrays
from fl_sim.flower.defended import Defended, is_measured, measure_defenses
from fl_sim.flower.evaluation import evaluate
from fl_sim.flower.roll_call import identify_clients
from fl_sim.flower.round_ledger import Measured, RoundLedger
from fl_sim.flower.strategy import LeakageAudit, ReplyGuard, build_strategy
from fl_sim.flower.strategy.build import require_loss_unread
from fl_sim.flower.strategy.canary_watch import CanaryWatch
from fl_sim.flower.strategy.reply_content import tensors_of
from fl_sim.flower.strategy.state import pack_state, restore_state
from fl_sim.flower.wire import LocalTraining, wire_tensors
from fl_sim.privacy.canaries import CanaryScores
from fl_sim.privacy.spending import PrivacySpending
from fl_sim.replay_judge import ReplayJudge
from fl_sim.run_folder import RunFolder
from fl_sim.scenario import Scenario
from fl_sim.scenario.sections import Privacy
from fl_sim.scenario.source import configured_scenario
from fl_sim.threads import one_thread
from fl_sim.trackers.feed import Feed, build_trackers

app = ServerApp()
logger = logging.getLogger(__name__)
flower_log = logging.getLogger("flwr")  # whose lines `flwr run --stream` shows


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the scenario that the run configuration holds; with "report" set, leave its report."""
    scenario = configured_scenario(context.run_config)
    out = Path(str(context.run_config["out"]) or f"runs/{scenario.name}-run-{context.run_id}")
    server = Server(scenario, RunFolder(out))  # finds mistakes before the folder is touched
    resume = bool(context.run_config["resume"])
    try:
        with RunFolder.open(out, scenario, resume=resume), one_thread():
            server.run(grid)
    except NothingAccepted:  # the run is complete, and its report says the rest
        _report(out, context)
        raise
    _report(out, context)


def _report(out: Path, context: Context) -> None:
    """Build a run's report, where no launcher does, and print its path where the user looks."""
    if not context.run_config.get("report", False):
        return
    from fl_sim.report import build_report, headline  # matplotlib takes a second

    flower_log.info("%s", headline(out))
    flower_log.info("report: %s", build_report(out.absolute()))


class Server:
    """One run: the strategy and its wrappers, and the global model's evaluation."""

    def __init__(self, scenario: Scenario, folder: RunFolder) -> None:
        self.scenario = scenario
        self.folder = folder
        self.federation = Federation.of(scenario)
        self.federation.build_model()  # raises now what is wrong with it
        resolve_device(scenario.device)  # likewise
        self.privacy = PrivacySpending.of(self.federation)  # likewise
        self.canaries = CanaryScores(self.federation)  # likewise
        self._require_delta_read()
        self.rounds = self._rounds()
        defenses = self.federation.defenses
        members = scenario.server.secure_aggregation
        self.plans = [
            plan_of(attack, defenses, scenario.canaries, members=members)
            for attack in scenario.attack
        ]
        pairs = enumerate(zip(scenario.attack, self.plans, strict=True))
        require_shared_examples(scenario.attack, self.federation)
        self.after = frozenset(
            i for i, (attack, plan) in pairs if members is None and runs_after(attack, plan)
        )
        self.trackers = build_trackers([(one.name, one.options) for one in scenario.tracker])
        self.strategy = build_strategy(scenario.server.strategy, scenario.server.options)
        if self.federation.claims_privacy:
            require_loss_unread(scenario.server.strategy, self.strategy)

    @property
    def is_done(self) -> bool:
        """Whether its folder holds all rounds, and no attack is owed."""
        last = self.folder.last_round()
        return last is not None and last >= self.rounds and not self._is_owed()

    def _is_owed(self) -> bool:
        return bool(PendingRounds(self.folder.pending).rounds())

    def run(self, grid: Grid) -> None:
        """Train from the start, or from where a killed run was."""
        scenario = self.scenario
        committed, arrays = self._start()
        offset = max(committed, 0)
        ledger = RoundLedger(
            self.folder, defenses=self._defenses(), images=scenario.images, committed=committed
        )
        is_owed = self._is_owed()
        if offset >= self.rounds and not is_owed:
            return
        feed = Feed(self.trackers, self.folder.path)
        feed.start(scenario.model_dump(mode="json"), None if committed < 0 else committed)
        with feed.finishing(), contextlib.ExitStack() as stack:
            if self.after or is_owed:
                ledger.backlog = stack.enter_context(self._backlog(ledger))
            if offset < self.rounds:
                self._run_rounds(grid, ledger, feed, committed, arrays)
            if ledger.backlog is not None:
                ledger.backlog.settle()

    def _run_rounds(
        self, grid: Grid, ledger: RoundLedger, feed: Feed, committed: int, arrays: ArrayRecord
    ) -> None:
        """Train what is left."""
        scenario, offset = self.scenario, max(committed, 0)
        clients = identify_clients(grid, scenario.data.clients, committed)
        canaries = self.canaries
        guard = ReplyGuard(
            CanaryWatch(self._audited(clients, ledger), canaries, clients),
            clients=clients,
            sample=self.federation.sampled_clients,
            on_quarantine=ledger.add_quarantined,
            round_offset=offset,
            accepted_before=self.folder.accepted_replies(),
        )

        before = arrays

        def finish_round(round_since: int, arrays: ArrayRecord) -> MetricRecord:
            nonlocal before
            measured = self._measure(offset + round_since, arrays, guard.accepted, before)
            weights = {name: array.numpy() for name, array in arrays.items()}
            state = pack_state(self.strategy)
            if round_since > 0:
                bounds = canaries.end_round(tensors_of(before), tensors_of(arrays))
                measured = dataclasses.replace(measured, canaries=bounds)
            state["canaries"] = canaries.to_plain()
            before = arrays
            if offset + round_since == self.rounds:
                self._owe_combined(ledger)
            ledger.commit(offset + round_since, measured, weights, state)
            feed.committed()
            return MetricRecord({"accuracy": measured.accuracy, "loss": measured.loss})

        rounds = self.rounds - offset
        guard.start(grid, arrays, num_rounds=rounds, evaluate_fn=finish_round)

    def _owe_combined(self, ledger: RoundLedger) -> None:
        """Leave the attacks that take rounds together to be worked off, now that all are there."""
        captured = CaptureFolder(self.folder.captures).clients()
        for client, plans in combining(self.scenario.attack, captured).items():
            if client not in self.scenario.canaries:
                ledger.add_owed(client, plans)

    def _start(self) -> tuple[int, ArrayRecord]:
        """Return the last committed round, -1 before the initial model is, and what follows it."""
        checkpoint = self.folder.restore()
        if checkpoint is None:
            model = self.federation.build_model()
            return -1, to_arrays(wire_tensors(model, self.scenario.client.mode))
        if checkpoint.server_round < self.scenario.rounds:
            restore_state(self.strategy, checkpoint.state)
            self.canaries.restore(checkpoint.state["canaries"])
        weights = {name: Array(array) for name, array in checkpoint.weights.items()}
        return checkpoint.server_round, ArrayRecord(weights)

    def _audited(self, clients: Mapping[int, int], ledger: RoundLedger) -> Strategy:
        """Put the audit around the strategy."""
        keeps = self.scenario.server.capture
        if not (self.plans or keeps):
            return self.strategy
        captures, recipe = CaptureFolder(self.folder.captures), self.federation.recipe

        def take_over(update: Update, owed: Sequence[int]) -> None:
            if keeps or owed:
                captures.keep(update, recipe)
            if owed:
                ledger.add_owed(update.client, owed)

        return LeakageAudit(
            self.strategy,
            model=self.federation.build_model(),
            attacks=self.plans,
            training=_training(self.scenario, is_poisson=self.federation.defenses.is_poisson),
            input_shape=self.federation.dataset.input_shape,
            normalization=Normalization.of_range(0, 1),  # models normalise themselves
            log=ledger.add_findings,
            clients=clients,
            defenses=self._defenses(),
            judge=ReplayJudge.of(self.federation),
            seed=self.scenario.seed,
            take_over=take_over if keeps or self.after else None,
            after=self.after,
            secure_aggregation=self.scenario.server.secure_aggregation,
        )

    def _backlog(self, ledger: RoundLedger) -> Backlog:
        """Return what works off the attacks that are left for after the round."""
        scenario = self.scenario
        captures = CaptureFolder(self.folder.captures)
        return Backlog(
            captures.of_client,
            PendingRounds(self.folder.pending),
            Scene(tuple(scenario.attack), scenario.seed, scenario),
            self.federation.recipe,
            jobs=scenario.server.attack_jobs or spare_cores(),
            most=scenario.server.attack_queue,
            land=ledger.land,
            drop=None if scenario.server.capture else captures.drop,
            on_progress=lambda left: logger.info("%d updates wait for their attacks", left),
        )

    def _measure(
        self, server_round: int, arrays: ArrayRecord, replies: int, sent: ArrayRecord
    ) -> Measured:
        """Evaluate the global model at the end of a round, and the defenses of one client in it."""
        accuracy, loss = evaluate(self.federation, arrays, server_round)
        epsilon, following = self.privacy.epsilon(server_round), None
        if self.scenario.privacy.epsilon_target is not None:
            following = self.privacy.epsilon(server_round + 1)
        defended = self._defended(server_round, sent)
        return Measured(accuracy, loss, epsilon, replies, following, defended=defended)

    def _defended(self, server_round: int, sent: ArrayRecord) -> Defended | None:
        """Measure the defenses of the round's first client, in some rounds."""
        if not is_measured(self.scenario, server_round):
            return None
        client = self.federation.sampled_clients(server_round)[0]
        received = sent.to_torch_state_dict()
        try:
            return measure_defenses(self.scenario, client, server_round, received)
        except Exception as error:  # a defense of one's own may fail, and its clients say so
            logger.warning("round %d: defenses weren't measured: %s", server_round, error)
            return None

    def _rounds(self) -> int:
        """Return how many rounds there are: all, or fewer, so that ε stays within its target.

        Raises:
            UserError: there is no ε, or it is beyond the target after one round.
        """
        target = self.scenario.privacy.epsilon_target
        if target is None:
            return self.scenario.rounds
        if not all(self.privacy.claims):
            raise UserError(
                "privacy: epsilon_target belongs to a defense that guarantees an ε, "
                f"found {target:g} without one"
            )
        rounds = self.privacy.rounds_within(target)
        if rounds == 0:
            first = self.privacy.epsilon(1)
            found = "no guarantee" if first is None else f"{first:.3g}"
            raise UserError(
                f"privacy.epsilon_target must be at least the ε after one round, {found}, "
                f"found {target:g}"
            )
        if rounds < self.scenario.rounds:
            flower_log.info(
                "ε would go beyond %g in round %d: training ends after round %d",
                *(target, rounds + 1, rounds),
            )
        return rounds

    def _require_delta_read(self) -> None:
        delta = self.scenario.privacy.delta
        is_read = any(self.privacy.claims) or self.scenario.audit.canaries
        if delta != Privacy().delta and not is_read:
            raise UserError(
                "privacy: delta belongs to a defense that guarantees an ε, "
                f"found {delta:g} without one"
            )

    def _defenses(self) -> str:
        return "+".join(stage.name for stage in self.scenario.defense) or "none"


def _training(scenario: Scenario, *, is_poisson: bool) -> LocalTraining:
    client = scenario.client
    return LocalTraining(
        lr=client.lr,
        batch_size=None if is_poisson else client.batch_size,
        local_steps=client.local_steps or 1,
        local_epochs=client.local_epochs,
        schedule="steps" if client.local_epochs is None else None,
        optimizer=client.optimizer,
        momentum=client.momentum,
        nesterov=client.nesterov,
        weight_decay=client.weight_decay,
        mode=client.mode,
    )
