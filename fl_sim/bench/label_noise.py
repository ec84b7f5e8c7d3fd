"""Label recovery from one noisy gradient: how close it comes to what any attack could know.

Gaussian noise of standard deviation σ = s · rms(G) is added to the last layer's whole gradient.
Four errors of the label (L∞): of the paper's ratio of one coordinate of two rows, of the rank-one
estimate, both with the scale that minimises the ties' variance; of `soft-label`, which fits by
maximum likelihood; and the Cramér–Rao bound for an attacker who is told class and augmentation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from attacks import Status
from attacks.facts import GaussianMechanism
from attacks.labels.soft_label import SoftLabelRecovery, ŷ, φ
from attacks.numerics.softmax import softmax
from attacks.one_example.problem import Problem
from attacks.one_example.scan import Scan
from attacks.one_example.view import view_few
from attacks.victim.gradients import as_double
from attacks.victim.network import Network
from fl_sim.bench.victims import dataset, draw_batch, initial_weights, untrained
from fl_sim.seeds import torch_generator
from fl_sim.testing.leaks import leak_of

TITLE = "Soft labels under Gaussian noise on the gradient: median L∞ errors, and the bound"
NOTES = (
    "σ = s · rms(G), known to the attacker, who isn't told the augmentation; “error over bound” is "
    "the median ratio, 1 for an efficient estimator; “in 95 % bars” counts the label's largest "
    "entry within 1.96 of the standard errors that the attack states. The bound is told class and "
    "augmentation.",
    initial_weights("fcn4", "lenet"),
)

Array = NDArray[np.float64]
NOISE = (1e-5, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0)
"""s, in units of the gradient's root mean square."""
SUCCESS = 1e-2
WITHIN_95 = 1.959964
"""Standard errors on either side that hold 95 % of a normal distribution."""
MEDIAN = 0.6744898
"""Median of a normal variable's absolute value, in standard deviations."""


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Measure; one row for each network, K, augmentation and noise."""
    cells = [("fcn4", 10), ("lenet", 10), ("lenet", 100)]
    number = 20 if quick else 200
    for network, classes in cells[-1:] if quick else cells:
        data = dataset("mnist-5k")
        model = untrained(network, data, classes=classes, seed=seed)
        for augmentation in ("label-smoothing", "mixup"):
            images, labels = draw_batch(data, number, augmentation, classes=classes, seed=seed)
            for s in NOISE[::2] if quick else NOISE:
                trials = [
                    _trial(model, images[i : i + 1], labels[i : i + 1], s, seed, i)
                    for i in range(number)
                ]
                yield {
                    "network": network,
                    "K": classes,
                    "augmentation": augmentation,
                    "s": s,
                    "trials": number,
                    **_summary(trials),
                }


def _trial(
    model: nn.Module, image: torch.Tensor, label: torch.Tensor, s: float, seed: int, index: int
) -> dict[str, Any]:
    """Attack one noisy gradient every way, and return errors over the bound."""
    leak = leak_of(model, image, label)
    name = next(name for name in leak.gradients if leak.gradients[name].shape[0] == label.shape[1])
    clean = leak.gradients[name].double()
    sigma = s * float(clean.square().mean().sqrt())
    generator = torch_generator(seed, "label noise", index, str(s))
    noisy = clean + sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    told = (GaussianMechanism(1e9, sigma),)
    leak = dataclasses.replace(leak, gradients={name: noisy}, lr=1.0, knowledge=told)
    truth = label[0].double().numpy()
    recovery = SoftLabelRecovery()(leak, generator=torch.Generator())
    network = Network.of(leak)
    feature = network.double_features(image)[0].numpy()
    bound = _bound(as_double(network.head.weight), feature, truth, sigma)
    found = {"bound": float(bound.max()), "status": recovery.status}
    if recovery.labels is not None:
        error = np.abs(recovery.labels[0].numpy() - truth)
        found["maximum likelihood"] = float(error.max())
        std = recovery.examples[0].label_std
        assert std is not None
        worst = int(bound.argmax())
        found["covered"] = bool(error[worst] <= WITHIN_95 * float(std[worst]))
    try:
        problem = Problem.of(leak, network)
    except Exception:
        return found
    for estimate, (α, g) in {
        "rank one": (problem.α, problem.g),
        "one row": _one_row(noisy.numpy()),
    }.items():
        other = dataclasses.replace(problem, α=α, g=g)
        scan = Scan.of(view_few(other, ŷ, φ)).of_sign(other.sign_of_features())
        if len(scan.roots):
            found[estimate] = float(np.abs(ŷ(other, scan.roots[:1])[0] - truth).max())
    return found


def _one_row(gradient: Array) -> tuple[Array, Array]:
    """Return α and g as the paper's code takes them: row r, and the ratios of one of its entries.

    r is the row of the largest sum, the entry is r's largest.
    """
    r = int(np.abs(gradient.sum(axis=1)).argmax())
    j = int(np.abs(gradient[r]).argmax())
    size = float(np.linalg.norm(gradient[r]))
    return gradient[:, j] / gradient[r, j] * size, gradient[r] / size


def _bound(weight: Array, x: Array, y: Array, sigma: float) -> Array:
    """Return the Cramér–Rao bound on the standard error of the label's entries, (K,).

    The parameters are the feature x (D,) and one number of the label, ε or the mixing coefficient;
    the classes are known. `dG = (J W dx − dy) xᵀ + (p − y) dxᵀ` with `J = diag(p) − p pᵀ`.
    """
    p = softmax(weight @ x)
    delta, m = p - y, p[:, None] * (weight - p @ weight)
    order = np.argsort(-y)
    is_pair = y[order[1]] - y[order[-1]] > 1e-6
    move = np.full(len(y), 0.0 if is_pair else 1 / len(y))
    move[order[0]] -= 1
    move[order[1]] += is_pair
    square = float(x @ x)
    cross = np.outer(x, delta @ m)
    information = square * (m.T @ m) + cross + cross.T + float(delta @ delta) * np.eye(len(x))
    with_move = -(m.T @ move) * square - float(delta @ move) * x
    left = square * float(move @ move) - with_move @ np.linalg.solve(information, with_move)
    return np.asarray(np.abs(move) * sigma / np.sqrt(left))


def _summary(trials: Sequence[dict[str, Any]]) -> dict[str, object]:
    """Return medians, and for those that succeed the ratio to the bound and the coverage."""
    good = [t for t in trials if t.get("maximum likelihood", 1.0) < SUCCESS]
    ratio = np.nan
    if good:
        ratio = np.median([t["maximum likelihood"] / t["bound"] for t in good]) / MEDIAN
    covered = [t["covered"] for t in good]
    columns: dict[str, object] = {
        key: f"{np.median([t.get(key, 1.0) for t in trials]):.2e}"
        for key in ("one row", "rank one", "maximum likelihood")
    }
    claims = [t for t in trials if t["status"] is Status.RECOVERED]
    return columns | {
        "bound": f"{np.median([t['bound'] for t in trials]) * MEDIAN:.2e}",
        "L∞ < 1e-2": len(good),
        "of these, error over bound": f"{ratio:.2f}",
        "in 95 % bars": f"{100 * np.mean(covered):.0f} %" if good else "–",
        "RECOVERED": len(claims),
        "false accepts": sum(t.get("maximum likelihood", 1.0) >= SUCCESS for t in claims),
    }


def figure(found: Sequence[dict[str, Any]]) -> Figure:
    """Draw the median errors against the noise, a panel for each setting."""
    settings = list(dict.fromkeys((r["network"], r["K"], r["augmentation"]) for r in found))
    columns = min(len(settings), 3)
    lines = -(-len(settings) // columns)
    drawing = Figure(figsize=(3.4 * columns, 3.0 * lines), layout="constrained")
    axes = drawing.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    styles = {"one row": "o:", "rank one": "s--", "maximum likelihood": "D-", "bound": "k-"}
    for axis, setting in zip(axes, settings, strict=False):
        some = [r for r in found if (r["network"], r["K"], r["augmentation"]) == setting]
        for key, style in styles.items():
            points = [(r["s"], float(str(r[key]))) for r in some]
            axis.loglog(*zip(*points, strict=True), style, label=key, markersize=4)
        axis.axhline(SUCCESS, color="grey", linewidth=0.5)
        axis.set_title(f"{setting[0]}, K = {setting[1]}, {setting[2]}", fontsize=9)
    drawing.supxlabel("noise σ / rms(G)", fontsize=9)
    drawing.supylabel("median L∞ error of the label", fontsize=9)
    axes[0].legend(fontsize=7)
    return drawing
