"""The real-valued class mass `Σ_b y_b` of a batch, or of an update over several local steps.

[ours] Goes on from the identities of one layer, `Σ_b (p_b − y_b) = N ∂L/∂b` and
`Σ_b (p_b − y_b) x_bᵀ = N ∂L/∂W`. What an example of class k leaves in these on average follows from
images that the attacker runs through the network, and the mass is what mixes these prototypes into
the gradient that was seen (`attacks.counts.prototypes`). It stays real: soft labels aren't counts.

*Images*: labelled auxiliary ones, if the attacker has any; else random noise, each of which stands
for every class. Noise isn't what the clients hold, but the gradient itself tells the mean feature
of the batch, `x̄ = ∂L/∂Wᵀ g / ‖g‖²` with g = ∂L/∂b, or without a bias the direction of x̄, by the
leading singular vector: the noise's features are moved there.

*Several steps*: an example's share in the gradient is that of its own step. The training is
repeated on the attacker's images, which follows from the mass (`attacks.counts.training`), and the
mass from what the images leave then: both in turn, until the mass stays.

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

from attacks.answers import LabelRecovery
from attacks.counts.head_gradient import DUMMIES, Auxiliary, HeadGradient, as_auxiliary
from attacks.counts.prototypes import Labels, Prior, Prototypes, main_directions, prototypes
from attacks.counts.training import HeadTraining
from attacks.types import GradientLeak, LabelAttack
from attacks.victim.gradients import Array

REPEATS, STEADY = 20, 1e-3
"""Times that several steps are repeated, at most; total variation of a mass that stays."""
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
        if self.auxiliary is None:
            images = torch.rand(self.dummies, *leak.input_shape, generator=generator)
            labels = None
        else:
            self.auxiliary.require_fit(leak, len(head.gradient))
            images, labels = self.auxiliary.images, self.auxiliary.labels.numpy()
        mass = mass_of_steps(head, HeadTraining.of(head, images, labels))
        source = "noise images" if labels is None else "the auxiliary images"
        return head.answer(
            mass,
            f"{source} stand for the client's, features aren't negative",
        )


def mass_of_steps(head: HeadGradient, training: HeadTraining) -> Array:
    """Return the mass (K,) on the simplex that the training on it leaves the gradient of."""
    if training.labels is None:
        mean, length = mean_feature(head, training.features)
        training = training.moved(mean - training.features.mean(axis=0))
    gradient, x, classes = head.gradient, training.features, training.classes
    if head.bias_gradient is not None:
        gradient = np.column_stack([gradient, head.bias_gradient])
        x = np.column_stack([x, np.ones(len(x))])
    basis = main_directions(x)
    gradient, z = gradient @ basis, x @ basis
    mass = np.full(len(head.gradient), 1 / len(head.gradient))
    for _ in range(REPEATS):
        p = training.probabilities(mass)
        trained = trainedness(head, p, length) if classes is None else skill(p, classes)
        seen = prototypes(gradient, z, p, classes)
        last, mass = mass, fit_mass(head, seen, trained, are_known=classes is not None)
        if training.steps == 1 or np.abs(mass - last).sum() / 2 < STEADY:
            break
    return mass


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


def skill(p: Array, labels: Labels) -> float:
    """Return how far the network is trained, in [0, 1], by its probabilities of the true classes.

    Args:
        p: (M, K), probabilities on labelled images.
        labels: (M,), their classes.
    """
    classes = p.shape[1]
    own = float(p[np.arange(len(p)), labels].mean())
    return float(np.clip((own - 1 / classes) / (1 - 1 / classes) / SKILLED, 0, 1))


def fit_mass(head: HeadGradient, seen: Prototypes, trained: float, *, are_known: bool) -> Array:
    """Return the mass (K,) on the simplex.

    Args:
        head: the gradient.
        seen: what each class leaves in it.
        trained: how far the network is, in [0, 1].
        are_known: whether labelled images stand behind that, rather than noise.
    """
    examples = head.drawn or ASSUMED * head.leak.local_steps
    classes = len(head.gradient)
    negative = np.maximum(-head.row_sums, 0)
    # A negative row is that of a class that is there, with one example at least if labels are hard.
    # An untrained network's fit needs no such help, and would lose the small shares of soft labels.
    floor = np.where(negative > 0, trained / examples, 0.0)
    floor /= max(1.0, float(floor.sum()))
    signs = negative / negative.sum() if negative.any() else np.full(classes, 1 / classes)
    prior = Prior(floor, 0.5 * signs + 0.5 / classes, 10 ** (2 * trained - 1))
    mass = seen.fit(prior, examples, doubt=trained)
    by_sign = np.maximum(SHARE_OF_SIGNS * signs + (1 - SHARE_OF_SIGNS) / classes, floor)
    # Auxiliary images say something of a trained network, noise doesn't.
    weight = trained * (0.5 if are_known else 1.0)
    return np.asarray((1 - weight) * mass + weight * by_sign / by_sign.sum())
