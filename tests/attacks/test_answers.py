"""An answer in another form than the documented one is refused where it is made, by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks import (
    Augmentation,
    Certainty,
    ExampleImage,
    ExampleLabel,
    LabelRecovery,
    Reconstruction,
    Status,
)
from attacks.answers import known, without_claim

RECOVERED, FAILED, GUESS = Status.RECOVERED, Status.FAILED, Status.NOT_IDENTIFIABLE
LABEL = torch.tensor([0.9, 0.1, 0.0], dtype=torch.float64)
IMAGE = torch.full((1, 2, 2), 0.5, dtype=torch.float64)
NAN = float("nan")


def label(**fields: Any) -> ExampleLabel:
    return ExampleLabel(**{"status": RECOVERED, "label": LABEL, **fields})


def image(**fields: Any) -> ExampleImage:
    return ExampleImage(**{"status": RECOVERED, "image": IMAGE, **fields})


def failed(**fields: Any) -> dict[str, Any]:
    return {"status": FAILED, "reason": "it gave up", **fields}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"status": "RECOVERED"}, "status must be a Status, found 'RECOVERED'"),
        ({"reason": "it worked"}, "reason must be None under RECOVERED, found 'it worked'"),
        (failed(reason=None), "reason must be one sentence under FAILED, found None"),
        (failed(reason=" "), "reason must be one sentence under FAILED, found ' '"),
        (failed(reason="in line\n3"), "reason must be one sentence under FAILED"),
        (failed(reason=3), "reason must be one sentence under FAILED, found 3"),
        ({"label": None}, "RECOVERED must come with a label, found None"),
        ({"label": LABEL[None]}, r"label must be a \(K,\) float64 tensor, found \(1, 3\) float64"),
        ({"label": LABEL.float()}, r"float64 tensor, found \(3,\) float32"),
        ({"label": LABEL.tolist()}, "label must be a Tensor, found list"),
        ({"label": LABEL * NAN}, "label must be finite, found"),
        ({"label": LABEL.clone().requires_grad_()}, "label must be detached"),
        ({"feature": LABEL[None]}, r"feature must be a \(D,\) float64 tensor"),
        ({"feature": LABEL / 0}, "feature must be finite"),
        ({"label_std": LABEL[:2]}, "parts must have the same K"),
        ({"label_std": LABEL / 0}, "label_std must be finite"),
        ({"candidates": LABEL}, r"candidates must be a \(N, K\) float64"),
        ({"candidates": LABEL[None, :2]}, "parts must have the same K"),
        ({"augmentation": "hard"}, "augmentation must be a Augmentation, found str"),
        ({"residual": -1.0}, "residual must be a finite float of at least 0, or None, found -1.0"),
        ({"residual": torch.ones(1)}, "residual must be a finite float"),
        ({"certificate": float("inf")}, "certificate must be a finite float"),
        ({"feature_bar": NAN}, "feature_bar must be a finite float"),
    ],
)
def test_a_label_in_another_form_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        label(**fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"status": 1}, "status must be a Status, found 1"),
        (failed(reason=""), "reason must be one sentence"),
        ({"image": None}, "RECOVERED must come with an image, found None"),
        ({"image": IMAGE * NAN}, "image must be finite"),
        ({"image": IMAGE[0]}, r"image must be a \(C, H, W\) float64 tensor, found \(2, 2\)"),
        ({"image": IMAGE.float()}, "found .* float32"),
        ({"residual": NAN}, "residual must be a finite float"),
    ],
)
def test_an_image_in_another_form_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        image(**fields)


ONE = (label(),)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"status": RECOVERED}, "RECOVERED if and only if every example is, .* 0 of 0"),
        (failed(examples=ONE), "found FAILED with 1 of 1 RECOVERED"),
        ({"status": RECOVERED, "examples": (*ONE, label(**failed()))}, "with 1 of 2 RECOVERED"),
        (failed(examples=[]), "examples must be a tuple, found list"),
        (failed(examples=(image(**failed()),)), "must be a ExampleLabel, found ExampleImage"),
        (
            {"status": RECOVERED, "examples": (*ONE, label(label=LABEL[:2]))},
            r"all labels must have one shape, found \[\(2,\), \(3,\)\]",
        ),
        (
            {"status": RECOVERED, "examples": (label(feature=LABEL), label(feature=LABEL[:1]))},
            "all features must have one shape",
        ),
        ({"status": RECOVERED, "examples": ONE, "batch_size": 2}, "the number of examples, 1, fo"),
        (failed(batch_size=0), "batch_size must be at least 1, or None, found 0"),
        (failed(gradient_scale=0.0), "gradient_scale must be finite and above 0, or None, found 0"),
        (failed(gradient_scale=1j), "gradient_scale must be finite"),
        (failed(mass=torch.ones(1, 3)), r"mass must have the shape \(K,\), found \(1, 3\)"),
        (failed(mass=-LABEL), "mass must be finite, at least 0 and not all 0, found"),
        (failed(mass=0 * LABEL), "not all 0"),
        (failed(mass=[1.0]), "mass must be a Tensor, found list"),
    ],
)
def test_a_recovery_whose_parts_do_not_fit_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        LabelRecovery(**fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pixel_range": (1.0, 0.0)}, "pixel_range must be two finite numbers, the lower first"),
        ({"pixel_range": None}, "the lower first, found None"),
        ({"pixel_range": (0.0, NAN)}, "two finite numbers"),
        ({"pixel_range": (-1.0, 0.0)}, r"images must be in \[-1, 0\], found \[0.5, 0.5\]"),
        ({"examples": (image(), image(image=IMAGE[:, :1]))}, "all images must have one shape"),
        ({"examples": ONE}, "must be a ExampleImage, found ExampleLabel"),
    ],
)
def test_a_reconstruction_whose_parts_do_not_fit_is_refused(
    fields: dict[str, Any], words: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        Reconstruction(**{"status": RECOVERED, "examples": (image(),), **fields})


def test_a_batch_says_how_many_and_why_the_others_are_not() -> None:
    rows = [label(**failed(label=None)), label(), label(status=GUESS, reason="two fit")]
    whole = LabelRecovery.of([*rows, label(status=GUESS, reason="three fit")])
    assert whole.status is GUESS
    assert whole.reason == "1 of 4 examples recovered; why others weren't: it gave up"
    assert whole.batch_size == 4
    assert LabelRecovery.of(rows[1:2]).status is RECOVERED
    one = Reconstruction.of([image(**failed())])
    assert (one.status, one.reason) == (FAILED, "it gave up")


def test_examples_stack_to_rows_with_nan_where_there_is_none() -> None:
    found = LabelRecovery.of([label(**failed(label=None)), label(feature=LABEL)])
    assert found.labels is not None
    assert found.labels[0].isnan().all()
    assert torch.equal(found.labels[1], LABEL)
    assert found.features is not None
    assert found.features.shape == (2, 3)
    nothing = LabelRecovery.of([label(**failed(label=None))])
    assert nothing.labels is nothing.features is None
    shown = Reconstruction.of([image(), image(**failed(image=None))])
    assert shown.images is not None
    assert shown.images.isnan().flatten(1).all(dim=1).tolist() == [False, True]


def test_a_claim_is_taken_back_and_the_rest_kept() -> None:
    found = without_claim(label(augmentation=Augmentation("hard"), residual=0.5), "it may be two")
    assert (found.status, found.reason) == (GUESS, "it may be two")
    assert (found.augmentation, found.residual) == (Augmentation("hard"), 0.5)


@pytest.mark.parametrize(
    ("attacked", "words"),
    [
        ({"batch_size": 2, "classes": None}, "it must answer on 2 examples or none, found 1"),
        ({"batch_size": None, "classes": 4}, "labels must have 4 classes, found 3"),
    ],
)
def test_a_recovery_must_fit_what_was_attacked(attacked: dict[str, Any], words: str) -> None:
    found = LabelRecovery.of(ONE)
    found.require_fit(batch_size=1, classes=3)
    found.require_fit(batch_size=None, classes=None)
    with pytest.raises(ValueError, match=words):
        found.require_fit(**attacked)


def test_a_reconstruction_must_fit_what_was_attacked() -> None:
    found = Reconstruction.of([image()])
    found.require_fit(batch_size=1, shape=(1, 2, 2))
    for size, shape in ((2, (1, 2, 2)), (1, (1, 2, 3))):
        with pytest.raises(ValueError, match=r"found 1|found \(1, 2, 2\)"):
            found.require_fit(batch_size=size, shape=shape)


def test_the_truth_of_a_mass_is_no_ones_business() -> None:
    mass: Tensor = torch.tensor([2.0, 1.0, 0.0])
    found = LabelRecovery(GUESS, "it counts", mass=mass, batch_size=3)
    found.require_fit(batch_size=3, classes=3)
    with pytest.raises(ValueError, match="mass must have 4 classes, found 3"):
        found.require_fit(batch_size=3, classes=4)


@pytest.mark.parametrize(
    ("fields", "certainty"),
    [
        ({}, Certainty.VOUCHED),
        (failed(label_bar=0.1), Certainty.LIKELY),
        (failed(), Certainty.GUESS),
        (failed(label=None), None),
    ],
)
def test_a_label_says_how_sure_it_is(fields: dict[str, Any], certainty: Certainty | None) -> None:
    assert label(**fields).certainty is certainty


def test_an_image_says_how_sure_it_is() -> None:
    found = [image(), image(**failed(error=0.1)), image(**failed()), image(**failed(image=None))]
    assert [one.certainty for one in found] == [*Certainty, None]


@pytest.mark.parametrize("value", [None, NAN, float("inf"), -float("inf")])
def test_a_measure_that_is_no_number_is_none(value: float | None) -> None:
    assert known(value) is None
    assert known(np.float64(0.5)) == 0.5
