"""The accountant: between the exact ε of the Gaussian mechanism and Mironov's closed form."""

from __future__ import annotations

import itertools
import math

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from fl_sim.errors import UserError
from fl_sim.privacy import epsilon

DELTA = 1e-5
CASES = list(itertools.product((0.5, 1.0, 4.0, 20.0, 200.0), (1, 10, 1000)))


def exact_epsilon(distance: float, delta: float) -> float:
    """The smallest ε at δ of `rounds` Gaussian outputs, whose means differ by `distance` σ.

    Balle and Wang, ICML 2018, arXiv 1805.06530, theorem 8. Logarithms keep e^ε finite.
    """

    def excess(eps: float) -> float:
        upper = norm.cdf(distance / 2 - eps / distance)
        return float(upper - math.exp(eps + norm.logcdf(-distance / 2 - eps / distance)) - delta)

    return float(brentq(excess, 0, distance**2 + 20 * distance, xtol=1e-12))


@pytest.mark.parametrize(("noise_multiplier", "rounds"), CASES)
def test_lies_between_the_exact_value_and_the_closed_form(
    noise_multiplier: float, rounds: int
) -> None:
    bound = epsilon(noise_multiplier, rounds, delta=DELTA)
    assert bound is not None
    # Two updates of norm C differ by 2C; over the rounds the distances add up in squares.
    distance = 2 * math.sqrt(rounds) / noise_multiplier
    rho = distance**2 / 2  # ε(α) = ρα
    closed_form = rho + 2 * math.sqrt(rho * math.log(1 / DELTA))  # Mironov 2017, prop. 3, best α
    assert exact_epsilon(distance, DELTA) <= bound <= closed_form


@pytest.mark.parametrize(("noise_multiplier", "rounds"), CASES)
def test_is_the_minimum_over_orders(noise_multiplier: float, rounds: int) -> None:
    bound = epsilon(noise_multiplier, rounds, delta=DELTA)
    rho = 2 * rounds / noise_multiplier**2

    def converted(log_order: float) -> float:
        a = 1 + math.exp(log_order)
        return rho * a - math.log(DELTA * a) / (a - 1) + math.log1p(-1 / a)

    best = min(converted(-7 + i / 1000) for i in range(16_200))
    # The grid has 30 orders for each factor e: off by at most 1.6 % in α − 1, so 2e-4 in a minimum.
    assert bound == pytest.approx(best, rel=2e-4)


def test_more_rounds_cost_more_and_more_noise_costs_less() -> None:
    by_rounds = [epsilon(2.0, rounds) for rounds in range(50)]
    by_noise = [epsilon(noise, 10) for noise in (0.1, 0.5, 1.0, 2.0, 8.0, 64.0, 1e4)]
    assert all(a < b for a, b in itertools.pairwise(by_rounds))  # type: ignore[operator]
    assert all(a > b for a, b in itertools.pairwise(by_noise))  # type: ignore[operator]


def test_a_larger_delta_costs_less() -> None:
    strict, loose = epsilon(2.0, 10, delta=1e-9), epsilon(2.0, 10, delta=1e-3)
    assert strict is not None
    assert loose is not None
    assert strict > loose


@pytest.mark.parametrize(
    ("noise_multiplier", "rounds", "expected"),
    [(0.0, 0, 0.0), (1.0, 0, 0.0), (0.0, 1, None), (1e-200, 1, None)],
)
def test_ends(noise_multiplier: float, rounds: int, expected: float | None) -> None:
    assert epsilon(noise_multiplier, rounds) == expected


def test_never_negative_or_infinite() -> None:
    bounds = [epsilon(10.0**exponent, 1, delta=0.5) for exponent in range(-20, 20)]
    assert all(bound is None or 0 <= bound < math.inf for bound in bounds)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((-1.0, 1, DELTA), "noise_multiplier must be a finite number of at least 0, found -1.0"),
        ((math.inf, 1, DELTA), "noise_multiplier must be a finite number"),
        ((math.nan, 1, DELTA), "found nan"),
        ((1.0, -1, DELTA), "rounds must be at least 0, found -1"),
        ((1.0, 1, 0.0), "delta must be above 0 and below 1, found 0.0"),
        ((1.0, 1, 1.0), "delta must be above 0 and below 1, found 1.0"),
    ],
)
def test_refuses_impossible_arguments(arguments: tuple[float, int, float], sentence: str) -> None:
    noise_multiplier, rounds, delta = arguments
    with pytest.raises(UserError, match=sentence):
        epsilon(noise_multiplier, rounds, delta=delta)
