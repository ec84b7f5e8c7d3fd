"""The file of one captured update, and what may be wrong with one that somebody sent you.

`docs/capture.md` is the description. A reader trusts nothing: names of files and of code, shapes
and numbers are all checked, and a mistake is one sentence.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from torch import Tensor, nn

from attacks import Normalization
from attacks.intake import plain_names
from fl_sim.capture.update import Update
from fl_sim.errors import UserError
from fl_sim.flower.local_training import LocalTraining
from fl_sim.flower.wire import load_tensors
from fl_sim.recipe import Numbers, Recipe
from fl_sim.scenario.errors import describe
from fl_sim.scenario.sections import Section
from fl_sim.tensor_file import digest, pack, read_bytes, unpack

CAPTURE, WEIGHTS, VERSION = "capture", "weights", 1
LARGEST_NUMBER = 10**6
"""Of rounds, examples and local steps; more is a mistake, or malice."""
LARGEST_CLIENT = 2**64 - 1
"""Clients of a Flower app are nodes, whose numbers have 64 bits."""
_Client = Annotated[int, Field(ge=0, le=LARGEST_CLIENT)]
_Count = Annotated[int, Field(ge=1, le=LARGEST_NUMBER)]


class _Normalization(Section):
    mean: Numbers
    std: Numbers


class _Training(Section):
    """The fields of a `LocalTraining`, which checks the rest."""

    lr: float
    batch_size: _Count | None = None
    local_steps: _Count = 1
    local_epochs: None = None
    schedule: Literal["full-batch", "epochs", "steps"] | None = None
    examples: _Count | None = None
    optimizer: str = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    dampening: float = 0.0
    weight_decay: float = 0.0
    mode: Literal["eval", "train"] = "eval"
    fresh_optimizer: bool = True
    sends: Literal["weights", "difference", "gradient"] = "weights"


class _Weights(Section):
    """Where the weights are that several captures share: a file beside this one."""

    file: Annotated[str, Field(pattern=r"^weights-[0-9a-f]{16}\.safetensors\z")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}\z")]


class _About(Section):
    """The JSON of a capture."""

    round: _Count
    client: _Client
    model: Recipe
    training: _Training
    normalization: _Normalization | None = Field(
        default=None, description="mean and std, lists of numbers"
    )
    weights: _Weights | None = Field(
        default=None,
        description="file, weights-<16 hexadecimal digits>.safetensors, and its sha256",
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Capture:
    """An update, and how its network is built.

    Args:
        update: what the server saw.
        recipe: of the network; the arrays that were received are its weights.
    """

    update: Update
    recipe: Recipe

    def build_model(self) -> nn.Module:
        """Return the network at the weights that the client received, in eval mode.

        Raises:
            UserError: it can't be built, or the weights aren't its own.
        """
        received = self.update.received
        self.recipe.require_shapes({name: tensor.shape for name, tensor in received.items()})
        return at_weights(self.recipe.build(), received)


def at_weights(model: nn.Module, received: Mapping[str, Tensor]) -> nn.Module:
    """Put weights into a network, all of them.

    Raises:
        UserError: an array isn't the network's, or a parameter has none.
    """
    try:
        load_tensors(model, received)
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from error
    given = set(plain_names(received, model).values())
    missing = next((name for name, _ in model.named_parameters() if name not in given), None)
    if missing is not None:
        raise UserError(f"the model has a parameter {missing!r}, found no such array")
    return model


def pack_weights(received: Mapping[str, Tensor]) -> bytes:
    """Return the bytes of a file of weights that captures share."""
    return pack(WEIGHTS, VERSION, {}, received)


def weights_name(data: bytes) -> str:
    """Return the name of such a file, which is that of its content."""
    return f"weights-{digest(data)[:16]}.safetensors"


def pack_capture(update: Update, recipe: Recipe, weights: bytes | None = None) -> bytes:
    """Return the bytes of a capture.

    Args:
        update: what the server saw.
        recipe: of its network.
        weights: of the file beside it that holds what was received; None: it holds that itself.

    Raises:
        UserError: a reader would refuse it: a number is too large, or an array isn't of real ones.
    """
    shared = weights and {"file": weights_name(weights), "sha256": digest(weights)}
    normalization = update.normalization
    about = {
        "round": update.server_round,
        "client": update.client,
        "model": recipe.model_dump(mode="json"),
        "training": dataclasses.asdict(update.training),
        "normalization": normalization and dataclasses.asdict(normalization),
        "weights": shared or None,
    }
    tensors = {f"sent/{name}": tensor for name, tensor in update.sent.items()}
    if weights is None:
        tensors |= {f"received/{name}": tensor for name, tensor in update.received.items()}
    _require_readable(about, tensors)
    return pack(CAPTURE, VERSION, about, tensors)


def read_capture(path: Path) -> Capture:
    """Read a capture, and the weights beside it.

    Raises:
        UserError: a file is missing, damaged, of another version, or says what can't be.
    """
    data = read_bytes(path, "capture")
    try:
        about, tensors = _parsed(data)
    except UserError as error:
        raise UserError(f"capture {path} {error}") from error
    sent = {name.removeprefix("sent/"): t for name, t in tensors.items() if _is_sent(name)}
    received = {
        name.removeprefix("received/"): t for name, t in tensors.items() if not _is_sent(name)
    }
    if about.weights is not None:
        if received:
            raise UserError(f"capture {path} holds weights, and names a file of them as well")
        received = _read_weights(path.parent / about.weights.file, about.weights.sha256)
    told = about.normalization
    try:
        update = Update(
            about.round,
            about.client,
            received,
            sent,
            LocalTraining(**dict(about.training)),
            about.model.input_shape,
            None if told is None else Normalization(told.mean, told.std),
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"capture {path}: {error}") from error
    return Capture(update, about.model)


def _parsed(data: bytes) -> tuple[_About, dict[str, Tensor]]:
    values, tensors = unpack(data, CAPTURE, VERSION)
    return _require_readable(values, tensors), tensors


def _require_readable(values: Any, tensors: Collection[str]) -> _About:
    """Return what a capture says beside its tensors, whose names are checked too."""
    strange = [name for name in tensors if not re.match(r"(sent|received)/.", name)]
    if strange:
        raise UserError(f"names a tensor {strange[0]!r}, which is neither sent nor received")
    if not any(map(_is_sent, tensors)):
        raise UserError("holds nothing that a client sent")
    try:
        return _About.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise UserError(f"isn't valid: {describe(error, _About)}") from error


def _read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    data = read_bytes(path, "weights")
    if digest(data) != sha256:
        raise UserError(f"weights {path} aren't those that were captured: the file has changed")
    try:
        _, tensors = unpack(data, WEIGHTS, VERSION)
    except UserError as error:
        raise UserError(f"weights {path} {error}") from error
    return tensors


def _is_sent(name: str) -> bool:
    return name.startswith("sent/")
