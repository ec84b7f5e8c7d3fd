"""Models and gradients in the forms in which users have them, made plain.

A plain model is an `nn.Module` on the CPU without wrappers; its plain gradients are dense tensors
there, by the names of its parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

WRAPPERS = ("_orig_mod", "module")
"""Where torch.compile, and DataParallel and its kin, keep the module that they wrap."""


def plain_model(model: nn.Module) -> nn.Module:
    """Return a model on the CPU without wrappers; itself, if it is one already.

    Raises:
        TypeError: it isn't a module, or is one of TorchScript.
        ValueError: it has no parameters, or some without values.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, found {type(model).__name__}")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise TypeError("model must run in Python, found TorchScript: give what was compiled")
    if any(_wrapped(module) is not None for module in model.modules()):
        model = _unwrapped(model, {})
    devices = {t.device.type for t in (*model.parameters(), *model.buffers())}
    if not any(True for _ in model.parameters()):
        raise ValueError("model must have parameters, found none")
    if any(nn.parameter.is_lazy(p) for p in model.parameters()):
        raise ValueError("model must be initialised, found lazy parameters: run it on a batch once")
    if "meta" in devices:
        raise ValueError("model must hold values, found parameters on the device 'meta'")
    return model if devices == {"cpu"} else copy.deepcopy(model).cpu()


def plain_names(names: Iterable[str], model: nn.Module) -> dict[str, str]:
    """Map names to those of a model's parameters and buffers.

    Wrappers' parts are taken out. Numbers from 0 stand for the model's state, or for its parameters
    if they are as many, in order. A name that is none of them stays as it is.
    """
    names = list(names)
    own = {n for n, _ in model.named_parameters()} | {n for n, _ in model.named_buffers()}
    if names and not own & set(names) and set(names) == {str(i) for i in range(len(names))}:
        for order in (list(model.state_dict()), [n for n, _ in model.named_parameters()]):
            if len(order) == len(names):
                return {str(index): name for index, name in enumerate(order)}
    plain = {}
    for name in names:
        stripped = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        plain[name] = stripped if name not in own and stripped in own else name
    return plain


def prefix_mismatch(names: Iterable[str], model: nn.Module) -> str | None:
    """Say which prefix names have that a model's parameters don't, or the other way round.

    A network is often wrapped, as in `nn.Sequential(Normalize(...), network)`, on one side only.

    Returns:
        One sentence; None if no prefix explains all parameters.

    Example:
        >>> prefix_mismatch(["1.weight", "1.bias"], nn.Linear(4, 2))[:57]
        "'1.weight' would be the model's 'weight' without its '1.'"
    """
    given, own = set(names), [n for n, p in model.named_parameters() if p.requires_grad]
    if given.issuperset(own) or not own:
        return None
    for name in sorted(given):
        prefix = name.removesuffix(own[0])
        if name != prefix and prefix.endswith(".") and all(prefix + o in given for o in own):
            return (
                f"{name!r} would be the model's {own[0]!r} without its {prefix!r}: where it comes "
                "from, the network is wrapped, as in nn.Sequential(normalize, network); give the "
                "wrapped one as the model"
            )
        prefix = own[0].removesuffix(name)
        inner = {o.removeprefix(prefix) for o in own if o.startswith(prefix)}
        if own[0] != prefix and prefix.endswith(".") and len(inner) == len(own) and inner <= given:
            return (
                f"{name!r} would be the model's {own[0]!r} with {prefix!r} before it: the model is "
                "wrapped, as in nn.Sequential(normalize, network), and where it comes from the "
                "network isn't; give the inner one as the model"
            )
    return None


def plain_gradients(
    gradients: Mapping[str, Any] | Sequence[Any], model: nn.Module
) -> dict[str, Tensor]:
    """Return dense tensors on the CPU, by their parameters' names; None is left out.

    Args:
        gradients: by name, or in the order of the model's (trainable) parameters, as
            `torch.autograd.grad` returns them; tensors of any layout, or NumPy arrays.
        model: a plain one.

    Raises:
        TypeError: they are neither, or one is no tensor.
        ValueError: there are more or fewer than parameters, one has no values, or all names have a
            prefix that the parameters' names don't have, or lack one.
    """
    if not isinstance(gradients, Mapping):
        gradients = _named(gradients, model)
    given = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    plain = plain_names(given, model)
    mismatch = prefix_mismatch(plain.values(), model)
    if mismatch is not None:
        raise ValueError(f"gradient {mismatch}")
    return {plain[name]: _dense(name, gradient) for name, gradient in given.items()}


def _named(gradients: Any, model: nn.Module) -> dict[str, Any]:
    if not isinstance(gradients, Sequence) or isinstance(gradients, str | bytes):
        raise TypeError(
            "gradients must map parameter names to tensors, or list them in the parameters' "
            f"order, found {type(gradients).__name__}"
        )
    everything = [name for name, _ in model.named_parameters()]
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    for names in (trainable, everything):
        if len(names) == len(gradients):
            return dict(zip(names, gradients, strict=True))
    raise ValueError(
        f"a list of gradients must have one for each of the {len(trainable)} trainable parameters, "
        f"found {len(gradients)}"
    )


def _dense(name: str, given: Any) -> Tensor:
    gradient: Tensor | Any = given
    if isinstance(gradient, np.ndarray):
        if gradient.dtype.kind not in "biuf":
            raise TypeError(f"gradient {name!r} must hold numbers, found {gradient.dtype}")
        gradient = torch.tensor(gradient)  # a copy: the array may not be writeable
    if not isinstance(gradient, Tensor):
        raise TypeError(
            f"gradient {name!r} must be a tensor or an array, found {type(gradient).__name__}"
        )
    gradient = gradient.detach()
    if gradient.device.type == "meta":
        raise ValueError(f"gradient {name!r} must hold values, found one on the device 'meta'")
    if gradient.is_quantized:
        gradient = gradient.dequantize()
    if gradient.layout is not torch.strided:
        gradient = gradient.to_dense()
    gradient = gradient.cpu()
    # NumPy has no other floats, and hardly anything computes in those of 8 bits.
    is_small = gradient.is_floating_point() and gradient.dtype.itemsize == 1
    return gradient.float() if is_small else gradient


def _wrapped(module: nn.Module) -> nn.Module | None:
    """Return what a wrapper wraps; None if it isn't one."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    inner = module.module if isinstance(module, parallel) else getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else None


def _unwrapped(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """Copy the modules around wrapped ones, without wrappers; tensors are shared."""
    if module not in done:
        inner = _wrapped(module)
        if inner is not None:
            done[module] = _unwrapped(inner, done)
        else:
            done[module] = shallow(module)
            for name, child in module.named_children():
                done[module]._modules[name] = _unwrapped(child, done)
    return done[module]


def shallow(module: nn.Module) -> nn.Module:
    """Copy a module with tables of its own, which hold the same tensors and children."""
    # Not copy.copy, which reparametrised modules refuse.
    one = object.__new__(type(module))
    for name, value in vars(module).items():  # dicts: parameters, buffers, hooks
        vars(one)[name] = value.copy() if isinstance(value, dict) else value
    vars(one)["_compiled_call_impl"] = None  # of Module.compile, which runs the original
    return one


def require_buffers(buffers: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise unless buffers are of a model.

    Raises:
        ValueError: one isn't, or has another shape there, or doesn't hold floats.
    """
    own = dict(model.named_buffers())
    for name, buffer in buffers.items():
        if name not in own:
            raise ValueError(f"buffer {name!r} is none of the model's")
        if buffer.shape != own[name].shape or not buffer.is_floating_point():
            raise ValueError(
                f"buffer {name!r} must hold floats of the shape {tuple(own[name].shape)} that it "
                f"has in the model, found {buffer.dtype} of {tuple(buffer.shape)}"
            )
