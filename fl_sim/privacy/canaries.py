"""Clients that send random vectors, and what is found of these in what the server holds.

Andrew, Kairouz, Oh, Oprea, McMahan and Suriyakumar, *One-shot Empirical Privacy Estimation for
Federated Learning*, ICLR 2024, arXiv 2302.03098, algorithms 1 and 2: a canary sends a random unit
vector, scaled to the clipping norm. Its cosine with anything that it had no part in is N(0, 1/d).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from scipy.stats import binom
from torch import Tensor

from defenses import Privacy
from fl_sim.errors import UserError
from fl_sim.federation import Federation
from fl_sim.privacy.claims import claims_of
from fl_sim.privacy.gaussian import gaussian_epsilon
from fl_sim.seeds import torch_generator

CONFIDENCE = 0.95
Tensors = Mapping[str, Tensor]


def mu_bound(scores: Sequence[float], confidence: float = CONFIDENCE) -> float | None:
    """Return what μ is at least, from the scores of canaries that took part.

    A score is `√d cos`, N(0, 1) for a vector without a part. If half of those with one exceed m,
    the test "beyond m" has the rates Φ(−m) and 1/2, for which μ ≥ m. The bound is the largest order
    statistic that the median isn't below with the given confidence, whatever the scores'
    distribution.

    Args:
        scores: of k canaries.
        confidence: in (0, 1).

    Returns:
        μ, at least 0; None of fewer canaries than say anything (5 at 95 %).

    Example:
        >>> mu_bound([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
        2.0

    Note:
        Difference from the paper, which estimates ε from the scores' mean and variance: this is a
        bound [ours]. It takes canaries as independent of each other, as random vectors in many
        dimensions nearly are.
    """
    count = len(scores)
    rank = sum(binom.cdf(below, count, 0.5) <= 1 - confidence for below in range(count))
    return max(0.0, sorted(scores)[rank - 1]) if rank else None


def canary_update(federation: Federation, client: int, trained: Tensors) -> dict[str, Tensor]:
    """Return what a canary hands to its defenses in place of the update that it trained.

    It is as long as the largest update that the defenses let through, half of the claimed
    sensitivity; without a claim, as long as the trained one. Buffers stay as trained.

    Args:
        federation: the clients and their defenses.
        client: the canary.
        trained: its own update.
    """
    vector = canary_vector(federation, client)
    claims = _claims(federation, client)
    if claims:
        length = max(claim.sensitivity for claim in claims) / 2
    else:
        length = math.sqrt(sum(float(trained[name].square().sum()) for name in vector))
    return dict(trained) | {name: length * part.to(trained[name]) for name, part in vector.items()}


def canary_vector(federation: Federation, client: int) -> dict[str, Tensor]:
    """Return a canary's unit vector: trainable parameter -> float64; the same in all rounds."""
    model = federation.build_model()
    generator = torch_generator(federation.scenario.seed, "canary", client)
    drawn = {
        name: torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    norm = math.sqrt(sum(float(part.square().sum()) for part in drawn.values()))
    return {name: part / norm for name, part in drawn.items()}


def _claims(federation: Federation, client: int) -> tuple[Privacy, ...]:
    scenario, chain = federation.scenario, federation.defenses
    stages = [(s.name, d) for s, d in zip(scenario.defense, chain.stages, strict=True)]
    return claims_of(stages, federation.plan(client))


@dataclass(eq=False)
class CanaryScores:
    """Gathers the scores of a run's canaries, and bounds ε by them; without canaries, nothing.

    Three views: `updates`, each canary's own, as the server receives them, of all its rounds
    together; `round`, how the model changed in a round; `model`, how it changed since the start.

    Args:
        federation: the clients.
        sums: canary -> the sum of its own updates' scores, and their number, so far.

    Raises:
        UserError: the defenses claim their ε of an example, where there are canaries.
    """

    federation: Federation
    sums: dict[int, tuple[float, int]] = field(default_factory=dict)
    _present: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        canaries = self.federation.scenario.canaries
        claims = [claim for client in canaries for claim in _claims(self.federation, client)]
        if any(claim.unit == "example" for claim in claims):
            raise UserError(
                "audit.canaries send whole updates, and the defenses claim their ε of an example, "
                f"found {len(canaries)}: leave them out, and ask fl-sim audit-dp"
            )

    def take_update(self, client: int, difference: Tensors) -> None:
        """Take a canary's update as the server received it."""
        found, rounds = self.sums.get(client, (0.0, 0))
        vector = canary_vector(self.federation, client)
        self.sums[client] = (found + score(vector, difference), rounds + 1)
        self._present.add(client)

    def end_round(self, before: Tensors, after: Tensors) -> dict[str, float | None]:
        """Return a round's bounds, for its line in `rounds.jsonl`.

        Args:
            before: the global model before the round.
            after: the same after it.
        """
        if not self.federation.scenario.canaries:
            return {}
        present, self._present = self._present, set()
        initial = dict(self.federation.build_model().named_parameters())
        changes = {name: after[name].double() - before[name].double() for name in initial}
        total = {name: after[name].double() - start.detach() for name, start in initial.items()}
        views: dict[str, list[float]] = {"updates": [], "round": [], "model": []}
        for client, (found, rounds) in sorted(self.sums.items()):
            vector = canary_vector(self.federation, client)
            views["updates"].append(found / math.sqrt(rounds))
            views["model"].append(score(vector, total))
            if client in present:
                views["round"].append(score(vector, changes))
        if self.federation.scenario.server.secure_aggregation is not None:
            views["updates"] = []  # the server sees none of them
        return {key: value for view, s in views.items() for key, value in self._bounds(view, s)}

    def _bounds(self, view: str, scores: Sequence[float]) -> list[tuple[str, float | None]]:
        mu, delta = mu_bound(scores), self.federation.scenario.privacy.delta
        epsilon = None if mu is None else gaussian_epsilon(mu, delta)
        return [(f"canary_{view}_mu", mu), (f"canary_{view}_epsilon", epsilon)]

    def to_plain(self) -> dict[str, list[float]]:
        """Return what a run that goes on has to know."""
        return {str(client): list(pair) for client, pair in self.sums.items()}

    def restore(self, plain: Mapping[str, Sequence[float]]) -> None:
        """Take what `to_plain` returned."""
        self.sums = {int(client): (found, int(n)) for client, (found, n) in plain.items()}


def score(vector: Tensors, difference: Tensors) -> float:
    """Return `√d cos` of a unit vector and a difference of weights; 0 where nothing changed."""
    dot = sum(float((part * difference[name].double()).sum()) for name, part in vector.items())
    square = sum(float(difference[name].double().square().sum()) for name in vector)
    size = sum(part.numel() for part in vector.values())
    return math.sqrt(size) * dot / math.sqrt(square) if square > 0 else 0.0
