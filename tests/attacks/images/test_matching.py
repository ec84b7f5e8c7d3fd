"""Attacks that search: what they ask for, what they refuse, and what they say."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attacks import (
    IMAGE_ATTACKS,
    ExampleImage,
    ExampleLabel,
    GradientLeak,
    ImageAttack,
    LabelRecovery,
    Reconstruction,
    Status,
)
from attacks.images.auto import EXACT, Auto
from attacks.images.dlg import DLG
from attacks.images.feature_matching import FeatureMatching
from attacks.images.gradinversion import GradInversion
from attacks.images.inverting_gradients import InvertingGradients
from attacks.labels.soft_label import SoftLabelRecovery
from attacks.matching import restarts
from fl_sim.testing.leaks import build_seeded, draw_label, leak_of

Build = Callable[..., Any]
SEARCHES = ("dlg", "inverting-gradients", "gradinversion", "feature-matching")
SHAPE = (1, 8, 8)
NOTHING = LabelRecovery(Status.NOT_APPLICABLE, "no label attack was asked")


def normed() -> nn.Module:
    """Pooling and batch norm: nothing exact applies."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 5),
    )


def victim(size: int = 1) -> tuple[GradientLeak, torch.Tensor, LabelRecovery]:
    model = build_seeded(normed).eval()
    images = torch.rand(size, *SHAPE, generator=torch.Generator().manual_seed(0))
    draws = np.random.default_rng(0)
    labels = torch.cat([draw_label(5, "label-smoothing", draws) for _ in range(size)])
    leak = leak_of(model, images, labels)
    known = LabelRecovery.of([ExampleLabel(Status.RECOVERED, label=label) for label in labels])
    return leak, images, known


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"iterations": 0}, "iterations must be a whole number of at least 1, found 0"),
        ({"restarts": 0}, "restarts must be a whole number of at least 1, found 0"),
        ({"seconds": 0.0}, "seconds must be above 0 or None, found 0.0"),
        ({"labels": "hard"}, "labels must be one of auto, given, free, found 'hard'"),
        ({"local": "exact"}, "local must be one of unrolled, surrogate, naive, found 'exact'"),
        ({"lr": 0.0}, "lr must be above 0, found 0.0"),
        ({"epoch_weight": -1.0}, "epoch_weight must be at least 0, found -1.0"),
    ],
)
def test_an_option_out_of_range_is_one_sentence(
    name: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError) as caught:
        IMAGE_ATTACKS.build(name, **options)
    assert str(caught.value).endswith(sentence)


def test_a_long_attack_says_so() -> None:
    assert all(IMAGE_ATTACKS[name].is_long for name in (*SEARCHES, "auto"))


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("has_labels", [True, False])
def test_an_image_comes_with_its_cost_and_with_how_far_starts_agree(
    size: int, has_labels: bool
) -> None:
    leak, images, known = victim(size)
    attack = InvertingGradients(iterations=30, restarts=3)
    labels = known if has_labels else dataclasses.replace(NOTHING, batch_size=size)
    found = attack(leak, labels, generator=draws())
    assert found.status is Status.NOT_CONVERGED
    assert found.reason is not None
    assert "the best of 3 starts, 90 gradient evaluations" in found.reason
    assert found.gradient_evaluations == 90
    assert len(found.examples) == size
    for example in found.examples:
        assert example.image is not None
        assert example.spread is not None
        assert example.image.min() >= 0
        assert example.image.max() <= 1
        assert example.spread.shape == SHAPE
        assert example.residual is not None
        assert 0 < example.residual < 1
    again = attack(leak, labels, generator=draws())
    assert again.images is not None
    assert torch.equal(again.images, found.images)  # type: ignore[arg-type]
    del images


def test_a_longer_search_leaves_less_of_the_gradient() -> None:
    leak, _, known = victim()
    left = []
    for iterations in (5, 120):
        attack = InvertingGradients(iterations=iterations, total_variation=0.0)
        left.append(attack(leak, known, generator=draws()).examples[0].residual)
    assert left[1] < left[0] / 3


def test_what_is_missing_is_named() -> None:
    leak, _, known = victim()
    for attack, labels, sentence in (
        (InvertingGradients(labels="given"), NOTHING, "a label has to be given for every image"),
        (FeatureMatching(), known, "didn't recover every example's feature"),
        (GradInversion(batch_norm=0.1), known, "asks for statistics of batch norm layers"),
    ):
        found = attack(leak, labels, generator=draws())
        assert found.status is Status.NOT_APPLICABLE
        assert sentence in str(found.reason)


def test_a_victim_too_large_for_memory_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    leak, _, known = victim()
    monkeypatch.setattr(restarts.os, "sysconf", lambda name: 1)
    found = DLG(restarts=3)(leak, known, generator=draws())
    assert found.status is Status.NOT_APPLICABLE
    assert "3 starts on a gradient of 557 entries need about" in str(found.reason)


def test_repeating_steps_takes_memory_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    leak, _, known = victim()
    # 12 times 557 entries and 64 pixels, of 4 bytes: enough for one step, and not for two.
    monkeypatch.setattr(restarts.os, "sysconf", lambda name: 12 * 621 * 4 if "PAGES" in name else 1)
    attack = InvertingGradients(iterations=1)
    assert attack(leak, known, generator=draws()).status is Status.NOT_CONVERGED
    steps = dataclasses.replace(
        leak, local_steps=2, lr=0.1, update_dtype=torch.float32, examples=1, schedule="full-batch"
    )
    found = attack(steps, known, generator=draws())
    assert found.status is Status.NOT_APPLICABLE
    assert "1 starts on a gradient of 557 entries need about" in str(found.reason)


def test_batch_norms_statistics_pull() -> None:
    leak, _, known = victim()
    norm = leak.model.get_submodule("1")
    norm.running_mean.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))
    found = [
        GradInversion(batch_norm=weight, iterations=10)(leak, known, generator=draws()).images
        for weight in (0.0, 0.1)
    ]
    assert not torch.equal(*found)  # type: ignore[arg-type]


def trained_normed(seed: int) -> tuple[GradientLeak, LabelRecovery]:
    """Return a step in train mode, with the buffers that came back."""
    model = build_seeded(normed).train()
    images = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(seed))
    labels = torch.eye(5, dtype=torch.float64)[:2]
    before = copy.deepcopy(model)
    leak = leak_of(model, images, labels, mode="train")
    after = {n: b.clone() for n, b in model.named_buffers() if b.is_floating_point()}
    known = LabelRecovery.of([ExampleLabel(Status.RECOVERED, label=label) for label in labels])
    return dataclasses.replace(leak, model=before, buffers=after), known


def test_the_batchs_own_statistics_are_taken_where_the_update_tells_them() -> None:
    leak, known = trained_normed(0)
    attack = GradInversion(batch_norm=0.1, iterations=10, restarts=1)
    assert attack(leak, known, generator=draws()).status is Status.NOT_CONVERGED
    silent = dataclasses.replace(leak, buffers={})
    for own, sentence in (
        (attack, "the model that was sent holds none"),
        (dataclasses.replace(attack, statistics="update"), "batch norm layers weren't sent"),
    ):
        found = own(silent, known, generator=draws())
        assert found.status is Status.NOT_APPLICABLE
        assert sentence in str(found.reason)


def test_clients_attacked_together_keep_their_own_statistics() -> None:
    pairs = [trained_normed(seed) for seed in range(2)]
    leaks = [dataclasses.replace(leak, model=pairs[0][0].model) for leak, _ in pairs]
    attack = GradInversion(batch_norm=1.0, iterations=10, restarts=1, precision="float64")
    found = attack.together(leaks, [known for _, known in pairs], [draws(), draws()])
    for leak, (_, known), one in zip(leaks, pairs, found, strict=True):
        alone = attack(leak, known, generator=draws())
        assert one.images is not None
        assert alone.images is not None
        torch.testing.assert_close(one.images, alone.images, rtol=1e-6, atol=1e-8)


def test_starts_without_a_finite_loss_are_drawn_anew_and_then_it_says_so() -> None:
    model = build_seeded(normed).eval()
    leak, _, known = victim()
    huge = {name: part.clone() for name, part in model.state_dict().items()}
    for name in ("0.weight", "5.weight"):
        huge[name] *= 1e30
    model.load_state_dict(huge)
    found = InvertingGradients(iterations=5, restarts=2)(
        dataclasses.replace(leak, model=model), known, generator=draws()
    )
    assert found.status is Status.NOT_CONVERGED
    assert found.reason == "the objective wasn't finite at any of 4 starts"
    assert found.images is None


def test_the_feature_term_pulls_towards_the_recovered_feature(
    make_model: Build, make_label: Build, make_victim: Build
) -> None:
    label = make_label(10, "label-smoothing", np.random.default_rng(1))
    seen = make_victim(make_model(10, bias=False), label)
    labels = SoftLabelRecovery()(seen.leak, generator=draws())
    assert labels.features is not None
    off = []
    for weight in (0.0, 10.0):
        found = FeatureMatching(iterations=60, feature_weight=weight)(
            seen.leak, labels, generator=draws()
        )
        assert found.images is not None
        with torch.no_grad():
            feature = seen.leak.model[:-1](found.images.float()).double()  # type: ignore[index]
        off.append(float((feature - labels.features).norm()))
    assert off[1] < off[0]


@pytest.mark.parametrize("is_labelled", [True, False])
def test_a_feature_without_a_label_is_a_direction(is_labelled: bool) -> None:
    """Three times the feature is another one with a label, and the same one without."""
    leak, images, known = victim()
    with torch.no_grad():
        feature = leak.model[:-1](images).double()  # type: ignore[index]
    found = []
    for factor in (1.0, 3.0):
        example = ExampleLabel(
            Status.NOT_IDENTIFIABLE,
            "two labels fit",
            label=known.examples[0].label if is_labelled else None,
            feature=factor * feature[0],
        )
        attack = FeatureMatching(iterations=5, feature_weight=1.0, precision="float64")
        answer = attack(leak, LabelRecovery.of([example]), generator=draws())
        assert answer.images is not None
        found.append(answer.images)
    assert torch.allclose(*found, rtol=0, atol=1e-9) != is_labelled


def test_auto_takes_the_exact_attack_where_one_applies_and_names_it(
    make_model: Build, make_label: Build, make_victim: Build
) -> None:
    label = make_label(10, "label-smoothing", np.random.default_rng(1))
    leak = make_victim(make_model(10, bias=False), label).leak
    labels = SoftLabelRecovery()(leak, generator=draws())
    found = Auto(iterations=2)(leak, labels, generator=draws())
    assert (found.status, found.method) == (Status.RECOVERED, "analytic")
    assert found.gradient_evaluations is None


@dataclasses.dataclass(frozen=True)
class Unsure(ImageAttack):
    """Gives images and vouches for none; grey ones unless told."""

    images: torch.Tensor | None = None

    def reconstruct(
        self, leak: GradientLeak, labels: LabelRecovery, generator: torch.Generator
    ) -> Reconstruction:
        image = torch.full(SHAPE, 0.5) if self.images is None else self.images[0]
        example = ExampleImage(Status.NOT_IDENTIFIABLE, "under noise", image.double())
        return Reconstruction.of([example])


@pytest.mark.parametrize(
    ("is_near", "method"), [(True, "relu-fit"), (False, "inverting-gradients")]
)
def test_auto_searches_on_from_images_that_nobody_vouches_for_and_keeps_what_fits_better(
    is_near: bool, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leak, images, known = victim()
    near = (images + 1e-4 * torch.randn(images.shape, generator=draws())).clamp(0, 1)
    monkeypatch.setitem(EXACT, "relu-fit", partial(Unsure, near if is_near else None))  # type: ignore[arg-type]
    found = Auto(iterations=40)(leak, known, generator=draws())
    assert found.method == method
    assert found.gradient_evaluations == 40
    assert found.images is not None
    if is_near:
        assert torch.equal(found.images, near.double())


def test_a_search_sets_out_from_images_where_there_are_some() -> None:
    leak, images, known = victim(2)
    start = torch.stack([images[0], torch.full(SHAPE, torch.nan)]).double()
    search = InvertingGradients(iterations=1, precision="float64")
    found = search.onwards(leak, known, start, generator=draws())
    drawn = search(leak, known, generator=draws())
    assert found.images is not None
    assert drawn.images is not None
    assert torch.equal(found.images[0], start[0])
    assert torch.equal(found.images[1], drawn.images[1])
    with pytest.raises(ValueError, match=r"images must have the shape \(2, 1, 8, 8\)"):
        search.onwards(leak, known, start[:1], generator=draws())


@pytest.mark.parametrize(
    ("has_features", "method"), [(False, "inverting-gradients"), (True, "feature-matching")]
)
def test_auto_searches_where_none_does(has_features: bool, method: str) -> None:
    leak, _, known = victim()
    if has_features:
        known = SoftLabelRecovery()(leak, generator=draws())
        assert known.features is not None
    found = Auto(iterations=3)(leak, known, generator=draws())
    assert (found.status, found.method) == (Status.NOT_CONVERGED, method)
    assert found.gradient_evaluations == 3
    assert all(name in IMAGE_ATTACKS for name in EXACT)
