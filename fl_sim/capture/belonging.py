"""Whether an update and the weights that it is said to start from belong together; ours.

Whoever keeps updates easily keeps the wrong weights with them: those of the round before, or the
round's aggregate. Two facts of honest pairs are cheap to test, and a wrong pair fails them.

* A linear layer's gradient is `Σ_i δ_i (a_i, 1)ᵀ` over the n examples of all steps, weight and bias
  side by side: it has rank n at most. Of other weights, the difference holds what all clients did.
* Behind one example, each linear layer's gradient is `δ (a, 1)ᵀ` and shows its input a, or its
  direction. What follows the first such layer, run on its a, must give the later ones' inputs, and
  in the end p with a label `y = p − ∂b` of no negative entry.

Rounding is bounded, not guessed: of a rank, by the Frobenius norm of half an ulp an entry; of a
direction, by that share of the layer's gradient, carried through the network. What was noised or
quantised fails both tests as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attacks import GradientLeak
from fl_sim.seeds import seeded_layers

SMALLEST_SHARE = 1e-3
"""Of the largest singular value: what is smaller is left to the client's own arithmetic."""
LEAST_ANGLE = 1e-4
"""Angle of directions, and size of a negative entry, that the client's arithmetic may cause."""
MARGIN = 30.0
"""How many times what rounding does to a direction is granted to it."""
LARGEST = 2048
"""Smaller side of a matrix whose singular values are still cheap."""


@dataclass(frozen=True)
class _Layer:
    """A linear layer that each example goes through once."""

    name: str
    module: nn.Linear


@dataclass(frozen=True)
class Belonging:
    """What the tests say.

    Args:
        tested: how many linear layers' gradients they could look at.
        contradiction: why the pair doesn't belong together; None where nothing says so.
    """

    tested: int
    contradiction: str | None = None


def examine(leak: GradientLeak) -> Belonging:
    """Test whether a leak's gradients are those of its model."""
    layers = [layer for layer in _linear_layers(leak) if f"{layer.name}.weight" in leak.gradients]
    examples = leak.processed
    if leak.keeps == "signs" or examples is None:
        return Belonging(0)
    narrow = [layer for layer in layers if examples < min(_matrix(leak, layer).shape) <= LARGEST]
    for layer in narrow:
        sentence = _rank_problem(leak, layer, examples)
        if sentence is not None:
            return Belonging(len(narrow), sentence)
    if examples > 1 or leak.mode != "eval" or not layers:
        return Belonging(len(narrow))
    return Belonging(len(layers), _forward_problem(leak, layers))


def _linear_layers(leak: GradientLeak) -> list[_Layer]:
    """Return the linear layers that one example goes through once, as one row, in that order."""
    calls: list[tuple[str, tuple[int, ...]]] = []
    modules = {n: m for n, m in leak.model.named_modules() if isinstance(m, nn.Linear)}

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls.append((name, tuple(inputs[0].shape)))

    handles = [m.register_forward_pre_hook(partial(note, n)) for n, m in modules.items()]
    try:
        _run(leak, torch.zeros(1, *leak.input_shape))
    finally:
        for handle in handles:
            handle.remove()
    names = [name for name, _ in calls]
    uses = [id(module.weight) for module in modules.values()]
    return [
        _Layer(name, modules[name])
        for name, shape in calls
        if names.count(name) == 1
        and len(shape) == 2
        and shape[0] == 1
        and uses.count(id(modules[name].weight)) == 1
    ]


def _matrix(leak: GradientLeak, layer: _Layer) -> Tensor:
    """Return a layer's gradient, with its bias's as a last column where there is one."""
    weight = leak.gradients[f"{layer.name}.weight"].double()
    bias = leak.gradients.get(f"{layer.name}.bias")
    return weight if bias is None else torch.cat([weight, bias.double()[:, None]], dim=1)


def _rounding(leak: GradientLeak, layer: _Layer) -> float:
    """Bound the norm of what rounding did to a gradient: √3 standard deviations an entry."""
    names = [n for n in (f"{layer.name}.weight", f"{layer.name}.bias") if n in leak.gradients]
    squares = sum(float(leak.rounding(name).square().sum()) for name in names)
    return math.sqrt(3 * squares)


def _rank_problem(leak: GradientLeak, layer: _Layer, examples: int) -> str | None:
    values = torch.linalg.svdvals(_matrix(leak, layer))
    bound = _rounding(leak, layer) + SMALLEST_SHARE * float(values[0])
    rank = int((values > bound).sum())
    if rank <= examples:
        return None
    noun = "example" if examples == 1 else "examples"
    return (
        f"layer {layer.name!r} has moved along {rank} directions, and {examples} {noun} can't move "
        f"it along more than {examples}"
    )


def _forward_problem(leak: GradientLeak, layers: Sequence[_Layer]) -> str | None:
    """Say why one example's layers don't follow from each other."""
    first, *later = layers
    given, error, is_signed = _input(leak, first)
    if given is None:
        return None
    problems = []
    for sign in (1.0,) if is_signed else (1.0, -1.0):
        problem = _problem_from(leak, first, later, sign * given, error, is_exact=is_signed)
        if problem is None:
            return None
        problems.append(problem)
    return problems[0]


def _input(leak: GradientLeak, layer: _Layer) -> tuple[Tensor | None, float, bool]:
    """Return what a layer's gradient shows of its input, in what relative error.

    Returns:
        The input (D,), with a bias's gradient; without, its direction, up to a sign; None where
        the gradient is nothing but rounding. Whether it is the input itself comes last.
    """
    weight = leak.gradients[f"{layer.name}.weight"].double()
    bias = leak.gradients.get(f"{layer.name}.bias")
    size = float(torch.linalg.matrix_norm(weight))
    error = _rounding(leak, layer) / size if size else 1.0
    if error > 1 / MARGIN:
        return None, error, False
    if bias is not None and float(bias.double().norm()) > 0:
        bias = bias.double()
        return weight.T @ bias / bias.square().sum(), error, True
    row = weight[weight.norm(dim=1).argmax()]
    return row / row.norm(), error, False


def _problem_from(
    leak: GradientLeak,
    first: _Layer,
    later: Sequence[_Layer],
    given: Tensor,
    error: float,
    *,
    is_exact: bool,
) -> str | None:
    """Run what follows the first layer on its input, and compare."""
    inputs, logits = _follow(leak, first, later, given)
    others, _ = _follow(leak, first, later, given, image=torch.ones(1, *leak.input_shape) / 2)
    twice, _ = _follow(leak, first, later, given if is_exact else 2 * given)
    noise = torch.randn(given.shape, generator=torch.Generator().manual_seed(0), dtype=given.dtype)
    shaken = given + noise * (error * given.norm() / noise.norm())
    moved, _ = _follow(leak, first, later, shaken)
    for index, layer in enumerate(later):
        shown, own_error, _ = _input(leak, layer)
        if shown is None or not inputs[index].norm() > 0:
            continue
        is_other = not torch.equal(inputs[index], others[index])
        if is_other or _angle(inputs[index], twice[index]) > 1e-6:
            return None  # the image reaches it another way, or the scale matters and isn't known
        granted = MARGIN * (own_error + _angle(inputs[index], moved[index]) + error) + LEAST_ANGLE
        found = _angle(inputs[index], shown)
        if found > granted:
            return (
                f"behind one example, layer {first.name!r} leads to another input of "
                f"{layer.name!r} than its gradient shows, by an angle of {found:.2g} where "
                f"rounding explains {granted:.2g}"
            )
    return _label_problem(leak, [first, *later][-1], logits, error) if is_exact else None


def _label_problem(leak: GradientLeak, last: _Layer, logits: Tensor, error: float) -> str | None:
    """Say whether a last layer's bias would need a label with a negative entry."""
    bias = leak.gradients.get(f"{last.name}.bias")
    if bias is None or logits.shape != bias.shape:
        return None
    label = logits.softmax(dim=0) - bias.double()
    if float(label.min()) >= -(LEAST_ANGLE + MARGIN * error) * 10:
        return None
    return (
        f"behind one example, a label would have to have an entry of {float(label.min()):.2g} for "
        f"the gradient of {last.name + '.bias'!r}"
    )


def _follow(
    leak: GradientLeak,
    first: _Layer,
    later: Sequence[_Layer],
    given: Tensor,
    image: Tensor | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Return the later layers' inputs and the logits, where the first one's input is given."""
    seen: dict[str, Tensor] = {}

    def replace(module: nn.Module, inputs: Any) -> tuple[Tensor]:
        return (given.to(inputs[0])[None],)

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[name] = inputs[0][0].double()

    handles = [first.module.register_forward_pre_hook(replace)]
    handles += [x.module.register_forward_pre_hook(partial(note, x.name)) for x in later]
    try:
        logits = _run(leak, torch.zeros(1, *leak.input_shape) if image is None else image)
    finally:
        for handle in handles:
            handle.remove()
    return [seen[layer.name] for layer in later], logits[0].double()


def _run(leak: GradientLeak, image: Tensor) -> Tensor:
    parameter = next(leak.model.parameters())
    with torch.no_grad(), seeded_layers(0):
        output: Tensor = leak.model(image.to(parameter.dtype))
    return output


def _angle(one: Tensor, other: Tensor) -> float:
    """Return the sine of the angle between two lines; 1 where one is nothing."""
    if not (one.norm() > 0 and other.norm() > 0):
        return 1.0
    one, other = one / one.norm(), other / other.norm()
    return float((one - (one @ other) * other).norm())
