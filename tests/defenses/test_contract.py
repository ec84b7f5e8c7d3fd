"""What every registered defense keeps to, ours and third parties' alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from attacks.facts import Told
from defenses import DEFENSES, ClientStep, Defense, Place, WithState

REQUIRED: dict[str, dict[str, Any]] = {
    "dp-noise": {"clipping_norm": 1.0, "noise_multiplier": 0.5},
    "dp-sgd": {"clipping_norm": 0.1, "noise_multiplier": 1.0},
    "gradient-clipping": {"clipping_norm": 0.1},
}
"""Options for the defenses that can't be built without."""

BATCH, CLASSES, SHAPE = 4, 5, (1, 3, 3)

pytestmark = pytest.mark.parametrize("name", list(DEFENSES))


def build(name: str) -> Defense:
    defense = DEFENSES.build(name, **REQUIRED.get(name, {}))
    assert isinstance(defense, Defense)
    return defense


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, CLASSES, bias=False)
        )


def make_batch(rows: int) -> ClientStep:
    draws = generator(1)
    images = torch.rand(rows, *SHAPE, generator=draws)
    classes = torch.randint(CLASSES, (rows,), generator=draws)
    return ClientStep(images, torch.eye(CLASSES)[classes])


def mean_loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(images), labels)


def make_step() -> tuple[ClientStep, dict[str, Tensor]]:
    """A step after its loss, and the gradient of the loss."""
    model, step = make_model(), make_batch(BATCH)
    loss = mean_loss(model, step.images, step.labels)
    names = [name for name, _ in model.named_parameters()]
    gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)

    def per_example() -> dict[str, Tensor]:
        def of_one(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            logits = functional_call(model, parameters, (image[None],))
            return nn.functional.cross_entropy(logits, label[None])

        values = {name: p.detach() for name, p in model.named_parameters()}
        each = vmap(grad(of_one), in_dims=(None, 0, 0))
        return dict(each(values, step.images, step.labels))

    full = dataclasses.replace(step, model=model, loss=loss, per_example_gradients=per_example)
    return full, dict(zip(names, gradients, strict=True))


def overrides(defense: Defense, hook: str) -> bool:
    return getattr(type(defense), hook) is not getattr(Defense, hook)


def twice_untouched(call: Callable[[torch.Generator], Any], *inputs: Tensor) -> tuple[Any, Any]:
    """Call twice from one seed; fail if an input or torch's global generator changed."""
    before = [part.detach().clone() for part in inputs]
    state = torch.get_rng_state()
    results = call(generator()), call(generator())
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    return results


def test_is_a_frozen_dataclass_that_equals_itself(name: str) -> None:
    defense = build(name)
    assert dataclasses.is_dataclass(defense)
    assert defense == build(name)
    assert hash(defense) == hash(build(name))
    for field in dataclasses.fields(defense):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(defense, field.name, None)


def test_facts_have_a_joint_meaning(name: str) -> None:
    Told.by(build(name).facts())


def test_overrides_a_hook(name: str) -> None:
    hooks = ("on_model", "on_batch", "on_gradient", "on_update")
    assert any(overrides(build(name), hook) for hook in hooks)


def test_on_batch_returns_labels_on_the_simplex_and_replays(name: str) -> None:
    defense = build(name)
    step = make_batch(BATCH * defense.draws)
    one, two = twice_untouched(lambda g: defense.on_batch(step, g), step.images, step.labels)
    assert one.images.shape == (BATCH, *SHAPE)
    assert one.labels.shape == (BATCH, CLASSES)
    assert (one.images.dtype, one.labels.dtype) == (step.images.dtype, step.labels.dtype)
    # Float32 sums of five entries: a few units of 6e-8.
    assert torch.allclose(one.labels.sum(1), torch.ones(BATCH), atol=1e-6)
    assert one.labels.min() >= 0
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.labels, two.labels)
    if not overrides(defense, "on_batch"):
        assert one is step


@pytest.mark.parametrize("hook", ["on_gradient", "on_update"])
def test_gradient_hooks_keep_names_and_shapes_and_replay(name: str, hook: str) -> None:
    defense = build(name)
    step, gradients = make_step()

    def call(g: torch.Generator) -> Any:
        if hook == "on_update":
            return defense.on_update(gradients, Place(), g)
        return defense.on_gradient(step, gradients, g)

    one, two = twice_untouched(call, step.images, step.labels, *gradients.values())
    if isinstance(one, WithState):
        one, two = one.gradients, two.gradients
    assert list(one) == list(gradients)
    for key, gradient in gradients.items():
        assert (one[key].shape, one[key].dtype) == (gradient.shape, gradient.dtype)
        assert torch.isfinite(one[key]).all()
        assert torch.equal(one[key], two[key])
    if not overrides(defense, hook):
        assert one is gradients


def test_on_model_gives_a_model_that_still_classifies(name: str) -> None:
    defense = build(name)
    model = make_model()
    changed, again = twice_untouched(lambda g: defense.on_model(model, g), *model.parameters())
    images = make_batch(BATCH).images
    with torch.random.fork_rng():  # a model may draw; its seed is then its own business
        assert changed(images).shape == (BATCH, CLASSES)
    for one, two in zip(changed.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    if not overrides(defense, "on_model"):
        assert changed is model


def test_says_rightly_whether_it_draws(name: str) -> None:
    """Else a report would call one draw's numbers those of the defense, or warn of nothing."""
    defense = build(name)
    if overrides(defense, "on_model"):
        return  # its network draws, while clients train
    step, gradients = make_step()
    batch = make_batch(BATCH * defense.draws)

    def sent(seed: int) -> list[Tensor]:
        mixed = defense.on_batch(batch, generator(seed))
        hooks = (
            defense.on_gradient(step, gradients, generator(seed)),
            defense.on_update(gradients, Place(), generator(seed)),
        )
        found = [one.gradients if isinstance(one, WithState) else one for one in hooks]
        parts = [part for one in found for part in one.values()]
        return [mixed.images, mixed.labels, *parts]

    is_same = all(torch.equal(one, two) for one, two in zip(sent(0), sent(1), strict=True))
    assert defense.is_random is not is_same
