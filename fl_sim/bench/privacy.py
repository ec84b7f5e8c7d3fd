"""ε of Gaussian noise under sampling and composition, beside an independent accountant's."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

from defenses.privacy import Privacy
from fl_sim.bench.privacy_loss import convolved_epsilon
from fl_sim.privacy import spent_epsilon

DELTA = 1e-5
TITLE = "ε at δ = 1e-5 of T releases under Gaussian noise, each seen at a rate q"
NOTES = (
    "“independent” convolves the privacy loss in Fourier space and shares no code with `ε`: it is "
    "exact to about 0.01 %, and bounds nothing, where `ε` is an upper bound (exact at q = 1). 0 "
    "where δ alone covers what is told.",
)
NOISES: tuple[float, ...] = (0.05, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1000.0)
"""σ/Δ; the table's, and the tests'."""
RATES: tuple[float, ...] = (0.001, 0.01, 0.1, 0.5, 0.9, 1.0)
RELEASES: tuple[int, ...] = (1, 10, 100, 1000, 10_000)


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Compose; one row for each noise, rate and number of releases. Nothing is drawn."""
    every = 3 if quick else 1
    spent_epsilon(Privacy(1.0, noise=1.0, sampling=0.5), 1)  # imports, which aren't timed
    for noise, rate, releases in itertools.product(
        NOISES[::every], RATES[::every], RELEASES[::every]
    ):
        claim = Privacy(1.0, noise=noise, sampling=rate)
        start = time.perf_counter()
        epsilon = spent_epsilon(claim, releases, delta=DELTA)
        seconds = time.perf_counter() - start
        assert epsilon is not None
        independent = convolved_epsilon(noise, rate, releases, DELTA)
        yield {
            "σ/Δ": f"{noise:g}",
            "q": f"{rate:g}",
            "T": releases,
            "ε": f"{epsilon:.5g}",
            "independent": f"{independent:.5g}",
            "deviation, %": f"{round(deviation(epsilon, independent), 2) + 0:.2f}",
            "milliseconds": f"{seconds * 1000:.0f}",
        }


def deviation(epsilon: float, independent: float) -> float:
    """Return by how many percent of the independent value ε is off; 0 where both are 0."""
    if epsilon == independent:
        return 0.0
    return 100 * (epsilon / independent - 1) if independent else float("inf")
