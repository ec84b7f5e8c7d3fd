"""timm's ViT-Tiny, for those who have it."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fl_sim.errors import UserError
from fl_sim.models import Normalize, build_model

NAME = "fl_sim.models.vit:vit_tiny"


def build(shape: tuple[int, int, int] = (3, 32, 32), *, bias: bool = False) -> torch.nn.Module:
    return build_model(
        NAME,
        options={},
        num_classes=7,
        input_shape=shape,
        bias=bias,
        mean=(0.4,) * shape[0],
        std=(0.2,) * shape[0],
        seed=0,
    )


def test_maps_pixels_to_logits_and_differentiates_twice() -> None:
    pytest.importorskip("timm")
    model = build()
    assert isinstance(next(model.children()), Normalize)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images.requires_grad_()
    loss = cross_entropy(model(images), torch.tensor([1, 2]))
    slopes = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    total: Tensor = torch.stack([slope.square().sum() for slope in slopes]).sum()
    (second,) = torch.autograd.grad(total, [images])
    assert second.isfinite().all() and second.any()


@pytest.mark.parametrize("bias", [True, False])
def test_the_last_layer_has_a_bias_or_none(bias: bool) -> None:
    pytest.importorskip("timm")
    model = build((1, 16, 16), bias=bias)
    last = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)][-1]
    assert last.out_features == 7 and (last.bias is not None) == bias


def test_a_shape_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="multiples of 8 pixels, found 28×28"):
        build((1, 28, 28))


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.models.vision_transformer", None)
    with pytest.raises(UserError, match=r"fl-sim\[vit\]"):
        build()
