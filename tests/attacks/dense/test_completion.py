"""What a defense left out of one example's gradient is found again, or nothing is claimed."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS, GradientLeak, Status
from attacks.dense.completion import complete_rank_one, completed
from attacks.facts import LostColumns, Pruned
from defenses import Place
from defenses.pruning import Pruning

sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzz import CHANGES, draw_pair
from test_false_claims import claims_of

Build = Callable[..., Any]


def pruned(leak: GradientLeak, sparsity: float, seed: int = 0, **options: Any) -> GradientLeak:
    """Return the leak of a client that prunes its update, to an attacker who knows."""
    draws = torch.Generator().manual_seed(seed)
    sent = Pruning(sparsity, **options).on_update(leak.gradients, Place(), draws)
    return dataclasses.replace(leak, gradients=sent, knowledge=(Pruned(),))


def attack(leak: GradientLeak) -> tuple[Any, Any]:
    labels = LABEL_ATTACKS.build("soft-label")(leak, generator=torch.Generator().manual_seed(0))
    images = IMAGE_ATTACKS.build("analytic")(
        leak, labels, generator=torch.Generator().manual_seed(0)
    )
    return labels, images


def test_a_matrix_of_rank_one_is_completed_from_a_tenth_of_it() -> None:
    draws = np.random.default_rng(0)
    whole = np.outer(draws.standard_normal(60), draws.standard_normal(80))
    part = np.where(draws.random(whole.shape) < 0.1, whole, 0.0)
    δ, a = complete_rank_one(part)
    rows, columns = part.any(axis=1), part.any(axis=0)
    assert np.linalg.norm(a) == pytest.approx(1)
    found = np.outer(δ, a)[np.ix_(rows, columns)]
    # alternating least squares on exact entries: to rounding
    np.testing.assert_allclose(found, whole[np.ix_(rows, columns)], rtol=1e-9)
    assert not a[~columns].any()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("sparsity", "options"),
    [(0.5, {}), (0.8, {}), (0.8, {"criterion": "random"}), (0.8, {"scope": "layer"})],
    ids=["half", "four fifths", "random", "by layer"],
)
def test_a_pruned_update_gives_label_and_image_all_the_same(
    bias: bool,
    sparsity: float,
    options: dict[str, Any],
    make_model: Build,
    make_label: Build,
    make_victim: Build,
) -> None:
    label = make_label(10, "label-smoothing", np.random.default_rng(0))
    victim = make_victim(make_model(10, bias=bias, hidden=64), label, seed=1)
    labels, images = attack(pruned(victim.leak, sparsity, **options))
    assert (labels.status, images.status) == (Status.RECOVERED, Status.RECOVERED)
    assert float((labels.labels - label).abs().max()) < 1e-4  # a float32 update at lr 0.1
    assert float((images.images - victim.image).abs().max()) < 1e-4
    blind, _ = attack(dataclasses.replace(pruned(victim.leak, 0.8), knowledge=()))
    assert blind.status is not Status.RECOVERED  # the knowledge is what does it


@pytest.mark.parametrize("lost", [0.4, 1.0])
def test_the_last_layer_may_be_lost_altogether(
    lost: float, make_model: Build, make_label: Build, make_victim: Build
) -> None:
    label = make_label(10, "mixup", np.random.default_rng(3))
    victim = make_victim(make_model(10, hidden=64), label, seed=2)
    gradients = dict(victim.leak.gradients)
    name = list(gradients)[-1]
    gradients[name] = gradients[name].clone()
    columns = int(lost * gradients[name].shape[1])
    order = gradients[name].abs().sum(dim=0).argsort(descending=True)
    gradients[name][:, order[:columns]] = 0
    leak = dataclasses.replace(victim.leak, gradients=gradients, knowledge=(LostColumns(),))
    labels, images = attack(leak)
    assert (labels.status, images.status) == (Status.RECOVERED, Status.RECOVERED)
    assert float((labels.labels - label).abs().max()) < 1e-4


def test_what_was_sent_stays_and_a_leak_that_lost_nothing_is_left_alone(
    make_model: Build, make_label: Build, make_victim: Build
) -> None:
    label = make_label(10, "hard", np.random.default_rng(0))
    leak = make_victim(make_model(10, hidden=64), label).leak
    assert completed(leak) is leak
    two = dataclasses.replace(pruned(leak, 0.8), batch_size=2)
    assert completed(two) is two
    part = pruned(leak, 0.8)
    whole = completed(part)
    assert completed(part) is whole
    for name, sent in part.gradients.items():
        assert torch.equal(whole.gradients[name][sent != 0], sent[sent != 0])
        # a float32 update at lr 0.1 rounds by some 1e-7 of weights that are a hundredfold larger
        atol = 1e-5 * float(sent.abs().max())
        torch.testing.assert_close(
            whole.gradients[name], leak.gradients[name], rtol=1e-3, atol=atol
        )


def claims_of_pruned(pairs: range, seed: int) -> Counter[str]:
    """Prune leaks that are whole and leaks that were changed otherwise, and count claims."""
    counts: Counter[str] = Counter()
    for index in pairs:
        for case in draw_pair("dense", index, seed):
            sparsity = (0.3, 0.6, 0.8, 0.9)[index % 4]
            leak = pruned(case.leak, sparsity, index, scope=("update", "layer")[index % 2])
            for answer in attack(leak):
                claimed, false = claims_of(answer, dataclasses.replace(case, leak=leak))
                kind = type(answer).__name__
                counts[f"{kind}s {'whole' if case.change == 'none' else 'changed'}"] += claimed
                counts[f"false {kind} {index} {case.change}"] += false
    return counts


def assert_honest(counts: Counter[str], least: int) -> None:
    false = {key: n for key, n in counts.items() if key.startswith("false") and n}
    assert not false
    assert counts["LabelRecoverys whole"] >= least
    assert counts["Reconstructions whole"] >= least


def test_nothing_false_is_claimed_of_a_pruned_update() -> None:
    assert_honest(claims_of_pruned(range(2 * len(CHANGES)), seed=21), least=5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nothing_false_is_claimed_of_a_thousand_pruned_updates() -> None:
    counts = claims_of_pruned(range(600), seed=22)
    print({key: n for key, n in counts.items() if not key.startswith("false")})
    assert_honest(counts, least=60)
