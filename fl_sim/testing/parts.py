"""Conformance of models and data sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fl_sim import DATASETS, MODELS
from fl_sim.data import Dataset
from fl_sim.testing.rules import (
    ConformanceError,
    Rule,
    Subject,
    build,
    content,
    difference,
    first_line,
    generator,
    resolve,
)


def check_model(
    model: str | Callable[..., nn.Module],
    *,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    num_classes: int = 10,
    **options: Any,
) -> None:
    """Check that a model's factory keeps to the rules, with biases and without.

    Args:
        model: a name in `fl_sim.MODELS`, `module:attr`, or the factory.
        input_shape: (C, H, W) to build it for.
        num_classes: K.
        options: the factory's own keyword arguments.

    Raises:
        ConformanceError: it breaks a rule; the message is one sentence that names it.
    """
    subject, factory = resolve(MODELS, model)
    channels = input_shape[0]
    images = torch.rand(3, *input_shape, generator=generator())
    for bias in (True, False):
        arguments = {
            "num_classes": num_classes,
            "input_shape": input_shape,
            "bias": bias,
            "mean": (0.5,) * channels,
            "std": (0.25,) * channels,
            **options,
        }
        built = _build_twice(subject, factory, arguments)
        _check_logits(subject, built, images, num_classes)
        _check_gradient(subject, built, images, num_classes)
        linear = [module for module in built.modules() if isinstance(module, nn.Linear)]
        obeys = not linear or (linear[-1].bias is not None) == bias
        subject.require(obeys, Rule.WELL_FORMED, f"its last linear layer ignores bias={bias}")


def check_dataset(dataset: str | Dataset | Callable[..., Dataset], **options: Any) -> None:
    """Check that a data set keeps to the rules of `fl_sim.data.Dataset`, and is the same each time.

    Args:
        dataset: a name in `fl_sim.DATASETS`, `module:attr`, a factory, or a data set.
        options: the factory's keyword arguments.

    Raises:
        ConformanceError: it breaks a rule; the message is one sentence that names it.
    """
    subject, factory = resolve(DATASETS, dataset)
    built = []
    for salt in (0, 1):
        with subject.watch("while it is built", {}, salt=salt):
            found = build(subject, factory, options)
        subject.require(
            isinstance(found, Dataset),
            Rule.WELL_FORMED,
            f"it must be a fl_sim.data.Dataset, found {type(found).__name__}",
        )
        built.append(found)
    first, second = built
    try:
        dataclasses.replace(first)
    except ValueError as error:
        raise ConformanceError(subject.title, Rule.WELL_FORMED, first_line(error)) from error
    named = len(set(first.classes)) == len(first.classes)
    subject.require(
        named and all(isinstance(name, str) for name in first.classes),
        Rule.WELL_FORMED,
        f"its classes must have names of their own, found {first.classes}",
    )
    differs = difference(first, second)
    subject.require(not differs, Rule.SEEDED, f"its {differs} differ when it is built again")


def _build_twice(subject: Subject, factory: Any, arguments: dict[str, Any]) -> nn.Module:
    """Build a model twice from one seed of PyTorch's generator, which its factory draws from."""
    subject.require(
        callable(factory) and not isinstance(factory, nn.Module),
        Rule.WELL_FORMED,
        f"a function or class that builds the network is needed, found {type(factory).__name__}",
    )
    built = []
    for salt in (0, 1):
        with subject.watch("while it is built", {}, salt=salt, torch_may_draw=True):
            torch.default_generator.manual_seed(5)
            module = build(subject, factory, arguments)
            reseeded = torch.initial_seed() != 5
        subject.require(
            not reseeded, Rule.SEEDED, "while it is built it reseeds torch's global generator"
        )
        subject.require(
            isinstance(module, nn.Module),
            Rule.WELL_FORMED,
            f"its factory must return an nn.Module, found {type(module).__name__}",
        )
        built.append(module.float().eval())
    first, second = ([(n, content(t)) for n, t in m.state_dict().items()] for m in built)
    subject.require(first == second, Rule.SEEDED, "its weights differ when built from one seed")
    first_built: nn.Module = built[0]
    return first_built


def _check_logits(subject: Subject, model: nn.Module, images: Tensor, classes: int) -> None:
    """Check logits for one image and several, the same twice, in a model that stays as it was."""
    for given in (images[:1], images):
        answers = []
        for salt in (0, 1):
            watch = subject.watch("in eval mode", {"the model": model}, salt=salt)
            with watch, torch.no_grad():
                answers.append(_call(subject, model, given))
        logits = answers[0]
        expected = (len(given), classes)
        rule = f"it must map {tuple(given.shape)} to finite float32 logits of shape {expected}"
        is_tensor = isinstance(logits, Tensor)
        found = f"{tuple(logits.shape)} {logits.dtype}" if is_tensor else type(logits).__name__
        fits = is_tensor and (logits.shape, logits.dtype) == (expected, torch.float32)
        subject.require(fits, Rule.WELL_FORMED, f"{rule}, found {found}")
        subject.require(logits.isfinite().all(), Rule.WELL_FORMED, f"{rule}, found NaN or infinity")
        subject.require(
            content(answers[0]) == content(answers[1]),
            Rule.SEEDED,
            "in eval mode its logits differ between two calls",
        )


def _check_gradient(subject: Subject, model: nn.Module, images: Tensor, classes: int) -> None:
    """Check that a step of training would move it, and by finite gradients."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    subject.require(parameters, Rule.WELL_FORMED, "it has no trainable parameter")
    labels = torch.eye(classes)[torch.arange(len(images)) % classes]
    loss = cross_entropy(_call(subject, model, images), labels)
    subject.require(loss.requires_grad, Rule.WELL_FORMED, "its logits carry no gradient")
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    finite = all(gradient.isfinite().all() for gradient in gradients)
    subject.require(finite, Rule.WELL_FORMED, "its gradient isn't finite")
    moved = any(gradient.any() for gradient in gradients)
    subject.require(moved, Rule.WELL_FORMED, "its gradient is zero")


def _call(subject: Subject, model: nn.Module, images: Tensor) -> Any:
    try:
        return model(images)
    except Exception as error:  # a third party's model may raise anything
        message = f"on images {tuple(images.shape)} it raised {first_line(error)}"
        raise ConformanceError(subject.title, Rule.ROBUST, message) from error
