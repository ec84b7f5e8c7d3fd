"""Lost pixels that are as dark as black ones are taken as such, no others."""

from __future__ import annotations

import numpy as np
import pytest

from attacks.lost.black import with_black

BLACK = np.full(100, -0.42)


def image(scale: float = 0.03, dark: float = 0.4) -> np.ndarray:
    """Return the inputs (1, 100) of an image whose first pixels are black, up to a factor."""
    draws = np.random.default_rng(0)
    pixels = np.where(np.arange(100) < 100 * dark, 0.0, draws.uniform(0.1, 1, 100))
    return scale * (BLACK + pixels)[None] * 1.0


def test_a_lost_pixel_within_its_error_of_black_is_black() -> None:
    inputs, std = image(), np.zeros((1, 100))
    truth = inputs.copy()
    std[0, :10] = 1e-4
    inputs[0, :10] += 2e-4
    assert with_black(inputs, std, BLACK) == pytest.approx(truth, abs=1e-12)


@pytest.mark.parametrize(("off", "std"), [(1e-3, 1e-4), (1e-4, np.inf)], ids=["lighter", "open"])
def test_a_lighter_pixel_and_an_open_one_stay(off: float, std: float) -> None:
    inputs, errors = image(), np.zeros((1, 100))
    errors[0, 0], inputs[0, 0] = std, inputs[0, 0] + off
    assert (with_black(inputs, errors, BLACK) == inputs).all()


def test_an_image_without_black_shows_no_scale() -> None:
    inputs, errors = image(dark=0.0), np.zeros((1, 100))
    errors[0, :10] = 1.0
    assert (with_black(inputs, errors, BLACK) == inputs).all()


def test_black_is_zero_where_pixels_are_not_shifted() -> None:
    inputs, errors = np.linspace(0, 1, 100)[None].copy(), np.zeros((1, 100))
    errors[0, 1] = 0.1
    assert with_black(inputs, errors, np.zeros(100))[0, 1] == 0
