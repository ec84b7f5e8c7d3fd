"""Step 4: which rays are features, judged blindly: by their geometry, and by a label each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from attacks.batch.explain import MOST_BAR, ROUNDINGS, Explanation, explain
from attacks.batch.label_tests import LabelTests
from attacks.batch.sharpen import Ray
from attacks.batch.subspace import Subspace
from attacks.facts import Told
from attacks.victim.gradients import Array

LEAST_SPREAD, CLEAR = 1e-5, 100.0
"""Second smallest singular value of V_Z below which the zeros leave the ray open, in float64; and
how many times larger it must be than what noise makes of the smallest."""
SAME, MOST_SAME = 1e-5, 1e-2
"""Distance of directions that are one ray, without noise and at most."""
AGREEMENT, AGREEMENT_BOUNDS = 30.0, (1e-6, 1e-2)
"""By how much gradient factors may differ, in units of the space's precision, and its bounds."""


@dataclass(frozen=True, eq=False)
class Example:
    """A ray that is taken for a feature; without an explanation while too few tests can be made."""

    ray: Ray
    explanation: Explanation | None = None


def accept(
    space: Subspace,
    examples: Sequence[Example],
    candidates: Iterable[Ray | None],
    refused: list[Ray],
    told: Told,
) -> list[Example]:
    """Return the new examples among the candidates; a ray without a label goes to `refused`."""
    tests = LabelTests.of(space, _witnesses(space, examples))
    known = [example.ray for example in examples] + refused
    explained: list[tuple[Ray, list[Explanation]]] = []
    for ray in candidates:
        if ray is None or not _is_determined(ray) or _is_among(ray, known):
            continue
        known.append(ray)
        explained.append((ray, explain(space, ray, tests, _scales(examples), told)))
    factors = [found.factor for _, some in explained for found in some]
    factor = _common(space, [*_factors(examples), *factors])
    fresh = [Example(ray, _chosen(space, some, factor)) for ray, some in explained]
    if not tests.suffice_for(2):
        return fresh
    refused += [example.ray for example in fresh if example.explanation is None]
    return [example for example in fresh if example.explanation is not None]


def certify(space: Subspace, examples: Sequence[Example], told: Told) -> tuple[Example, ...]:
    """Explain the examples that had too few tests, each by the duals of others."""
    factor = gradient_factor(space, examples)
    answer = []
    for example in examples:
        if example.explanation is None:
            others = [e for e in examples if e is not example]
            tests = LabelTests.of(space, _witnesses(space, others))
            found = explain(space, example.ray, tests, _scales(examples), told)
            example = Example(example.ray, _chosen(space, found, factor or 1.0))
        answer.append(example)
    return tuple(answer)


def gradient_factor(space: Subspace, examples: Sequence[Example]) -> float | None:
    """Return the factor on the gradient (clipping) on which the examples agree, if they do."""
    return _common(space, _factors(examples))


def _common(space: Subspace, factors: Sequence[float]) -> float | None:
    """Return 1 if one factor is 1, else the one on which most, and at least three, agree."""
    positive = np.array([factor for factor in factors if factor > 0])
    if not len(positive):
        return None
    if (np.abs(positive - 1) <= _agreement(space)).any():
        return 1.0
    near = np.abs(positive / positive[:, None] - 1) <= _agreement(space)
    most = int(near.sum(axis=1).argmax())
    return float(np.median(positive[near[most]])) if near[most].sum() >= 3 else None


def _agreement(space: Subspace) -> float:
    least = max(AGREEMENT * space.precision, ROUNDINGS * space.source.eps)
    return float(np.clip(least, *AGREEMENT_BOUNDS))


def _chosen(
    space: Subspace, found: Sequence[Explanation], factor: float | None
) -> Explanation | None:
    """Return the explanation with the common factor; None if there is none, or several labels."""
    agreeing = [
        one for one in found if factor and abs(one.factor / factor - 1) <= _agreement(space)
    ]
    if not agreeing:
        return None
    best = min(agreeing, key=lambda one: one.residual)
    is_one = all(np.abs(one.label - best.label).max() <= MOST_BAR for one in agreeing)
    return best if is_one else None


def _is_determined(ray: Ray) -> bool:
    smallest = ray.noise * np.sqrt(np.count_nonzero(ray.zeros))
    return bool(ray.spread >= max(LEAST_SPREAD, CLEAR * smallest))


def _is_among(ray: Ray, known: Sequence[Ray]) -> bool:
    if not known:
        return False
    distances = np.linalg.norm([other.direction - ray.direction for other in known], axis=1)
    noise = 10 * ray.noise * np.sqrt(len(ray.direction))
    return bool(distances.min() < min(SAME + noise, MOST_SAME))


def _witnesses(space: Subspace, examples: Sequence[Example]) -> list[Ray]:
    """Return the rays whose duals test labels: those that are explained, all if they are few."""
    explained = [e.ray for e in examples if e.explanation is not None]
    tests = LabelTests.of(space, explained)
    return explained if tests.suffice_for(2) else [e.ray for e in examples]


def _scales(examples: Sequence[Example]) -> Array:
    return np.array([e.explanation.scale for e in examples if e.explanation is not None])


def _factors(examples: Sequence[Example]) -> list[float]:
    return [e.explanation.factor for e in examples if e.explanation is not None]
