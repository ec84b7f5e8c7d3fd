"""The noise model: against covariances written out, and against draws of the noise itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from attacks.one_example import noise as noise_model
from attacks.one_example.noise import Deviation, expected_variance

Array = NDArray[np.float64]
Build = Callable[..., Any]
SETTINGS = [
    pytest.param({"spread": 4.0, "noise": 0.02}, id="noise"),
    pytest.param({"spread": 4.0, "noise": 0.02, "bias": True}, id="noise, with a bias"),
    pytest.param({"spread": 4.0, "noise": 0.02, "factor": 0.3}, id="noise and clipping"),
    pytest.param({"spread": 1.0}, id="rounding"),
    pytest.param({"spread": 1.0, "bias": True}, id="rounding, with a bias"),
]
LABEL = np.array([0.7, 0.2, *[0.1 / 8] * 8])


def softmax(logits: Array) -> Array:
    parts = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(parts / parts.sum(axis=-1, keepdims=True))


def at_the_truth(head: Any, seen: Any, factor: float = 1.0) -> tuple[float, float, Array]:
    """Return λ, s and p where the head's own feature and label are the answer."""
    scale = float(head.feature @ seen.g)
    return scale, 1 / (factor * scale), softmax(scale * seen.weight @ seen.g)


def own_variances(seen: Any, s: float, p: Array) -> Array:
    """Variances of α's noise, and of p and y as the client rounded them."""
    return np.array(
        [
            seen.alpha_std[k] ** 2 + (seen.eps * (p[k] + LABEL[k]) / s) ** 2
            for k in range(len(LABEL))
        ]
    )


def logit_covariance(seen: Any, scale: float) -> Array:
    """Σ_j λ² W_kj W_lj Var(g_j), and on the diagonal the logits' own rounding."""
    classes, width = seen.weight.shape
    covariance = np.zeros((classes, classes))
    for k in range(classes):
        for j in range(width):
            for other in range(classes):
                product = seen.weight[k, j] * seen.weight[other, j]
                covariance[k, other] += scale**2 * product * seen.g_std[j] ** 2
            covariance[k, k] += (2 * seen.eps * scale * seen.weight[k, j] * seen.g[j]) ** 2
    return covariance


def covariance_of(seen: Any, scale: float, s: float, p: Array, whole: list[int]) -> Array:
    """That of `α − (p − y)/s`: whole among some classes, the others independent."""
    logits, own = logit_covariance(seen, scale), own_variances(seen, s, p)
    covariance = np.diag(own + np.diag(logits) * (p / s) ** 2)
    slope = np.diag(p[whole]) - np.outer(p[whole], p[whole])
    block = slope @ logits[np.ix_(whole, whole)] @ slope / s**2 + np.diag(own[whole])
    covariance[np.ix_(whole, whole)] = block
    return covariance


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("matters", [0.0, 0.1, 0.3])
def test_whitening_is_a_root_of_the_inverse_covariance(
    settings: dict[str, Any],
    matters: float,
    make_head: Build,
    see: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(noise_model, "MATTERS", matters)
    head = make_head(LABEL, **settings)
    seen = see(head.problem)
    scale, s, p = at_the_truth(head, seen, settings.get("factor", 1.0))
    by_logits = np.diag(logit_covariance(seen, scale)) * (p / s) ** 2
    together = by_logits > matters**2 * own_variances(seen, s, p)
    whole = np.flatnonzero(together).tolist() if seen.is_noisy else []
    assert {0.0: 10, 0.1: 9, 0.3: 5}[matters] >= len(whole) >= (2 if seen.is_noisy else 0)
    covariance = covariance_of(seen, scale, s, p, whole)

    deviation = Deviation.at(head.problem, scale, p, LABEL, s)
    whiten = deviation.whiten(np.eye(len(LABEL)), 0.0)
    rows = whiten[: len(LABEL)]
    size = np.sqrt(np.outer(*[np.diag(np.linalg.inv(covariance))] * 2))
    # Relative to the largest that each entry may be; float64 through one factorisation.
    assert np.abs((rows.T @ rows - np.linalg.inv(covariance)) / size).max() < 1e-9
    assert deviation.precision() == pytest.approx(
        np.diag(np.linalg.inv(covariance)), rel=1e-9, abs=0
    )
    assert np.abs(deviation.adjoint(np.eye(len(whiten))) - whiten.T).max() < 1e-12 * rows.max()
    one = deviation.whiten(LABEL, 0.0)
    assert one[: len(LABEL)] == pytest.approx(rows @ LABEL, rel=1e-9, abs=0)


def test_a_bias_adds_an_equation_of_its_own(make_head: Build, see: Build) -> None:
    head = make_head(LABEL, bias=True, noise=0.02)
    seen = see(head.problem)
    scale, s, p = at_the_truth(head, seen)
    deviation = Deviation.at(head.problem, scale, p, LABEL, s)
    expected = scale * seen.g_std[-1] + seen.eps
    assert deviation.whiten(LABEL, 2.0)[-1] == pytest.approx(2.0 / expected, rel=1e-9)
    unbiased = make_head(LABEL, noise=0.02)
    assert len(Deviation.at(unbiased.problem, scale, p, LABEL, s).whiten(LABEL, 2.0)) == len(LABEL)


def test_whitened_draws_of_the_noise_are_independent_and_of_unit_variance(
    make_head: Build, see: Build
) -> None:
    head = make_head(LABEL, noise=2e-3, spread=4.0)  # small: it is a first-order model
    seen = see(head.problem)
    scale, s, p = at_the_truth(head, seen)
    deviation = Deviation.at(head.problem, scale, p, LABEL, s)
    assert len(deviation.correlated) >= 3
    draws, count = np.random.default_rng(1), 40_000
    noise = seen.alpha_std * draws.normal(size=(count, len(LABEL)))
    g = seen.g + seen.g_std * draws.normal(size=(count, len(seen.g)))
    changes = noise - (softmax(scale * g @ seen.weight.T) - p) / s
    white = deviation.whiten(changes.T, 0.0)
    # Five standard errors of a variance, √(2/N), and 2 % for what is not of first order or, for
    # classes that hardly matter, neglected.
    assert np.abs(np.cov(white) - np.eye(len(LABEL))).max() < 5 * (2 / count) ** 0.5 + 0.02


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("is_single", [False, True], ids=["double", "single"])
def test_standard_deviations_are_the_formulas(
    settings: dict[str, Any], is_single: bool, make_head: Build, see: Build
) -> None:
    head = make_head(LABEL, **settings)
    problem = head.problem.with_single_precision_labels() if is_single else head.problem
    seen = see(problem)
    scale, s, p = at_the_truth(head, seen, settings.get("factor", 1.0))
    logits = np.diag(logit_covariance(seen, scale))
    expected = np.sqrt(own_variances(seen, s, p) + logits * (p / s) ** 2)
    for is_whole in (True, False):
        found = Deviation.at(problem, scale, p, LABEL, s, is_whole=is_whole).std
        assert found == pytest.approx(expected, rel=1e-9, abs=0)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("is_single", [False, True], ids=["double", "single"])
def test_expected_variances_are_the_formulas(
    settings: dict[str, Any], is_single: bool, make_head: Build, see: Build
) -> None:
    head = make_head(LABEL, **settings)
    problem = head.problem.with_single_precision_labels() if is_single else head.problem
    seen = see(problem)
    scale, _, _ = at_the_truth(head, seen)
    scales, classes = np.array([0.5, -1.0, 2.0]) * scale, np.array([0, 3, 7])
    p = softmax(np.outer(scales, seen.weight @ seen.g))[:, classes]
    found = expected_variance(problem, scales, p, classes)
    for row, value in enumerate(scales):
        logits = np.diag(logit_covariance(seen, value))
        for column, k in enumerate(classes):
            expected = (
                seen.alpha_std[k] ** 2
                + (value * seen.eps * p[row, column]) ** 2
                + (value * p[row, column]) ** 2 * logits[k]
            )
            assert found[row, column] == pytest.approx(expected, rel=1e-9, abs=0)


def test_expected_variances_are_those_of_draws(make_head: Build, see: Build) -> None:
    label = np.full(60, 0.3 / 60)
    label[5] += 0.7
    head = make_head(label, noise=2e-3, width=40)
    seen = see(head.problem)
    scale, _, p = at_the_truth(head, seen)
    draws, count = np.random.default_rng(2), 20_000
    noise = seen.alpha_std * draws.normal(size=(count, len(label)))
    g = seen.g + seen.g_std * draws.normal(size=(count, len(seen.g)))
    drawn = (scale * softmax(scale * g @ seen.weight.T) - noise).var(axis=0)
    found = expected_variance(head.problem, np.array([scale]), p[None], np.arange(60))[0]
    # The softmax ties the classes together, which is left out: a share of about 2 p, on the part
    # that comes from the logits. Five standard errors beside it.
    by_logits = 1 - seen.alpha_std**2 / found
    assert by_logits.max() > 0.1
    assert (np.abs(drawn / found - 1) < 3 * p.max() * by_logits + 5 * (2 / count) ** 0.5).all()
