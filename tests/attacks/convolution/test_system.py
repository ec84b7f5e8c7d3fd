"""The linear algebra under `r-gap`: transposes, patches of δ, and both solvers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from attacks.convolution import system as layer_system
from attacks.convolution.stages import Stage
from attacks.convolution.system import LayerSystem, by_channel
from attacks.numerics.cgls import cgls
from attacks.victim.activation import SIGMOID

CASES = [
    # kernel, stride, padding, dilation
    ((5, 5), (2, 2), (2, 2), (1, 1)),
    ((3, 2), (1, 2), (0, 1), (1, 1)),
    ((3, 3), (3, 2), (1, 2), (2, 1)),
    ((1, 1), (1, 1), (0, 0), (1, 1)),
]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stage_of(case: tuple[tuple[int, int], ...]) -> Stage:
    kernel, stride, padding, dilation = case
    weight = draw(7, 3, *kernel)
    out = conv2d(draw(1, 3, 11, 10), weight, None, stride, padding, dilation)
    channels, height, width = out.shape[1:]
    shapes = (3, 11, 10), (channels, height, width)
    return Stage("0", weight, None, stride, padding, dilation, SIGMOID, *shapes, 1.0)


@pytest.mark.parametrize("case", CASES)
def test_adjoint_and_patches_agree_with_autograd(case: tuple[tuple[int, int], ...]) -> None:
    stage = stage_of(case)
    v = draw(1, *stage.input_shape, seed=1).requires_grad_()
    weight = stage.weight.clone().requires_grad_()
    delta = draw(*stage.output_shape, seed=2)
    z = conv2d(v, weight, None, stage.stride, stage.padding, stage.dilation)
    by_input, by_weight = torch.autograd.grad((z[0] * delta).sum(), (v, weight))
    torch.testing.assert_close(stage.adjoint(delta), by_input)
    modelled = v.detach().reshape(3, -1) @ stage.patches(delta).T
    torch.testing.assert_close(modelled, by_channel(by_weight))


@pytest.mark.parametrize("dense", [4096, 0])
def test_finds_the_input_of_a_layer(dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both by factorising the normal equations and by conjugate gradients."""
    monkeypatch.setattr(layer_system, "DENSE", dense)
    stage = stage_of(CASES[0])
    v = draw(1, 3 * 110, seed=3)
    outputs = draw(stage.output_shape[0] * 6 * 5, seed=4).abs() + 0.5
    system = LayerSystem(
        stage,
        stage.patches(draw(*stage.output_shape, seed=5)),
        output_weight=outputs,
        gradient_weight=draw(3, 7 * 25, seed=6).abs() + 0.5,
    )
    found, std = system.solve(system.product(v), torch.Generator().manual_seed(0))
    assert (found - v).abs().max() < 1e-7  # measured 1e-13 and, by conjugate gradients, 1e-9
    assert std.shape == (330,)
    assert std.isfinite().all()


def test_an_input_that_is_never_read_is_not_determined() -> None:
    """At stride 2 a 1×1 kernel skips three pixels of four."""
    stage = stage_of(((1, 1), (2, 2), (0, 0), (1, 1)))
    delta = draw(*stage.output_shape)
    outputs = stage.output_shape[0] * stage.output_shape[1] * stage.output_shape[2]
    system = LayerSystem(
        stage,
        stage.patches(delta),
        output_weight=torch.ones(outputs, dtype=torch.float64),
        gradient_weight=torch.ones(3, 7, dtype=torch.float64),
    )
    v = draw(1, 330, seed=7)
    found, std = system.solve(system.product(v), torch.Generator().manual_seed(0))
    assert std.isinf().sum() == 3 * (110 - 30)
    read = std.isfinite()
    torch.testing.assert_close(found[:, read], v[:, read])


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_conjugate_gradients_solve_least_squares(damping: float) -> None:
    matrix, rows = draw(30, 12), draw(2, 30, seed=1)
    scale = torch.linspace(0.5, 2, 12).double()
    found = cgls(lambda u: u @ matrix.T, lambda r: r @ matrix, rows, scale=scale, damping=damping)
    normal = matrix.T @ matrix + damping * torch.diag(scale**-2)
    torch.testing.assert_close(found, torch.linalg.solve(normal, (rows @ matrix).T).T)
