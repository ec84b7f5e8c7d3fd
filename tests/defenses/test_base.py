"""Chains: order, a generator for each stage and hook, and what they tell an attacker."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from attacks import facts as fact
from defenses.base import (
    NOTHING,
    Chain,
    ClientStep,
    Defense,
    Gradients,
    Place,
    WithState,
    is_number,
    replace_batch,
)
from defenses.dp_noise import DPNoise
from defenses.label_smoothing import LabelSmoothing
from defenses.mixup import Mixup


@dataclass(frozen=True)
class _Affine(Defense):
    """Maps x to factor · x + a draw, in every hook; its order in a chain shows in the result."""

    factor: float
    draws: ClassVar[int] = 3

    def _apply(self, value: Tensor, generator: torch.Generator) -> Tensor:
        return self.factor * value + torch.rand((), generator=generator)

    def on_model(self, model: nn.Module, generator: torch.Generator) -> nn.Module:
        return nn.Sequential(model, nn.Identity())

    def on_batch(self, step: ClientStep, generator: torch.Generator) -> ClientStep:
        return replace_batch(step, self._apply(step.images, generator), step.labels)

    def on_gradient(
        self, step: ClientStep, gradients: Gradients, generator: torch.Generator
    ) -> Gradients:
        return {name: self._apply(part, generator) for name, part in gradients.items()}

    def on_update(self, update: Gradients, place: Place, generator: torch.Generator) -> Gradients:
        return {name: self._apply(part, generator) for name, part in update.items()}


STEP = ClientStep(torch.ones(1, 1, 1, 1), torch.ones(1, 1))
HOOKS = ("batch", "gradient", "update")


def generator_for(stage: int, hook: str) -> torch.Generator:
    """Name each stage's and hook's generator by its own seed."""
    seed = 10 * stage + ["model", *HOOKS].index(hook)
    return torch.Generator().manual_seed(seed)


def draw(stage: int, hook: str) -> Tensor:
    return torch.rand((), generator=generator_for(stage, hook))


def run(chain: Chain, hook: str, value: Tensor) -> Tensor:
    if hook == "batch":
        return chain.on_batch(replace_batch(STEP, value, STEP.labels), generator_for).images
    if hook == "gradient":
        return chain.on_gradient(STEP, {"w": value}, NOTHING, generator_for)[0]["w"]
    return chain.on_update({"w": value}, Place(), NOTHING, generator_for)[0]["w"]


@pytest.mark.parametrize("hook", HOOKS)
def test_stages_apply_in_order_each_with_its_own_generator(hook: str) -> None:
    start = torch.full((1, 1, 1, 1), 7.0)
    expected = 3 * (2 * start + draw(0, hook)) + draw(1, hook)
    assert torch.equal(run(Chain([_Affine(2), _Affine(3)]), hook, start), expected)


def test_models_pass_through_every_stage() -> None:
    inner = nn.Identity()
    outer = Chain([_Affine(2), Defense(), _Affine(3)]).on_model(inner, generator_for)
    assert isinstance(outer, nn.Sequential)
    assert isinstance(outer[0], nn.Sequential)
    assert outer[0][0] is inner


def test_an_empty_chain_and_a_bare_defense_change_nothing() -> None:
    gradients = {"w": torch.ones(2)}
    for chain in (Chain(()), Chain([Defense()])):
        assert chain.on_batch(STEP, generator_for) is STEP
        for kept, states in (
            chain.on_gradient(STEP, gradients, NOTHING, generator_for),
            chain.on_update(gradients, Place(), NOTHING, generator_for),
        ):
            assert kept is gradients
            assert states is NOTHING
        assert (chain.draws, chain.facts()) == (1, ())


@dataclass(frozen=True)
class _Sums(Defense):
    """Returns the sum of all that it was given, and where it was called last."""

    def _add(self, given: Gradients, place: Place) -> WithState:
        total = place.state.get("total", torch.zeros(())) + given["w"]
        at = torch.tensor([place.round, place.step])
        return WithState({"w": total}, {"total": total, "at": at})

    def on_gradient(
        self, step: ClientStep, gradients: Gradients, generator: torch.Generator
    ) -> WithState:
        return self._add(gradients, step.place)

    def on_update(self, update: Gradients, place: Place, generator: torch.Generator) -> WithState:
        return self._add(update, place)


def test_each_stage_has_a_state_of_its_own_for_all_hooks() -> None:
    chain, states = Chain([_Sums(), _Affine(2), _Sums()]), NOTHING
    values = []
    for number in (1.0, 2.0):
        step = dataclasses.replace(STEP, place=Place(3, int(number)))
        given = {"w": torch.tensor(number)}
        result, states = chain.on_gradient(step, given, states, generator_for)
        values.append(result["w"] - (2 * states[0]["total"] + draw(1, "gradient")))
    assert sorted(states) == [0, 2]
    assert float(states[0]["total"]) == 3
    assert values == [0, states[2]["total"] - (2 * 3 + draw(1, "gradient"))]
    assert states[0]["at"].tolist() == [3, 2]
    _, states = chain.on_update({"w": torch.tensor(4.0)}, Place(3, 2), states, generator_for)
    assert float(states[0]["total"]) == 7


def test_a_state_is_a_copy_and_cannot_be_changed_in_a_hook() -> None:
    weight = torch.ones(2, requires_grad=True)
    kept = WithState({}, {"w": weight}).state["w"]
    with torch.no_grad():
        weight.zero_()
    assert kept.tolist() == [1, 1]
    assert not kept.requires_grad

    @dataclass(frozen=True)
    class Writes(Defense):
        def on_update(
            self, update: Gradients, place: Place, generator: torch.Generator
        ) -> Gradients:
            place.state["w"] = kept  # type: ignore[index]
            return update

    with pytest.raises(TypeError, match="does not support item assignment"):
        Chain([Writes()]).on_update({}, Place(), {0: {}}, generator_for)


@pytest.mark.parametrize(
    ("state", "found"),
    [
        (None, "NoneType"),
        ([torch.ones(1)], "list"),
        ({"w": 1.0}, "'w': float"),
        ({3: torch.ones(1)}, "3: torch.strided torch.float32 on cpu"),
        ({"": torch.ones(1)}, "'': torch.strided torch.float32 on cpu"),
        ({"w": torch.ones(1).to_sparse()}, "'w': torch.sparse_coo torch.float32 on cpu"),
        ({"w": torch.ones(1, device="meta")}, "'w': torch.strided torch.float32 on meta"),
    ],
)
def test_a_state_maps_names_to_dense_tensors(state: Any, found: str) -> None:
    with pytest.raises(TypeError) as caught:
        WithState({}, state)
    assert str(caught.value) == f"state must map names to dense tensors, found {found}"


@pytest.mark.parametrize(
    ("stages", "draws"),
    [([LabelSmoothing()], 1), ([Mixup()], 2), ([Mixup(), Mixup()], 4), ([Mixup(), _Affine(1)], 6)],
)
def test_draws_multiply(stages: list[Defense], draws: int) -> None:
    assert Chain(stages).draws == draws


@pytest.mark.parametrize(
    ("stages", "facts"),
    [
        ([Mixup()], (fact.Mixup(),)),
        ([LabelSmoothing(0.1)], (fact.LabelSmoothing(0.1),)),
        ([LabelSmoothing((0, 0.5))], (fact.LabelSmoothing(None),)),
        ([DPNoise(2.0, 0.5)], (fact.GaussianMechanism(2.0, 1.0),)),
        (
            [Mixup(), LabelSmoothing(0.1), DPNoise(2.0, 0.5)],
            (fact.Mixup(), fact.LabelSmoothing(0.1), fact.GaussianMechanism(2.0, 1.0)),
        ),
    ],
)
def test_a_chain_tells_the_facts_of_its_stages_in_order(
    stages: list[Defense], facts: tuple[fact.Fact, ...]
) -> None:
    assert Chain(stages).facts() == facts
    assert sum((stage.facts() for stage in stages), ()) == facts


def test_two_smoothings_make_one() -> None:
    label = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    chain = Chain([LabelSmoothing(0.2), LabelSmoothing(0.3)])
    step = chain.on_batch(ClientStep(STEP.images, label), generator_for)
    told = fact.Told.by(chain.facts())
    assert told.smoothing is not None
    once = LabelSmoothing(told.smoothing)
    joint = once.on_batch(ClientStep(STEP.images, label), generator_for(0, "batch"))
    # float64, a handful of operations on numbers near 1
    assert torch.allclose(step.labels, joint.labels, rtol=0, atol=1e-15)


def test_replace_batch_keeps_the_rest() -> None:
    step = dataclasses.replace(STEP, loss=torch.tensor(1.0))
    changed = replace_batch(step, torch.zeros(1, 1, 1, 1), torch.zeros(1, 1))
    assert changed.loss is step.loss
    assert torch.equal(step.images, torch.ones(1, 1, 1, 1))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((number, True) for number in (1, 0.5, -2.0, float("inf"))),
        *((other, False) for other in (True, float("nan"), "1", None, [1], 1j)),
    ],
)
def test_is_number(value: object, expected: bool) -> None:
    assert is_number(value) is expected
