"""Which attacks run on an update, and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS, ImageAttack, LabelAttack
from attacks.facts import Fact, Told


@dataclass(frozen=True, eq=False)
class AttackPlan:
    """One label attack, perhaps an image attack on top of it, and when they run.

    Args:
        label_name: for the records.
        label: the attack.
        image_name: for the records; None without an image attack.
        image: the attack.
        knowledge: the facts that the clients' defenses made public, in order; none when "unaware".
        attacker: "unaware" or "aware", for the records.
        covers: (server round, client) -> whether this attack runs.
        combines_rounds: whether it runs once, after the last round, on all the rounds that it
            covers of a client together.

    Raises:
        ValueError: facts contradict each other, or have no joint meaning, or an attack that takes
            one round at a time is to take several together.
    """

    label_name: str
    label: LabelAttack
    image_name: str | None = None
    image: ImageAttack | None = None
    knowledge: tuple[Fact, ...] = ()
    attacker: str = "unaware"
    covers: Callable[[int, int], bool] = lambda server_round, client: True
    combines_rounds: bool = False

    def __post_init__(self) -> None:
        Told.by(self.knowledge)
        for name, attack in ((self.label_name, self.label), (self.image_name, self.image)):
            takes_one = attack is not None and not getattr(attack, "combines_rounds", False)
            if self.combines_rounds and takes_one:
                raise ValueError(
                    f"combine = 'rounds' needs attacks that take rounds together, found {name!r}, "
                    "which takes one at a time"
                )

    @property
    def unused_facts(self) -> str | None:
        """What is known that neither attack takes into account, by name; None if all is used."""
        used = (*getattr(self.label, "uses", ()), *getattr(self.image, "uses", ()))
        names = [type(fact).__name__ for fact in self.knowledge if not isinstance(fact, used)]
        return ", ".join(names) or None

    @property
    def is_long(self) -> bool:
        """Whether one of the attacks declares that it is too long for a round to wait for."""
        return any(getattr(attack, "is_long", False) for attack in (self.label, self.image))

    @classmethod
    def by_name(
        cls,
        label: str,
        image: str | None = None,
        *,
        label_options: Mapping[str, Any] | None = None,
        image_options: Mapping[str, Any] | None = None,
        **plan: Any,
    ) -> AttackPlan:
        """Build from registered names or `module:attr`.

        Raises:
            ValueError: a name or an option is unknown, or facts contradict each other.
        """
        return cls(
            label,
            LABEL_ATTACKS.build(label, **(label_options or {})),
            image,
            None if image is None else IMAGE_ATTACKS.build(image, **(image_options or {})),
            **plan,
        )
