"""Tests of the partitioners."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fl_sim.data.partition import split
from fl_sim.errors import UserError

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 40))


def partition(scheme: str, clients: int = 10, **options: Any) -> list[np.ndarray]:
    """Split `LABELS`, unless told other labels."""
    seed = options.pop("seed", 0)
    defaults = {"labels": LABELS, "alpha": 0.5, "classes": 2}
    arguments: dict[str, Any] = defaults | options
    labels = arguments.pop("labels")
    generator = np.random.default_rng(seed)
    return split(labels, clients, scheme=scheme, generator=generator, **arguments)


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("iid", {}),
        ("iid", {"clients": 7}),
        ("iid", {"clients": 400}),
        ("dirichlet", {}),
        ("dirichlet", {"alpha": 1e6}),
        ("dirichlet", {"alpha": 0.1, "clients": 3}),
        ("pathological", {}),
        ("pathological", {"classes": 10}),
        ("pathological", {"classes": 3, "clients": 7}),
    ],
)
def test_every_example_goes_to_exactly_one_client(scheme: str, options: dict[str, Any]) -> None:
    parts = partition(scheme, **options)
    assert len(parts) == options.get("clients", 10)
    assert all(len(part) and (np.diff(part) > 0).all() for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(LABELS)))


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "pathological"])
def test_the_generator_decides(scheme: str) -> None:
    first, again, other = (partition(scheme, seed=seed) for seed in (1, 1, 2))
    assert all(map(np.array_equal, first, again))
    assert not all(map(np.array_equal, first, other))


def test_iid_sizes_differ_by_at_most_one() -> None:
    sizes = [len(part) for part in partition("iid", 7)]
    assert max(sizes) - min(sizes) == 1


def largest_share(alpha: float) -> float:
    """Return the mean over clients of the largest class's share."""
    parts = partition("dirichlet", 4, alpha=alpha)
    return float(np.mean([np.bincount(LABELS[part]).max() / len(part) for part in parts]))


def test_dirichlet_alpha_goes_from_one_class_to_balance() -> None:
    assert largest_share(0.05) > largest_share(0.5) > largest_share(1000)
    # 400 examples of 10 classes: rounding moves each of a client's ten counts by at most 1
    assert largest_share(1e6) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("classes", [1, 2, 3, 10])
@pytest.mark.parametrize("clients", [1, 2, 7, 10])
def test_pathological_clients_hold_exactly_so_many_classes(clients: int, classes: int) -> None:
    parts = partition("pathological", clients, classes=classes)
    held = [set(LABELS[part]) for part in parts]
    assert [len(part) for part in held] == [classes] * clients
    assert len(set().union(*held)) == min(10, clients * classes)
    holders = [sum(label in part for part in held) for label in range(10)]
    assert max(holders) - min(holders) <= 1


def test_pathological_counts_the_classes_that_are_there() -> None:
    parts = partition("pathological", 2, labels=np.array([3, 3, 8, 8]), classes=2)
    assert [len(part) for part in parts] == [2, 2]


@pytest.mark.parametrize(
    ("scheme", "clients", "options", "message"),
    [
        ("iid", 401, {}, "number of training examples, 400, found 401"),
        ("iid", 0, {}, "from 1 to .* 400, found 0"),
        ("iid", 2, {"labels": LABELS[:, None]}, r"shape \(N,\), found \(400, 1\)"),
        ("by-luck", 2, {}, "scheme must be .* found 'by-luck'"),
        ("dirichlet", 2, {"alpha": 0.0}, r"alpha must be finite and above 0, found 0\.0"),
        ("dirichlet", 40, {"alpha": 1e-320}, "left a client without data"),
        ("dirichlet", 2, {"alpha": float("nan")}, "alpha must be .* found nan"),
        (
            "dirichlet",
            100,
            {"alpha": 0.01},
            r"alpha = 0\.01 left .* 10 draws \(400 examples, 100 clients\); take a larger alpha or",
        ),
        ("pathological", 2, {"classes": 11}, "number of classes, 10, found 11"),
        ("pathological", 2, {"classes": 0}, "from 1 to .* 10, found 0"),
        (
            "pathological",
            4,
            {"labels": np.array([0] * 5 + [1] * 2 + [5] * 4), "classes": 3},
            "4 clients and classes = 3 cuts class 1 into 4 shards, and it has 2 examples",
        ),
    ],
)
def test_refuses(scheme: str, clients: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        partition(scheme, clients, **options)
