"""Several ways to answer, of which the one that says most is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from attacks.answers import Certainty, LabelRecovery, Reconstruction, Status
from attacks.types import NotApplicable

Answer = TypeVar("Answer", LabelRecovery, Reconstruction)


def best_of(*ways: Callable[[], Answer]) -> Answer:
    """Return the first answer that is RECOVERED; else the one that says most, the latest of equals.

    Raises:
        NotApplicable: no way finds anything.
    """
    found, refusals = [], []
    for way in ways:
        try:
            answer = way()
        except NotApplicable as reason:
            refusals.append(str(reason))
            continue
        if answer.status is Status.RECOVERED:
            return answer
        found.append(answer)
    if not found:
        raise NotApplicable("; ".join(refusals))
    return max(reversed(found), key=_worth)


def _worth(answer: LabelRecovery | Reconstruction) -> tuple[int, ...]:
    certain = [example.certainty for example in answer.examples]
    kinds = (Certainty.VOUCHED, Certainty.LIKELY, Certainty.GUESS)
    return tuple(certain.count(kind) for kind in kinds)
