"""Captures of one's own Flower app, which `fl-sim attack` attacks again."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from attacks.intake import plain_names
from attacks.types import Mode
from fl_sim.capture.file import at_weights
from fl_sim.capture.folder import CaptureFolder
from fl_sim.capture.make import recipe_of
from fl_sim.capture.update import Update
from fl_sim.errors import UserError
from fl_sim.flower.strategy.audit_options import number_of_classes
from fl_sim.models.build import takes_bias
from fl_sim.recipe import Recipe
from fl_sim.seeds import seeded_layers, torch_generator

TOLERANCE = 1e-5
"""Of the largest logit: float32 rounding in one and the same network is below it."""
logger = logging.getLogger("flwr")  # whose lines a Flower app's user sees


class AuditCaptures:
    """Keeps what the server saw of each update.

    A capture says by name how its network is built, and holds the rest: all parameters and all
    buffers of its state, whether they travelled or are the model's own.

    Args:
        path: the folder `captures/`.
        name: what builds the network: `module:attr`, or one of `fl-sim list models`.
        model: the network.
        input_shape: (C, H, W) of one image.
        mode: in which clients train.

    Raises:
        TypeError: the name is no string.
        UserError: nothing is built by that name, or another network.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        model: nn.Module,
        *,
        input_shape: tuple[int, int, int],
        mode: Mode,
    ) -> None:
        self._folder = CaptureFolder(path)
        self._model = model
        self._recipe = _recipe_of_same(name, model, input_shape, mode)
        self._last: tuple[Mapping[str, Tensor], dict[str, Tensor]] | None = None

    def keep(self, update: Update, left: Sequence[int] = ()) -> None:
        """Write an update down; one that a reader would refuse costs a warning, and its capture.

        Args:
            update: what the server saw.
            left: attacks that are left to whoever takes updates: none.

        Raises:
            OSError: the disk is full.
        """
        if self._last is None or self._last[0] is not update.received:
            plain = plain_names(update.received, self._model)
            travelled = {plain[name]: tensor for name, tensor in update.received.items()}
            self._last = (update.received, _state(self._model) | travelled)
        try:
            self._folder.keep(replace(update, received=self._last[1]), self._recipe)
        except UserError as error:
            logger.warning(
                "client %d's update of round %d isn't captured: it %s",
                update.client,
                update.server_round,
                error,
            )


def check_capture(
    *, has_out: bool, takes_over: bool, sums: bool, clients: Collection[int] | None
) -> None:
    """Raise unless captures have a place of their own, and updates are there to be captured.

    Args:
        has_out: whether there is a run folder.
        takes_over: whether somebody else takes updates.
        sums: whether the server sees sums only.
        clients: the clients' numbers; None: their nodes'.

    Raises:
        ValueError: they haven't, or aren't.
    """
    if not has_out:
        raise ValueError("capture belongs to out, in which captures are kept, found none")
    if takes_over:
        raise ValueError("capture takes updates itself: leave take_over out")
    if sums:
        raise ValueError(
            "capture keeps single updates, which secure_aggregation hides: leave one out"
        )
    if clients is not None and len(set(clients)) < len(clients):
        raise ValueError("clients must have a number each where their updates are captured")


def _recipe_of_same(
    name: str, model: nn.Module, input_shape: tuple[int, int, int], mode: Mode
) -> Recipe:
    """Return how a network is built by its name.

    Raises:
        TypeError: the name is no string.
        UserError: nothing is built by that name, or another network.
    """
    if not isinstance(name, str):
        raise TypeError(f"capture must be the name of a model, as 'module:attr', found {name!r}")
    if name.startswith("__main__:"):
        raise UserError(
            f"capture must name what another process can import, found {name!r}: move it to a "
            "module of its own"
        )
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    has_bias = bool(layers) and layers[-1].bias is not None
    recipe = recipe_of(
        name,
        options={},
        classes=number_of_classes(model, input_shape, "capture"),
        input_shape=input_shape,
        bias=has_bias and takes_bias(name),
    )
    difference = _difference(recipe.build(), model, input_shape, mode)
    if difference is not None:
        raise UserError(f"capture {name!r} must build the network that model is, {difference}")
    return recipe


def _difference(
    built: nn.Module, model: nn.Module, input_shape: tuple[int, int, int], mode: Mode
) -> str | None:
    """Say how two networks differ, at the same weights, as the end of a sentence."""
    theirs, ours = dict(_described(built)), dict(_described(model))
    for name in {**ours, **theirs}:
        if theirs.get(name) != ours.get(name):
            there, here = theirs.get(name, "not there"), ours.get(name, "not there")
            return f"found that its {name!r} is {there}, and in model {here}"
    at_weights(built, _state(model))
    generator = torch_generator(0, "capture")
    images = torch.rand(2, *input_shape, generator=generator)
    for at in sorted({"eval", mode}):
        logits = [_logits(each, images, is_training=at == "train") for each in (built, model)]
        if logits[0].shape != logits[1].shape:
            shapes = [tuple(each.shape) for each in logits]
            return f"found logits of {shapes[0]}, and of model {shapes[1]}"
        if not (logits[0] - logits[1]).abs().max() <= TOLERANCE * logits[1].abs().max():
            return f"found that the same weights lead it to other logits in {at} mode"
    return None


def _described(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield what a parameter or buffer of a network's state is, by its name."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    for name, tensor in _state(model).items():
        kind = str(tensor.dtype).removeprefix("torch.")
        yield name, f"{kind} of {tuple(tensor.shape)}{', frozen' if name in frozen else ''}"


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a network's state, those with two names once."""
    state = model.state_dict()
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    return {name: state[name] for name in names if name in state}


def _logits(model: nn.Module, images: Tensor, *, is_training: bool) -> Tensor:
    """Return the logits (N, K) of images, or raise a sentence.

    Raises:
        UserError: the network doesn't map them to logits.
    """
    model = copy.deepcopy(model).train(is_training)
    mode = "train" if is_training else "eval"
    try:
        with torch.no_grad(), seeded_layers(0):
            output = model(images)
    except Exception as error:  # a user's module may raise anything
        raise UserError(
            f"capture compares networks on two images, and model raised {type(error).__name__} in "
            f"{mode} mode: {error}"
        ) from error
    if not isinstance(output, Tensor):
        raise UserError(
            f"capture compares networks by their logits, and in {mode} mode model returned a "
            f"{type(output).__name__}"
        )
    return output
