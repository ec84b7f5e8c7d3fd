"""The ε that a run has come to: that of the client of whom most is told."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from defenses.privacy import Privacy
from fl_sim.federation import Federation
from fl_sim.privacy.accountant import spent_epsilon
from fl_sim.privacy.claims import claims_of

Claims = tuple[Privacy, ...]


@dataclass(frozen=True, eq=False)
class PrivacySpending:
    """What every client's defenses claim, and who takes part when.

    It covers all that a client sends: the arrays, and how many examples it is to be weighed by. Its
    training loss it keeps to itself.

    Args:
        federation: clients and rounds.
        claims: for each client, those of its chain of defenses.
    """

    federation: Federation
    claims: Sequence[Claims]

    @classmethod
    def of(cls, federation: Federation) -> PrivacySpending:
        """Ask the defenses for their claims on each client's data.

        Raises:
            UserError: a claim isn't a possible one, or two can't be composed.
        """
        scenario, chain = federation.scenario, federation.defenses
        stages = [(s.name, d) for s, d in zip(scenario.defense, chain.stages, strict=True)]
        plans = map(federation.plan, range(scenario.data.clients))
        return cls(federation, [claims_of(stages, plan) for plan in plans])

    def rounds_within(self, target: float) -> int:
        """Return after how many rounds, at most all, no client's ε is beyond a target."""
        rounds = range(1, self.federation.scenario.rounds + 1)
        return bisect_right(rounds, target, key=lambda r: self._epsilon_or_inf(r))

    def _epsilon_or_inf(self, server_round: int) -> float:
        found = self.epsilon(server_round)
        return math.inf if found is None else found

    def epsilon(self, server_round: int) -> float | None:
        """Return the largest ε of any client after a round; None without a guarantee for all."""
        if not all(self.claims):
            return None
        delta = self.federation.scenario.privacy.delta
        found = []
        for claims, rounds in _worst(self._rounds_by_claims(server_round)):
            bounds = [spent_epsilon(claim, rounds, delta=delta) for claim in claims]
            finite = [bound for bound in bounds if bound is not None]
            if not finite:
                return None
            found.append(min(finite))
        return max(found)

    def _rounds_by_claims(self, server_round: int) -> dict[Claims, int]:
        """Return claims -> the most rounds that a client with them took part in."""
        taken = [0] * len(self.claims)
        for past in range(1, server_round + 1):
            for client in self.federation.sampled_clients(past):
                taken[client] += 1
        most: dict[Claims, int] = {}
        for claims, rounds in zip(self.claims, taken, strict=True):
            most[claims] = max(rounds, most.get(claims, 0))
        return most


def _worst(rounds: Mapping[Claims, int]) -> list[tuple[Claims, int]]:
    """Leave out whoever tells no more than another in any respect: ε grows with each."""
    told = {claims: _told(claims, count) for claims, count in rounds.items()}
    return [
        (claims, rounds[claims])
        for claims, own in told.items()
        if not any(own != other and _is_within(own, other) for other in told.values())
    ]


def _told(claims: Claims, rounds: int) -> list[float]:
    """Return Δ/σ, q and T of each claim."""
    numbers = []
    for claim in claims:
        ratio = claim.sensitivity / claim.noise if claim.noise else float("inf")
        numbers += [ratio, claim.sampling, rounds * claim.releases]
    return numbers


def _is_within(own: Sequence[float], other: Sequence[float]) -> bool:
    return len(own) == len(other) and all(a <= b for a, b in zip(own, other, strict=True))
