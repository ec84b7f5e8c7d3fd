"""Inverting gradients: cosine distance and total variation, by signed Adam.

J. Geiping, H. Bauermeister, H. Dröge, M. Moeller, *Inverting Gradients: How easy is it to break
privacy in federated learning?*, NeurIPS 2020, arXiv 2003.14053, equation 4:

    x* = argmin over [0, 1]^n of  1 − ⟨∇L(x, y), g⟩ / (‖∇L(x, y)‖ ‖g‖) + μ TV(x).

Differences from the paper: labels may be soft, and free where no label attack has them; starts are
uniform noise; `signed = "soft"`, `decay = "cosine"` and `double_opponents` are later practice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from attacks.answers import LabelRecovery
from attacks.matching.attack import GradientMatching, Setup, require_one_of
from attacks.matching.objectives import CosineDistance, TotalVariation
from attacks.matching.optimisers import Adam, Optimiser, Signed
from attacks.matching.schedules import CosineDecay, Schedule, StepDecay
from attacks.types import GradientLeak
from attacks.victim.differentiable import DifferentiableVictim

Decay = Literal["steps", "cosine"]


@dataclass(frozen=True)
class InvertingGradients(GradientMatching):
    """Match the gradient's direction, and keep images smooth.

    The loss is assumed to be the mean cross-entropy.

    Further arguments, and what an answer says: those of `GradientMatching`.

    Args:
        iterations: gradient evaluations of a start; 24,000 in the paper.
        total_variation: μ, at least 0; the paper takes 1e-2 for untrained networks (in its units of
            normalised pixels) and 1e-3 for trained ones.
        lr: Adam's, above 0, at first.
        signed: "hard", Adam on the gradient's signs, as published, "soft" or "no".
        decay: "steps", a tenth at 3/8, 5/8 and 7/8 of the iterations, as published, or "cosine".
        double_opponents: whether total variation is of colour differences, too.

    Raises:
        ValueError: a value is out of its range.
    """

    reach: ClassVar[str] = "any network; small batches"
    total_variation: float = 1e-2
    lr: float = 0.1
    signed: Signed = "hard"
    decay: Decay = "steps"
    double_opponents: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.total_variation >= 0:
            raise ValueError(f"total_variation must be at least 0, found {self.total_variation}")
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, found {self.lr}")
        require_one_of("signed", self.signed, get_args(Signed))
        require_one_of("decay", self.decay, get_args(Decay))

    def setup(
        self, leak: GradientLeak, labels: LabelRecovery, victim: DifferentiableVictim
    ) -> Setup:
        """Return cosine distance and total variation."""
        smooth = TotalVariation(self.total_variation, self.double_opponents)
        return Setup(CosineDistance(), (smooth,))

    @property
    def optimiser(self) -> Optimiser:
        """Adam."""
        return Adam(self.signed)

    @property
    def schedule(self) -> Schedule:
        """Steps or cosine."""
        return StepDecay(self.lr) if self.decay == "steps" else CosineDecay(self.lr)
