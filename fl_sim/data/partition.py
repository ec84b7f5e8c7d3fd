"""Partitioners: which client holds which training examples."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fl_sim.errors import UserError

Indices = NDArray[np.int64]
DRAWS = 10
ALPHA = 0.5
"""Of `dirichlet`, where a scenario doesn't say."""
CLASSES = 2
"""Of `pathological`, likewise."""


def split(
    labels: NDArray[np.int64],
    clients: int,
    *,
    scheme: Literal["iid", "dirichlet", "pathological"],
    alpha: float,
    classes: int,
    generator: np.random.Generator,
) -> list[Indices]:
    """Split examples over clients.

    Args:
        labels: (N,) the examples' classes.
        clients: how many, from 1 to N.
        scheme: `iid`, `dirichlet` or `pathological`; see the functions of these names.
        alpha: of `dirichlet`, above 0.
        classes: of `pathological`, from 1 to K.
        generator: source of all draws.

    Returns:
        For each client its examples' indices into `labels`: ascending, never empty, disjoint.

    Raises:
        UserError: a number is out of range, or a client would be left without data.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> parts = split(np.arange(6) % 2, 3, scheme="iid", alpha=1, classes=1,
        ...               generator=generator)
        >>> [len(part) for part in parts]
        [2, 2, 2]
    """
    if labels.ndim != 1:
        raise UserError(f"labels must have shape (N,), found {labels.shape}")
    if not 1 <= clients <= len(labels):
        raise UserError(
            f"clients must be from 1 to the number of training examples, {len(labels)}, "
            f"found {clients}"
        )
    match scheme:
        case "iid":
            parts = iid(labels, clients, generator=generator)
        case "dirichlet":
            parts = dirichlet(labels, clients, alpha=alpha, generator=generator)
        case "pathological":
            parts = pathological(labels, clients, classes=classes, generator=generator)
        case _:
            raise UserError(
                f"scheme must be 'iid', 'dirichlet' or 'pathological', found {scheme!r}"
            )
    return [np.sort(part) for part in parts]


def iid(
    labels: NDArray[np.int64], clients: int, *, generator: np.random.Generator
) -> list[Indices]:
    """Deal all examples out at random; clients' numbers of examples differ by at most one."""
    return np.array_split(generator.permutation(len(labels)), clients)


def dirichlet(
    labels: NDArray[np.int64], clients: int, *, alpha: float, generator: np.random.Generator
) -> list[Indices]:
    """Divide each class over the clients in proportions drawn from Dirichlet(α, …, α).

    T. H. Hsu, H. Qi, M. Brown, "Measuring the effects of non-identical data distribution for
    federated visual classification", arXiv 1909.06335.

    Args:
        labels: (N,).
        clients: how many.
        alpha: above 0. Towards 0, each class is at one client; towards infinity, each client has
            an equal share of each class.
        generator: source of all draws.

    Raises:
        UserError: alpha is out of range, or each of 10 draws left a client without data.

    Note:
        The paper draws class proportions for each client. Drawing client proportions for each
        class instead, as is common, uses every example exactly once.
    """
    if not (np.isfinite(alpha) and alpha > 0):
        raise UserError(f"alpha must be finite and above 0, found {alpha}")
    for _ in range(DRAWS):
        parts: list[list[Indices]] = [[] for _ in range(clients)]
        for members in _by_class(labels, generator):
            shares = generator.dirichlet(np.full(clients, alpha))
            cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            for part, shard in zip(parts, np.split(members, cuts), strict=True):
                part.append(shard)
        joined = [np.concatenate(part) for part in parts]
        if all(len(part) for part in joined):
            return joined
    raise UserError(
        f"dirichlet with alpha = {alpha} left a client without data in each of {DRAWS} draws "
        f"({len(labels)} examples, {clients} clients); take a larger alpha or fewer clients"
    )


def pathological(
    labels: NDArray[np.int64], clients: int, *, classes: int, generator: np.random.Generator
) -> list[Indices]:
    """Give each client shards of exactly `classes` classes.

    B. McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
    AISTATS 2017, arXiv 1602.05629, section 3. Classes are dealt out as evenly as possible, and a
    class is cut into one equal shard for each client that holds it. With fewer than K shards in
    all, the classes left over belong to nobody.

    Args:
        labels: (N,).
        clients: how many.
        classes: that each client holds, from 1 to the number of classes in `labels`.
        generator: source of all draws.

    Raises:
        UserError: `classes` is out of range, or a class has fewer examples than clients that are to
            hold it.

    Note:
        The paper sorts all examples by class and cuts equal shards, some of which span two classes.
    """
    members = _by_class(labels, generator)
    if not 1 <= classes <= len(members):
        raise UserError(
            f"classes must be from 1 to the number of classes, {len(members)}, found {classes}"
        )
    holders: list[list[int]] = [[] for _ in members]
    for client in range(clients):
        # A random order, then a stable sort: the classes with the fewest holders, ties at random.
        order = generator.permutation(len(members))
        for index in sorted(order, key=lambda index: len(holders[index]))[:classes]:
            holders[index].append(client)
    parts: list[list[Indices]] = [[] for _ in range(clients)]
    for examples, held_by in zip(members, holders, strict=True):
        if len(examples) < len(held_by):
            raise UserError(
                f"pathological with {clients} clients and classes = {classes} cuts class "
                f"{labels[examples[0]]} into {len(held_by)} shards, and it has {len(examples)} "
                "examples; take fewer clients or classes"
            )
        if held_by:
            for client, shard in zip(held_by, np.array_split(examples, len(held_by)), strict=True):
                parts[client].append(shard)
    return [np.concatenate(part) for part in parts]


def _by_class(labels: NDArray[np.int64], generator: np.random.Generator) -> list[Indices]:
    """Return each present class's indices, in random order."""
    return [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
