"""A label attack that breaks a rule is told which; ours break none."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import LABEL_ATTACKS, ExampleLabel, GradientLeak, LabelAttack, LabelRecovery, Status
from attacks.answers import without_claim
from fl_sim.testing import (
    check_dataset,
    check_defense,
    check_label_attack,
    check_model,
)

Fails = Callable[..., None]
OPTIONS: dict[str, dict[str, Any]] = {}
"""Fewer iterations for those that search."""

LabelAnswer = Callable[[GradientLeak, torch.Generator], Any]


@pytest.mark.parametrize("name", list(LABEL_ATTACKS))
def test_our_label_attacks_conform(name: str) -> None:
    check_label_attack(name, **OPTIONS.get(name, {}))


@pytest.mark.parametrize(
    "attack",
    ["attacks.labels.idlg:IDLG", LABEL_ATTACKS["idlg"], LABEL_ATTACKS.build("idlg")],
    ids=["module:attr", "class", "object"],
)
def test_a_plug_in_may_be_named_or_given(attack: Any) -> None:
    check_label_attack(attack)


def row_sum(leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
    """An attack that conforms, and that the broken ones change."""
    matrices = [gradient for gradient in leak.gradients.values() if gradient.ndim == 2]
    if leak.batch_size != 1 or not matrices or not matrices[-1].isfinite().all():
        return LabelRecovery(Status.NOT_APPLICABLE, "one finite gradient is needed")
    gradient = matrices[-1]
    label = one_hot(int(gradient.detach().sum(1).argmin()), leak)
    return LabelRecovery.of([ExampleLabel(Status.NOT_IDENTIFIABLE, "a guess", label)])


def one_hot(index: int, leak: GradientLeak) -> Tensor:
    with torch.no_grad():
        classes = leak.model(torch.zeros(1, *leak.input_shape)).shape[1]
    return torch.eye(classes, dtype=torch.float64)[index % classes]


def answering(**fields: Any) -> LabelAnswer:
    """Return `row_sum` with other fields in its example; those that are callable get the label."""

    def answer(leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        plain = row_sum(leak, generator)
        if not plain.examples:
            return plain
        [example] = plain.examples
        values = {k: v(example.label) if callable(v) else v for k, v in fields.items()}
        return LabelRecovery.of([dataclasses.replace(example, **values)])

    return answer


def after(act: Callable[[GradientLeak], Any]) -> LabelAnswer:
    """Return `row_sum` with something done beforehand."""

    def answer(leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        act(leak)
        return row_sum(leak, generator)

    return answer


def reading(read: Callable[[nn.Module], Tensor]) -> LabelAnswer:
    """Return the label of what `read` finds on the network, RECOVERED."""

    def answer(leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        label = one_hot(int(read(leak.model)), leak)
        return LabelRecovery.of([ExampleLabel(Status.RECOVERED, label=label)])

    return answer


def if_there(read: Callable[[nn.Module], Tensor]) -> LabelAnswer:
    """Return `row_sum`, called RECOVERED if it agrees with what `read` finds on the network."""

    def answer(leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        plain = row_sum(leak, generator)
        try:
            agrees = plain.labels is not None and plain.labels.argmax() == read(leak.model)
        except (KeyError, ValueError, AttributeError):
            return plain
        if agrees:
            return plain
        return LabelRecovery.of([without_claim(plain.examples[0], "it isn't the client's label")])

    return answer


def formula(leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
    """The closed form with a bias, without a test of whether it applies."""
    names = list(leak.gradients)
    if not names or not names[-1].endswith("bias"):
        return LabelRecovery(Status.NOT_APPLICABLE, "a bias is needed")
    weight_gradient, bias_gradient = (leak.gradients[name].double() for name in names[-2:])
    row = bias_gradient.abs().argmax()
    feature = weight_gradient[row] / bias_gradient[row]
    weight, bias = (leak.model.get_parameter(name).double() for name in names[-2:])
    label = (weight @ feature + bias).softmax(0) - bias_gradient
    if weight.ndim != 2 or not label.isfinite().all() or leak.local_steps > 1:
        return LabelRecovery(Status.NOT_APPLICABLE, "the formula gives no number")
    example = ExampleLabel(Status.RECOVERED, label=label.detach())
    return LabelRecovery.of([example] * (leak.batch_size or 1))


def where(applies: Callable[[GradientLeak], bool], act: LabelAnswer) -> LabelAnswer:
    """Return `act` where it applies, `row_sum` elsewhere."""
    return lambda leak, generator: (act if applies(leak) else row_sum)(leak, generator)


def raising(error: Exception) -> LabelAnswer:
    def answer(leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        raise error

    return answer


def perturb(leak: GradientLeak) -> None:
    with torch.no_grad():
        next(leak.model.parameters()).add_(1e-6)


def with_saved_state(leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
    """Draw from the global generator and put it back."""
    state = torch.get_rng_state()
    residual = torch.rand(1, dtype=torch.float64).item()
    torch.set_rng_state(state)
    return answering(residual=residual)(leak, generator)


def unseeded(leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
    own = torch.Generator()
    own.seed()
    residual = torch.rand(1, dtype=torch.float64, generator=own).item()
    return answering(residual=residual)(leak, generator)


def hooked_labels(model: nn.Module) -> Tensor:
    (hook,) = model._forward_hooks.values()
    labels: Tensor = hook.labels  # type: ignore[attr-defined]
    return labels[0].argmax()


def grad_label(model: nn.Module) -> Tensor:
    gradient = list(model.parameters())[-1].grad
    if gradient is None:
        raise AttributeError("no gradient")
    return gradient.flatten(1).sum(1).argmin() if gradient.ndim > 1 else gradient.argmin()


RECOVERED = Status.RECOVERED
BROKEN_LABEL_ATTACKS: dict[str, tuple[LabelAnswer, str, str]] = {
    # reads the truth
    "attribute": (
        reading(lambda m: vars(m)["labels"][0].argmax()),
        "blind",
        "leaves on the network",
    ),
    "batch": (
        if_there(lambda m: vars(m)["batch"][1][0].argmax()),
        "blind",
        "its answer (reason) changes with",
    ),
    "hook": (if_there(hooked_labels), "blind", "its answer (reason) changes with"),
    ".grad": (if_there(grad_label), "blind", "its answer (reason) changes with"),
    # changes the model or the gradients
    "weights": (after(perturb), "pure", "the model's parameter '2.weight'"),
    "train mode": (after(lambda k: k.model.train()), "pure", "the model's training flag"),
    "hook left": (
        after(lambda k: k.model.register_forward_hook(lambda *_: None)),
        "pure",
        "the model's hooks",
    ),
    "backward": (
        after(lambda k: k.model(torch.ones(1, *k.input_shape)).sum().backward()),
        "pure",
        "(its .grad)",
    ),
    "note left": (after(lambda k: setattr(k.model, "seen", True)), "pure", "attributes"),
    "buffer": (after(lambda k: next(k.model.buffers()).zero_()), "pure", "the model's buffer"),
    "frozen weights": (after(lambda k: k.model.requires_grad_(False)), "pure", "parameter"),
    "gradient scaled": (
        after(lambda k: next(iter(k.gradients.values())).mul_(2)),
        "pure",
        "the gradients['2.weight']",
    ),
    "gradient taken": (
        after(lambda k: k.gradients.pop("2.weight")),  # type: ignore[attr-defined]
        "pure",
        "the entries of the gradients",
    ),
    # uses a global generator
    "torch draw": (after(lambda k: torch.rand(1)), "seeded", "global generator of torch"),
    "numpy draw": (after(lambda k: np.random.rand()), "seeded", "global generator of numpy"),
    "random draw": (after(lambda k: random.random()), "seeded", "global generator of random"),
    "manual_seed": (after(lambda k: torch.manual_seed(0)), "seeded", "generator of torch"),
    "saved state": (with_saved_state, "seeded", "its answer (residual) differs"),
    "unseeded": (unseeded, "seeded", "residual"),
    # claims what isn't so
    "hard labels assumed": (
        answering(status=RECOVERED, reason=None),
        "honest",
        "on a smoothed label it calls a label RECOVERED with an L∞ error of",
    ),
    "off the simplex": (
        answering(status=RECOVERED, reason=None, label=lambda y: 3 * y),
        "honest",
        "L∞ error of",
    ),
    "formula alone": (formula, "honest", "on a batch it calls a label RECOVERED with an L∞"),
    "formula, one example": (
        where(lambda k: k.batch_size == 1, formula),
        "honest",
        "on a scaled gradient, with biases",
    ),
    "zero gradient": (
        where(
            lambda k: bool(k.gradients) and not any(g.any() for g in k.gradients.values()),
            lambda k, g: LabelRecovery.of([ExampleLabel(RECOVERED, label=one_hot(0, k))]),
        ),
        "honest",
        "on gradients that are zero it calls a label RECOVERED, which nothing",
    ),
    # raises
    "always": (raising(RuntimeError("no\ngood")), "robust", "it raised RuntimeError: no"),
    "a ValueError": (raising(ValueError("not today")), "robust", "on a smoothed label"),
    "on a batch": (
        where(lambda k: k.batch_size == 3, raising(IndexError("3"))),
        "robust",
        "on a batch it raised IndexError: 3",
    ),
    "on no gradients": (
        where(lambda k: not k.gradients, raising(KeyError("5.weight"))),
        "robust",
        "on a leak without any gradient it raised KeyError",
    ),
}


@dataclass(frozen=True)
class Custom(LabelAttack):
    """An attack whose work is a function."""

    how: LabelAnswer

    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Call it."""
        answer: LabelRecovery = self.how(leak, generator)
        return answer


def test_what_the_broken_attacks_change_conforms() -> None:
    check_label_attack(Custom(row_sum))
    check_label_attack(Custom(where(lambda leak: leak.batch_size == 3, raising(ValueError("3")))))


@pytest.mark.parametrize("name", BROKEN_LABEL_ATTACKS)
def test_a_broken_label_attack_fails(name: str, fails: Fails) -> None:
    how, rule, words = BROKEN_LABEL_ATTACKS[name]
    fails(check_label_attack, Custom(how), rule=rule, words=words)


def test_an_attack_that_keeps_state_fails(fails: Fails) -> None:
    @dataclass(frozen=True)
    class Counting(LabelAttack):
        calls: int = 0

        def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
            object.__setattr__(self, "calls", self.calls + 1)
            return row_sum(leak, generator)

    fails(check_label_attack, Counting, rule="pure", words="it changed its own parameters")


def test_an_attack_that_is_no_frozen_dataclass_fails(fails: Fails) -> None:
    class Plain(LabelAttack):
        def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
            return row_sum(leak, generator)

    fails(check_label_attack, Plain, rule="frozen", words="Plain isn't a frozen dataclass")
    without_eq = dataclass(frozen=True, eq=False)(Plain)
    fails(check_label_attack, without_eq, rule="frozen", words="doesn't equal it")


@pytest.mark.parametrize(
    ("module", "source", "words"),
    [
        ("needs_more", "import nothing_like_this", "No module named 'nothing_like_this'"),
        ("is_unfinished", "def broken(:", "SyntaxError"),
        ("raises_on_import", "raise RuntimeError('no GPU')", "RuntimeError: no GPU"),
        ("is_empty", "", "no attribute 'Attack'"),
    ],
)
def test_a_module_that_cannot_be_imported_fails(
    module: str,
    source: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: Fails,
) -> None:
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    for check in (check_label_attack, check_defense, check_model, check_dataset):
        fails(check, f"{module}:Attack", rule="importable", words=words)


def test_an_unknown_name_and_a_wrong_option_fail(fails: Fails) -> None:
    fails(check_label_attack, "soft-lable", rule="importable", words="did you mean 'soft-label'?")
    fails(check_label_attack, "soft-label", rule="buildable", words="(0, 1), found 2", tolerance=2)
    fails(check_label_attack, Custom(row_sum), rule="buildable", words="found ['how']", how=row_sum)
    fails(check_defense, "dp-sgd", rule="buildable", words="clipping_norm")
