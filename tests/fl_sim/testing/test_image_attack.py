"""An image attack that breaks a rule is told which; ours break none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from attacks import (
    IMAGE_ATTACKS,
    ExampleImage,
    GradientLeak,
    ImageAttack,
    LabelRecovery,
    Reconstruction,
    Status,
)
from fl_sim.testing import check_image_attack

Fails = Callable[..., None]
OPTIONS: dict[str, dict[str, Any]] = {
    "dlg": {"iterations": 5, "restarts": 2},
    "inverting-gradients": {"iterations": 3, "restarts": 2},
    "gradinversion": {"iterations": 3, "restarts": 2},
    "feature-matching": {"iterations": 3},
    "auto": {"iterations": 3},
}
"""Fewer iterations for those that optimise."""
WELL = "well-formed"
RECOVERED = Status.RECOVERED


@pytest.mark.parametrize("name", list(IMAGE_ATTACKS))
def test_our_image_attacks_conform(name: str) -> None:
    check_image_attack(name, **OPTIONS.get(name, {}))


ImageAnswer = Callable[[GradientLeak, LabelRecovery], Any]


@dataclass(frozen=True)
class CustomImage(ImageAttack):
    """An image attack whose work is a function."""

    how: ImageAnswer

    def reconstruct(
        self, leak: GradientLeak, labels: LabelRecovery, generator: torch.Generator
    ) -> Reconstruction:
        """Call it."""
        answer: Reconstruction = self.how(leak, labels)
        return answer


def image(
    status: Status,
    *,
    rows: int = 1,
    value: float = 0.5,
    pixel_range: Any = (0.0, 1.0),
    **fields: Any,
) -> ImageAnswer:
    def answer(leak: GradientLeak, labels: LabelRecovery) -> Reconstruction:
        pixels = torch.full(leak.input_shape, value, dtype=torch.float64)
        reason = None if status is RECOVERED else "a guess"
        example = ExampleImage(**{"status": status, "reason": reason, "image": pixels, **fields})
        size = (leak.steps.distinct or 1) * rows
        return Reconstruction.of([example] * size, pixel_range=pixel_range)

    return answer


def spoil_labels(leak: GradientLeak, labels: LabelRecovery) -> Reconstruction:
    for example in labels.examples:
        if example.label is not None:
            example.label.zero_()
    return Reconstruction(Status.NOT_APPLICABLE, "it had enough")


GUESS = Status.NOT_CONVERGED


@pytest.mark.parametrize(
    ("how", "rule", "words"),
    [
        (image(GUESS, value=1.5), "robust", "images must be in [0, 1], found [1.5, 1.5]"),
        (image(GUESS, rows=2), WELL, "it must answer on 1 examples or none, found 2"),
        (
            image(GUESS, image=torch.zeros(1, 6, 5).double()),
            WELL,
            "found (1, 6, 5)",
        ),
        (image(Status.NOT_APPLICABLE), WELL, "None under NOT_APPLICABLE"),
        (image(RECOVERED, image=None), "robust", "RECOVERED must come with an image"),
        (image(RECOVERED), "honest", "an image RECOVERED with a mean square error"),
        (lambda leak, labels: labels, WELL, "Reconstruction, found LabelRecovery"),
        (spoil_labels, "pure", "it changed the label recovery"),
        (
            lambda leak, labels: image(GUESS, residual=labels.features.sum().item())(leak, labels),
            "robust",
            "AttributeError",
        ),
    ],
)
def test_a_broken_image_attack_fails(how: ImageAnswer, rule: str, words: str, fails: Fails) -> None:
    fails(check_image_attack, CustomImage(how), rule=rule, words=words)


def test_an_image_attack_that_guesses_conforms() -> None:
    check_image_attack(CustomImage(image(GUESS)))
    check_image_attack(CustomImage(image(GUESS, value=1.5, pixel_range=(-2.0, 2.0))))
