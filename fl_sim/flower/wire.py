"""From what travels between client and server to a gradient.

A client sends weights. After one SGD step on fresh weights, `w' = w − lr (g + wd·w)`, so that
`g = (w − w') / lr − wd·w`. Over S steps, momentum and weight decay included, the weights are a
linear function of the start and of the steps' gradients; if all of these were one and the same g,

    w_S = A w − B g,      so that      S g = S (A w − w_S) / B,

with the same two numbers A and B for every weight. That is exact for one step, and to first order
the sum of the gradients over several: momentum weighs the early ones more.

Adam and its kin divide each entry by its own history. What their first step leaves are signs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attacks import GradientLeak, Normalization
from attacks.intake import plain_names, prefix_mismatch
from attacks.types import Mode
from fl_sim.flower.local_training import LocalTraining
from fl_sim.optimizers import FIRST_STEP

__all__ = [
    "MISFIT",
    "TRAIN_LOSS",
    "LocalTraining",
    "gradient_leak",
    "load_tensors",
    "wire_tensors",
]

MISFIT = "doesn't fit the model"
TRAIN_LOSS = "train-loss"
"""The metric that holds a client's mean training loss."""


def wire_tensors(model: nn.Module, mode: Mode) -> dict[str, Tensor]:
    """Return the tensors that travel: the parameters, and in train mode batch norm's statistics.

    Frozen buffers don't travel, nor do integer counters, which an average would turn into floats.
    """
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    if mode == "train":
        persistent = model.state_dict()
        tensors |= {
            name: persistent[name].detach()
            for name, buffer in model.named_buffers()
            if name in persistent and buffer.is_floating_point()
        }
    return tensors


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors that travelled into a model, in the model's precision.

    Raises:
        ValueError: a tensor belongs to nothing in the model, or has another shape.
    """
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    plain = plain_names(tensors, model)
    _require_alike(plain.values(), model)
    with torch.no_grad():
        for given, tensor in tensors.items():
            name = plain[given]
            if name not in own or own[name].shape != tensor.shape:
                raise ValueError(f"array {given!r} of shape {tuple(tensor.shape)} {MISFIT}")
            own[name].copy_(tensor)
            if name.endswith("running_var"):  # noise, or Adam on a server, can take it below zero
                own[name].clamp_(min=0)


def _require_alike(names: Iterable[str], model: nn.Module) -> None:
    """Raise if the names are those of the model's parameters but for a prefix."""
    mismatch = prefix_mismatch(names, model)
    if mismatch is not None:
        raise ValueError(f"array {mismatch}")


def gradient_leak(
    model: nn.Module,
    sent: Mapping[str, Tensor],
    training: LocalTraining,
    *,
    input_shape: tuple[int, int, int],
    normalization: Normalization | None = None,
) -> GradientLeak:
    """Translate a client's reply into the gradient that an attack works on.

    Args:
        model: at the weights that the client received, in the client's precision.
        sent: name -> what it sent back, as `training.sends` says; in train mode buffers as well.
        training: how it trained, without an obstacle; epochs turned into steps by `of_client`,
            unless it tells the examples itself.
        input_shape: (C, H, W).
        normalization: what the client's loader does to pixels; None where that isn't known.

    Returns:
        The leak, its gradients in float64, without any knowledge of defenses.

    Raises:
        ValueError: no array fits the model, or one doesn't, or holds something else than floats;
            or all names differ from the model's by a prefix.
    """
    training = training.of_client()
    plain = plain_names(sent, model)
    _require_alike(plain.values(), model)
    arrays = {plain[name]: tensor for name, tensor in sent.items()}
    buffers = _buffers(arrays, model) if training.mode == "train" else {}
    received = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    arrays = {name: tensor for name, tensor in arrays.items() if name in received}
    if not arrays:
        raise ValueError(
            f"no array has a trainable parameter's name, such as {next(iter(received), None)!r}; "
            f"found {next(iter(sent), 'none')!r}"
        )
    for name, tensor in arrays.items():
        if tensor.shape != received[name].shape:
            raise ValueError(f"array {name!r} of shape {tuple(tensor.shape)} {MISFIT}")
        if not tensor.is_floating_point():
            raise ValueError(f"array {name!r} must hold floats, found {tensor.dtype}")
    keeps: Literal["values", "signs"] = "values"
    lr: float | None = None
    precision = None
    if training.sends == "gradient":
        gradients = arrays
    else:
        decay, reach = training.linear_map()
        if training.optimizer != "sgd":
            keeps = "signs"
            decay = 1 - training.lr * training.weight_decay
            reach = training.lr * FIRST_STEP[training.optimizer]
        lr = reach / training.local_steps
        kept = decay - (training.sends == "difference")
        gradients = {
            name: (kept * received[name].double() - tensor.double()) / lr
            for name, tensor in arrays.items()
        }
        precision = _coarsest(arrays)
    return GradientLeak(
        model,
        gradients,
        training.batch_size,
        input_shape,
        local_steps=training.local_steps,
        lr=lr,
        mode=training.mode,
        update_dtype=precision,
        normalization=normalization,
        keeps=keeps,
        caveat=_caveat(training),
        buffers=buffers if training.sends == "weights" else {},
        **_told(training),
    )


def _buffers(arrays: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the arrays that hold what floating buffers hold; others tell an attacker nothing."""
    own = {name: buffer for name, buffer in model.named_buffers() if name in arrays}
    return {
        name: arrays[name]
        for name, buffer in own.items()
        if arrays[name].shape == buffer.shape and arrays[name].is_floating_point()
    }


def _told(training: LocalTraining) -> dict[str, Any]:
    """Return what a leak tells of the steps' batches and of SGD."""
    told: dict[str, Any] = {"examples": training.examples, "schedule": training.schedule}
    if training.optimizer != "sgd":
        return told
    names = ("momentum", "nesterov", "dampening", "weight_decay")
    return told | {name: getattr(training, name) for name in names} | {"optimizer_lr": training.lr}


def _coarsest(arrays: Mapping[str, Tensor]) -> torch.dtype | None:
    dtypes = {tensor.dtype for tensor in arrays.values()}
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=None)


def _caveat(training: LocalTraining) -> str | None:
    if training.local_steps == 1 or not training.momentum:
        return None
    return (
        f"momentum {training.momentum:g} over {training.local_steps} steps is divided out to first "
        "order: the gradients of early steps weigh more"
    )
