"""Does a defense's noise keep its promise? A lower bound beside the claim, from its own draws."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defenses import Defense, Privacy
from defenses.base import NOTHING
from fl_sim.errors import UserError
from fl_sim.privacy.accountant import spent_epsilon
from fl_sim.privacy.claims import claims_of
from fl_sim.privacy.evidence import Rates, thresholds, visible_from
from fl_sim.privacy.neighbours import PLANS, AuditedClient, neighbours

Values = NDArray[np.float64]
OnDraw = Callable[[int, int], None]
DRAWS, LEAST_DRAWS, CONFIDENCE = 10_000, 100, 0.99
ROUNDS = 16
"""Consecutive rounds of one client, in which no noise may come back."""
NOTICED = 0.1
"""Share of draws in which a coordinate has to leave without noise to be counted."""
_RIDGE = 1e-12


@dataclass(frozen=True)
class MechanismAudit:
    """What draws of a mechanism say about its claim.

    Args:
        claim: of one step that takes all examples.
        delta: δ of ε.
        confidence: with which each of the bounds holds.
        draws: of either data set; half of them are counted.
        claimed_mu: μ, the claimed shift over the claimed noise.
        mu: what μ is at least, if the noise is normal.
        visible_mu: the μ from which this many draws show that it isn't the claimed one.
        claimed_epsilon: ε at δ in nats, by the accountant.
        mu_epsilon: what ε is at least, if the noise is normal.
        epsilon: what ε is at least, whatever the noise.
        coordinates: d, numbers that leave in a release.
        bare: coordinates that left without noise, and tell the data sets apart.
        repeated: releases that came back bit for bit, under another draw of the noise.
        repeated_rounds: the same in consecutive rounds of one client, of 16.
    """

    claim: Privacy
    delta: float
    confidence: float
    draws: int
    claimed_mu: float
    mu: float
    visible_mu: float
    claimed_epsilon: float
    mu_epsilon: float
    epsilon: float
    coordinates: int
    bare: int
    repeated: int
    repeated_rounds: int

    @property
    def findings(self) -> tuple[str, ...]:
        """What breaks the promise, a sentence each."""
        found = []
        if self.bare:
            found.append(f"{self.bare} of {self.coordinates} coordinates leave without noise")
        if self.repeated:
            found.append(
                f"{self.repeated} of {2 * self.draws} releases repeat another bit for bit: their "
                "noise is drawn once and used again, or there is none"
            )
        elif self.repeated_rounds:
            found.append(
                f"{self.repeated_rounds} of {ROUNDS} rounds of a client repeat another bit for "
                "bit: their noise is used again"
            )
        if self.mu > self.claimed_mu:
            found.append(f"μ is at least {self.mu:.3g}, and {self.claimed_mu:.3g} is claimed")
        if self.epsilon > self.claimed_epsilon:
            found.append(
                f"ε is at least {self.epsilon:.3g} whatever the noise, and "
                f"{self.claimed_epsilon:.3g} is claimed"
            )
        return tuple(found)

    @property
    def holds(self) -> bool:
        """Whether nothing breaks the promise, as far as these draws show."""
        return not self.findings


def audit_mechanism(
    name: str,
    defense: Defense,
    *,
    delta: float = 1e-5,
    draws: int = DRAWS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    on_draw: OnDraw | None = None,
) -> MechanismAudit:
    """Draw what a defense lets out of two neighbouring data sets, and try to tell them apart.

    A client takes one step on a small network, behind the defense's own `on_gradient` and
    `on_update`; all examples take part, so that no sampling hides anything. Both data sets'
    gradients are far longer than any clipping norm: unclipped values, and noise that is clipped
    afterwards, show. A quarter of the draws finds the direction in which the releases differ most
    (Fisher's linear discriminant, or that of the gradients), another one which of both and which
    threshold, the other half is counted, by Clopper and Pearson.

    Args:
        name: of the defense, for errors.
        defense: the mechanism.
        delta: δ, in (0, 1).
        draws: of either data set, at least 100.
        confidence: of each bound, in (0, 1).
        seed: of all draws.
        on_draw: called with (draws done, all draws).

    Raises:
        UserError: an argument is out of its range; the defense guarantees nothing, can't be run or
            doesn't fit the network.

    Note:
        [ours] It looks at the draws of one step's release under two pairs of data; that it finds
        nothing proves nothing.
    """
    if draws < LEAST_DRAWS:
        raise UserError(f"draws must be at least {LEAST_DRAWS}, found {draws}")
    if not 0 < confidence < 1:
        raise UserError(f"confidence must be above 0 and below 1, found {confidence}")
    claim = _claim(name, defense)
    claimed_epsilon = spent_epsilon(claim, 1, delta=delta)
    if claimed_epsilon is None:
        raise UserError(
            f"defense {name!r} claims no finite ε (no guarantee): there is no promise to audit"
        )
    first, second = neighbours(defense, claim, seed=seed)
    samples = [np.empty((draws, len(first.release(0).values))) for _ in range(2)]
    for index in range(draws):
        for sample, client in zip(samples, (first, second), strict=True):
            sample[index] = client.release(index).values
        if on_draw is not None:
            on_draw(index + 1, draws)
    if not all(np.isfinite(sample).all() for sample in samples):
        raise UserError(f"defense {name!r} must release finite numbers, found others")
    mu_rates, rates = _rates(samples, second.last_gradient, claim, delta, confidence)
    mu = mu_rates.mu(claim.sampling)
    root = math.sqrt(claim.releases)
    claimed_mu = root * claim.sensitivity / claim.noise
    shown = dataclasses.replace(claim, sensitivity=max(mu, 1e-9) / root, noise=1.0)
    return MechanismAudit(
        claim,
        delta,
        confidence,
        draws,
        claimed_mu,
        mu,
        visible_from(claimed_mu, draws - draws // 2, confidence),
        claimed_epsilon,
        spent_epsilon(shown, 1, delta=delta) or 0.0,
        rates.epsilon(delta),
        samples[0].shape[1],
        _bare(*samples),
        sum(_repeated(mine, other) for mine, other in (samples, samples[::-1])),
        _repeated_rounds(first),
    )


def _claim(name: str, defense: Defense) -> Privacy:
    """Return a defense's claim, of the plan that belongs to its unit.

    Raises:
        UserError: it claims nothing, or what can't be.
    """
    for unit, plan in PLANS.items():
        claims = claims_of([(name, defense)], plan)
        if not claims:
            break
        if claims[0].unit == unit:
            if claims[0].sampling == 0:
                raise UserError(f"defense {name!r} claims that nothing takes part in a release")
            return claims[0]
    raise UserError(
        f"defense {name!r} claims no differential privacy (no guarantee): there is no promise to "
        "audit"
    )


def _rates(
    samples: Sequence[Values],
    gradient: Values,
    claim: Privacy,
    delta: float,
    confidence: float,
) -> tuple[Rates, Rates]:
    """Return the counts that bound μ, and those that bound ε, each from a test chosen before.

    Args:
        samples: releases (N, d) of either data set.
        gradient: (d,), in whose direction they should differ.
        claim: for the rate.
        delta: δ.
        confidence: of either.
    """
    without, given = samples
    quarter, half = len(without) // 4, len(without) // 2
    tests: list[tuple[Rates, Values, float]] = []
    for direction in (gradient, _discriminant(without[:quarter], given[:quarter])):
        ours, theirs = (part[quarter:half] @ direction for part in (without, given))
        sign = 1.0 if theirs.mean() >= ours.mean() else -1.0
        for threshold in thresholds(sign * ours, sign * theirs):
            found = Rates.counted(sign * ours, sign * theirs, threshold, confidence)
            tests.append((found, sign * direction, threshold))

    def counted(bound: Callable[[Rates], float]) -> Rates:
        _, direction, threshold = max(tests, key=lambda test: bound(test[0]))
        ours, theirs = (part[half:] @ direction for part in (without, given))
        return Rates.counted(ours, theirs, threshold, confidence)

    return (
        counted(lambda rates: rates.mu(claim.sampling)),
        counted(lambda rates: rates.epsilon(delta)),
    )


def _discriminant(without: Values, given: Values) -> Values:
    """Return Σ⁻¹ (m' − m), along which normal releases of equal covariance differ most."""
    means = without.mean(axis=0), given.mean(axis=0)
    centred = np.concatenate([without - means[0], given - means[1]])
    covariance = centred.T @ centred / len(centred)
    ridge = _RIDGE * max(float(np.trace(covariance)), np.finfo(float).tiny) / len(covariance)
    direction: Values = np.linalg.solve(
        covariance + ridge * np.eye(len(covariance)), means[1] - means[0]
    )
    return direction / max(float(np.linalg.norm(direction)), np.finfo(float).tiny)


def _bare(without: Values, given: Values) -> int:
    """Count coordinates of which one value comes again and again, another for the other data."""
    values = [_commonest(sample) for sample in (without, given)]
    often = [share >= NOTICED for _, share in values]
    return int((often[0] & often[1] & (values[0][0] != values[1][0])).sum())


def _commonest(sample: Values) -> tuple[Values, Values]:
    """Return each column's commonest value, and its share."""
    found, shares = np.empty(sample.shape[1]), np.empty(sample.shape[1])
    for column, values in enumerate(sample.T):
        distinct, counts = np.unique(values, return_counts=True)
        found[column], shares[column] = distinct[counts.argmax()], counts.max() / len(values)
    return found, shares


def _repeated(sample: Values, other: Values) -> int:
    """Count rows that an earlier one equals, unless the other data set has them, too."""
    elsewhere = {row.tobytes() for row in other}
    rows = [row.tobytes() for row in sample]
    mine = [row for row in rows if row not in elsewhere]
    return len(mine) - len(set(mine))


def _repeated_rounds(client: AuditedClient) -> int:
    """Count rounds, of one client that goes on from what it keeps, that an earlier one equals."""
    states, rows = NOTHING, []
    for server_round in range(1, ROUNDS + 1):
        released = client.release(-server_round, server_round=server_round, states=states)
        states = released.states
        rows.append(released.values.tobytes())
    return len(rows) - len(set(rows))
