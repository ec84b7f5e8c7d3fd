"""Error bars: block elimination against a loop that adds each class's column and solves anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from attacks import GradientLeak
from attacks.facts import Fact, GaussianMechanism, HardLabels, LabelSmoothing, Mixup
from attacks.numerics.least_squares import BAR
from attacks.one_example.bars import Unknown, _bars, _second_class, unknowns, widest_bars
from attacks.one_example.fit import Fit, Linearised

Array = NDArray[np.float64]
Build = Callable[..., Any]
SMOOTHING, SECOND_CLASS, SCALE = Unknown
HARD = np.eye(9)[2]
SMOOTHED = 0.7 * HARD + 0.3 / 9
MIXED = 0.6 * HARD + 0.4 * np.eye(9)[5]
HEADS = [
    pytest.param({"noise": 3e-3}, id="noise"),
    pytest.param({"noise": 3e-3, "spread": 5.0}, id="correlated noise"),
    pytest.param({"noise": 3e-3, "spread": 5.0, "bias": True}, id="with a bias"),
    pytest.param({"dtype": torch.float32}, id="rounding"),
]
FREE = [
    frozenset({SECOND_CLASS}),
    frozenset({SMOOTHING, SECOND_CLASS}),
    frozenset({SECOND_CLASS, SCALE}),
    frozenset({SMOOTHING, SECOND_CLASS, SCALE}),
]


def scale_of(fit: Fit) -> float:
    """Return λ."""
    return 1 / (fit.s * fit.gradient_scale)


def start_of(fit: Fit, free: frozenset[Unknown]) -> Array:
    """Return where a further class's share comes from: all entries, or the first class."""
    classes = len(fit.label)
    return np.full(classes, 1 / classes) if SMOOTHING in free else np.eye(classes)[fit.classes[0]]


def widened(problem: Any, fit: Fit, free: frozenset[Unknown]) -> Iterator[tuple[Any, Array]]:
    """Yield the equations and the label's moves: of the fit's own classes, and with each other."""
    start, (a, b) = start_of(fit, free), fit.classes
    own = ([a] if SMOOTHING in free else []) + ([b] if fit.model.pair else [])
    choices = [own]
    if SECOND_CLASS in free and not fit.model.pair:
        choices += [[*own, k] for k in range(len(fit.label)) if k != a]
    for ends in choices:
        moves = np.array([np.eye(len(fit.label))[k] - start for k in ends])
        moves = moves.reshape(len(ends), len(fit.label)).T
        scale, is_scaled = scale_of(fit), SCALE in free
        line = Linearised.at(problem, scale, fit.s, fit.label, moves, is_scaled=is_scaled)
        yield line, moves


def solved(line: Any, moves: Array, scale: float) -> tuple[Array, Array]:
    """Solve by normal equations; return the label's bars, and λ's, and their standard errors."""
    columns = line.design.shape[1]
    wanted = np.zeros((len(moves) + 1, columns))
    wanted[:-1, columns - moves.shape[1] :] = moves
    wanted[-1, 0] = 1 / scale
    size = np.linalg.norm(line.design, axis=0)  # λ and a share differ by orders of magnitude
    inverse = np.linalg.inv((line.design / size).T @ (line.design / size)) / np.outer(size, size)
    std = np.sqrt(np.diag(wanted @ inverse @ wanted.T))
    step = wanted @ inverse @ line.design.T @ line.target
    return BAR * std + np.abs(step), std


def looped(problem: Any, seen: Any, fit: Fit, free: frozenset[Unknown]) -> tuple[float, float]:
    """Return what `_bars` does, class by class."""
    cases = [solved(*equations, scale_of(fit))[0] for equations in widened(problem, fit, free)]
    feature = seen.g[: len(seen.g) - seen.has_bias]
    length = BAR * seen.g_std.max() / np.linalg.norm(feature)
    return max(bar[:-1].max() for bar in cases), max(bar[-1] for bar in cases) + length


@pytest.mark.parametrize("free", FREE, ids=lambda free: ", ".join(sorted(u.name for u in free)))
@pytest.mark.parametrize("settings", HEADS)
def test_a_second_class_is_eliminated_as_if_its_column_were_added(
    settings: dict[str, Any], free: frozenset[Unknown], make_head: Build
) -> None:
    head = make_head(SMOOTHED if SMOOTHING in free else HARD, **settings)
    problem = head.problem
    fit = head.fit(total=None if SMOOTHING in free else 1.0, scaled=SCALE in free)
    start = start_of(fit, free)
    (line, _), *wider = widened(problem, fit, free)
    inverse = np.linalg.pinv(line.design, rcond=1e-14)
    wanted = np.random.default_rng(0).normal(size=(3, line.design.shape[1]))
    effects, along, left = _second_class(line, fit, wanted, start, inverse)
    assert effects.shape == (3, 8)
    for column, (wide, _) in enumerate(wider):
        added = wide.design[:, -1]
        share = np.linalg.lstsq(line.design, added, rcond=1e-14)[0]
        rest = added - line.design @ share
        assert left[column] == pytest.approx(rest @ rest, rel=1e-6, abs=0)
        limit = 1e-6 * np.linalg.norm(rest) * np.linalg.norm(line.target)
        assert along[column] == pytest.approx(rest @ line.target, abs=limit)
        # Beside λ, which is wanted in its own unit, shares are of the order of one.
        assert effects[:, column] == pytest.approx(-wanted @ share, rel=1e-6, abs=0)


@pytest.mark.parametrize("free", FREE, ids=lambda free: ", ".join(sorted(u.name for u in free)))
@pytest.mark.parametrize("settings", HEADS)
def test_bars_are_the_widest_of_all_second_classes(
    settings: dict[str, Any], free: frozenset[Unknown], make_head: Build, see: Build
) -> None:
    for seed in range(3):
        head = make_head(SMOOTHED if SMOOTHING in free else HARD, seed=seed, **settings)
        fit = head.fit(total=None if SMOOTHING in free else 1.0, scaled=SCALE in free)
        expected = looped(head.problem, see(head.problem), fit, free)
        assert _bars(head.problem, fit, free) == pytest.approx(expected, rel=1e-6, abs=0)
        narrow = looped(head.problem, see(head.problem), fit, free - {SECOND_CLASS})
        assert expected[0] > 1.05 * narrow[0]  # the loop's classes matter


@pytest.mark.parametrize("free", [FREE[0], FREE[3]], ids=["alone", "with all"])
@pytest.mark.parametrize("settings", HEADS)
def test_bars_of_a_pair_are_those_of_its_own_equations(
    settings: dict[str, Any], free: frozenset[Unknown], make_head: Build, see: Build
) -> None:
    head = make_head(MIXED, **settings)
    fit = head.fit(pair=True, total=None if SMOOTHING in free else 1.0, scaled=SCALE in free)
    assert set(fit.classes) == {2, 5}
    expected = looped(head.problem, see(head.problem), fit, free)
    assert _bars(head.problem, fit, free) == pytest.approx(expected, rel=1e-6, abs=0)


def test_bars_cover_the_truth_as_often_as_they_say(make_head: Build) -> None:
    label_errors, scale_errors = [], []
    for seed in range(60):
        head = make_head(SMOOTHED, noise=3e-3, seed=seed)
        fit = head.fit(total=None)
        label_bar, scale_bar = _bars(head.problem, fit, frozenset({SMOOTHING}))
        length = abs(scale_of(fit)) / np.linalg.norm(head.feature)
        label_errors.append(np.abs(fit.label - SMOOTHED).max() / label_bar)
        scale_errors.append(abs(length - 1) / scale_bar)
    # A bar has four standard deviations: 1 in 16,000 lies outside, two thirds within a quarter.
    assert max(label_errors) < 1
    assert max(scale_errors) < 1
    assert 0.5 < np.mean(np.array(label_errors) < 0.25) < 0.85


def test_all_that_is_unknown_widens_bars_under_noise(make_head: Build) -> None:
    head = make_head(HARD, noise=3e-3)
    fit = head.fit()
    stretch = max(1.0, fit.residual)
    for unknown in (frozenset(), FREE[0], FREE[3]):
        expected = stretch * np.array(_bars(head.problem, fit, unknown))
        assert widest_bars(head.problem, fit, unknown) == pytest.approx(expected)
    assert (
        widest_bars(head.problem, fit, FREE[3])[0] > widest_bars(head.problem, fit, frozenset())[0]
    )


def test_a_misfit_stretches_bars(make_head: Build) -> None:
    head = make_head(HARD, noise=3e-3)
    fit = head.fit()
    usual, twice, half = (
        np.array(widest_bars(head.problem, dataclasses.replace(fit, residual=size), FREE[3]))
        for size in (1.0, 2.0, 0.5)
    )
    assert twice == pytest.approx(2 * usual)
    assert half == pytest.approx(usual)


def test_without_noise_as_many_unknowns_widen_bars_as_there_are_equations_to_spare(
    make_head: Build,
) -> None:
    four = make_head(np.eye(4)[1], dtype=torch.float32)
    fit = four.fit()
    assert fit.surplus == 2
    pairs = [frozenset(FREE[3] - {left_out}) for left_out in Unknown]
    widest = np.max([_bars(four.problem, fit, pair) for pair in pairs], axis=0)
    found = widest_bars(four.problem, fit, FREE[3])
    assert found == pytest.approx(max(1.0, fit.residual) * widest)


def test_one_equation_to_spare_is_a_coincidence_one_time_in_as_many(make_head: Build) -> None:
    three = make_head(np.eye(3)[1], dtype=torch.float32)
    fit = three.fit()
    assert fit.surplus == 1
    widest = np.max([_bars(three.problem, fit, frozenset({one})) for one in Unknown], axis=0)
    found = widest_bars(three.problem, fit, FREE[3])
    assert found == pytest.approx(10 * max(1.0, fit.residual) * widest)
    alone = np.array(_bars(three.problem, fit, frozenset()))
    assert widest_bars(three.problem, fit, frozenset()) == pytest.approx(
        max(1.0, fit.residual) * alone
    )


@pytest.mark.parametrize(
    ("knowledge", "expected"),
    [
        ((), {SMOOTHING, SECOND_CLASS, SCALE}),
        ((HardLabels(),), {SCALE}),
        ((Mixup(),), {SECOND_CLASS, SCALE}),
        ((LabelSmoothing(),), {SMOOTHING, SCALE}),
        ((LabelSmoothing(0.1),), {SCALE}),
        ((GaussianMechanism(2.0),), {SMOOTHING, SECOND_CLASS}),
        ((GaussianMechanism(0.9),), {SMOOTHING, SECOND_CLASS, SCALE}),
    ],
)
def test_what_is_unknown_follows_from_what_is_known(
    knowledge: tuple[Fact, ...], expected: set[Unknown], make_head: Build
) -> None:
    head = make_head(HARD)
    gradient = head.leak.gradients["2.weight"]
    told = GradientLeak(
        head.leak.model,
        {"2.weight": gradient / gradient.norm()},  # an update of norm 1 at lr 1
        1,
        head.leak.input_shape,
        lr=1.0,
        knowledge=knowledge,
    )
    assert unknowns(told) == expected
