"""Stages of one chain that contradict each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from defenses.base import Defense

_NAMES = {
    "examples": "each example's gradient",
    "gradient": "each step's gradient",
    "update": "the update",
}


def require_consistent(stages: Sequence[Defense], *, local_steps: int | None = None) -> None:
    """Raise if one stage undoes what another does, or leaves it nothing to do.

    Args:
        stages: in their order.
        local_steps: that each client takes in a round; None: not known. After a single step the
            update is the step's gradient times the learning rate: who clips both clips one twice.

    Raises:
        ValueError: two stages clip one thing, or one starts again from the examples' own gradients
            and so drops what an earlier one made of their mean.
    """
    _require_one_clipping(stages, local_steps)
    for index, stage in enumerate(stages):
        if not stage.starts_from_examples:
            continue
        for before in stages[:index]:
            if overrides(before, "on_gradient"):
                raise ValueError(
                    f"{_title(stage)} starts from each example's gradient, so that what "
                    f"{_title(before)} makes of their mean before it is lost: put it first, or "
                    "leave one out"
                )


def _require_one_clipping(stages: Sequence[Defense], local_steps: int | None) -> None:
    clipping: dict[str, Defense] = {}
    for stage in stages:
        kind = stage.clips
        if kind is None:
            continue
        other = clipping.setdefault(kind, stage)
        if other is not stage:
            raise ValueError(
                f"{_title(other)} and {_title(stage)} both clip {_NAMES[kind]}, and the smaller "
                "norm counts alone: leave one out"
            )
    if local_steps == 1 and {"gradient", "update"} <= clipping.keys():
        raise ValueError(
            f"{_title(clipping['gradient'])} and {_title(clipping['update'])} both clip the one "
            "gradient that an update of one local step is, and the smaller norm counts alone: "
            "leave one out"
        )


def overrides(stage: Defense, hook: str) -> bool:
    """Say whether a defense does something in a hook."""
    from defenses.base import Defense

    return getattr(getattr(stage, hook), "__func__", None) is not getattr(Defense, hook)


def _title(stage: Defense) -> str:
    return type(stage).__name__
