"""What a chain of defenses claims together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from defenses import Defense
from defenses.privacy import LocalPlan, Privacy
from fl_sim.errors import UserError


def claims_of(stages: Sequence[tuple[str, Defense]], plan: LocalPlan) -> tuple[Privacy, ...]:
    """Return the claims of a chain's stages; each holds for all that leaves the client.

    The server sees the last stage's output alone, so claims aren't added up, and the best one
    counts. Nor are variances: a later stage clips or changes noise that is there already, and what
    a stage adds without a claim has no sensitivity to set it against.

    A sampling rate counts as 1 where clients train in epochs, which take every example.

    Args:
        stages: names and defenses, in their order.
        plan: how the client trains.

    Raises:
        UserError: a claim isn't a `Privacy` or isn't a possible one, or two are of different units.
    """
    claims: dict[str, Privacy] = {}
    for index, (name, stage) in enumerate(stages):
        claim = _claim_of(name, stage, plan)
        if claim is not None:
            claims[f"defense.{index} ({name})"] = claim
    units = {claim.unit: place for place, claim in claims.items()}
    if len(units) > 1:
        found = " and ".join(f"{unit!r} of {place}" for unit, place in units.items())
        raise UserError(f"privacy claims of one run must have one unit, found {found}")
    return tuple(claims.values())


def _claim_of(name: str, stage: Defense, plan: LocalPlan) -> Privacy | None:
    try:
        claim = stage.privacy(plan)
    except ValueError as error:
        raise UserError(f"defense {name!r}: its privacy claim's {error}") from error
    if not (claim is None or isinstance(claim, Privacy)):
        raise UserError(f"defense {name!r}: privacy must return a Privacy or None, found {claim!r}")
    if claim is not None and plan.local_epochs is not None:
        # An epoch takes every example, for certain: no claim of a sampling rate holds.
        claim = dataclasses.replace(claim, sampling=float(claim.sampling > 0))
    return claim
