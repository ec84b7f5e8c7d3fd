"""The batched interior-point solver against HiGHS."""

from __future__ import annotations

import numpy as np
import pytest

from attacks.numerics.interior_point import Slice, solve_by_simplex, solve_programs

SIZES = [(2, 12), (5, 40), (20, 160)]


def cone_of_features(size: int, width: int, seed: int, slack: float) -> Slice:
    """Span a cone by `size` non-negative vectors, half of whose entries are 0."""
    draws = np.random.default_rng(seed)
    features = np.maximum(draws.standard_normal((size, width)), 0)
    right = np.linalg.svd(features, full_matrices=False)[2]
    return Slice(right, np.full(width, slack), draws.uniform(0.5, 1.5, width))


@pytest.mark.parametrize("slack", [0.0, 1e-3])
@pytest.mark.parametrize(("size", "width"), SIZES)
def test_agrees_with_highs(size: int, width: int, slack: float) -> None:
    region = cone_of_features(size, width, 0, slack)
    objectives = np.random.default_rng(1).standard_normal((12, size))
    found = solve_programs(region, objectives, gap=1e-10)
    for objective, q in zip(objectives, found, strict=True):
        reference = solve_by_simplex(region, objective)
        scale = np.linalg.norm(objective) * np.linalg.norm(reference)
        # The optimum's value is unique; 1e-7 is HiGHS's own tolerance.
        assert objective @ q == pytest.approx(objective @ reference, abs=2e-7 * scale)


@pytest.mark.parametrize(("size", "width"), SIZES)
def test_solutions_are_feasible(size: int, width: int) -> None:
    region = cone_of_features(size, width, 2, 1e-3)
    objectives = np.random.default_rng(3).standard_normal((8, size))
    found = solve_programs(region, objectives)
    assert found @ region.normal == pytest.approx(np.ones(8), abs=1e-6)  # its gap
    x = found @ region.columns + region.slack
    assert (x.min(axis=1) >= -1e-6 * x.max(axis=1)).all()


def test_each_program_is_solved_by_itself() -> None:
    region = cone_of_features(5, 40, 4, 0.0)
    objectives = np.random.default_rng(5).standard_normal((6, 5))
    together = solve_programs(region, objectives, gap=1e-10)
    alone = np.concatenate([solve_programs(region, c[None], gap=1e-10) for c in objectives])
    assert together == pytest.approx(alone, abs=1e-6)  # they end at the same vertex


def test_a_program_without_an_optimum_breaks_nothing() -> None:
    """Without a single feasible point there is nothing to find, for HiGHS neither."""
    columns = np.array([[1.0, -1.0, 0.5], [0.0, 0.0, 1.0]])
    region = Slice(columns, np.zeros(3), np.array([1.0, 1.0, -1.0]))
    assert np.isnan(solve_by_simplex(region, np.array([1.0, 0.0]))).all()
    assert solve_programs(region, np.array([[1.0, 0.0]])).shape == (1, 2)
