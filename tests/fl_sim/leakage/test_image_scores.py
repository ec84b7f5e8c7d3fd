"""How near an image is to the true one: PSNR, SSIM and LPIPS, where it can be said."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torchmetrics.functional.image
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from fl_sim.leakage import image_scores
from fl_sim.leakage.image_scores import (
    LPIPS_WEIGHTS,
    PSNR_CAP_DB,
    is_identified,
    psnr_db,
    registered_psnr_db,
    score_image,
)

NAN = float("nan")


def test_psnr() -> None:
    image = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0)) / 2
    assert psnr_db(image, image) == PSNR_CAP_DB == 200
    # A mean squared error of 0.01 and 1e-6, by definition; float32 pixels.
    assert psnr_db(image + 0.1, image) == pytest.approx(20, abs=1e-4)
    assert psnr_db(image + 1e-3, image) == pytest.approx(60, abs=1e-2)
    assert psnr_db(image.double() + 1e-12, image.double()) == 200


def reference_psnr(image: Tensor, true_image: Tensor) -> float:
    value = peak_signal_noise_ratio(image.double(), true_image.double(), data_range=1.0)
    return min(float(value), PSNR_CAP_DB)


def test_psnr_has_the_digits_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    for trial in range(2000):
        sides = torch.randint(1, 40, (2,), generator=generator).tolist()
        true = torch.rand(1 + 2 * (trial % 2), *sides, generator=generator)
        scale = 10.0 ** (2 - 16 * float(torch.rand(1, generator=generator)))
        noise = scale * torch.randn(true.shape, generator=generator, dtype=torch.float64)
        for image in (true + noise, (true + noise).float(), (true + noise).clamp(0, 1)):
            assert psnr_db(image, true) == reference_psnr(image, true)


@pytest.mark.parametrize("offset", [0.0, 1.0, -1.0, 1e-9, 1e-10, 1e-11, 1e-160, 1e160, NAN])
def test_psnr_has_the_digits_of_torchmetrics_at_its_ends(offset: float) -> None:
    true = torch.full((1, 3, 3), 0.25).double()
    found, expected = psnr_db(true + offset, true), reference_psnr(true + offset, true)
    assert repr(found) == repr(expected)
    zeros = torch.zeros(1, 3, 3).double()
    assert repr(psnr_db(zeros + offset, zeros)) == repr(reference_psnr(zeros + offset, zeros))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 5, 9), (3, 32, 32), (1, 1, 1), (2, 2, 3)])
def test_shifts_are_those_of_roll(shape: tuple[int, int, int]) -> None:
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0)).double()
    height, width = (min(3, (side - 1) // 2) for side in shape[1:])
    reach = itertools.product(range(-height, height + 1), range(-width, width + 1))
    moved = torch.stack([image.roll(shift, dims=(1, 2)) for shift in reach])
    found = image_scores._shifted(image)
    assert torch.equal(found, moved)
    assert found.is_contiguous()  # sums over it are in the same order


def test_an_image_is_scored_by_psnr_and_ssim() -> None:
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    scores = score_image(image, image)
    assert "LPIPS needs" in scores.pop("lpips_reason")
    assert scores == {
        "psnr_db": 200,
        "psnr_registered_db": 200,
        "ssim": pytest.approx(1, abs=1e-12),
    }
    noise = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(1))
    noisy = [score_image((image + s * noise).clamp(0, 1), image)["ssim"] for s in (0.05, 0.5)]
    assert 1 > noisy[0] > 0.9 > noisy[1] > 0


@pytest.mark.parametrize(("height", "width"), [(10, 16), (16, 10), (1, 1)])
def test_a_tiny_image_has_no_ssim(height: int, width: int) -> None:
    image = torch.zeros(1, height, width)
    assert score_image(image, image).keys().isdisjoint({"ssim", "lpips"})
    assert "ssim" in score_image(torch.zeros(1, 11, 11), torch.zeros(1, 11, 11))


def test_an_image_that_was_not_recovered_has_no_score() -> None:
    image = torch.zeros(1, 12, 12)
    partly = image.clone()
    partly[0, 0, 0] = NAN
    assert score_image(partly, image) == {}


def test_a_shifted_image_is_registered() -> None:
    image = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0))
    for shift in ((0, 0), (3, -2), (-1, 0)):
        moved = image.roll(shift, dims=(1, 2))
        assert registered_psnr_db(moved, image) == 200
        assert psnr_db(moved, image) < 10 or shift == (0, 0)
    assert registered_psnr_db(image.roll(4, dims=1), image) < 10
    assert registered_psnr_db(image[:, :1, :1], image[:, :1, :1]) == 200


def test_lpips_needs_weights_that_are_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import AlexNet_Weights

    assert AlexNet_Weights.DEFAULT.url.endswith(f"/{LPIPS_WEIGHTS}")
    image = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    scores = score_image(image, image)
    assert "lpips" not in scores
    assert LPIPS_WEIGHTS in scores["lpips_reason"]

    def distance(one: Tensor, other: Tensor, net: str, *, normalize: bool) -> Tensor:
        assert one.shape == other.shape == (1, 3, 32, 32)
        assert (net, normalize) == ("alex", True)  # pixels in [0, 1]
        return (one - other).abs().mean()

    name = "learned_perceptual_image_patch_similarity"
    monkeypatch.setattr(torchmetrics.functional.image, name, distance)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / LPIPS_WEIGHTS).touch()
    scores = score_image(image, image / 2)
    assert scores["lpips"] == pytest.approx(float(image.mean() / 2), rel=1e-6)
    assert scores["lpips_reason"] is None
    assert "32 × 32" in score_image(image[:, :31], image[:, :31])["lpips_reason"]


def test_an_image_finds_its_original_or_another() -> None:
    draws = torch.Generator().manual_seed(0)
    own, others = torch.rand(2, 1, 4, 4, generator=draws), torch.rand(9, 1, 4, 4, generator=draws)
    near = (0.9 * own[1] + 0.1 * own[0]).double()
    assert is_identified(near, own, 1, others) is True
    assert is_identified(near, own, 0, others) is False
    assert is_identified(others[3].double(), own, 1, others) is False
    # As near to another image as to its own, it finds neither; of one image it finds no other.
    assert is_identified(near, torch.stack([own[1], own[1]]), 1) is False
    assert is_identified(near, own[:1], 0) is None
