"""A model or data set that breaks a rule is told which; ours break none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fl_sim import MODELS
from fl_sim.data import Dataset
from fl_sim.testing import check_dataset, check_model

Fails = Callable[..., None]
WELL = "well-formed"


@pytest.mark.parametrize("name", list(MODELS))
def test_our_models_conform(name: str) -> None:
    check_model(name)


@pytest.mark.parametrize("name", ["mnist-5k", "photos"])
def test_our_data_sets_conform(name: str) -> None:
    check_dataset(name)


Layers = Callable[[int, dict[str, Any]], list[nn.Module]]


def factory(layers: Layers) -> Callable[..., nn.Module]:
    """Return a factory of a flat network whose last layers are changed."""

    def build(**given: Any) -> nn.Module:
        width = 3 * 32 * 32
        return nn.Sequential(nn.Flatten(), *layers(width, given))

    return build


def head(width: int, given: dict[str, Any]) -> list[nn.Module]:
    return [nn.Linear(width, given["num_classes"], bias=given["bias"])]


class Counting(nn.Linear):
    """A layer that changes in eval mode."""

    def forward(self, images: Tensor) -> Tensor:
        """Grow."""
        with torch.no_grad():
            self.weight.mul_(1.01)
        return super().forward(images)


class Noisy(nn.Module):
    """A layer that draws in eval mode."""

    def forward(self, images: Tensor) -> Tensor:
        """Add noise."""
        return images + torch.rand_like(images)


def reseed(width: int, given: dict[str, Any]) -> list[nn.Module]:
    torch.default_generator.manual_seed(0)
    return head(width, given)


def numpy_weights(width: int, given: dict[str, Any]) -> list[nn.Module]:
    layers = head(width, given)
    nn.init.constant_(layers[0].weight, np.random.rand())  # type: ignore[arg-type]
    return layers


@pytest.mark.parametrize(
    ("model", "rule", "words"),
    [
        (lambda num_classes: None, "buildable", "unexpected keyword argument"),
        (lambda **_: "network", WELL, "must return an nn.Module, found str"),
        (nn.Identity(), WELL, "a function or class that builds the network"),
        (factory(lambda n, given: []), WELL, "logits of shape (1, 10), found (1, 3072)"),
        (factory(lambda n, given: [nn.Linear(7, 10)]), "robust", "it raised RuntimeError"),
        (factory(lambda n, given: [nn.Linear(n, 10)]), WELL, "ignores bias=False"),
        (factory(lambda n, given: [Noisy(), *head(n, given)]), "seeded", "generator of torch"),
        (factory(lambda n, given: [Counting(n, 10)]), "pure", "in eval mode it changed"),
        (factory(reseed), "seeded", "reseeds torch's global generator"),
        (factory(numpy_weights), "seeded", "global generator of numpy"),
        (
            factory(lambda n, given: [layer.requires_grad_(False) for layer in head(n, given)]),
            WELL,
            "no trainable parameter",
        ),
    ],
)
def test_a_broken_model_fails(model: Any, rule: str, words: str, fails: Fails) -> None:
    fails(check_model, model, rule=rule, words=words)


_drifting: torch.Generator = torch.Generator().manual_seed(0)


def data(**changes: Any) -> Dataset:
    images, labels = torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 0, 1])
    fields = {"images": images, "labels": labels, "test_images": images, "test_labels": labels}
    return Dataset(**{**fields, "classes": ("a", "b"), **changes})


@pytest.mark.parametrize(
    ("dataset", "rule", "words"),
    [
        (lambda: [1, 2], WELL, "must be a fl_sim.data.Dataset, found list"),
        (lambda: data(images=torch.ones(4, 1, 2, 2) * 255), "buildable", "in [0, 1]"),
        (lambda: data(classes=("a", "a")), WELL, "names of their own"),
        (lambda: data(images=torch.rand(4, 1, 2, 2)), "seeded", "generator of torch"),
        (
            lambda: data(images=torch.rand(4, 1, 2, 2, generator=_drifting)),
            "seeded",
            "its images differ when it is built again",
        ),
        (lambda: data(images=np.load("nowhere.npy")), "buildable", "FileNotFoundError"),
    ],
)
def test_a_broken_data_set_fails(dataset: Any, rule: str, words: str, fails: Fails) -> None:
    fails(check_dataset, dataset, rule=rule, words=words)


def test_a_data_set_spoilt_after_it_was_built_fails(fails: Fails) -> None:
    spoilt = data()
    check_dataset(spoilt)
    spoilt.images.add_(2)
    fails(check_dataset, spoilt, rule=WELL, words="in [0, 1]")
