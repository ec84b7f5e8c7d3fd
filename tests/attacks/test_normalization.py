"""Images that the data loader normalised: given back as pixels where it is known how."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS, GradientLeak, Normalization, Reconstruction
from fl_sim.testing import check_no_claim, gradients_of

SHAPE = (3, 8, 8)
USUAL = Normalization((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
RANGES = {
    "usual": USUAL,
    "one for all channels": Normalization(0.1307, 0.3081),
    "-1 to 1": Normalization.of_range(-1, 1),
    "0 to 255": Normalization.of_range(0, 255),
}


def dense(bias: bool) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 64, bias=bias), nn.ReLU(), nn.Linear(64, 10, bias=bias)
    )


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(768, 10, bias=False)
    )


def recover(
    model: nn.Module, pixels: Tensor, client: Normalization, told: Normalization | None, name: str
) -> tuple[Reconstruction, Tensor]:
    """Return the answer, and what the model was given."""
    given = client(pixels)
    gradients = gradients_of(model, given, torch.arange(len(pixels)))
    leak = GradientLeak(model, gradients, len(pixels), SHAPE, normalization=told)
    labels = LABEL_ATTACKS["soft-label"]()(leak, generator=torch.Generator())
    return IMAGE_ATTACKS[name]()(leak, labels, generator=torch.Generator()), given


@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize("name", ["analytic", "relu-fit"])
def test_pixels_come_back_where_the_loader_is_known(kind: str, name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = dense(True) if name == "analytic" else convolutional()
        pixels = torch.rand(1, *SHAPE)
    client = RANGES[kind]
    found, _ = recover(model, pixels, client, client, name)
    assert found.status == "RECOVERED"
    assert found.pixel_range == (0.0, 1.0)
    torch.testing.assert_close(found.images, pixels.double(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize("name", ["analytic", "relu-fit"])
def test_else_the_models_input_is_recovered_with_its_range(kind: str, name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = dense(True) if name == "analytic" else convolutional()
        pixels = torch.rand(1, *SHAPE)
    found, given = recover(model, pixels, RANGES[kind], None, name)
    assert found.status == "RECOVERED"
    assert found.images is not None
    low, high = found.pixel_range
    torch.testing.assert_close(found.images, given.double(), atol=1e-3 * (high - low), rtol=0)
    assert (low, high) == (float(found.images.min()), float(found.images.max()))
    assert low < 0 or high > 1


def test_a_batch_has_one_range() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 128), nn.ReLU(), nn.Linear(128, 40))
        pixels = torch.rand(4, *SHAPE) * torch.tensor([1, 1, 1, 0.2])[:, None, None, None]
    found, given = recover(model, pixels, USUAL, None, "analytic")
    assert found.status == "RECOVERED"
    assert found.images is not None
    low, high = found.pixel_range
    assert (low, high) == (float(found.images.min()), float(found.images.max()))
    distances = torch.cdist(given.double().flatten(1), found.images.flatten(1))
    assert float(distances.min(dim=1).values.max()) < 1e-2


def test_pixels_outside_a_range_that_is_told_are_no_claim() -> None:
    """Where the loader is known, an image that fits in all but its range isn't one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, pixels = dense(True), torch.rand(1, *SHAPE)
    found, _ = recover(model, pixels, USUAL, Normalization.of_range(0, 1), "analytic")
    assert found.status == "NOT_CONVERGED"
    check_no_claim(found, "leave [0, 1]: the client's loader normalises otherwise")
    assert found.pixel_range == (0.0, 1.0)


@pytest.mark.parametrize("name", ["analytic", "relu-fit"])
@pytest.mark.parametrize("level", [-0.5, 3.0])
def test_an_image_of_one_shade_has_a_range_about_it(name: str, level: float) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = dense(True) if name == "analytic" else convolutional()
    shade = Normalization.of_range(level, level + 1)
    found, given = recover(model, torch.zeros(1, *SHAPE), shade, None, name)
    assert found.images is not None
    low, high = found.pixel_range
    assert low < level < high
    assert high - low == pytest.approx(1)
    if found.status == "RECOVERED":
        torch.testing.assert_close(found.images, given.double(), atol=1e-2, rtol=0)


@pytest.mark.parametrize("made", [torch.tensor, np.array, list])
def test_numbers_may_come_in_any_container(made: Any) -> None:
    made_of = Normalization(made([0.25, 0.5]), made([0.5, 1.0]))
    assert made_of == Normalization((0.25, 0.5), (0.5, 1.0))


@pytest.mark.parametrize("kind", RANGES)
def test_the_formula(kind: str) -> None:
    client = RANGES[kind]
    pixels = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v)[:, None, None] for v in (client.mean, client.std))
    torch.testing.assert_close(client(pixels), (pixels - mean) / std, atol=1e-4, rtol=1e-6)
    assert client(pixels).dtype == torch.float32


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0, 255), (0.5, 0.75)])
def test_a_range_is_where_black_and_white_go(low: float, high: float) -> None:
    ends = Normalization.of_range(low, high)(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1))
    torch.testing.assert_close(ends.flatten(), torch.tensor([low, high]).float())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0.5, 0.0), r"std above 0, found \(0.5,\) and \(0.0,\)"),
        (((0.5, 0.5), 1.0), "must be equally long"),
        ((float("nan"), 1.0), "mean must hold finite numbers"),
        (("a", 1.0), "mean must be a number, or one for each channel, found 'a'"),
        (((), ()), r"mean must hold finite numbers, found \(\)"),
    ],
)
def test_impossible_normalisations_are_refused(arguments: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Normalization(*arguments)


def test_impossible_ranges_are_refused() -> None:
    with pytest.raises(ValueError, match="a pixel range must go up, found 1 to 0"):
        Normalization.of_range(1, 0)


@pytest.mark.parametrize(
    ("told", "error", "sentence"),
    [
        ((0.5, 0.5), TypeError, "must be an attacks.Normalization or None, found tuple"),
        (
            Normalization((0, 0), (1, 1)),
            ValueError,
            "must be for 1 channel or for the images. 3, found 2",
        ),
    ],
)
def test_a_leak_refuses_what_is_none_or_does_not_fit(
    told: Any, error: type[Exception], sentence: str
) -> None:
    with torch.random.fork_rng(devices=[]):
        model = dense(True)
    with pytest.raises(error, match=sentence):
        GradientLeak(model, {}, 1, SHAPE, normalization=told)
