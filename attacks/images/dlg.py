"""Deep leakage from gradients: images, and labels if need be, by L-BFGS.

L. Zhu, Z. Liu, S. Han, *Deep Leakage from Gradients*, NeurIPS 2019, arXiv 1906.08935, algorithm 1:

    x*, y* = argmin ‖∇_w L(F(x, w), y) − ∇_w L‖²,      y = softmax of what is looked for.

Differences from the paper: the objective is relative to the gradient's size; starts are uniform
noise in [0, 1]; the search works in float64; several starts run together, each with its own
curvature; labels that a label attack recovered are taken as given (B. Zhao et al., *iDLG*, arXiv
2001.02610), soft ones too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from attacks.answers import LabelRecovery
from attacks.matching.attack import GradientMatching, Precision, Setup
from attacks.matching.objectives import SquaredDistance
from attacks.matching.optimisers import LBFGS, Optimiser
from attacks.matching.schedules import Constant, Schedule
from attacks.types import GradientLeak
from attacks.victim.differentiable import DifferentiableVictim


@dataclass(frozen=True)
class DLG(GradientMatching):
    """Match the gradient in squares, by L-BFGS without a line search.

    The loss is assumed to be the mean cross-entropy.

    Further arguments, and what an answer says: those of `GradientMatching`.

    Args:
        iterations: gradient evaluations of a start: the paper's 300 calls of PyTorch's L-BFGS are
            up to as many.
        memory: pairs of steps that L-BFGS keeps, at least 1.
        lr: length of its steps, above 0.

    Raises:
        ValueError: a value is out of its range.
    """

    reach: ClassVar[str] = "any network; small images, small batches"
    is_boxed: ClassVar[bool] = False
    iterations: int = 6000
    restarts: int = 4
    precision: Precision = "float64"
    memory: int = 100
    lr: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.memory >= 1:
            raise ValueError(f"memory must be at least 1, found {self.memory}")
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, found {self.lr}")

    def setup(
        self, leak: GradientLeak, labels: LabelRecovery, victim: DifferentiableVictim
    ) -> Setup:
        """Return the squared distance alone."""
        return Setup(SquaredDistance())

    @property
    def optimiser(self) -> Optimiser:
        """L-BFGS."""
        return LBFGS(self.memory)

    @property
    def schedule(self) -> Schedule:
        """One length."""
        return Constant(self.lr)
