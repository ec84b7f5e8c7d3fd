"""ε of claims over rounds: exact without sampling, and as another accountant has it with."""

from __future__ import annotations

import itertools
import math
import time

import pytest
from scipy.optimize import brentq
from scipy.special import log_ndtr

from defenses import Privacy
from fl_sim.bench.privacy import DELTA, NOISES, RATES, RELEASES, deviation
from fl_sim.bench.privacy_loss import convolved_epsilon
from fl_sim.errors import UserError
from fl_sim.privacy import epsilon, spent_epsilon
from fl_sim.privacy.gaussian import gaussian_epsilon

WHOLE = list(itertools.product(NOISES, RATES, RELEASES))


def spent(noise: float, rate: float, releases: int, *, delta: float = DELTA) -> float:
    found = spent_epsilon(Privacy(1.0, noise=noise, sampling=rate), releases, delta=delta)
    assert found is not None
    return found


def check(noise: float, rate: float, releases: int) -> None:
    found = spent(noise, rate, releases)
    independent = convolved_epsilon(noise, rate, releases, DELTA)
    # An upper bound, but for the other accountant's own error.
    assert -0.05 <= deviation(found, independent) <= 1.0


@pytest.mark.parametrize(("rounds", "expected"), [(1, 0.7255), (10, 2.5944), (100, 9.9973)])
def test_values_of_clipped_and_noisy_updates(rounds: int, expected: float) -> None:
    assert epsilon(10.0, rounds) == pytest.approx(expected, abs=1e-4)  # as printed


@pytest.mark.parametrize(
    ("noise", "rate", "releases"),
    [(0.05, 0.5, 1000), (0.3, 0.001, 100), (1.0, 0.01, 10_000), (10.0, 0.1, 10), (1e3, 0.9, 100)]
    + [(noise, 1.0, 100) for noise in (0.05, 1.0, 1e3)],
)
def test_agrees_with_another_accountant(noise: float, rate: float, releases: int) -> None:
    check(noise, rate, releases)


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "rate", "releases"), WHOLE)
def test_agrees_with_another_accountant_everywhere(
    noise: float, rate: float, releases: int
) -> None:
    start = time.perf_counter()
    spent(noise, rate, releases)
    assert time.perf_counter() - start < 5  # 0.1 s as a rule; a busy machine takes longer
    check(noise, rate, releases)


def one_release_delta(noise: float, rate: float, eps: float) -> float:
    """Return δ(ε) in closed form: all that is likelier by e^ε with the unit lies above one x."""
    x = noise**2 * (eps + math.log1p(-(1 - rate) * math.exp(-eps)) - math.log(rate)) + 0.5
    without, with_unit = float(log_ndtr(-x / noise)), float(log_ndtr((1 - x) / noise))
    excess = (1 - rate) * math.exp(without) - math.exp(eps + without)
    return excess + rate * math.exp(with_unit)


@pytest.mark.parametrize("noise", [0.05, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("rate", [0.01, 0.5])
def test_one_release_is_the_closed_form(noise: float, rate: float) -> None:
    exact = brentq(lambda e: one_release_delta(noise, rate, e) - DELTA, 0, 2 / noise**2 + 20)
    assert spent(noise, rate, 1) == pytest.approx(exact, rel=5e-3)  # the mesh, from above
    assert convolved_epsilon(noise, rate, 1, DELTA) == pytest.approx(exact, rel=1e-4)


def is_monotone(table: dict[tuple[float, float, int], float]) -> bool:
    """Say whether ε falls in the noise and rises in rate and releases, along each line."""
    axes = [sorted({key[axis] for key in table}) for axis in range(3)]
    for key, value in table.items():
        for axis, sign in enumerate((-1, 1, 1)):
            later = axes[axis].index(key[axis]) + 1
            if later < len(axes[axis]):
                neighbour = table[(*key[:axis], axes[axis][later], *key[axis + 1 :])]  # type: ignore[index]
                if sign * (neighbour - value) < -1e-9 * value:  # what Fourier sums are off by
                    return False
    return True


@pytest.mark.slow
def test_is_monotone_finite_and_never_negative() -> None:
    table = {key: spent(*key) for key in WHOLE}
    assert all(0 <= value < math.inf for value in table.values())
    assert is_monotone(table)


def test_is_monotone_in_small_steps() -> None:
    """Also where the mesh changes."""
    by_releases = [spent(1.0, 0.05, releases) for releases in range(1, 40)]
    by_noise = [spent(1.2**step, 0.05, 20) for step in range(-8, 24)]
    by_rate = [spent(1.0, step / 30, 20) for step in range(1, 31)]
    assert all(a < b for a, b in itertools.pairwise(by_releases))
    assert all(a > b for a, b in itertools.pairwise(by_noise))
    assert all(a < b for a, b in itertools.pairwise(by_rate))


def test_small_steps_without_sampling() -> None:
    by_rounds = [epsilon(2.0, rounds) for rounds in range(50)]
    by_noise = [epsilon(noise, 10) for noise in (0.1, 0.5, 1.0, 2.0, 8.0, 64.0, 1e4)]
    assert all(a < b for a, b in itertools.pairwise(by_rounds))  # type: ignore[operator]
    assert all(a > b for a, b in itertools.pairwise(by_noise))  # type: ignore[operator]


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_a_larger_delta_costs_less(rate: float) -> None:
    found = [spent(1.0, rate, 10, delta=delta) for delta in (1e-9, 1e-5, 1e-3, 0.1)]
    assert all(a > b for a, b in itertools.pairwise(found))


def test_what_a_round_releases_adds_up() -> None:
    steps = Privacy(1.0, noise=2.0, unit="example", releases=10)
    assert spent_epsilon(steps, 3) == spent(2.0, 1.0, 30)
    assert spent_epsilon(Privacy(4.0, noise=8.0), 30) == spent(2.0, 1.0, 30)


@pytest.mark.parametrize(
    ("noise_multiplier", "rounds", "expected"),
    [(0.0, 0, 0.0), (1.0, 0, 0.0), (0.0, 1, None), (1e-200, 1, None)],
)
def test_ends(noise_multiplier: float, rounds: int, expected: float | None) -> None:
    assert epsilon(noise_multiplier, rounds) == expected


@pytest.mark.parametrize(
    ("noise", "rate", "releases", "delta"),
    [
        (1.0, 0.0, 10, 1e-5),
        (1.0, 1e-6, 10, 1e-5),  # δ covers that it takes part
        (1e3, 1e-3, 1, 1e-5),
        (1e9, 1.0, 1, 1e-5),
        (1.0, 0.5, 1, 0.5),
    ],
)
def test_delta_alone_may_cover_what_is_told(
    noise: float, rate: float, releases: int, delta: float
) -> None:
    assert spent(noise, rate, releases, delta=delta) == 0


@pytest.mark.parametrize("rate", [1e-200, 1e-9, 1e-3, 0.5, 1 - 1e-12])
@pytest.mark.parametrize("noise", [1e-150, 1e-6, 0.02, 1e8])
@pytest.mark.parametrize("delta", [1e-300, 1e-12, 1 - 1e-12])
def test_extremes_stay_between_nothing_and_everything(
    noise: float, rate: float, delta: float
) -> None:
    assert 0 <= spent(noise, rate, 10, delta=delta) <= spent(noise, 1.0, 10, delta=delta)


@pytest.mark.parametrize("exponent", range(-14, 15))
@pytest.mark.parametrize("delta", [1e-300, 1e-5, 0.5, 1 - 1e-12])
def test_the_curve_is_at_delta(exponent: int, delta: float) -> None:
    mu = 10.0**exponent
    found = gaussian_epsilon(mu, delta)
    assert 0 <= found < math.inf
    if 0.1 <= mu <= 10 and found > 0 and delta == 1e-5:
        upper = math.erfc((found / mu - mu / 2) / math.sqrt(2)) / 2
        lower = math.erfc((found / mu + mu / 2) / math.sqrt(2)) / 2
        assert upper - math.exp(found) * lower == pytest.approx(delta, rel=1e-6)  # cancellation


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
