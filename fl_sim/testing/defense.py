"""Conformance of defenses: each hook, what it may change, and what it must keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from attacks.facts import Fact, Told
from defenses import DEFENSES, ClientStep, Defense, LocalPlan, Place, WithState
from defenses.base import NOTHING, Gradients, State
from fl_sim.client_state import pack, unpack
from fl_sim.privacy.claims import claims_of
from fl_sim.testing.cases import CLASSES, SHAPE, batch, network
from fl_sim.testing.leaks import gradients_of
from fl_sim.testing.rules import (
    ConformanceError,
    Rule,
    Subject,
    build,
    content,
    first_line,
    generator,
    resolve,
)

ROWS = 4
HOOKS = ("on_model", "on_batch", "on_gradient", "on_update")
_Call = Callable[[Gradients, Place, torch.Generator], Gradients | WithState]
ROUNDS = 8
"""In so many rounds a defense that acts at random has to act once."""
SUM_ERROR = 1e-5
"""How far a label may be from summing to 1: float32 sums of six entries are within 1e-6."""


def check_defense(defense: str | type | Defense | Callable[..., Any], **options: Any) -> None:
    """Check that a defense keeps to the rules.

    Args:
        defense: a name in `defenses.DEFENSES`, `module:attr`, a class or factory, or a defense.
        options: the defense's parameters, unless it is built already.

    Raises:
        ConformanceError: it breaks a rule; the message is one sentence that names it.
    """
    subject, found = resolve(DEFENSES, defense)
    built = build(subject, found, options)
    subject.require(
        isinstance(built, Defense), Rule.WELL_FORMED, f"{type(built).__name__} isn't a Defense"
    )
    subject.require_frozen(built)
    overridden = [h for h in HOOKS if getattr(type(built), h) is not getattr(Defense, h)]
    subject.require(overridden, Rule.EFFECTIVE, f"it overrides none of {', '.join(HOOKS)}")
    draws = built.draws
    subject.require(
        isinstance(draws, int) and draws >= 1,
        Rule.WELL_FORMED,
        f"draws must be a whole number of at least 1, found {draws!r}",
    )
    exam = _Exam(subject, built)
    before = exam.facts()
    exam.privacy()
    exam.on_batch()
    exam.on_gradient()
    exam.on_update()
    if exam.kept:  # by on_update, and on_gradient finds it
        exam.on_gradient()
    exam.on_model()
    exam.effect()
    subject.require(
        exam.facts() == before, Rule.PURE, "facts() changed after the hooks were called"
    )


class _Exam:
    def __init__(self, subject: Subject, defense: Defense) -> None:
        self.subject = subject
        self.defense = defense
        self.kept: list[State] = []

    def facts(self) -> tuple[Fact, ...]:
        """Return what it makes public: facts that have a joint meaning."""
        try:
            facts = self.defense.facts()
            if not isinstance(facts, tuple) or not all(isinstance(fact, Fact) for fact in facts):
                raise TypeError(f"found {facts!r}")
            Told.by(facts)
        except Exception as error:  # a third party's hook may raise anything
            message = "facts() must give a tuple of attacks.facts"
            raise ConformanceError(
                self.subject.title, Rule.WELL_FORMED, f"{message}: {first_line(error)}"
            ) from error
        return facts

    def privacy(self) -> None:
        """Check that what it claims of differential privacy is a claim."""
        plan = LocalPlan(local_steps=2, batch_size=ROWS * self.defense.draws, share_size=100)
        try:
            claims_of([(type(self.defense).__name__, self.defense)], plan)
        except Exception as error:  # as above
            message = f"privacy() must give a claim or None: {first_line(error)}"
            raise ConformanceError(self.subject.title, Rule.WELL_FORMED, message) from error

    def on_batch(self) -> None:
        """Check images, labels, and that no model is read."""
        images, labels = batch(ROWS * self.defense.draws, seed=5)
        step = ClientStep(images, labels)
        watched = {"the images": images, "the labels": labels}
        try:
            result = self._twice("on_batch", lambda g: self.defense.on_batch(step, g), watched)
        except ConformanceError as error:
            if error.rule is Rule.ROBUST and self._works_with_model(images, labels):
                raise ConformanceError(
                    self.subject.title, Rule.BLIND, "on_batch reads the model, which it hasn't got"
                ) from error
            raise
        self._require_batch(result, step)
        other = self.defense.on_batch(_full_step(images, labels), generator())
        same = all(content(getattr(other, n)) == content(getattr(result, n)) for n in _BATCH)
        self._require(same, Rule.BLIND, "on_batch reads the model, its loss or its gradients")

    def on_gradient(self) -> None:
        """Check the gradient's names, shapes and types, and that the step stays as it was."""
        images, labels = batch(ROWS, seed=5)
        step = _full_step(images, labels)
        assert step.model is not None
        gradients = gradients_of(step.model, images, labels)
        watched = {"the images": images, "the labels": labels, "the model": step.model}

        def call(given: Gradients, place: Place, g: torch.Generator) -> Gradients | WithState:
            return self.defense.on_gradient(dataclasses.replace(step, place=place), given, g)

        self._check_tensors("on_gradient", gradients, call, watched)

    def on_update(self) -> None:
        """Check the weight difference's names, shapes and types."""
        gradients = gradients_of(network("fully connected"), *batch(ROWS, seed=5))
        update = {name: -0.1 * part.double() for name, part in gradients.items()}
        self._check_tensors("on_update", update, self.defense.on_update, {})

    def on_model(self) -> None:
        """Check that the model that comes out still classifies, and its draw of weights."""
        model = network("fully connected with biases")
        changed = self._twice(
            "on_model", lambda g: self.defense.on_model(model, g), {"the model": model}
        )
        self._require(
            isinstance(changed, nn.Module),
            Rule.WELL_FORMED,
            f"on_model must return an nn.Module, found {type(changed).__name__}",
        )
        images, _ = batch(ROWS, seed=5)
        # A layer that draws may use PyTorch's generator: the client seeds it.
        with self.subject.watch("in on_model's network", {}, torch_may_draw=True), torch.no_grad():
            try:
                logits = changed(images)
            except Exception as error:  # as above
                message = f"on_model's network raised {first_line(error)}"
                raise ConformanceError(self.subject.title, Rule.ROBUST, message) from error
        fits = isinstance(logits, Tensor) and logits.shape == (ROWS, CLASSES)
        self._require(
            fits and logits.isfinite().all(),
            Rule.WELL_FORMED,
            f"on_model's network must map {tuple(images.shape)} to finite logits "
            f"{(ROWS, CLASSES)}, found {_shape_of(logits)}",
        )

    def effect(self) -> None:
        """Check that what leaves a client isn't what would leave it without the defense."""
        model = network("fully connected")
        changed = self.defense.on_model(model, generator()).train()
        kept: State = NOTHING
        for server_round in range(1, ROUNDS + 1):
            images, labels = batch(ROWS * self.defense.draws, seed=server_round)
            step = ClientStep(images, labels, place=Place(server_round, state=kept))
            with torch.random.fork_rng():  # a layer that draws may use PyTorch's generator
                torch.manual_seed(server_round)
                sent, kept = _update_of(changed, step, self.defense)
            if _flat(sent) != _flat(_update_of(model, step, Defense())[0]):
                return
        self._require(
            False,
            Rule.EFFECTIVE,
            f"with these parameters it changes nothing that leaves the client, in {ROUNDS} rounds",
        )

    def _check_tensors(
        self, hook: str, given: Gradients, call: _Call, watched: Mapping[str, object]
    ) -> None:
        """Check a hook in a first round and in later ones, with and without what was kept."""
        for kind, tensors in (("", given), (" of zeros", _zeros(given))):
            self._check_at(hook + kind, tensors, Place(), call, watched)
            for state in (NOTHING, *self.kept):
                self._check_at(hook + kind, tensors, Place(7, 2, state), call, watched)

    def _check_at(
        self, hook: str, given: Gradients, place: Place, call: _Call, watched: Mapping[str, object]
    ) -> None:
        watched = {"its input": given, "its state": place.state, **watched}
        result = self._twice(hook, lambda g: call(given, place, g), watched)
        if isinstance(result, WithState):
            self.kept = [self._saved(hook, result.state)]
            result = result.gradients
        is_mapping = isinstance(result, Mapping)
        self._require(
            is_mapping and list(result) == list(given),
            Rule.WELL_FORMED,
            f"{hook} must return the same names in the same order, "
            f"found {list(result) if is_mapping else type(result).__name__}",
        )
        for name, tensor in given.items():
            self._require_like(f"{hook}[{name!r}]", result[name], tensor, tuple(tensor.shape))

    def _saved(self, hook: str, state: State) -> State:
        """Return a state as a client finds it again."""
        try:
            return unpack(pack({0: state})).get(0, {})
        except Exception as error:  # whatever the format doesn't take
            message = f"{hook}'s state can't be saved: {first_line(error)}"
            raise ConformanceError(self.subject.title, Rule.WELL_FORMED, message) from error

    def _require_batch(self, result: Any, step: ClientStep) -> None:
        found = type(result).__name__
        self._require(
            isinstance(result, ClientStep),
            Rule.WELL_FORMED,
            f"on_batch must return a ClientStep, found {found}",
        )
        self._require_like("on_batch's images", result.images, step.images, (ROWS, *SHAPE))
        self._require_like("on_batch's labels", result.labels, step.labels, (ROWS, CLASSES))
        inside = (result.images >= 0) & (result.images <= 1)
        self._require(inside.all(), Rule.WELL_FORMED, "on_batch's images must stay in [0, 1]")
        off = (result.labels.sum(dim=1) - 1).abs().max().item()
        least = result.labels.min().item()
        self._require(
            off <= SUM_ERROR and least >= 0,
            Rule.WELL_FORMED,
            "on_batch's labels must stay on the simplex, found a least entry of "
            f"{least:.2g} and a sum that is off by {off:.2g}",
        )

    def _require_like(self, what: str, found: Any, given: Tensor, shape: tuple[int, ...]) -> None:
        fits = isinstance(found, Tensor) and (found.shape, found.dtype) == (shape, given.dtype)
        self._require(
            fits and found.isfinite().all(),
            Rule.WELL_FORMED,
            f"{what} must be finite, {shape} {given.dtype}, found {_shape_of(found)}",
        )

    def _twice(
        self, hook: str, call: Callable[[torch.Generator], Any], watched: Mapping[str, object]
    ) -> Any:
        """Call a hook twice from one seed, among other global draws, and compare."""
        results = []
        own = {"its own parameters": self.defense, **watched}
        for salt in (0, 1):
            with self.subject.watch(f"in {hook}", own, salt=salt):
                try:
                    results.append(call(generator()))
                except Exception as error:  # as above
                    message = f"{hook} raised {first_line(error)}"
                    raise ConformanceError(self.subject.title, Rule.ROBUST, message) from error
        contents = [_flat(result) for result in results]
        self._require(
            contents[0] == contents[1],
            Rule.SEEDED,
            f"{hook} differs between two calls with one seed",
        )
        return results[0]

    def _works_with_model(self, images: Tensor, labels: Tensor) -> bool:
        try:
            self.defense.on_batch(_full_step(images, labels), generator())
        except Exception:  # as above
            return False
        return True

    def _require(self, holds: object, rule: Rule, found: str) -> None:
        self.subject.require(holds, rule, found)


_BATCH = ("images", "labels")


def _update_of(model: nn.Module, step: ClientStep, defense: Defense) -> tuple[Gradients, State]:
    """Return the update that a step of SGD behind a defense sends, and what the defense keeps."""
    seen = defense.on_batch(step, generator())
    full = dataclasses.replace(_with_loss(model, seen.images, seen.labels), place=step.place)
    gradients = gradients_of(model, full.images, full.labels)
    changed, kept = _parted(defense.on_gradient(full, gradients, generator()), step.place.state)
    update = {name: -0.1 * part.double() for name, part in changed.items()}
    place = Place(step.place.round, 1, kept)
    return _parted(defense.on_update(update, place, generator()), kept)


def _parted(result: Gradients | WithState, kept: State) -> tuple[Gradients, State]:
    return (result.gradients, result.state) if isinstance(result, WithState) else (result, kept)


def _flat(result: Any) -> object:
    """Return a hook's result in a form that compares by its numbers."""
    if isinstance(result, ClientStep):
        return [content(getattr(result, name)) for name in _BATCH]
    if isinstance(result, WithState):
        return _flat(result.gradients), _flat(result.state)
    if isinstance(result, nn.Module):
        return [(name, content(tensor)) for name, tensor in result.state_dict().items()]
    if isinstance(result, Mapping):
        return [(name, content(tensor)) for name, tensor in result.items()]
    return type(result)


def _full_step(images: Tensor, labels: Tensor) -> ClientStep:
    """Return the step as `on_gradient` sees it."""
    return _with_loss(network("fully connected"), images, labels)


def _with_loss(model: nn.Module, images: Tensor, labels: Tensor) -> ClientStep:
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, parameters, (image[None],)), label[None])

    def per_example() -> dict[str, Tensor]:
        return dict(vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, labels))

    mean = cross_entropy(model(images), labels).detach()
    return ClientStep(images, labels, model, mean, per_example)


def _zeros(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def _shape_of(found: Any) -> str:
    if not isinstance(found, Tensor):
        return type(found).__name__
    finite = "" if found.isfinite().all() else ", not finite"
    return f"{tuple(found.shape)} {found.dtype}{finite}"
