"""Which attacks run on an update, and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS, ImageAttack, Knowledge, LabelAttack


@dataclass(frozen=True, eq=False)
class AttackPlan:
    """One label attack, perhaps an image attack on top of it, and when they run.

    Args:
        label_name: for the records.
        label: the attack.
        image_name: for the records; None without an image attack.
        image: the attack.
        knowledge: what the attacker knows of the clients' defenses; nothing when "unaware".
        attacker: "unaware" or "aware", for the records.
        covers: (server round, client) -> whether this attack runs.
    """

    label_name: str
    label: LabelAttack
    image_name: str | None = None
    image: ImageAttack | None = None
    knowledge: Knowledge = field(default_factory=Knowledge)
    attacker: str = "unaware"
    covers: Callable[[int, int], bool] = lambda server_round, client: True

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
            ValueError: a name or an option is unknown.
        """
        return cls(
            label,
            LABEL_ATTACKS.build(label, **(label_options or {})),
            image,
            None if image is None else IMAGE_ATTACKS.build(image, **(image_options or {})),
            **plan,
        )
