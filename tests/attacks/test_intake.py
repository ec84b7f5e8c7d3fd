"""Names that differ from a model's by a prefix are told apart from names that are just foreign."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks import GradientLeak
from attacks.intake import prefix_mismatch


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.ReLU(), nn.Linear(3, 2, bias=False))


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(p) for name, p in model.named_parameters()}


def test_a_network_that_is_wrapped_on_one_side_only_is_named() -> None:
    inner = network()
    outer = nn.Sequential(nn.Identity(), inner)
    with pytest.raises(
        ValueError, match=r"gradient '1.1.weight' would be the model's '1.weight' w"
    ):
        GradientLeak(inner, gradients(outer), 1, (1, 4, 4))
    with pytest.raises(
        ValueError, match=r"gradient '1.weight' would be the model's '1.1.weight' w"
    ):
        GradientLeak(outer, gradients(inner), 1, (1, 4, 4))
    assert GradientLeak(outer, gradients(outer), 1, (1, 4, 4)).gradients.keys() == {
        f"1.{name}" for name in gradients(inner)
    }


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("head",),
        ("1.weight", "1.bias", "3.weight"),  # its own
        ("1.weight", "1.bias", "3.weight", "x.1.weight", "x.1.bias", "x.3.weight"),  # and more
        ("1.weight",),  # some of its own
        ("x.1.weight", "x.1.bias"),  # one is missing
        ("x1.weight", "x1.bias", "x3.weight"),  # no prefix ends within a name
    ],
)
def test_what_no_prefix_explains_is_left_alone(names: tuple[str, ...]) -> None:
    assert prefix_mismatch(names, network()) is None


def test_a_frozen_network_has_no_names_to_miss() -> None:
    assert prefix_mismatch(["1.weight"], network().requires_grad_(False)) is None
