"""Make a capture of anyone's update: weights before, and weights after or a gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attacks import Normalization
from attacks.intake import plain_names
from fl_sim.atomic import write_atomically
from fl_sim.capture.arrays import read_arrays
from fl_sim.capture.belonging import Belonging, examine
from fl_sim.capture.file import at_weights, pack_capture
from fl_sim.capture.update import Update
from fl_sim.errors import UserError
from fl_sim.flower.local_training import LocalTraining
from fl_sim.recipe import Recipe
from fl_sim.scenario.errors import validated


@dataclass(frozen=True, eq=False)
class Made:
    """An update that fits its network, ready to be written.

    Args:
        update: as a server would have seen it.
        recipe: of its network.
        belonging: whether its weights and its gradients belong together.
    """

    update: Update
    recipe: Recipe
    belonging: Belonging

    def write(self, path: Path) -> None:
        """Write the capture.

        Raises:
            UserError: it can't be written, as on a full disk.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, pack_capture(self.update, self.recipe))
        except OSError as error:
            path.with_name(path.name + ".tmp").unlink(missing_ok=True)
            raise UserError(f"capture {path} can't be written: {error.strerror}") from error


def training_of(told: Mapping[str, Any]) -> LocalTraining:
    """Return how the client trained.

    Args:
        told: fields of `LocalTraining`; None: not told.

    Raises:
        UserError: a value is wrong, the learning rate is needed, or the steps can't be known.
    """
    given = {key: value for key, value in told.items() if value is not None}
    if "lr" not in given:
        if given["sends"] != "gradient" or given.get("local_steps", 1) != 1:
            raise UserError("--lr must be given: a weight difference is a gradient times it")
        given["lr"] = 1.0  # which nothing reads: the gradient of a step doesn't depend on it
    try:
        return LocalTraining(**given).of_client()
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


def recipe_of(
    model: str,
    *,
    options: Mapping[str, Any],
    classes: int,
    input_shape: tuple[int, ...],
    bias: bool,
) -> Recipe:
    """Return how a network is built that doesn't normalise its input.

    Raises:
        UserError: a value is wrong.
    """
    channels = input_shape[0]
    values = {
        "name": model,
        "options": dict(options),
        "num_classes": classes,
        "input_shape": input_shape,
        "bias": bias,
        "mean": (0.0,) * channels,
        "std": (1.0,) * channels,
    }
    return validated(Recipe, values)


def update_of(
    server_round: int,
    client: int,
    training: LocalTraining,
    recipe: Recipe,
    loader: tuple[Sequence[float], Sequence[float]] | None,
) -> Update:
    """Return an update without its arrays.

    Args:
        server_round: for the records.
        client: likewise.
        training: how it trained.
        recipe: of its network.
        loader: mean and standard deviation of its loader; None where they aren't known.

    Raises:
        UserError: the loader's numbers are wrong.
    """
    try:
        normalization = None if loader is None else Normalization(*loader)
    except ValueError as error:
        raise UserError(str(error)) from error
    return Update(server_round, client, {}, {}, training, recipe.input_shape, normalization)


def make_capture(before: Path, sent: Path, recipe: Recipe, told: Update) -> Made:
    """Read an update's files, and check that they are of one network and belong together.

    Args:
        before: the file of the weights that the client received, buffers included.
        sent: the file of what came back, as `told.training.sends` says.
        recipe: of the network.
        told: all else, its arrays empty.

    Raises:
        UserError: a file can't be read, or doesn't fit the network.
    """
    model = recipe.build()
    received = _own(read_arrays(before), model)
    try:
        at_weights(model, received)
        _require_buffers(model, received)
    except UserError as error:
        raise UserError(f"--before {before}: {error}") from error
    update = dataclasses.replace(told, received=received, sent=_own(read_arrays(sent), model))
    try:
        leak = update.translated(model)
    except (ValueError, TypeError) as error:
        raise UserError(f"{sent}: {error}") from error
    if isinstance(leak, str):
        raise UserError(leak)
    if not any(bool(gradient.count_nonzero()) for gradient in leak.gradients.values()):
        raise UserError(f"{before} and {sent} hold the same weights: no client has trained between")
    strange = next((n for n, g in leak.gradients.items() if not g.isfinite().all()), None)
    if strange is not None:
        raise UserError(f"{sent}: {strange!r} must hold finite numbers, found NaN or infinity")
    return Made(update, recipe, examine(leak))


def _own(arrays: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Give arrays the names of the model's own."""
    plain = plain_names(arrays, model)
    return {plain[name]: tensor for name, tensor in arrays.items()}


def _require_buffers(model: nn.Module, received: Mapping[str, Tensor]) -> None:
    """Raise unless batch norm's statistics are among the weights: they decide what comes out.

    Raises:
        UserError: one is missing.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and name not in received:
            raise UserError(f"the model has a buffer {name!r}, found no such array")
