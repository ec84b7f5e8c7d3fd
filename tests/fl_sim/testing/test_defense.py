"""A defense that breaks a rule is told which; ours break none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import LABEL_ATTACKS
from defenses import DEFENSES, ClientStep, Defense, Place, WithState
from fl_sim.testing import ConformanceError, check_defense

Fails = Callable[..., None]
OPTIONS: dict[str, dict[str, Any]] = {
    "dp-noise": {"clipping_norm": 1.0, "noise_multiplier": 0.5},
    "dp-sgd": {"clipping_norm": 0.1, "noise_multiplier": 1.0},
    "gradient-clipping": {"clipping_norm": 0.1},
}
"""Parameters of those that can't be built without."""
WELL = "well-formed"


@pytest.mark.parametrize("name", list(DEFENSES))
def test_ours_conform(name: str) -> None:
    check_defense(name, **OPTIONS.get(name, {}))


IDENTITY: dict[str, Callable[..., Any]] = {
    "on_model": lambda self, model, g: model,
    "on_batch": lambda self, step, g: step,
    "on_gradient": lambda self, step, gradients, g: gradients,
    "on_update": lambda self, update, place, g: update,
}


@pytest.mark.parametrize("name", [name for name in DEFENSES if DEFENSES[name].draws == 1])
def test_ours_are_found_out_without_their_effect(name: str) -> None:
    options = OPTIONS.get(name, {})
    ours = type(DEFENSES.build(name, **options))
    own = [hook for hook in IDENTITY if getattr(ours, hook) is not getattr(Defense, hook)]
    made: Any = type(ours.__name__, (ours,), {hook: IDENTITY[hook] for hook in own})
    with pytest.raises(ConformanceError, match="changes nothing that leaves the client"):
        check_defense(made(**options))


def test_a_defense_that_does_nothing_is_found_out() -> None:
    idle = defense(on_update=lambda self, update, place, g: dict(update))
    with pytest.raises(ConformanceError, match="changes nothing that leaves the client, in 8"):
        check_defense(idle)


@pytest.mark.parametrize("name", ["LargestEntries", "Velocity"])
def test_those_that_keep_something_conform(name: str, tiny_file: Path) -> None:
    check_defense(f"third_party:{name}")


def defense(**members: Any) -> Defense:
    """Return a defense with these hooks."""
    made: Any = dataclass(frozen=True)(type("Broken", (Defense,), members))
    built: Defense = made()
    return built


def on_batch(change: Callable[[ClientStep], dict[str, Any]]) -> Defense:
    return defense(on_batch=lambda self, step, g: dataclasses.replace(step, **change(step)))


def brighten(step: ClientStep) -> dict[str, Any]:
    step.images.mul_(0.5)
    return {}


def halve(update: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: part.mul_(0.5) for name, part in update.items()}


def freeze(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


def read_loss(step: ClientStep) -> dict[str, Any]:
    shift = 0.0 if step.loss is None else float(step.loss)
    return {"images": (step.images + shift).clamp(0, 1)}


def kept(state: Callable[[dict[str, Tensor], Place], Any]) -> Defense:
    """Return a defense that sends what it is given, and keeps what `state` returns."""
    return defense(on_update=lambda self, u, place, g: WithState(u, state(u, place)))


def add_up(update: dict[str, Tensor], place: Place) -> dict[str, Tensor]:
    total = dict(place.state)
    for name, part in update.items():
        total[name] = total[name].add_(part) if name in total else part
    return total


BROKEN_DEFENSES: dict[str, tuple[Any, str, str]] = {
    "no hook": (defense(on_batches=lambda *_: None), "effective", "overrides none of on_model"),
    "no claim": (
        defense(on_update=lambda self, u, g: u, privacy=lambda self, plan: 1.0),
        WELL,
        "privacy() must give a claim or None",
    ),
    "no defense": (LABEL_ATTACKS.build("idlg"), WELL, "isn't a Defense"),
    "images in place": (on_batch(brighten), "pure", "in on_batch it changed the images"),
    "label off the simplex": (
        on_batch(lambda s: {"labels": s.labels + 0.1}),
        WELL,
        "labels must stay on the simplex, found a least entry of 0.1 and a sum that is off by 0.6",
    ),
    "negative label": (
        on_batch(lambda s: {"labels": s.labels * 1.6 - 0.1}),
        WELL,
        "labels must stay on the simplex",
    ),
    "pixels": (on_batch(lambda s: {"images": s.images * 2}), WELL, "must stay in [0, 1]"),
    "fewer rows": (
        on_batch(lambda s: {"images": s.images[1:], "labels": s.labels[1:]}),
        WELL,
        "on_batch's images must be finite, (4, 1, 6, 6)",
    ),
    "double": (on_batch(lambda s: {"labels": s.labels.double()}), WELL, "torch.float64"),
    "nothing returned": (defense(on_batch=lambda *_: None), WELL, "must return a ClientStep"),
    "reads the model": (
        on_batch(lambda s: {"images": s.model(s.images)[:, :0]}),  # type: ignore[misc]
        "blind",
        "on_batch reads the model, which it hasn't got",
    ),
    "reads the loss": (on_batch(read_loss), "blind", "on_batch reads the model, its loss"),
    "global draw": (
        on_batch(lambda s: {"images": torch.rand_like(s.images)}),
        "seeded",
        "in on_batch it moved the global generator of torch",
    ),
    "gradient in place": (
        defense(on_gradient=lambda self, step, gradients, g: halve(gradients)),
        "pure",
        "in on_gradient it changed its input['2.weight']",
    ),
    "update in place": (
        defense(on_update=lambda self, update, place, g: halve(update)),
        "pure",
        "in on_update it changed its input",
    ),
    "a gradient less": (
        defense(on_gradient=lambda self, step, gr, g: dict(list(gr.items())[1:])),
        WELL,
        "on_gradient must return the same names",
    ),
    "shape": (
        defense(on_update=lambda self, update, place, g: {n: t[:1] for n, t in update.items()}),
        WELL,
        "on_update['2.weight'] must be finite",
    ),
    "zero division": (
        defense(
            on_update=lambda self, update, place, g: {n: t / t.norm() for n, t in update.items()},
        ),
        WELL,
        "on_update of zeros['2.weight'] must be finite",
    ),
    "own model": (
        defense(on_model=lambda self, model, g: freeze(model)),
        "pure",
        "in on_model it changed the model's parameter",
    ),
    "no logits": (
        defense(on_model=lambda self, model, g: model[:-1]),
        WELL,
        "finite logits (4, 6), found (4, 20)",
    ),
    "raises": (
        defense(on_update=lambda self, update, place, g: update["fc.weight"]),
        "robust",
        "on_update raised KeyError: 'fc.weight'",
    ),
    "facts": (
        defense(on_update=lambda self, u, place, g: u, facts=lambda self: {"seed": 1}),
        WELL,
        "facts() must give a tuple of attacks.facts: TypeError: found {'seed': 1}",
    ),
    "state in place": (
        kept(add_up),
        "pure",
        "in on_update it changed its state['2.weight']",
    ),
    "state of its first round": (
        kept(lambda u, place: {n: place.state[n] if place.round > 1 else t for n, t in u.items()}),
        "robust",
        "on_update raised KeyError: '2.weight'",
    ),
    "state of a global draw": (
        kept(lambda u, place: {"w": torch.rand(2)}),
        "seeded",
        "in on_update it moved the global generator of torch",
    ),
    "state of numbers": (
        kept(lambda u, place: {"seen": 1}),
        "robust",
        "on_update raised TypeError: state must map names to dense tensors, found 'seen': int",
    ),
    "state that no file takes": (
        kept(lambda u, place: {"w": torch.ones(1, dtype=torch.complex128)}),
        WELL,
        "on_update's state can't be saved: KeyError",
    ),
    "later rounds": (
        defense(
            on_update=lambda self, u, place, g: u if place.round == 1 else dict(list(u.items())[1:])
        ),
        WELL,
        "on_update must return the same names",
    ),
    "the other hook's state": (
        defense(
            on_gradient=lambda self, step, u, g: WithState(u, {"w": torch.ones(1)}),
            on_update=lambda self, u, place, g: (
                {n: t + place.state.get(n, t) for n, t in u.items()}
                if len(place.state) != 1
                else u["fc.weight"]
            ),
        ),
        "robust",
        "on_update raised KeyError: 'fc.weight'",
    ),
    "draws": (defense(on_update=lambda self, u, place, g: u, draws=0), WELL, "draws must be"),
}


@pytest.mark.parametrize("name", BROKEN_DEFENSES)
def test_a_broken_defense_fails(name: str, fails: Fails) -> None:
    built, rule, words = BROKEN_DEFENSES[name]
    fails(check_defense, built, rule=rule, words=words)
