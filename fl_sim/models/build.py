"""Build a network by its name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import fl_sim
from fl_sim.errors import UserError
from fl_sim.models.layers import Shape
from fl_sim.seeds import seed_for, seeded_layers

TOLD = ("num_classes", "input_shape", "bias", "mean", "std", "init")
"""What factories are told that have parameters for it."""


def build_model(
    name: str,
    *,
    options: Mapping[str, Any],
    num_classes: int,
    input_shape: Shape,
    bias: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
    init: str = "default",
) -> nn.Module:
    """Build a network by its name in `fl_sim.MODELS`, or by `module:attr`.

    The same seed gives the same weights; PyTorch's global generator is left as it was.

    Args:
        name: of the factory; anyone's gets those of our keyword arguments that it takes.
        options: more keyword arguments for the factory.
        num_classes: K.
        input_shape: (C, H, W).
        bias: whether the last linear layer has one; where a network has several, all of them.
        mean: of each channel of the training images.
        std: of each channel of the training images.
        seed: the run's.
        init: how weights are drawn: "default", which is left to the factory (ours: PyTorch's);
            "he"; or what else the factory knows.

    Returns:
        The network, in eval mode and float32, with its normalisation inside.

    Raises:
        UserError: the name is unknown, an option is wrong, `bias` or `init` is set and isn't read,
            or the result isn't a module that maps zeros of shape (2, C, H, W) to finite values of
            (2, K).
    """
    arguments = {
        "num_classes": num_classes,
        "input_shape": input_shape,
        "bias": bias,
        "mean": mean,
        "std": std,
        "init": init,
    }
    with seeded_layers(seed_for(seed, "model")):
        model = _assemble(name, arguments, options)
        _check_output(name, model, input_shape, num_classes)
    return model


def takes_bias(name: str) -> bool:
    """Say whether a factory has a parameter `bias`.

    Raises:
        UserError: the name is unknown.
    """
    try:
        return "bias" in _taken(name, dict.fromkeys(TOLD))
    except ValueError as error:
        raise UserError(str(error)) from error


def parameter_shapes(
    name: str,
    *,
    options: Mapping[str, Any],
    num_classes: int,
    input_shape: Shape,
    bias: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    init: str = "default",
) -> dict[str, torch.Size] | None:
    """Return the shapes of a network's parameters, without the memory that they take.

    Args:
        name: as of `build_model`, and so are all others.
        options: likewise.
        num_classes: likewise.
        input_shape: likewise.
        bias: likewise.
        mean: likewise.
        std: likewise.
        init: likewise.

    Returns:
        By name; None where a factory can't build without values.

    Raises:
        UserError: as of `build_model`.
    """
    arguments = {
        "num_classes": num_classes,
        "input_shape": input_shape,
        "bias": bias,
        "mean": mean,
        "std": std,
        "init": init,
    }
    try:
        with seeded_layers(0), torch.device("meta"):
            model = _assemble(name, arguments, options)
    except UserError:
        raise
    except Exception:  # anyone's factory may need values
        return None
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _assemble(name: str, arguments: Mapping[str, Any], options: Mapping[str, Any]) -> nn.Module:
    """Call a factory with what it takes, and options."""
    for key in options.keys() & arguments.keys():
        raise UserError(f"the options of model {name!r} can't set {key!r}: the simulator does")
    try:
        taken = _taken(name, arguments)
        _require_taken(name, taken, bias=arguments["bias"], init=arguments["init"])
        if arguments["init"] == "default":
            taken.pop("init", None)
        model = fl_sim.MODELS.build(name, **taken, **options)
    except ValueError as error:
        given = f"; it gets what it takes of {', '.join(arguments)}, and model.options"
        ending = given if str(error).endswith("required") else ""
        raise UserError(f"{error}{ending}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"model {name!r} must be an nn.Module, found {type(model).__name__}")
    return model.float().eval()


def _taken(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that a factory has parameters for: anyone's, as torchvision's."""
    factory = fl_sim.MODELS[name]
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # it isn't callable, or doesn't tell
        return dict(arguments)
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        # Written for us; or as torchvision's, which hand num_classes on to their class.
        named |= set(arguments) if not named or named & set(arguments) else {"num_classes"}
    return {key: value for key, value in arguments.items() if key in named}


def _require_taken(name: str, taken: Mapping[str, Any], *, bias: bool, init: str) -> None:
    """Raise if the scenario sets what the factory has no parameter for."""
    ending = f"since {name} has no such parameter, found"
    if bias and "bias" not in taken:
        raise UserError(f"model.bias: must be false, {ending} true")
    if init != "default" and "init" not in taken:
        raise UserError(f"model.init: must be 'default', {ending} {init!r}")


def _check_output(name: str, model: nn.Module, input_shape: Shape, num_classes: int) -> None:
    zeros = torch.zeros(2, *input_shape)
    rule = f"model {name!r} must map {tuple(zeros.shape)} to finite values of {(2, num_classes)}"
    try:
        with torch.no_grad():
            output = model(zeros)
    except Exception as error:  # a user's module may raise anything
        raise UserError(f"{rule}, and raised {type(error).__name__}: {error}") from error
    if not isinstance(output, Tensor):
        raise UserError(f"{rule}, found {type(output).__name__}")
    if output.shape != (2, num_classes):
        raise UserError(f"{rule}, found shape {tuple(output.shape)}")
    if not output.isfinite().all():
        raise UserError(f"{rule}, found NaN or infinity")
