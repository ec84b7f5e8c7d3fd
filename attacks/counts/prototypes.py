"""The class mass that explains the last layer's gradient, by class prototypes of that gradient.

With a mass m on the simplex, N examples give on average `G = Σ_k m_k M_k`, where the prototype
`M_k = E[(p − e_k) xᵀ]` is the gradient that an example of class k leaves on average, and the
examples' own spread C around it is the noise, divided by N. G is compared with the prototypes along
the few directions of feature space that hold most of x, and m minimises

    N ‖C^(−1/2) (G − Σ_k m_k M_k)‖² + Σ_k (m_k − q_k)² / s_k²      over m ≥ floor, Σ_k m_k = 1,

a least-squares problem over the simplex, solved by non-negative least squares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.optimize import nnls

from attacks.victim.gradients import Array

Labels = NDArray[np.int64]

DIRECTIONS = 5
"""Directions of feature space that G is compared in; 3 and 20 did no better."""
RIDGE = 1e-3
"""Share of the mean variance that is added to every direction's."""
LEAST_SHARE = 0.2
"""A class's prior variance is at least that of this share of 1/K."""
NOISE_ROUNDS = 2
"""Times that the noise is raised to what the fit leaves unexplained."""


@dataclass(frozen=True, eq=False)
class Prior:
    """What is known of the mass beside the fit.

    Args:
        floor: (K,), at least 0, sum at most 1: what is there for certain.
        share: (K,), q, on the simplex.
        strength: s_k² = q_k / strength, above 0; 0 would be no prior.
    """

    floor: Array
    share: Array
    strength: float


@dataclass(frozen=True, eq=False)
class Prototypes:
    """Prototypes and target in coordinates where one example's spread is the identity.

    Args:
        classes: (T, K), the columns M_k.
        target: (T,), G.
    """

    classes: Array
    target: Array

    def fit(self, prior: Prior, examples: int, *, doubt: float) -> Array:
        """Return the mass (K,) on the simplex.

        Args:
            prior: the prior.
            examples: N.
            doubt: in [0, 1], how far misfit beyond the spread counts as noise: 0 not at all.
        """
        least = LEAST_SHARE / len(prior.share)
        tightness = np.sqrt(prior.strength / np.maximum(prior.share, least))
        noise = 1.0
        for _ in range(1 + NOISE_ROUNDS * (doubt > 0)):
            scale = np.sqrt(examples) / noise
            system, target = scale * self.classes, scale * self.target
            # The sum rule is a row that outweighs all others.
            heavy = 1e3 * max(float(np.linalg.norm(system)), float(tightness.max()))
            rows = np.vstack([system, heavy * np.ones_like(prior.share), np.diag(tightness)])
            values = np.concatenate(
                [
                    target - system @ prior.floor,
                    [heavy * (1 - prior.floor.sum())],
                    tightness * (prior.share - prior.floor),
                ]
            )
            extra, _ = nnls(rows, values, maxiter=100 * len(prior.share))
            mass = prior.floor + extra
            misfit = np.sqrt(examples * np.mean((self.classes @ mass - self.target) ** 2))
            noise = max(1.0, float(misfit)) ** doubt
        return np.asarray(mass / mass.sum())


def main_directions(x: Array) -> Array:
    """Return orthonormal columns (D, T) that hold most of the features x (M, D)."""
    _, _, directions = np.linalg.svd(x, full_matrices=False)
    return np.asarray(directions[:DIRECTIONS].T)


def prototypes(gradient: Array, z: Array, p: Array, labels: Labels | None) -> Prototypes:
    """Build the prototypes from examples that the attacker ran through the network.

    Args:
        gradient: (K, T), G along the main directions.
        z: (M, T), features along them.
        p: (M, K), probabilities.
        labels: (M,), the examples' classes, a class without examples takes all of them; None: every
            example stands for every class.
    """
    classes = len(gradient)
    means = []
    size = (classes - 1) * z.shape[1]
    covariance = np.zeros((size, size))
    for index, members in enumerate(members_of(labels, classes, len(z))):
        one = np.zeros(classes)
        one[index] = 1
        # The rows of G sum to 0: the last one tells nothing new.
        residual = (p[members] - one)[:, :-1]
        each = (residual[:, :, None] * z[members][:, None, :]).reshape(len(residual), -1)
        means.append(each.mean(axis=0))
        centred = each - means[-1]
        covariance += centred.T @ centred / (len(each) * classes)
    variance = float(np.trace(covariance)) / size
    mean_size = float(np.mean(np.square(means)))
    # Without any spread (one image, constant features) rounding is what is left.
    covariance = covariance + (RIDGE * variance + 1e-12 * mean_size) * np.eye(size)
    root = np.linalg.cholesky(covariance)
    target = gradient[:-1].ravel()
    columns = np.column_stack([*means, target])
    white = solve_triangular(root, columns, lower=True)
    return Prototypes(white[:, :-1], white[:, -1])


def members_of(labels: Labels | None, classes: int, count: int) -> Iterator[NDArray[np.intp]]:
    """Yield which of the images stand for each class: all, where there are none of it.

    Args:
        labels: (M,), their classes; None: every one stands for every class.
        classes: K.
        count: M.
    """
    everyone = np.arange(count)
    for k in range(classes):
        found = everyone if labels is None else np.flatnonzero(labels == k)
        yield found if len(found) else everyone
