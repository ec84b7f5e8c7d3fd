"""One client's update as the server saw it, and what a scenario's attacks make of it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from attacks import GradientLeak, Normalization, Status
from attacks.facts import Fact
from attacks.rounds.unperturbed import taken_rounds, without_perturbed
from fl_sim.flower.local_training import LocalTraining
from fl_sim.flower.wire import gradient_leak
from fl_sim.leakage.audit import audit_leak
from fl_sim.leakage.findings import Finding
from fl_sim.leakage.judge import Judge
from fl_sim.leakage.plan import AttackPlan
from fl_sim.leakage.records import LeakageRecord
from fl_sim.leakage.true_features import TrueFeatures

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Update:
    """What the server saw of one client in one round.

    Args:
        server_round: from 1.
        client: its number.
        received: name -> what the client was sent; several updates may share one mapping.
        sent: name -> what came back, as `training.sends` says.
        training: how the client trained, epochs turned into steps.
        input_shape: (C, H, W) of one image.
        normalization: what its loader does to pixels; None where that isn't known.
    """

    server_round: int
    client: int
    received: Mapping[str, Tensor]
    sent: Mapping[str, Tensor]
    training: LocalTraining
    input_shape: tuple[int, int, int]
    normalization: Normalization | None = None

    def leak(self, model: nn.Module) -> GradientLeak | str:
        """Return the leak, or why there is none: whatever a client sent.

        Args:
            model: at the weights that were received.
        """
        try:
            return self.translated(model)
        except Exception as error:
            return untranslated(self.server_round, error)

    def translated(self, model: nn.Module) -> GradientLeak | str:
        """Return the leak, or why its training leaves none.

        Args:
            model: at the weights that were received.

        Raises:
            ValueError: what was sent doesn't fit the model.
        """
        obstacle = self.training.obstacle(self.server_round)
        if obstacle is not None:
            return obstacle
        return gradient_leak(
            model,
            self.sent,
            self.training,
            input_shape=self.input_shape,
            normalization=self.normalization,
        )


def untranslated(server_round: int, error: Exception) -> str:
    """Log that an update is no gradient, and return why."""
    logger.warning("an update of round %d can't be audited: %s", server_round, error)
    return f"the update can't be translated: {error or type(error).__name__}"


class Auditor:
    """Attacks leaks by a scenario's plans, in the round or after it, and judges the answers.

    Args:
        plans: the attacks, whose positions are their numbers in records and seeds.
        defenses: the clients', in words, for the records.
        seed: of the attacks' random draws.
        judge: holds the truth; None leaves the scores empty.
    """

    def __init__(
        self, plans: Sequence[AttackPlan], *, defenses: str, seed: int, judge: Judge | None
    ) -> None:
        self.plans = plans
        self.defenses = defenses
        self.seed = seed
        self.judge = judge
        self._features: tuple[nn.Module, TrueFeatures] | None = None

    def audit(
        self,
        leak: GradientLeak | str,
        *,
        server_round: int,
        client: int,
        chosen: Collection[int],
        members: Sequence[int] = (),
        rounds: Sequence[int] | None = None,
    ) -> list[Finding]:
        """Run some plans on a client's leak; whatever goes wrong costs a record, never a run.

        Args:
            leak: what the server sees, or why it sees nothing.
            server_round: from 1.
            client: whose.
            chosen: numbers of the plans.
            members: the clients whose mean it is, in place of one client's; empty: it is one's.
            rounds: those that the leak takes together; None: it is of this round alone.

        Returns:
            Findings by plan, at least one each.
        """
        findings: list[Finding] = []
        for index in sorted(chosen):
            place = self._place(server_round, client, index, members)
            plan = self.plans[index]
            seen = leak if isinstance(leak, str) else _knowing(leak, plan.knowledge)
            if rounds is not None:
                used = rounds
                if not isinstance(seen, str):
                    used = [rounds[index] for index in taken_rounds(seen)]
                    seen = without_perturbed(seen)
                place = dataclasses.replace(place, rounds=in_short(used))
            if isinstance(seen, str):
                findings.append(_without_answer(place, Status.NOT_APPLICABLE, seen))
                continue
            findings += audit_leak(
                seen,
                plan,
                place,
                seed=self.seed,
                judge=self.judge,
                true_features=self._features_of(seen),
            )
        return findings

    def failed(
        self, reason: str, *, server_round: int, client: int, chosen: Collection[int]
    ) -> list[Finding]:
        """Return findings of plans that couldn't be run, for a reason."""
        places = [self._place(server_round, client, index) for index in sorted(chosen)]
        return [_without_answer(place, Status.FAILED, reason) for place in places]

    def _place(
        self, server_round: int, client: int, index: int, members: Sequence[int] = ()
    ) -> LeakageRecord:
        plan = self.plans[index]
        return LeakageRecord(
            round=server_round,
            client=None if members else client,
            members=" ".join(map(str, members)) or None,
            attack=index,
            defenses=self.defenses,
            attacker=plan.attacker,
            unused_facts=plan.unused_facts,
            label_attack=plan.label_name,
            image_attack=plan.image_name,
        )

    def _features_of(self, leak: GradientLeak) -> TrueFeatures:
        """Return the true features of a leak's model; traced once for all that share it."""
        if self._features is None or self._features[0] is not leak.model:
            self._features = (leak.model, TrueFeatures(leak))
        return self._features[1]


def _knowing(leak: GradientLeak, knowledge: tuple[Fact, ...]) -> GradientLeak:
    """Return a leak, and its earlier rounds, with what is known of the defenses."""
    earlier = leak.earlier
    if earlier is not None:
        earlier = tuple(dataclasses.replace(one, knowledge=knowledge) for one in earlier)
    return dataclasses.replace(leak, knowledge=knowledge, earlier=earlier)


def taken_together(
    leaks: Mapping[int, GradientLeak | str],
) -> tuple[GradientLeak | str, list[int]]:
    """Return the leak of several rounds, and the rounds that are in it.

    Args:
        leaks: round -> what the server sees of a client, or why it sees nothing; at least one.
    """
    seen = {r: leak for r, leak in sorted(leaks.items()) if not isinstance(leak, str)}
    if not seen:
        return str(leaks[max(leaks)]), []
    *earlier, latest = seen.values()
    return dataclasses.replace(latest, earlier=tuple(earlier)), list(seen)


def in_short(rounds: Sequence[int]) -> str:
    """Return rounds, in order, in words.

    Example:
        >>> in_short([1, 2, 3, 5])
        '1-3, 5'
    """
    ends: list[list[int]] = []
    for one in rounds:
        if ends and ends[-1][-1] == one - 1:
            ends[-1][1:] = [one]
        else:
            ends.append([one])
    return ", ".join("-".join(map(str, pair)) for pair in ends)


def _without_answer(place: LeakageRecord, status: Status, reason: str) -> Finding:
    return Finding(dataclasses.replace(place, label_status=status.value, label_reason=reason))
