"""Inputs whose scale labels leave open, and what pixels can be."""

from __future__ import annotations

import pytest
import torch

from attacks import ExampleLabel, Status
from attacks.dense.inputs import OPEN_IMAGE, UNCERTAIN, Inputs
from attacks.victim.pixel_map import PixelMap

MAP = PixelMap(torch.full((1, 1, 3), 2.0).double(), torch.full((1, 1, 3), -0.5).double())
IMAGE = torch.tensor([[[0.0, 0.4, 0.8]]]).double()
LABEL = torch.tensor([0.3, 0.7]).double()


def scaled(factor: float, example: ExampleLabel, noise: float = 0.0) -> tuple[float, Inputs]:
    """Return by what an image's inputs, times a factor, come out, and all of it."""
    a = factor * MAP.inputs(IMAGE).reshape(1, 3)
    given = Inputs(a, torch.tensor([noise]).double(), a.clone(), torch.zeros(1), (UNCERTAIN,))
    found = given.within_range([example], MAP, 4.0)
    assert found.a.equal(found.features)
    return float(found.a[0, 0] / MAP.inputs(IMAGE)[0, 0, 0]), found


@pytest.mark.parametrize("factor", [0.01, 1.0, 300.0])
def test_without_a_label_the_largest_scale_is_shown(factor: float) -> None:
    size, found = scaled(factor, ExampleLabel(Status.NOT_IDENTIFIABLE, "two labels fit"))
    assert size == pytest.approx(1)  # its first pixel is black
    assert found.reasons == (OPEN_IMAGE,)


@pytest.mark.parametrize(("factor", "shown"), [(0.5, 0.5), (300.0, 1.0)])
def test_an_uncertain_label_is_bounded(factor: float, shown: float) -> None:
    size, found = scaled(factor, ExampleLabel(Status.NOT_IDENTIFIABLE, "rounding", label=LABEL))
    assert size == pytest.approx(shown)
    assert found.reasons == (UNCERTAIN,)


def test_a_recovered_label_is_believed() -> None:
    size, _ = scaled(2.0, ExampleLabel(Status.RECOVERED, label=LABEL))
    assert size == pytest.approx(2)


def test_noise_may_leave_the_range() -> None:
    without, _ = scaled(1.0, ExampleLabel(Status.NOT_IDENTIFIABLE, "two labels fit"))
    size, found = scaled(1.0, ExampleLabel(Status.NOT_IDENTIFIABLE, "two labels fit"), noise=0.02)
    assert size > without
    assert float(MAP.pixels(found.a).min()) == pytest.approx(-size * 4 * 0.02 / 2)


def test_inputs_that_say_nothing_of_their_range_are_left() -> None:
    """Where the loader normalises, and pixels below 0 are the rule."""
    plain = PixelMap(torch.ones(1, 1, 3).double(), torch.zeros(1, 1, 3).double())
    a = torch.tensor([[-1.0, 0.0, 2.0]]).double()
    given = Inputs(a, torch.zeros(1).double(), a.clone(), torch.zeros(1), (UNCERTAIN,))
    found = given.within_range([ExampleLabel(Status.NOT_IDENTIFIABLE, "two fit")], plain, 4.0)
    assert found.a.equal(a)
    assert found.reasons == (UNCERTAIN,)
