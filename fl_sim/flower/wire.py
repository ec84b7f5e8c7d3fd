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

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attacks import GradientLeak, Normalization
from attacks.intake import plain_names, prefix_mismatch
from attacks.types import Mode
from fl_sim.optimizers import FIRST_STEP, NAMES, TITLES

MISFIT = "doesn't fit the model"
Sends = Literal["weights", "difference", "gradient"]


@dataclass(frozen=True)
class LocalTraining:
    """How clients train, as the server that configured them knows it.

    Args:
        lr: learning rate, above 0.
        batch_size: B; None when the clients choose it.
        local_steps: optimizer steps a round, at least 1; a client that reports another number as
            the metric `num-steps` is taken at its word.
        optimizer: "sgd", "adam", "adamw", "rmsprop" or "adagrad", with PyTorch's defaults.
        momentum: μ in [0, 1), of SGD.
        nesterov: whether the momentum is Nesterov's.
        dampening: τ in [0, 1], of the momentum.
        weight_decay: wd, at least 0; PyTorch's AdamW has 0.01 unless it is told otherwise.
        mode: of batch norm and dropout.
        fresh_optimizer: whether the optimizer's state starts anew in every round.
        sends: what a reply's arrays are: the "weights", the "difference" of the new weights and
            those received, or the "gradient" itself (over several steps, their sum).

    Raises:
        ValueError: a value is out of its range, or two don't go together.
    """

    lr: float
    batch_size: int | None = None
    local_steps: int = 1
    optimizer: str = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    dampening: float = 0.0
    weight_decay: float = 0.0
    mode: Mode = "eval"
    fresh_optimizer: bool = True
    sends: Sends = "weights"

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("local_steps", 1)):
            value = getattr(self, name)
            if not (value is None and name == "batch_size") and not (
                isinstance(value, int) and value >= least
            ):
                raise ValueError(f"{name} must be a whole number of at least 1, found {value!r}")
        for name in ("lr", "momentum", "dampening", "weight_decay"):
            value = getattr(self, name)
            if not isinstance(value, int | float):
                raise ValueError(f"{name} must be a number, found {value!r}")
        for name, holds, rule in (
            ("lr", 0 < self.lr < math.inf, "above 0 and finite"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("dampening", 0 <= self.dampening <= 1, "in [0, 1]"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0 and finite"),
        ):
            if not holds:
                raise ValueError(f"{name} must be {rule}, found {getattr(self, name)}")
        for name, known in (
            ("optimizer", NAMES),
            ("mode", get_args(Mode)),
            ("sends", get_args(Sends)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, found {getattr(self, name)!r}"
                )
        self._check_pairs()

    def _check_pairs(self) -> None:
        if self.momentum > 0 and self.optimizer != "sgd":
            raise ValueError(
                f"momentum is SGD's, found {self.momentum:g} with optimizer {self.optimizer!r}"
            )
        if self.dampening > 0 and self.momentum == 0:
            raise ValueError(
                f"dampening is the momentum's, found {self.dampening:g} and a momentum of 0"
            )
        if self.nesterov and (self.momentum == 0 or self.dampening > 0):
            raise ValueError(
                "nesterov needs a momentum above 0 and no dampening, found "
                f"{self.momentum:g} and {self.dampening:g}"
            )
        plain = self.optimizer == "sgd" and self.momentum == 0 and self.weight_decay == 0
        if self.sends == "gradient" and not plain:
            raise ValueError(
                "a gradient that is sent as such hasn't been through an optimizer: leave out "
                "optimizer, momentum and weight_decay"
            )

    def obstacle(self, server_round: int) -> str | None:
        """Say why an update of this round is no gradient, nor a sum of them, nor their signs."""
        title = TITLES[self.optimizer]
        if self.optimizer == "sgd":
            if self.momentum > 0 and not self.fresh_optimizer and server_round > 1:
                return (
                    f"the update carries momentum ({self.momentum:g}) from earlier rounds, which "
                    "the server doesn't see"
                )
            return None
        if not self.fresh_optimizer and server_round > 1:
            return f"{title} divides each entry by its history of earlier rounds, which isn't sent"
        if self.local_steps > 1:
            return (
                f"{title} divides each entry by its own history: {self.local_steps} steps leave "
                "neither a gradient nor its signs"
            )
        if self.weight_decay > 0 and self.optimizer != "adamw":
            return (
                f"{title} adds the weight decay to the gradient before it divides each entry: what "
                "is left are the signs of both together"
            )
        return None

    def linear_map(self) -> tuple[float, float]:
        """Return A and B with `w_S = A w − B g`, if all S steps had the gradient g.

        A step is linear in w, the momentum's buffer v and g: with d = g + wd·w, first `v = d`, then
        `v' = μ v + (1 − τ) d`, and `w' = w − lr v'`, or `w − lr (d + μ v')` with Nesterov's.
        """
        w, v, g = np.eye(3)
        d = g + self.weight_decay * w

        def step(buffer: NDArray[np.float64]) -> NDArray[np.float64]:
            move = d + self.momentum * buffer if self.nesterov else buffer
            return np.stack([w - self.lr * move, buffer, g])

        later = step(self.momentum * v + (1 - self.dampening) * d) if self.momentum else step(d)
        whole = np.linalg.matrix_power(later, self.local_steps - 1) @ step(d)
        return float(whole[0, 0]), -float(whole[0, 2])


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
        sent: parameter name -> what it sent back, as `training.sends` says; buffers are left aside.
        training: how it trained, without an obstacle.
        input_shape: (C, H, W).
        normalization: what the client's loader does to pixels; None where that isn't known.

    Returns:
        The leak, its gradients in float64, without any knowledge of defenses.

    Raises:
        ValueError: no array fits the model, or one doesn't, or holds something else than floats;
            or all names differ from the model's by a prefix.
    """
    plain = plain_names(sent, model)
    _require_alike(plain.values(), model)
    arrays = {plain[name]: tensor for name, tensor in sent.items()}
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
    )


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
