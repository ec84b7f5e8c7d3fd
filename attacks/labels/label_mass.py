"""The real-valued class mass `Σ_b y_b` of a batch, or of an update over several local steps.

[ours] Goes on from the identities of one layer, `Σ_b (p_b − y_b) = N ∂L/∂b` and
`Σ_b (p_b − y_b) x_bᵀ = N ∂L/∂W`. What an example of class k leaves in these on average follows from
images that the attacker runs through the network, and the mass is what mixes these prototypes into
the gradient that was seen (`attacks.counts.prototypes`). It stays real: soft labels aren't counts.

*Images*: labelled auxiliary ones, if the attacker has any; else random noise, each of which stands
for every class. Noise isn't what the clients hold, but the gradient itself tells the mean feature
of the batch, `x̄ = ∂L/∂Wᵀ g / ‖g‖²` with g = ∂L/∂b, or without a bias the direction of x̄, by the
leading singular vector: the noise's features are moved there.

*Several steps*: the weights at the end are known as well as those at the start. Features and
probabilities are taken at points along the straight line between them.

*Trained networks* leave small gradients, of which the noise's prototypes know nothing. How far the
network is trained shows on auxiliary images at once; without any, it shows in the gradient: an
untrained network predicts classes unequally, whatever they are, and its mean prediction is far from
the mean label, by `Σ_k max(−g_k, 0)`; training brings both together. The further it got, the more
the answer leans on the signs and sizes of rows, which is what LLG counts, pulled towards equal
shares.

*Without a bias* the features' length isn't in the gradient; it comes from the attacker's images.
Where lengths differ much from image to image, the mass is off by as much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from attacks.answers import LabelRecovery
from attacks.counts.head_gradient import DUMMIES, Auxiliary, HeadGradient, as_auxiliary
from attacks.counts.prototypes import Prior, prototypes
from attacks.numerics.softmax import softmax
from attacks.types import GradientLeak, LabelAttack
from attacks.victim.gradients import Array

PATH_POINTS = 3
"""Points along the path of several steps."""
ASSUMED = 32
"""Examples in one step where the batch size is unknown: only weighs the fit against its prior."""
UNTRAINED, TRAINED = 0.5, 0.25
"""Distance of mean prediction and mean label, relative to that of mean prediction and equal shares:
0.45 and more in untrained networks, mostly 0.03 to 0.35 at an accuracy of 90 %."""
SKILLED = 2 / 3
"""Mean probability of the true class, beyond chance, from which on a network counts as trained."""
SHARE_OF_SIGNS = 0.6
"""How far negative rows decide, rather than equal shares, where the network is trained."""


@dataclass(frozen=True)
class LabelMass(LabelAttack):
    """Recover the class mass, unrounded.

    The loss is assumed to be the mean cross-entropy.

    The mass sums to the examples of all steps, an example counted at each use, and to 1 where B is
    unknown. In a smaller last batch an example weighs more than in others, which the mass takes
    over; the reason says how much. Nothing vouches for the mass: the status is NOT_IDENTIFIABLE,
    and the reason says what was assumed.

    Args:
        auxiliary: labelled images like the clients', or the path of an `.npz` file with `images`
            (M, C, H, W) and `labels` (M,); None: noise instead.
        dummies: random images in place of auxiliary ones, at least 2.

    Raises:
        ValueError: dummies is below 2 or stands beside auxiliary images, or the file can't be read.
    """

    reach: ClassVar[str] = (
        "batches and several local steps, of any network that ends in a linear layer"
    )
    auxiliary: Auxiliary | None = None
    dummies: int = DUMMIES

    def __post_init__(self) -> None:
        if self.dummies < 2:
            raise ValueError(f"dummies must be at least 2, found {self.dummies}")
        object.__setattr__(self, "auxiliary", as_auxiliary(self.auxiliary))
        if self.auxiliary is not None and self.dummies != DUMMIES:
            raise ValueError(
                "dummies must be left out where auxiliary images take their place, "
                f"found {self.dummies}"
            )

    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Probe the network along the path, and fit the mass."""
        head = HeadGradient.of(leak)
        head.require_same_statistics()
        classes = len(head.gradient)
        if self.auxiliary is None:
            images = torch.rand(self.dummies, *leak.input_shape, generator=generator)
            labels = None
        else:
            self.auxiliary.require_fit(leak, classes)
            images, labels = self.auxiliary.images, self.auxiliary.labels.numpy()
        x, p, points = probe_path(head, images)
        if labels is None:
            mean, scale = mean_feature(head, x)
            x = x + (mean - x.mean(axis=0))
            p = softmax(x @ head.weights.T + head.biases)
            trained = trainedness(head, p, scale)
        else:
            labels = np.tile(labels, points)
            trained = skill(p, labels)
        mass = fit_mass(head, x, p, labels, trained)
        source = "noise images" if labels is None else "the auxiliary images"
        return head.answer(
            mass,
            f"{source} stand for the client's, features aren't negative",
        )


def probe_path(head: HeadGradient, images: Tensor) -> tuple[Array, Array, int]:
    """Return features (P·M, D) and probabilities (P·M, K) at P points between start and end.

    The points are the weights of up to three of the local steps, if these lay on a straight line.
    Without a learning rate the end is unknown, and the start stands for all.
    """
    leak = head.leak
    if leak.local_steps == 1 or leak.lr is None:
        return *head.probe(images), 1
    count = min(leak.local_steps, PATH_POINTS)
    found = []
    for fraction in np.linspace(0, 1 - 1 / leak.local_steps, count):
        weights = {name: p.detach() for name, p in head.network.module.named_parameters()}
        for name, gradient in leak.gradients.items():
            moved = weights[name].double() - float(fraction) * leak.lr * gradient.double()
            weights[name] = moved.to(weights[name].dtype)
        found.append(head.probe(images, parameters=weights))
    x, p = (np.concatenate(part) for part in zip(*found, strict=True))
    return x, p, count


def mean_feature(head: HeadGradient, x: Array) -> tuple[Array, float]:
    """Return the batch's mean feature (D,), as far as the gradient tells it, and its length.

    Args:
        head: the gradient.
        x: (M, D), features that give the length where there is no bias.
    """
    g = head.bias_gradient
    if g is not None and g.any():
        mean = head.gradient.T @ g / (g @ g)
        return mean, float(np.linalg.norm(mean))
    _, _, directions = np.linalg.svd(head.gradient, full_matrices=False)
    along = float(x.mean(axis=0) @ directions[0])
    return along * directions[0], abs(along)


def trainedness(head: HeadGradient, p: Array, scale: float) -> float:
    """Return how far the network is trained on data such as the client's, in [0, 1].

    Args:
        head: the gradient.
        p: (M, K), probabilities near the batch's mean feature.
        scale: length of that feature, by which G is divided where there is no bias.
    """
    residual = head.bias_gradient
    if residual is None:
        left, values, right = np.linalg.svd(head.gradient, full_matrices=False)
        sign = 1 if right[0].sum() >= 0 else -1
        residual = sign * left[:, 0] * values[0] / max(scale, np.finfo(float).tiny)
    from_label = float(np.maximum(-residual, 0).sum())
    from_equal = float(np.abs(p.mean(axis=0) - 1 / p.shape[1]).sum()) / 2
    ratio = from_label / max(from_equal, np.finfo(float).tiny)
    return float(np.clip((UNTRAINED - ratio) / (UNTRAINED - TRAINED), 0, 1))


def skill(p: Array, labels: Array) -> float:
    """Return how far the network is trained, in [0, 1], by its probabilities of the true classes.

    Args:
        p: (M, K), probabilities on labelled images.
        labels: (M,), their classes.
    """
    classes = p.shape[1]
    own = float(p[np.arange(len(p)), labels].mean())
    return float(np.clip((own - 1 / classes) / (1 - 1 / classes) / SKILLED, 0, 1))


def fit_mass(head: HeadGradient, x: Array, p: Array, labels: Array | None, trained: float) -> Array:
    """Return the mass (K,) on the simplex.

    Args:
        head: the gradient.
        x: (M, D), the probes' features.
        p: (M, K), their probabilities.
        labels: (M,), their classes; None: noise.
        trained: how far the network is, in [0, 1].
    """
    gradient = head.gradient
    if head.bias_gradient is not None:
        gradient = np.column_stack([gradient, head.bias_gradient])
        x = np.column_stack([x, np.ones(len(x))])
    examples = head.drawn or ASSUMED * head.leak.local_steps
    classes = len(gradient)
    negative = np.maximum(-head.row_sums, 0)
    # A negative row is that of a class that is there, with one example at least if labels are hard.
    # An untrained network's fit needs no such help, and would lose the small shares of soft labels.
    floor = np.where(negative > 0, trained / examples, 0.0)
    floor /= max(1.0, float(floor.sum()))
    signs = negative / negative.sum() if negative.any() else np.full(classes, 1 / classes)
    prior = Prior(floor, 0.5 * signs + 0.5 / classes, 10 ** (2 * trained - 1))
    mass = prototypes(gradient, x, p, labels).fit(prior, examples, doubt=trained)
    by_sign = np.maximum(SHARE_OF_SIGNS * signs + (1 - SHARE_OF_SIGNS) / classes, floor)
    # Auxiliary images say something of a trained network, noise doesn't.
    weight = trained * (1.0 if labels is None else 0.5)
    return np.asarray((1 - weight) * mass + weight * by_sign / by_sign.sum())
