"""Bounds from counts: against closed forms, and how often they are wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from fl_sim.privacy.evidence import Rates, share_bounds, thresholds, visible_from


@pytest.mark.parametrize(("hits", "draws"), [(0, 50), (3, 50), (25, 50), (50, 50)])
def test_share_bounds_are_where_the_binomial_says(hits: int, draws: int) -> None:
    low, high = share_bounds(hits, draws, 0.975)
    # At its lower bound a share gives so many hits or more with the error's probability.
    if hits:
        assert binom.sf(hits - 1, draws, low) == pytest.approx(0.025, rel=1e-9)
    else:
        assert low == 0
    if hits < draws:
        assert binom.cdf(hits, draws, high) == pytest.approx(0.025, rel=1e-9)
    else:
        assert high == 1


@pytest.mark.parametrize("mu", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("sampling", [1.0, 0.3])
def test_exact_rates_give_the_mechanism_back(mu: float, sampling: float) -> None:
    for threshold in (-0.5, 0.3, mu / 2, mu):
        without = float(norm.sf(threshold))
        given = (1 - sampling) * without + sampling * float(norm.sf(threshold - mu))
        # differences of numbers near 1, in double precision
        assert Rates(without, given).mu(sampling) == pytest.approx(mu, rel=1e-9)


def test_epsilon_of_randomized_response_is_its_own() -> None:
    """Answering truly with probability e^ε / (1 + e^ε) is ε-DP, and no less."""
    for epsilon in (0.1, 1.0, 4.0):
        true = math.exp(epsilon) / (1 + math.exp(epsilon))
        assert Rates(1 - true, true).epsilon(0.0) == pytest.approx(epsilon, rel=1e-12)


def test_nothing_is_bounded_where_the_shares_are_alike_or_turned_round() -> None:
    for rates in (Rates(0.5, 0.5), Rates(0.7, 0.3), Rates(1.0, 1.0), Rates(0.5, 0.0)):
        assert rates.mu() == rates.mu(0.2) == 0
        assert rates.epsilon(1e-5) == 0


def test_the_bound_is_above_the_truth_no_oftener_than_its_confidence_allows() -> None:
    draws, mu, wrong, tries = np.random.default_rng(0), 1.0, 0, 400
    for _ in range(tries):
        without, given = draws.normal(size=500), draws.normal(mu, size=500)
        wrong += Rates.counted(without, given, 0.5, 0.95).mu() > mu
    # With 5 % for each, more than 35 of 400 come once in 10,000 such tests.
    assert wrong <= 35
    found = Rates.counted(draws.normal(size=20_000), draws.normal(mu, size=20_000), 0.5, 0.95)
    assert 0.9 < found.mu() < mu


def test_thresholds_are_spread_over_both_samples() -> None:
    found = thresholds(np.zeros(10), np.linspace(1, 5, 10))
    assert found.min() == 0
    assert found.max() > 4


def test_what_so_many_draws_show() -> None:
    assert visible_from(2.0, 5000, 0.99) < visible_from(2.0, 500, 0.99)
    assert visible_from(50.0, 5000, 0.99) == math.inf
