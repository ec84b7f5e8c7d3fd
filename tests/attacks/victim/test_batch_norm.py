"""A batch's statistics at its batch norm layers, read off the buffers that came back."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import GradientLeak, NotApplicable
from attacks.victim.batch_norm import kept_statistics, statistics_of_batch
from fl_sim.testing.leaks import build_seeded, leak_of

SHAPE = (1, 6, 6)


def normed(momentum: float | None = 0.3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, momentum=momentum), nn.ReLU(), nn.Flatten(),
        nn.Linear(48, 4),
    )  # fmt: skip


def victim(momentum: float | None = 0.3, **fields: Any) -> tuple[GradientLeak, Tensor]:
    """Return a leak in train mode with the buffers that PyTorch left, and the layer's input."""
    images = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    model = build_seeded(lambda: normed(momentum)).train()
    model[1].running_mean = torch.tensor([0.3, -0.2, 0.1])
    model[1].running_var = torch.tensor([0.5, 2.0, 1.0])
    start = copy.deepcopy(model).double()
    leak = leak_of(model, images, torch.eye(4)[:3], sent_as="float64", mode="train")
    after = {n: b.clone() for n, b in model.named_buffers() if b.is_floating_point()}
    leak = dataclasses.replace(leak, model=start, buffers=after, **fields)
    return leak, start[0](images).detach()


def test_the_update_tells_the_batchs_statistics() -> None:
    leak, inputs = victim()
    mean, variance = statistics_of_batch(leak)["1"]
    given = inputs.transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, given.mean(dim=1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(variance, given.var(dim=1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"buffers": {}}, "weren't sent: they come with the update in train mode alone"),
        ({"mode": "eval"}, "weren't sent"),
        ({"local_steps": 2}, "mix the statistics of 2 local steps"),
    ],
    ids=["none", "eval", "steps"],
)
def test_what_is_not_told_is_a_sentence(fields: dict[str, Any], sentence: str) -> None:
    leak = dataclasses.replace(victim()[0], **fields)
    with pytest.raises(NotApplicable, match=sentence):
        statistics_of_batch(leak)


def test_a_running_mean_of_unknown_length_tells_nothing() -> None:
    with pytest.raises(NotApplicable, match="with a momentum that is known"):
        statistics_of_batch(victim(momentum=None)[0])


def test_the_models_own_are_a_proxy_where_it_has_been_trained() -> None:
    leak, _ = victim()
    mean, variance = kept_statistics(leak)["1"]
    assert mean.tolist() == pytest.approx([0.3, -0.2, 0.1])
    assert variance.tolist() == pytest.approx([0.5, 2.0, 1.0])
    untrained = dataclasses.replace(leak, model=build_seeded(normed))
    with pytest.raises(NotApplicable, match="the model that was sent holds none"):
        kept_statistics(untrained)


@pytest.mark.parametrize(
    ("buffers", "sentence"),
    [
        ({"2.running_mean": torch.zeros(3)}, "buffer '2.running_mean' is none of the model's"),
        ({"1.running_mean": torch.zeros(4)}, "must hold floats of the shape (3,) that it has"),
        ({"1.running_mean": torch.zeros(3).long()}, "found torch.int64 of (3,)"),
    ],
    ids=["name", "shape", "type"],
)
def test_a_buffer_that_does_not_fit_is_one_sentence(
    buffers: dict[str, Tensor], sentence: str
) -> None:
    with pytest.raises(ValueError) as caught:
        dataclasses.replace(victim()[0], buffers=buffers)
    assert sentence in str(caught.value)
