"""From what travels between client and server to a gradient.

A client sends weights. After one SGD step on fresh weights, `w' = w − lr (g + wd·w)`, so that
`g = (w − w') / lr − wd·w`; a first step with momentum is a plain one (with Nesterov's, (1 + μ)
times it). Several steps give a sum of gradients along their path, weighted by momentum and decay:
without momentum, S steps shrink w to `(1 − lr·wd)^S w`, which takes the place of `w − lr·wd·w`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks import GradientLeak
from attacks.types import Mode

MISFIT = "doesn't fit the model"


@dataclass(frozen=True)
class LocalTraining:
    """How clients train, as the server that configured them knows it.

    Args:
        lr: learning rate, above 0.
        batch_size: B; None when the clients choose it.
        local_steps: SGD steps a round.
        momentum: μ in [0, 1).
        nesterov: whether the momentum is Nesterov's.
        weight_decay: wd, at least 0.
        mode: of batch norm and dropout.
        fresh_optimizer: whether the momentum starts from zero in every round.

    Raises:
        ValueError: lr isn't above 0.
    """

    lr: float
    batch_size: int | None = None
    local_steps: int = 1
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    mode: Mode = "eval"
    fresh_optimizer: bool = True

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, found {self.lr}")

    def obstacle(self, server_round: int) -> str | None:
        """Say why an update of this round is no gradient, nor a sum of them; None if it is."""
        if self.momentum > 0 and not self.fresh_optimizer and server_round > 1:
            return (
                f"the update carries momentum ({self.momentum:g}) from earlier rounds, which the "
                "server doesn't see"
            )
        return None


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
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name not in own or own[name].shape != tensor.shape:
                raise ValueError(f"array {name!r} of shape {tuple(tensor.shape)} {MISFIT}")
            own[name].copy_(tensor)
            if name.endswith("running_var"):  # noise, or Adam on a server, can take it below zero
                own[name].clamp_(min=0)


def gradient_leak(
    model: nn.Module,
    sent: Mapping[str, Tensor],
    training: LocalTraining,
    *,
    input_shape: tuple[int, int, int],
) -> GradientLeak:
    """Translate a client's weights into the gradient that an attack works on.

    Args:
        model: at the weights that the client received, in the client's precision.
        sent: parameter name -> the weights that it sent back; buffers are left aside.
        training: how it trained.
        input_shape: (C, H, W).

    Returns:
        The leak, its gradients in float64, without any knowledge of defenses.

    Raises:
        ValueError: an array doesn't fit the model.
    """
    scale = training.lr * (1 + training.momentum if training.nesterov else 1.0)
    decay = (1 - (1 - scale * training.weight_decay) ** training.local_steps) / scale
    gradients = {}
    precisions = set()
    for name, parameter in model.named_parameters():
        if name not in sent or not parameter.requires_grad:
            continue
        if sent[name].shape != parameter.shape:
            raise ValueError(f"array {name!r} of shape {tuple(sent[name].shape)} {MISFIT}")
        received = parameter.detach().double()
        precisions.add(sent[name].dtype)
        gradients[name] = (received - sent[name].double()) / scale
        if training.weight_decay:
            gradients[name] -= decay * received
    return GradientLeak(
        model,
        gradients,
        training.batch_size,
        input_shape,
        local_steps=training.local_steps,
        lr=scale,
        mode=training.mode,
        update_dtype=min(precisions, key=lambda dtype: -torch.finfo(dtype).eps, default=None),
    )
