"""Soft label of one example by L-BFGS and particle swarms on one scalar: the paper as published.

Y. Wang, J. Liang, R. He, *Towards Eliminating Hard Label Constraints in Gradient Inversion
Attacks*, ICLR 2024, arXiv 2402.03124, section 4. One row `G_r` of `G = ∂L/∂W = (p − y) xᵀ` gives
the feature up to a scalar, `α_i = G_i / G_r`, and

    x = λ G_r,      p(λ) = softmax(W x + b),      ŷ(λ) = p(λ) − α / λ.

λ minimises the variance of the smallest K−1 (label smoothing) or K−2 (mixup) entries of ŷ(λ).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from attacks.answers import ExampleLabel, LabelRecovery, Status, known
from attacks.facts import Fact, LabelSmoothing, Mixup
from attacks.numerics.particle_swarm import particle_swarm
from attacks.types import GradientLeak, LabelAttack, NotApplicable
from attacks.victim.gradients import read_head
from attacks.victim.network import Network
from attacks.victim.require import require_one_example, require_values

AugmentationType = Literal["label-smoothing", "mixup"]

LOSS_FACTOR = 1000.0
"""The paper's code multiplies the variance by it, which matters to L-BFGS."""
LBFGS_RATE, LBFGS_BOUND, LBFGS_STEPS = 0.5, 100.0, 100
"""Learning rate; the |s| beyond which a descent is given up; its steps, of up to 20 iterations."""
FLAT = 1e-3
"""Spread of the last three losses, relative to their mean, below which the descent jumps ahead."""
FIRST_JUMP = 0.5
"""The first jump; each further one is twice as long."""
OVERLAP = 0.3
"""By how much a swarm's range begins before the end of the last."""


@dataclass(frozen=True)
class Setting:
    """What the paper's code sets by hand for each augmentation.

    Args:
        spared: the entries of the label that aren't tied.
        divisor: of the reference row, so that the scalar searched for is `s = divisor · λ`.
        edges: the ends of the swarms' consecutive ranges of |s|.
    """

    spared: int
    divisor: float
    edges: tuple[float, ...]


SETTINGS: dict[str, Setting] = {
    "label-smoothing": Setting(1, 4.0, (1, 6, 10, 30, 50)),
    "mixup": Setting(2, 2.0, (1, 6, 16, 66)),
}


@dataclass(frozen=True, eq=False)
class ScalarProblem:
    """Where the label is one scalar away: `s = divisor · λ`.

    Args:
        row: `G_r`, (D,), of the class r whose row has the largest |sum|.
        alpha: `G_i / G_r`, (K,), at the largest |entry| of `G_r`.
        weight: W, (K, D).
        bias: b, (K,), zero if there is none.
        setting: of the augmentation.
    """

    row: Tensor
    alpha: Tensor
    weight: Tensor
    bias: Tensor
    setting: Setting

    def features(self, scalars: Tensor) -> Tensor:
        """Return x for scalars (N,); (N, D)."""
        return scalars[:, None] / self.setting.divisor * self.row

    def labels(self, scalars: Tensor) -> Tensor:
        """Return ŷ for scalars (N,); (N, K)."""
        p = torch.softmax(self.features(scalars) @ self.weight.T + self.bias, dim=1)
        return p - self.alpha * self.setting.divisor / scalars[:, None]

    def loss(self, scalars: Tensor) -> Tensor:
        """Return the variance of the tied entries times `LOSS_FACTOR` for scalars (N,); (N,)."""
        labels = self.labels(scalars)
        tied = labels.shape[1] - self.setting.spared
        smallest = labels.topk(tied, dim=1, largest=False, sorted=False).values
        return smallest.var(dim=1, correction=0) * LOSS_FACTOR


@dataclass(frozen=True, order=True)
class Optimum:
    """The best scalar of a search, and its loss."""

    loss: float
    scalar: float


@dataclass(frozen=True)
class SoftLabelPSO(LabelAttack):
    """Search λ by L-BFGS, then by particle swarms; the paper's baseline for `soft-label`.

    The loss is assumed to be the cross-entropy, its gradient unscaled.

    Args:
        augmentation: "label-smoothing" (also for hard labels) or "mixup" (also if smoothed); None
            takes it from the leak's knowledge, and label smoothing without any.
        threshold: the loss (1000 times the variance) below which a scalar is accepted, above 0.
        particles: of a swarm, at least 1.
        iterations: of a swarm, at least 1.

    Raises:
        ValueError: an argument is out of its range.

    Note:
        `residual` is the loss over the threshold: **below 1 the answer is accepted.** The status
        of an accepted answer is NOT_IDENTIFIABLE all the same, never RECOVERED: the loss also falls
        as |λ| grows and has several zeros for few classes or a scaled gradient, so that this attack
        can't vouch for its answer. Where nothing is accepted, the status is NOT_CONVERGED and the
        label that of the least loss.

        Differences from the paper: its code accepts a scalar by comparing it with the true one, and
        stops with a failure where they differ; here the threshold decides alone. α is taken at the
        largest |entry| of `G_r`, and once: the code's loop over classes, at each evaluation, takes
        2 (K = 10) to 10 times (K = 100) as long. The swarms are pyswarms', with scikit-opt's
        parameters. float64 throughout, which recovers as much as the code's float32.
    """

    reach: ClassVar[str] = "one local step of one example"
    uses: ClassVar[tuple[type[Fact], ...]] = (LabelSmoothing, Mixup)
    augmentation: AugmentationType | None = None
    threshold: float = 1e-9
    particles: int = 500
    iterations: int = 40

    def __post_init__(self) -> None:
        known = get_args(AugmentationType)
        if self.augmentation is not None and self.augmentation not in known:
            rule = f"augmentation must be {' or '.join(known)} or None"
            raise ValueError(f"{rule}, found {self.augmentation!r}")
        if not 0 < self.threshold < math.inf:
            raise ValueError(f"threshold must be above 0 and finite, found {self.threshold}")
        for name in ("particles", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")

    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Run the first stage and, unless it accepts, the second."""
        require_one_example(leak)
        require_values(leak)
        problem = self.problem(leak)
        best = self.first_stage(problem)
        if best.loss == math.inf:
            raise NotApplicable("the loss isn't finite where the search starts")
        if best.loss >= self.threshold:
            best = min(best, self.second_stage(problem, generator))
        accepted = best.loss < self.threshold
        status = Status.NOT_IDENTIFIABLE if accepted else Status.NOT_CONVERGED
        reason = f"the least loss found, {best.loss:.2g}, isn't below {self.threshold:g}"
        if accepted:
            reason = "the loss is below its threshold, and may be at a wrong label too"
        scalar = torch.tensor([best.scalar], dtype=torch.float64)
        example = ExampleLabel(
            status,
            reason,
            label=problem.labels(scalar)[0],
            feature=problem.features(scalar)[0],
            residual=known(best.loss / self.threshold),
        )
        return LabelRecovery.of([example])

    def problem(self, leak: GradientLeak) -> ScalarProblem:
        """Reduce a leak to one row of the last layer's gradient.

        Raises:
            NotApplicable: that gradient is missing, not finite or zero, or the classes are so few
                that no two entries are tied.
        """
        network = Network.of(leak)
        gradient = read_head(leak, network)[0].double()
        setting = SETTINGS[self.augmentation or _known_augmentation(leak)]
        tied = len(gradient) - setting.spared
        if tied < 2:
            raise NotApplicable(f"{len(gradient)} classes leave {tied} tied entries, and two vary")
        row = gradient[gradient.sum(dim=1).abs().argmax()]
        column = row.abs().argmax()
        if row[column] == 0:
            raise NotApplicable("the last layer's gradient is zero in the reference row")
        weight = network.head.weight.detach().double()
        bias = weight.new_zeros(len(weight)) if network.head.bias is None else network.head.bias
        return ScalarProblem(
            row,
            gradient[:, column] / row[column],
            weight,
            bias.detach().double(),
            setting,
        )

    def first_stage(self, problem: ScalarProblem) -> Optimum:
        """Descend by L-BFGS from s = 1, then from s = −1; return the first accepted or the best."""
        best = self._descend(problem, 1)
        if best.loss < self.threshold:
            return best
        return min(best, self._descend(problem, -1))

    def second_stage(self, problem: ScalarProblem, generator: torch.Generator) -> Optimum:
        """Send swarms through ranges of growing |s|, positive then negative, in turn."""
        best = Optimum(math.inf, math.nan)
        for start, end in itertools.pairwise(problem.setting.edges):
            for low, high in ((start - OVERLAP, end), (-end - OVERLAP, -start)):
                scalar, loss = particle_swarm(
                    lambda scalars: problem.loss(torch.from_numpy(scalars)).numpy(),
                    low,
                    high,
                    particles=self.particles,
                    iterations=self.iterations,
                    generator=generator,
                )
                best = min(best, Optimum(loss, scalar))
                if loss < self.threshold:
                    return best
        return best

    def _descend(self, problem: ScalarProblem, sign: int) -> Optimum:
        """Descend from s = `sign`, jumping ahead where the loss is flat."""
        scalar = torch.tensor([float(sign)], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([scalar], lr=LBFGS_RATE)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = problem.loss(scalar).sum()
            torch.autograd.backward(loss)
            return loss

        best, recent, jump = Optimum(math.inf, math.nan), [0.0, 0.0, 0.0], FIRST_JUMP
        for _ in range(LBFGS_STEPS):
            loss = problem.loss(scalar.detach()).item()
            if not (loss < math.inf and abs(scalar.item()) <= LBFGS_BOUND):
                break
            best = min(best, Optimum(loss, scalar.item()))
            if loss < self.threshold:
                break
            recent = [*recent[1:], loss]
            if max(recent) - min(recent) < FLAT * sum(recent) / 3:
                with torch.no_grad():
                    scalar += sign * jump
                jump *= 2
                continue
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        return best


def _known_augmentation(leak: GradientLeak) -> str:
    return "mixup" if "mixup" in (leak.told.type or "") else "label-smoothing"
