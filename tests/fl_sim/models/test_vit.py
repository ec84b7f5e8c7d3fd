"""timm's ViT-Tiny, for those who have it."""

from __future__ import annotations

import sys

import pytest
import torch

from attacks import ExampleLabel, LabelRecovery, Status
from attacks.images.inverting_gradients import InvertingGradients
from fl_sim.errors import UserError
from fl_sim.models import Normalize, build_model
from fl_sim.testing.leaks import leak_of

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


def test_maps_pixels_to_logits_and_its_gradient_is_matched() -> None:
    pytest.importorskip("timm")
    model = build().eval()
    assert isinstance(next(model.children()), Normalize)
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert model(images).shape == (1, 7)
    leak = leak_of(model, images, torch.eye(7)[:1])
    known = LabelRecovery.of([ExampleLabel(Status.RECOVERED, label=torch.eye(7)[0].double())])
    attack = InvertingGradients(iterations=3)
    found = attack(leak, known, generator=torch.Generator().manual_seed(0))
    assert found.gradient_evaluations == 3
    assert found.images is not None


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
