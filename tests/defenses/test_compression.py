"""What is left out of an update or rounded, against independent evaluations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks.facts import Pruned, Quantized, SignsOnly
from defenses import Place, WithState
from defenses.pruning import Pruning, prune
from defenses.quantization import Quantization, quantize
from defenses.sign import Sign, scaled_sign


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_update() -> dict[str, Tensor]:
    draws = generator(4)
    return {
        "a": torch.randn(30, 20, generator=draws, dtype=torch.float64),
        "b": 10 * torch.randn(20, generator=draws, dtype=torch.float64),
    }


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.8, 0.99])
def test_magnitude_pruning_keeps_the_largest_of_all(sparsity: float) -> None:
    update = make_update()
    sent = Pruning(sparsity).on_update(update, Place(), generator())
    assert not isinstance(sent, WithState)
    flat = np.concatenate([part.numpy().ravel() for part in update.values()])
    order = np.argsort(np.abs(flat))[: int(sparsity * len(flat))]
    flat[order] = 0
    assert np.array_equal(np.concatenate([sent[n].numpy().ravel() for n in update]), flat)
    assert Pruning(sparsity).facts() == (Pruned(),)


def test_pruning_by_layer_takes_its_share_of_each() -> None:
    sent = Pruning(0.5, scope="layer").on_update(make_update(), Place(), generator())
    assert not isinstance(sent, WithState)
    assert [int((part == 0).sum()) for part in sent.values()] == [300, 10]


def test_random_pruning_differs_from_draw_to_draw_and_keeps_its_share() -> None:
    update, defense = make_update(), Pruning(0.75, criterion="random")
    one, two = (defense.on_update(update, Place(), generator(seed)) for seed in (0, 1))
    assert not isinstance(one, WithState)
    assert not isinstance(two, WithState)
    assert sum(int((part == 0).sum()) for part in one.values()) == int(0.75 * 620)
    assert not torch.equal(one["a"], two["a"])
    kept = one["a"] != 0
    assert torch.equal(one["a"][kept], update["a"][kept])


def test_equal_scores_are_pruned_from_the_first() -> None:
    part = {"w": torch.ones(4)}
    assert prune(part, part, 0.5, "update")["w"].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "defense",
    [
        Pruning(0.9, error_feedback=True),
        Quantization(2, error_feedback=True),
        Sign(error_feedback=True),
    ],
    ids=["pruning", "quantization", "sign"],
)
def test_error_feedback_sends_in_all_what_was_to_be_sent(
    defense: Pruning | Quantization | Sign,
) -> None:
    place, total, wanted = Place(), 0.0, 0.0
    for server_round in range(1, 6):
        update = {"w": torch.randn(50, generator=generator(server_round), dtype=torch.float64)}
        result = defense.on_update(update, place, generator(server_round))
        assert isinstance(result, WithState)
        total, wanted = total + result.gradients["w"], wanted + update["w"]
        place = Place(server_round + 1, state=result.state)
    # sums of five float64 numbers
    torch.testing.assert_close(total + place.state["w"], wanted, rtol=0, atol=1e-14)
    assert float(place.state["w"].abs().max()) > 0.1  # something was held back


def test_quantization_is_a_level_next_to_the_entry_and_right_on_average() -> None:
    v = torch.tensor([0.3, -1.0, 0.0, 2.0, -0.05], dtype=torch.float64)
    step = float(v.norm()) / 4
    seen = torch.stack(
        [
            quantize(v, 4, torch.rand(5, generator=generator(seed), dtype=torch.float64))
            for seed in range(4000)
        ]
    )
    levels = seen / step
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-12)
    assert float((seen - v).abs().max()) < step
    # five standard deviations of a mean of 4,000 draws with a spread of at most half a step
    assert float((seen.mean(dim=0) - v).abs().max()) < 5 * 0.5 * step / math.sqrt(4000)
    assert torch.equal(quantize(torch.zeros(3), 4, torch.zeros(3)), torch.zeros(3))
    assert Quantization(4).facts() == (Quantized(4),)


def test_quantization_takes_each_tensors_own_norm() -> None:
    sent = Quantization(1).on_update(make_update(), Place(), generator())
    assert not isinstance(sent, WithState)
    for name, part in make_update().items():
        values = set(sent[name].unique().tolist())
        assert values <= {-float(part.norm()), 0.0, float(part.norm())}


def test_sign_keeps_signs_and_the_mean_size() -> None:
    update = make_update()
    sent = Sign().on_update(update, Place(), generator())
    assert not isinstance(sent, WithState)
    for name, part in update.items():
        assert torch.equal(sent[name].sign(), part.sign())
        assert sent[name].abs().unique().tolist() == pytest.approx([float(part.abs().mean())])
    assert scaled_sign(torch.zeros(0)).numel() == 0
    assert scaled_sign(torch.tensor([0.0, 4.0])).tolist() == [0.0, 2.0]
    assert Sign().facts() == (SignsOnly(),)
