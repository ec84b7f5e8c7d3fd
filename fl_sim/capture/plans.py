"""From a scenario's attacks to what runs, here or in another process."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attacks.facts import Fact
from defenses import Chain
from fl_sim.capture.pending import Owed
from fl_sim.capture.update import Auditor
from fl_sim.errors import UserError
from fl_sim.federation import Federation
from fl_sim.leakage.plan import AttackPlan
from fl_sim.recipe import Recipe
from fl_sim.replay_judge import ReplayJudge
from fl_sim.scenario import Attack, Scenario


def plan_of(
    attack: Attack, defenses: Chain, canaries: Collection[int] = (), *, members: int | None = None
) -> AttackPlan:
    """Build an attack of a scenario.

    Args:
        attack: an `[[attack]]`.
        defenses: the clients', of which an aware attacker knows the facts.
        canaries: clients that hold no data, and aren't attacked.
        members: clients whose mean is attacked; None: single clients.

    Raises:
        UserError: it can't be built.
    """
    knowledge: tuple[Fact, ...] = ()
    if attack.attacker == "aware":
        knowledge = defenses.facts() if members is None else defenses.facts_of_mean(members)
    try:
        return AttackPlan.by_name(
            attack.label,
            attack.image,
            label_options=attack.label_options,
            image_options=attack.image_options,
            knowledge=knowledge,
            attacker=attack.attacker,
            covers=lambda at, client: client not in canaries and attack.covers(at, client),
            combines_rounds=attack.combine == "rounds",
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def runs_after(attack: Attack, plan: AttackPlan) -> bool:
    """Say whether an attack works off captures after the round: as told, or as it declares."""
    if plan.combines_rounds:
        return True
    return plan.is_long if attack.when is None else attack.when == "after"


def require_shared_examples(attacks: Sequence[Attack], federation: Federation) -> None:
    """Raise where an attack takes rounds together in which clients train on other examples.

    Raises:
        UserError: they draw anew, or take several steps.
    """
    for index, attack in enumerate(attacks):
        if attack.combine is None:
            continue
        if federation.defenses.is_poisson or federation.defenses.draws > 1:
            raise UserError(
                f"attack.{index}.combine: clients must train on the same examples in every round, "
                "and a defense draws or mixes them anew"
            )
        for client in range(federation.scenario.data.clients):
            plan = federation.plan(client)
            if plan.local_steps != 1 or plan.batch_size < plan.share_size:
                raise UserError(
                    f"attack.{index}.combine: clients must train on all their examples in one "
                    f"step of every round: client {client} holds {plan.share_size}, and trains in "
                    f"{plan.local_steps} steps of {plan.batch_size}; see data.examples_per_client "
                    "and client.batch_size"
                )


def combining(attacks: Sequence[Attack], history: Mapping[int, Collection[int]]) -> Owed:
    """Return which attacks on which clients take rounds together.

    Args:
        attacks: whose positions are their numbers.
        history: client -> the rounds that there are captures of.
    """
    owed = {}
    for client, rounds in sorted(history.items()):
        own = [
            index
            for index, attack in enumerate(attacks)
            if attack.combine is not None and any(attack.covers(r, client) for r in rounds)
        ]
        if own:
            owed[client] = own
    return owed


@dataclass(frozen=True)
class Scene:
    """Which attacks run on captures, and what they are judged by: all that a worker is told.

    Args:
        attacks: whose positions are their numbers in records and seeds.
        seed: of the attacks' random draws.
        scenario: that the captures come from, from which the truth is replayed; None: not known.
        defenses: the clients', in words, for the records; None: those that captures tell of.
    """

    attacks: tuple[Attack, ...]
    seed: int
    scenario: Scenario | None = None
    defenses: str | None = None

    def to_plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "attacks": [attack.model_dump(mode="json") for attack in self.attacks],
            "seed": self.seed,
            "scenario": None if self.scenario is None else self.scenario.model_dump(mode="json"),
            "defenses": self.defenses,
        }

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Scene:
        """Take what `to_plain` returned.

        Raises:
            UserError: the scenario isn't valid.
        """
        told = values["scenario"]
        return cls(
            tuple(Attack.model_validate(attack) for attack in values["attacks"]),
            values["seed"],
            None if told is None else Scenario.parse(told),
            values["defenses"],
        )

    def auditor(self, recipe: Recipe) -> Auditor:
        """Return what attacks captures of networks of a recipe.

        Raises:
            UserError: an attack, a defense or the scenario's data can't be had.
        """
        judge = None
        if self.scenario is not None:
            judge = ReplayJudge.of(Federation.of(self.scenario))
        return Auditor(
            [plan_of(attack, recipe.defenses) for attack in self.attacks],
            defenses=self.defenses or in_words(recipe, is_known=self.scenario is not None),
            seed=self.seed,
            judge=judge,
        )


def in_words(recipe: Recipe, *, is_known: bool) -> str:
    """Return the clients' defenses for records; of an unknown federation there may be others."""
    names = [stage.name for stage in recipe.defense]
    return "+".join(names) or ("none" if is_known else "unknown")
