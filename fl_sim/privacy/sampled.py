"""The ε of a Gaussian mechanism that sees a unit only at a rate below 1."""

from __future__ import annotations

import math

from fl_sim.privacy.gaussian import gaussian_epsilon

LEAST_NOISE = 0.02
"""σ/Δ below which the rate is left out of account: ε is beyond any use either way."""
_OF_STEP = 1 / 8
"""Mesh over the deviation of one release's privacy loss: adds up to 0.4 % to its mean."""
_OF_EPSILON = 1 / 64
"""Mesh over ε: between the mesh's points δ(ε) is bounded by chords."""
_MOST_POINTS = 2**15
_LEAST_MESH = 2.0**-40


def sampled_epsilon(noise: float, sampling: float, releases: int, delta: float) -> float:
    """Return ε at δ of T releases, each with Poisson sampling at rate q and Gaussian noise.

    The privacy loss of `(1−q) N(0, σ²) + q N(1, σ²)` against `N(0, σ²)` is put on a mesh, from
    above, and convolved T times, by Google's `dp-accounting`; the larger ε of adding and removing
    a unit counts (Doroshenko et al., *Connect the Dots: Tighter Discrete Approximations of Privacy
    Loss Distributions*, PoPETs 2022, arXiv 2207.04380). Taking part always is the bound where the
    mesh's is above it.

    The mesh is a power of two that never falls where σ falls or q or ε rises. Coarser meshes hold
    points of finer ones and lie above them, so that ε is monotone across changes of the mesh.

    Args:
        noise: σ/Δ, above 0.
        sampling: q, in (0, 1).
        releases: T, at least 1.
        delta: δ, in (0, 1).

    Returns:
        ε in nats, an upper bound; against a finer mesh, at most 1 % above.
    """
    if releases * sampling <= delta:  # δ covers that the unit takes part at all
        return 0.0
    bound = gaussian_epsilon(math.sqrt(releases) / noise, delta)
    if noise < LEAST_NOISE or bound == 0:
        return bound
    mesh = _mesh(noise, sampling, bound)
    while True:
        found = _composed(noise, sampling, releases, delta, mesh=mesh)
        assert found >= 0, f"ε must be at least 0, found {found}"
        found = min(found, bound)
        finer = _mesh(noise, sampling, found)
        if found == 0 or finer >= mesh:
            return found
        mesh = finer


def _mesh(noise: float, sampling: float, epsilon: float) -> float:
    """Return a mesh fine enough for one release's loss and for ε, but of bounded size."""
    least, most = math.log1p(-sampling), math.log(sampling) + 10 / noise + noise**-2 / 2
    largest = max(least, most) + math.log1p(math.exp(-abs(least - most)))  # of the losses, at 10 σ
    exponent = min(noise**-2, 700.0)  # e^700 is finite
    variance = min(sampling**2 * math.expm1(exponent), sampling * noise**-2)  # grows with q, 1/σ
    finest = max(2 * largest / _MOST_POINTS, _LEAST_MESH)
    wanted = min(_OF_STEP * math.sqrt(variance), _OF_EPSILON * epsilon)
    return float(2.0 ** math.floor(math.log2(max(wanted, finest))))


def _composed(noise: float, sampling: float, releases: int, delta: float, *, mesh: float) -> float:
    import dp_accounting  # takes a second

    accountant = dp_accounting.pld.PLDAccountant(value_discretization_interval=mesh)
    release = dp_accounting.PoissonSampledDpEvent(sampling, dp_accounting.GaussianDpEvent(noise))
    accountant.compose(release, releases)
    return float(accountant.get_epsilon(delta))
