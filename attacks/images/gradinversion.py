"""See through gradients: layers' distances with priors on images, and starts that agree.

H. Yin et al., *See through Gradients: Image Batch Recovery via GradInversion*, CVPR 2021, arXiv
2104.07586, equations 3 to 7: Σ_l ‖∇_l − g_l‖, total variation, squared norm, the statistics that
batch norm keeps, and the distance from the mean of all starts.

Differences from the paper: the gradient's distance is relative to its size, and priors are means
over pixels, so weights mean the same for all networks and images; the mean of the starts is taken
without registration; labels are whatever the label attack has, soft ones too. Batch norm that the
client ran in train mode is run so here, with the candidates' own statistics, which are compared
with those of the client's batch where the update tells them (`attacks.victim.batch_norm`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from attacks.answers import LabelRecovery
from attacks.matching.attack import GradientMatching, Setup, require_one_of
from attacks.matching.objectives import (
    BatchNormStatistics,
    GroupConsistency,
    LayerwiseDistance,
    Prior,
    SquaredNorm,
    TotalVariation,
)
from attacks.matching.optimisers import Adam, Optimiser
from attacks.matching.schedules import CosineDecay, Schedule
from attacks.types import GradientLeak, NotApplicable
from attacks.victim.batch_norm import Statistics, kept_statistics, statistics_of_batch
from attacks.victim.differentiable import DifferentiableVictim

Source = Literal["auto", "update", "model"]


@dataclass(frozen=True)
class GradInversion(GradientMatching):
    """Match every layer's gradient, with priors, from starts that pull together.

    The loss is assumed to be the mean cross-entropy.

    Further arguments, and what an answer says: those of `GradientMatching`.

    Args:
        iterations: gradient evaluations of a start; 20,000 in the paper.
        total_variation: weight, at least 0.
        squared_norm: weight, at least 0.
        batch_norm: weight of the statistics of batch norm layers, at least 0; 0.1 in the paper, for
            trained networks.
        statistics: whose those are: of the batch, as the "update" tells them in train mode; those
            that the "model" keeps of its training, as in the paper; or "auto", the batch's where
            they are told.
        group: weight of the distance from the mean of all starts, at least 0.
        lr: Adam's, above 0, at first.

    Raises:
        ValueError: a value is out of its range.
    """

    reach: ClassVar[str] = "any network; small batches"
    restarts: int = 4
    total_variation: float = 1e-2
    squared_norm: float = 1e-6
    batch_norm: float = 0.0
    statistics: Source = "auto"
    group: float = 1e-2
    lr: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("total_variation", "squared_norm", "batch_norm", "group"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, found {getattr(self, name)}")
        require_one_of("statistics", self.statistics, get_args(Source))
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, found {self.lr}")

    def setup(
        self, leak: GradientLeak, labels: LabelRecovery, victim: DifferentiableVictim
    ) -> Setup:
        """Return the distance and the priors.

        Raises:
            NotApplicable: statistics are asked for that neither the update nor the model tells.
        """
        priors: tuple[Prior, ...] = (
            TotalVariation(self.total_variation),
            SquaredNorm(self.squared_norm),
            GroupConsistency(self.group),
        )
        if not self.batch_norm:
            return Setup(LayerwiseDistance(), priors)
        statistics = self._statistics(leak)
        return Setup(
            LayerwiseDistance(),
            (*priors, BatchNormStatistics(self.batch_norm)),
            tuple(statistics),
            statistics=statistics,
        )

    def _statistics(self, leak: GradientLeak) -> Statistics:
        if self.statistics == "model":
            return kept_statistics(leak)
        try:
            return statistics_of_batch(leak)
        except NotApplicable:
            if self.statistics == "update":
                raise
            return kept_statistics(leak)

    @property
    def optimiser(self) -> Optimiser:
        """Adam."""
        return Adam("no")

    @property
    def schedule(self) -> Schedule:
        """Cosine."""
        return CosineDecay(self.lr)
