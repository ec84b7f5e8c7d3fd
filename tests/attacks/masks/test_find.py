"""The pairs of a hidden layer's two-valued equations: proposed, polished, and never a false one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import NotApplicable
from attacks.dense.network import FullyConnected
from attacks.masks.annealed import WARM, anneal, expected_pairs
from attacks.masks.equation import MaskEquation
from attacks.masks.find import find_pairs
from attacks.masks.leftover import leftover_space
from attacks.masks.lifted import lifted_directions
from attacks.masks.polish import Pair, beside, polish
from attacks.masks.starts import Starts
from attacks.victim.network import Network

Build = Callable[..., Any]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def chain_of(victim: Any, index: int = 0) -> FullyConnected:
    """Return the network from the layer with that index on."""
    network = Network.of(victim.leak)
    return FullyConnected.above(victim.leak, network, network.executed[index])


def equation_of(victim: Any, index: int = 0) -> MaskEquation:
    return MaskEquation.of(chain_of(victim, index), 0, victim.leak.batch_size)


def pairs_of(victim: Any, index: int = 0) -> tuple[Pair, ...]:
    return find_pairs(equation_of(victim, index), chain_of(victim, index), 0, seeded())


def starts_of(victim: Any) -> Starts:
    return Starts(equation_of(victim), chain_of(victim), 0, seeded())


def parts(victim: Any, index: int = 0) -> Tensor:
    """Return what each example adds to the gradient at a layer's outputs."""
    outputs, x = [], victim.images.double()
    model = victim.model.double()
    for layer in model:
        x = layer(x)
        if isinstance(layer, nn.Linear):
            outputs.append(x)
    loss = -(victim.labels * x.log_softmax(1)).sum()
    (delta,) = torch.autograd.grad(loss, outputs[index])
    victim.model.float()
    return delta.detach()


def misalignment(victim: Any, q: Any, index: int = 0) -> Tensor:
    """Return 1 − |cos| between every δ that a q stands for and every true one, (N, B)."""
    equation = equation_of(victim, index)
    truth = parts(victim, index)[:, torch.from_numpy(equation.live)]
    truth = truth / torch.from_numpy(equation.rows)
    found = torch.from_numpy(np.asarray(q) @ equation.left.T)
    return 1 - torch.nn.functional.cosine_similarity(found[:, None], truth, dim=2).abs()


def test_each_unit_is_two_valued(make_digits: Build) -> None:
    """The equation itself, on the truth: U q in {low T t, T t}."""
    for activation, low in ((nn.ReLU, 0.0), (lambda: nn.LeakyReLU(0.1), 0.1)):
        victim = make_digits(8, widths=(128,), activation=activation, sent_as="float64")
        equation = equation_of(victim)
        delta = parts(victim).numpy()[:, equation.live] / equation.rows
        outside = delta - (delta @ equation.left) @ equation.left.T
        assert np.linalg.norm(outside) < 1e-12 * np.linalg.norm(delta)
        p = victim.model.double()(victim.images.double()).softmax(1) - victim.labels
        w = (p @ victim.model[-1].weight).detach().numpy()[:, equation.live] / equation.rows
        victim.model.float()
        fitted = (w @ equation.targets) @ equation.targets.T
        assert np.linalg.norm(w - fitted) < 1e-12 * np.linalg.norm(w)
        off = np.minimum(np.abs(delta - w), np.abs(delta - low * w))
        assert off.max() < 1e-10 * np.abs(delta).max()


@pytest.mark.parametrize("low", [0.0, 0.1])
def test_closed_form_gives_all_at_once(low: float, make_digits: Build) -> None:
    """Each draw may mix up two whose coefficients are alike; of several, none does so always."""
    activation = nn.ReLU if low == 0 else lambda: nn.LeakyReLU(low)
    victim = make_digits(12, activation=activation)
    draws = list(lifted_directions(equation_of(victim), seeded()))
    best = torch.stack([misalignment(victim, directions).amin(0) for directions in draws])
    assert best.amin(0).max() < 1e-8  # measured: 1e-11
    assert best.median(1).values.max() < 1e-8


def test_closed_form_needs_units_enough(make_digits: Build) -> None:
    """Of B = 16 and K = 10, 280 monomials are more than 128 units."""
    equation = equation_of(make_digits(16, widths=(128,)))
    assert not list(lifted_directions(equation, seeded()))


def test_annealing_ends_at_examples(make_digits: Build) -> None:
    victim = make_digits(16, widths=(256,))
    equation = equation_of(victim)
    masks = torch.rand(16, len(equation.left), generator=seeded(), dtype=torch.float64).numpy()
    q, t = anneal(equation, (masks > 0.5).astype(float), WARM)
    ends = [end for pair in zip(q, t, strict=True) for end in polish(equation, *pair)]
    found = [pair.q for pair in ends if pair.is_example]
    assert found  # measured: 6 of 16
    assert misalignment(victim, found).amin(1).max() < 1e-9


@pytest.mark.parametrize(
    ("size", "options", "index"),
    [
        (16, {"widths": (512,)}, 0),
        (16, {"widths": (512,), "bias": False}, 0),
        (16, {"widths": (512,), "classes": 2}, 0),
        (32, {"widths": (512,)}, 0),  # beyond the closed form
        (16, {"widths": (128,)}, 0),
        (16, {"widths": (256, 256)}, 1),
        (16, {"widths": (256, 256)}, 0),  # below another hidden layer
        (16, {"widths": (256,), "activation": lambda: nn.LeakyReLU(0.01)}, 0),
    ],
)
def test_finds_all_pairs(
    size: int, options: dict[str, Any], index: int, make_digits: Build
) -> None:
    victim = make_digits(size, **options)
    pairs = pairs_of(victim, index)
    assert len(pairs) == size
    off = misalignment(victim, [pair.q for pair in pairs], index)
    assert sorted(off.argmin(1).tolist()) == list(range(size))
    assert off.amin(1).max() < 1e-9  # measured: 5e-12


def test_units_that_are_always_on_spare_equations(make_digits: Build) -> None:
    """Images that are much alike leave few units whose masks differ; t is no unknown then."""
    base = make_digits(1).images
    draws = torch.Generator().manual_seed(1)
    images = (base + 0.1 * torch.rand(6, 1, 28, 28, generator=draws)).clamp(0, 1)
    victim = make_digits(6, images=images, widths=(256,), sent_as="float64")
    equation = equation_of(victim)
    assert equation.always_on is not None
    outputs = victim.model[:3](images)
    always = (outputs > 0).all(0).numpy()[equation.live]
    assert (equation.always_on.is_on == always).all()
    assert len(pairs_of(victim)) == 6


def test_finds_nothing_under_other_weights(make_digits: Build) -> None:
    victim = make_digits(8, widths=(128,))
    with torch.no_grad():
        victim.model[-1].weight.add_(0.02 * torch.randn(10, 128, generator=seeded()))
    assert not pairs_of(victim)


@pytest.mark.parametrize(
    ("options", "told", "words"),
    [
        ({"activation": nn.Sigmoid}, 8, "sigmoid"),
        ({"activation": nn.Tanh}, 8, "tanh"),
        ({"widths": (24,)}, 8, "live units"),
        ({}, 5, "rank 8"),
    ],
)
def test_refuses_what_it_does_not_cover(
    options: dict[str, Any], told: int, words: str, make_digits: Build
) -> None:
    victim = make_digits(8, **{"widths": (128,), **options})
    with pytest.raises(NotApplicable, match=words):
        MaskEquation.of(chain_of(victim), 0, told)


def test_the_last_one_is_found_by_its_own_mask(make_digits: Build) -> None:
    """Of one that is missing the input follows from the others, however rare it is for starts."""
    victim = make_digits(8, widths=(128,))
    equation, starts = equation_of(victim), starts_of(victim)
    pairs = pairs_of(victim)
    for row in range(8):
        others = [*pairs[:row], *pairs[row + 1 :]]
        q, t = expected_pairs(equation, starts.of_last(others))
        ends = [end for pair in zip(q, t, strict=True) for end in polish(equation, *pair)]
        nearest = max(float(abs(end.q @ pairs[row].q)) for end in ends if end.is_example)
        assert nearest > 1 - 1e-9


def test_masks_say_where_the_missing_are(make_digits: Build) -> None:
    """One-bit measurements: of 256 units, for the 6 unknowns of each input that is found."""
    victim = make_digits(16, widths=(256,))
    equation, pairs = equation_of(victim), pairs_of(victim)
    found, missing = pairs[:10], np.array([pair.q for pair in pairs[10:]])
    before = np.linalg.norm(missing @ beside(found), axis=1)
    after = np.linalg.norm(missing @ leftover_space(equation, found, 1.0), axis=1)
    assert before.min() < 0.7
    assert after.min() > 0.97  # measured: 0.99


def test_of_very_many_that_are_missing_it_isnt_asked_where_they_are(
    make_digits: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A linear program for each that is found would cost more than all random starts."""
    asked: list[int] = []

    def leftover(equation: MaskEquation, found: list[Pair], kept: float) -> np.ndarray:
        asked.append(equation.size - len(found))
        return leftover_space(equation, found, kept)

    monkeypatch.setattr("attacks.masks.find.leftover_space", leftover)
    monkeypatch.setattr("attacks.masks.find.FRUITLESS", 4)
    monkeypatch.setattr("attacks.masks.find.MOST_MISSING", 24)
    found = pairs_of(make_digits(40, widths=(128,), sent_as="float64"))
    assert 0 < len(found) < 40
    assert max(asked, default=0) <= 24
