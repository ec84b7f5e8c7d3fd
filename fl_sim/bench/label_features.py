"""Which property of a label selects λ, and which search finds it.

Y. Wang, J. Liang, R. He, ICLR 2024, arXiv 2402.03124, section 4: of one example's gradient
`G = (p − y) xᵀ` a scalar λ is unknown, `ŷ(λ) = softmax(λ W g) − α / λ`; since `Σ ŷ(λ) = 1` for
every λ, some other property of the label has to select it. The paper takes the variance of the
tied entries, and leaves other properties and searches open. Here is every pair of them, told the
augmentation, the sign of λ unknown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import softmax, xlogy

from attacks import GradientLeak
from attacks.numerics.particle_swarm import particle_swarm
from attacks.victim.network import Network
from fl_sim.bench.training import trained
from fl_sim.bench.victims import dataset, draw_batch, initial_weights, untrained
from fl_sim.testing.leaks import leak_of

TITLE = "Label features and one-dimensional searches: how often each pair finds the label"
NOTES = (
    "Noise-free float32 gradients of LeNet; the augmentation is told.",
    initial_weights("lenet"),
)

Array = NDArray[np.float64]
Objective = Callable[[Array], Array]
NETWORK = "lenet"
DATA = {10: "mnist-5k", 100: "photo-places"}
SPARED = {"label-smoothing": 1, "mixup": 2}
"""How many entries of a label aren't tied."""
LARGEST = 1e4
"""Where the searches over |λ| end; they begin at 1."""
GRID = np.exp(np.arange(-1, np.log(LARGEST) / 0.05 + 1) * 0.05)
SMALL = 1e-3
"""Entries of a label below it count as small."""


@dataclass(frozen=True, eq=False)
class Problem:
    """`ŷ(λ) = softmax(λ v + b) − α / λ` with `v = W g`, g the row of G with the largest norm."""

    alpha: Array
    logits: Array
    bias: Array | float

    def labels(self, scales: Array) -> Array:
        """Return ŷ for λ of any shape, with K entries for each."""
        p = softmax(scales[..., None] * self.logits + self.bias, axis=-1)
        return np.asarray(p - self.alpha / scales[..., None])

    @classmethod
    def of(cls, leak: GradientLeak) -> Problem:
        """Take the last layer's gradient out of a leak; all its rows are multiples of one."""
        network = Network.of(leak)
        gradient = leak.gradients[f"{network.head_name}.weight"].double().numpy()
        row = gradient[np.linalg.norm(gradient, axis=1).argmax()]
        alpha = gradient @ row / (row @ row)
        bias = network.head.bias
        offset = 0.0 if bias is None else bias.detach().double().numpy()
        weight = network.head.weight.detach().double().numpy()
        return cls(alpha - alpha.mean(), weight @ row, offset)


def _deviations(labels: Array, tied: int) -> Array:
    ties = labels[..., :tied]
    return np.asarray(ties - np.median(ties, axis=-1, keepdims=True))


# Of labels (..., K) in ascending order, the scales λ (...) and the number m of tied entries; the
# hope is that the true label has the least. Squared differences over all pairs are m² variances.
FEATURES: dict[str, Callable[[Array, Array, int], Array]] = {
    "sum rule": lambda y, s, m: np.abs(y.sum(-1) - 1),
    "variance (paper)": lambda y, s, m: y[..., :m].var(-1),
    "scaled variance": lambda y, s, m: s**2 * y[..., :m].var(-1),
    "squares from the median": lambda y, s, m: (_deviations(y, m) ** 2).sum(-1),
    "distances from the median": lambda y, s, m: np.abs(_deviations(y, m)).sum(-1),
    "range": lambda y, s, m: y[..., m - 1] - y[..., 0],
    "scaled range": lambda y, s, m: np.abs(s) * (y[..., m - 1] - y[..., 0]),
    "entropy": lambda y, s, m: -xlogy(y.clip(0), y.clip(0)).sum(-1),
    "L1 over L2": lambda y, s, m: np.abs(y).sum(-1) / np.sqrt((y**2).sum(-1)),
    "entries not small": lambda y, s, m: (np.abs(y) > SMALL).sum(-1).astype(float),
}


def _lbfgs(objective: Objective, generator: torch.Generator) -> float:
    """Descend from 1 and −1, by L-BFGS-B with central differences."""
    found = [
        minimize(
            lambda point: 1000 * objective(point)[0],
            [float(sign)],
            method="L-BFGS-B",
            jac=lambda point: 1000 * np.array([_slope(objective, point)[0]]),
            bounds=[tuple(sorted((sign * 1.0, sign * LARGEST)))],
            options={"maxiter": 200, "ftol": 0.0, "gtol": 1e-15},
        )
        for sign in (1, -1)
    ]
    return float(min(found, key=lambda end: float(end.fun)).x[0])


def _swarm(objective: Objective, generator: torch.Generator) -> float:
    """Let 500 particles move 40 times through each decade of |λ|, for each sign."""
    ends = []
    for low, high in pairwise(np.geomspace(1, LARGEST, 5)):
        for interval in ((low, high), (-high, -low)):
            scale, value = particle_swarm(
                objective, *interval, particles=500, iterations=40, generator=generator
            )
            ends.append((value, scale))
    return min(ends)[1]


def _zoom(objective: Objective, generator: torch.Generator) -> float:
    """Narrow all minima of the grid at once, eightfold a pass."""
    ends = []
    for sign, low, high in _brackets(objective):
        for _ in range(10):
            points = np.exp(np.linspace(np.log(low), np.log(high), 17))
            least = objective(sign * points).argmin(axis=0).clip(1, 15)
            low, high = (points[least + k, np.arange(len(least))] for k in (-1, 1))
        ends.append(sign * np.sqrt(low * high))
    return _least(objective, np.concatenate(ends))


def _brent(objective: Objective, generator: torch.Generator) -> float:
    """Search around each minimum of the grid by Brent's golden section with parabolas."""
    ends = []
    for sign, low, high in _brackets(objective):
        value = partial(lambda sign, log: float(objective(sign * np.exp(log))), sign)
        for bounds in zip(np.log(low), np.log(high), strict=True):
            found = minimize_scalar(
                value, bounds=bounds, method="bounded", options={"xatol": 1e-10}
            )
            ends.append(float(sign * np.exp(found.x)))
    return _least(objective, np.array(ends))


def _bisect(objective: Objective, generator: torch.Generator) -> float:
    """Halve the bracket of each minimum of the grid where the slope changes its sign."""
    ends = []
    for sign, low, high in _brackets(objective):
        for _ in range(34):
            middle = np.sqrt(low * high)
            rises = sign * _slope(objective, sign * middle) > 0
            low, high = np.where(rises, low, middle), np.where(rises, middle, high)
        ends.append(sign * np.sqrt(low * high))
    return _least(objective, np.concatenate(ends))


SEARCHES: dict[str, Callable[[Objective, torch.Generator], float]] = {
    "L-BFGS from ±1": _lbfgs,
    "particle swarm": _swarm,
    "grid and zoom": _zoom,
    "grid and Brent": _brent,
    "grid and bisection": _bisect,
}


def _slope(objective: Objective, scales: Array) -> Array:
    step = 1e-6 * scales
    return np.asarray((objective(scales + step) - objective(scales - step)) / (2 * step))


def _brackets(objective: Objective) -> Iterator[tuple[int, Array, Array]]:
    """Yield, for each sign, the ends of |λ| around the grid's minima, or else around its least."""
    for sign in (1, -1):
        values = objective(sign * GRID)
        inner = np.flatnonzero((values[1:-1] < values[:-2]) & (values[1:-1] <= values[2:])) + 1
        if not len(inner):
            inner = np.array([values.argmin().clip(1, len(GRID) - 2)])
        yield sign, GRID[inner - 1], GRID[inner + 1]


def _least(objective: Objective, scales: Array) -> float:
    return float(scales[objective(scales).argmin()])


def objective_of(problem: Problem, feature: str, augmentation: str) -> Objective:
    """Return a feature as a function of λ, of any shape."""
    tied = len(problem.alpha) - SPARED[augmentation]

    def objective(scales: Array) -> Array:
        labels = np.sort(problem.labels(scales), axis=-1)
        return np.asarray(FEATURES[feature](labels, scales, tied))

    return objective


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Measure every feature with every search.

    Args:
        quick: 3 examples a row instead of 20.
        seed: of networks, examples and swarms.

    Yields:
        For each augmentation, state of the network, K, feature and search: the share of labels with
        an L∞ error below 1e-2 and 1e-3; of the others, those where the feature is to blame (it is
        less at the answer than at the true λ) and those that the search missed; the time of a
        search on one thread.
    """
    count = 3 if quick else 20
    for classes, name in DATA.items():
        data = dataset(name)
        for augmentation in SPARED:
            for state in ("untrained", "trained"):
                model = untrained(NETWORK, data, seed=seed)
                if state == "trained":
                    model, _ = trained(NETWORK, name, augmentation, seed=seed)
                images, labels = draw_batch(data, count, augmentation, seed=seed)
                problems = [
                    Problem.of(leak_of(model, image[None], label[None]))
                    for image, label in zip(images, labels, strict=True)
                ]
                truths = labels.double().numpy()
                setting: dict[str, object] = {
                    "network": f"{state} {NETWORK}",
                    "K": classes,
                    "augmentation": augmentation,
                    "examples": count,
                }
                for feature in FEATURES:
                    for search in SEARCHES:
                        measured = _measure(problems, truths, feature, search, augmentation)
                        yield setting | {"feature": feature, "search": search} | measured


def _measure(
    problems: list[Problem], truths: Array, feature: str, search: str, augmentation: str
) -> dict[str, object]:
    errors, blamed, milliseconds = [], [], []
    for number, (problem, truth) in enumerate(zip(problems, truths, strict=True)):
        objective = objective_of(problem, feature, augmentation)
        generator = torch.Generator().manual_seed(number)
        start = time.perf_counter()
        scale = SEARCHES[search](objective, generator)
        milliseconds.append(1000 * (time.perf_counter() - start))
        errors.append(np.abs(problem.labels(np.array(scale)) - truth).max())
        blamed.append(objective(np.array(scale)) < objective(np.array(_true_scale(problem, truth))))
    wrong = np.array(errors) >= 1e-2
    return {
        "L∞ < 1e-2": round(float(np.mean(~wrong)), 3),
        "L∞ < 1e-3": round(float(np.mean(np.array(errors) < 1e-3)), 3),
        "false optimum": round(float(np.mean(wrong & np.array(blamed))), 3),
        "missed": round(float(np.mean(wrong & ~np.array(blamed))), 3),
        "median ms": round(float(np.median(milliseconds)), 2),
        "95 % ms": round(float(np.quantile(milliseconds, 0.95)), 2),
    }


def _true_scale(problem: Problem, truth: Array) -> float:
    """Return the λ whose label is nearest to the true one."""

    def error(scales: Array) -> Array:
        return np.asarray(((problem.labels(scales) - truth) ** 2).sum(axis=-1))

    return _zoom(error, torch.Generator())
