"""Victims of benchmarks: augmented as they say, and seen by the server as they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from fl_sim.bench import training
from fl_sim.bench.training import trained
from fl_sim.bench.victims import (
    AUGMENTATIONS,
    INIT,
    dataset,
    draw_batch,
    initial_weights,
    untrained,
)
from fl_sim.leakage.judge import describe_labels
from fl_sim.testing.leaks import SentAs, leak_of


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("classes", [None, 25])
def test_labels_are_augmented(augmentation: str, classes: int | None) -> None:
    data = dataset("mnist-5k")
    images, labels = draw_batch(data, 40, augmentation, classes=classes, seed=0)
    assert images.shape == (40, *data.input_shape)
    assert labels.shape == (40, classes or 10)
    found = {label.type for label in describe_labels(labels)}
    pairs_of_one_class = {"mixup": "hard", "mixup+label-smoothing": "label-smoothing"}
    assert augmentation in found
    assert found <= {augmentation, pairs_of_one_class.get(augmentation)}
    again, _ = draw_batch(data, 40, augmentation, classes=classes, seed=0)
    assert torch.equal(images, again)


def test_an_unknown_augmentation_is_refused() -> None:
    with pytest.raises(ValueError, match="augmentation must be one of"):
        draw_batch(dataset("mnist-5k"), 2, "cutout", seed=0)


@pytest.mark.parametrize("sent_as", ["float64", "float32", "update"])
def test_a_leak_is_the_gradient_of_the_mean_loss(sent_as: SentAs) -> None:
    data = dataset("mnist-5k")
    model = untrained("mlp", data)
    images, labels = draw_batch(data, 3, "mixup", seed=1)
    leak = leak_of(model, images, labels, sent_as=sent_as, batch_size=None)
    assert leak.batch_size is None
    assert (leak.update_dtype is torch.float32) == (sent_as == "update")
    exact = leak.model.double()
    loss = cross_entropy(exact(images.double()), labels.double())
    true = torch.autograd.grad(loss, list(exact.parameters()))
    # Relative to the largest entry: float32's rounding, and that of weights at lr 0.1.
    limit = {"float64": 1e-14, "float32": 1e-5, "update": 1e-4}[sent_as]
    for gradient, expected in zip(leak.gradients.values(), true, strict=True):
        assert (gradient - expected).abs().max() < limit * expected.abs().max()


def test_a_network_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FL_SIM_DATA", str(tmp_path))
    model, accuracy = trained("fcn4", "mnist-5k", "mixup")
    assert accuracy >= training.TARGET
    monkeypatch.setattr(training, "train", None)  # the second time it is read
    again, same = trained("fcn4", "mnist-5k", "mixup")
    assert same == accuracy
    assert all(map(torch.equal, model.parameters(), again.parameters()))


def test_a_network_that_does_not_learn_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FL_SIM_DATA", str(tmp_path))
    monkeypatch.setattr(training, "MOST_STEPS", 0)
    with pytest.raises(RuntimeError, match=r"reached an accuracy of 0.000 in 0 steps"):
        trained("fcn4", "mnist-5k", "hard")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("network", list(INIT))
def test_tables_name_the_initialisation_that_victims_have(network: str) -> None:
    data = dataset("mnist-5k")
    named = untrained(network, data, init=INIT[network])
    assert all(map(torch.equal, untrained(network, data).parameters(), named.parameters()))
    assert f"in `{network}`" in initial_weights(network)


def test_a_victim_is_initialised_as_asked_for() -> None:
    data = dataset("mnist-5k")
    default = untrained("mlp", data, bias=True, init="default")
    assert all(parameter.any() for parameter in default.parameters())
    assert not all(parameter.any() for parameter in untrained("mlp", data, bias=True).parameters())
