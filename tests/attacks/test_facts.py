"""What defenses make public: one meaning together, or an error before anything runs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS, GradientLeak
from attacks.facts import (
    Fact,
    GaussianMechanism,
    HardLabels,
    LabelSmoothing,
    Mixup,
    Told,
)

Build = Callable[..., Any]
BOTH = "mixup+label-smoothing"


@dataclasses.dataclass(frozen=True)
class Rounded(Fact):
    """A third party's fact."""

    bits: int = 4


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ((), Told()),
        ((HardLabels(),), Told("hard")),
        ((HardLabels(), HardLabels()), Told("hard")),
        ((Mixup(),), Told("mixup")),
        ((LabelSmoothing(0.1),), Told("label-smoothing", 0.1)),
        ((LabelSmoothing(),), Told("label-smoothing")),
        ((LabelSmoothing(0.0),), Told("label-smoothing", 0.0)),
        ((LabelSmoothing(0.1), Mixup()), Told(BOTH, 0.1)),
        ((Mixup(), LabelSmoothing(0.1)), Told(BOTH, 0.1)),
        ((LabelSmoothing(0.5), LabelSmoothing(0.5)), Told("label-smoothing", 0.75)),
        ((LabelSmoothing(0.5), LabelSmoothing()), Told("label-smoothing")),
        ((GaussianMechanism(2.0, 1.0),), Told(None, None, 2.0, 1.0)),
        ((GaussianMechanism(2.0, 0.0), GaussianMechanism(1.0, 0.5)), Told(None, None, 1.0, 0.5)),
        ((GaussianMechanism(2.0, 3.0), GaussianMechanism(None, 4.0)), Told(None, None, 2.0, 5.0)),
        ((GaussianMechanism(2.0),), Told(None, None, 2.0)),
        ((Mixup(), GaussianMechanism(2.0, 1.0)), Told("mixup", None, 2.0, 1.0)),
        ((Rounded(), Mixup(), Rounded()), Told("mixup")),
    ],
)
def test_facts_together(facts: tuple[Fact, ...], told: Told) -> None:
    assert Told.by(facts) == told


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ((HardLabels(), Mixup()), "must not contradict each other, found HardLabels beside Mixup"),
        ((LabelSmoothing(0.1), HardLabels()), "found HardLabels beside LabelSmoothing"),
        ((Mixup(), LabelSmoothing(0.1), Mixup()), "found Mixup twice: four classes would share"),
        (
            (GaussianMechanism(2.0, 1.0), GaussianMechanism(1.0, 0.5)),
            "found clipping after noise: it scales the noise of standard deviation 1 by a factor",
        ),
    ],
)
def test_facts_without_a_joint_meaning(
    facts: tuple[Fact, ...], sentence: str, make_model: Build
) -> None:
    with pytest.raises(ValueError, match=sentence):
        Told.by(facts)
    with pytest.raises(ValueError, match=sentence):
        GradientLeak(make_model(10), {}, 1, (1, 12, 12), knowledge=facts)


@pytest.mark.parametrize(
    ("kind", "values", "sentence"),
    [
        (LabelSmoothing, {"smoothing": -0.1}, r"smoothing must be in \[0, 1\] or None, found -0.1"),
        (LabelSmoothing, {"smoothing": 1.1}, "found 1.1"),
        (GaussianMechanism, {"clipping_norm": 0.0}, "clipping_norm must be above 0 or None"),
        (GaussianMechanism, {"noise_std": -1.0}, "noise_std must be at least 0 or None, found -1"),
        (GaussianMechanism, {"noise_std": float("nan")}, "found nan"),
    ],
)
def test_facts_refuse_impossible_values(
    kind: type[Fact], values: dict[str, float], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        kind(**values)


@pytest.mark.parametrize("knowledge", [[Mixup()], Mixup(), ("mixup",), {"type": "mixup"}])
def test_knowledge_is_a_tuple_of_facts(knowledge: Any, make_model: Build) -> None:
    with pytest.raises(TypeError, match=r"knowledge must be a tuple of attacks\.facts, found"):
        GradientLeak(make_model(10), {}, 1, (1, 12, 12), knowledge=knowledge)


@pytest.mark.parametrize("name", [*LABEL_ATTACKS, *(n for n in IMAGE_ATTACKS if n != "auto")])
def test_an_attack_names_the_facts_that_it_reads(
    name: str,
    make_model: Build,
    make_label: Build,
    make_victim: Build,
    short_options: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that name none read none; `auto` names those of all that it may ask."""
    registry = LABEL_ATTACKS if name in LABEL_ATTACKS else IMAGE_ATTACKS
    attack = registry.build(name, **short_options(name))
    label = make_label(10, "label-smoothing", np.random.default_rng(0))
    leak = make_victim(make_model(10, bias=name in ("bias-ratio", "ilrg")), label).leak
    labels = LABEL_ATTACKS.build("soft-label")(leak, generator=torch.Generator())
    read = []

    def told(self: GradientLeak) -> Told:
        read.append(name)
        return Told()

    spied = functools.cached_property(told)
    spied.__set_name__(GradientLeak, "told")
    monkeypatch.setattr(GradientLeak, "told", spied)
    fresh = dataclasses.replace(leak)
    arguments = (fresh,) if name in LABEL_ATTACKS else (fresh, labels)
    attack(*arguments, generator=torch.Generator())
    assert bool(read) == bool(attack.uses)
