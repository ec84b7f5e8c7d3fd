"""The leading singular pair by products alone, and what errors add up to."""

from __future__ import annotations

import numpy as np
import pytest

from attacks.one_example.rank_one import SAMPLE, Errors, rank_one, sample_columns


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(10, 64), (40, 3), (300, 4000)])
@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_the_pair_is_that_of_a_singular_value_decomposition(
    shape: tuple[int, int], dtype: type, noise: float
) -> None:
    draws = np.random.default_rng(0)
    a, b = draws.normal(size=shape[0]), draws.normal(size=shape[1])
    a -= a.mean()
    b[::3] = 0
    matrix = np.outer(a, b) + noise * draws.normal(size=shape) * (b != 0)
    alpha, g, drift, sigma, second = rank_one(matrix.astype(dtype))
    assert np.linalg.norm(g) == pytest.approx(1)
    limit = {np.float32: 1e-5, np.float64: 1e-11}[dtype]  # some hundred roundings
    assert abs(drift - float((matrix @ g).sum())) < limit * np.abs(alpha).sum()
    assert abs(alpha.sum()) < 1e-9 * np.abs(alpha).sum()
    left, values, right = np.linalg.svd(matrix - matrix.mean(axis=0), full_matrices=False)
    sign = np.sign(right[0] @ g)
    size = float(np.linalg.norm(a))
    assert np.abs(sign * values[0] * left[:, 0] - alpha).max() < limit * values[0]
    assert np.abs(sign * right[0] - g).max() < limit
    if noise:
        # The noise is estimated from at least 78 entries, and the second singular value from a
        # part of the columns.
        assert sigma == pytest.approx(noise, rel=0.25)
        assert 0.5 * values[1] < second * np.sqrt(max(1, matrix.size / SAMPLE)) < 2.5 * values[1]
    else:
        assert max(sigma, second) < limit * size


def test_a_sample_holds_live_columns_only() -> None:
    g = np.zeros(5000)
    g[1::2] = 1
    columns = sample_columns(g, 1000)
    assert len(columns) < 200
    assert g[columns].all()
    g[:] = 0
    g[[3, 4000]] = 1
    assert sample_columns(g, 1000).tolist() == [3, 4000]


def test_errors_add_up() -> None:
    alpha, g = np.array([2.0, -1.0, -1.0]), np.array([0.6, 0.8, 0.0])
    noise = Errors.of_noise(0.1, alpha, g, g != 0)
    assert noise.rms == pytest.approx(0.1)
    assert noise.rows == pytest.approx([0.01] * 3)
    assert noise.columns == pytest.approx([0.06, 0.06, 0.0])
    twice = noise.plus(noise)
    assert twice.rms == pytest.approx(0.1 * 2**0.5)
    assert noise.times(4).rms == pytest.approx(0.2)
    draws = np.random.default_rng(0)
    largest = [np.linalg.norm(0.1 * draws.normal(size=(3, 2)), 2) for _ in range(1000)]
    assert max(largest) < noise.largest
