"""Batches with more examples than classes: labels and images out of a hidden layer's gradient.

One factor at a time around a base cell that is what people train: MNIST, ten classes, 784-512-10
with biases and PyTorch's initialisation, smoothed labels, 16 examples, the float32 weights after
one step at a learning rate of 0.1. Everything is blind: `soft-label`, then `analytic`; an example
counts as found where its label is called RECOVERED.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS, GradientLeak
from defenses.label_smoothing import smooth_labels
from fl_sim.bench.image_batches import draw_pairs
from fl_sim.bench.scores import Scores, score_batch, shown_changes, shown_median
from fl_sim.bench.training import train
from fl_sim.bench.victims import dataset, draw_batch, linear_chain
from fl_sim.seeds import seeded_layers, torch_generator
from fl_sim.testing.leaks import SentAs, build_seeded, gradients_of, leak_of

TITLE = "Batches with more examples than classes: labels and images by `soft-label` and `analytic`"
SPEAR, SPEAR_PLUS = 25, 250
"""Largest batches reported, for hard labels and with a bias: "SPEAR", NeurIPS 2024, arXiv
2403.03945; and about ten times that for "SPEAR++", arXiv 2510.24200."""
NOTES = (
    "One factor at a time around the first row. “found” counts examples whose label is called "
    "RECOVERED, “false” those of them that are off by 1e-2 or more, and images that are claimed "
    "and below 50 dB. An image that wasn't found counts as minus infinity. “psnr_bar_db” is what "
    "the attack's own error bars vouch for, in the median. Examples are paired with the truth by "
    "their labels first: two whose labels differ by less than noise leaves can be taken for each "
    "other, and then count with each other's image. “init” is how initial weights are drawn: "
    "PyTorch's default, or He's with PyTorch's biases.",
    "Published, with a bias and hard labels: SPEAR about 25 examples, at a cost that is "
    "exponential in them (arXiv 2403.03945), SPEAR++ about ten times as many (arXiv 2510.24200). "
    "“published” says which of them covers a row.",
    "Seconds are of the processor, of both attacks on one thread, in the median; the machine was "
    "shared by other work, so that they are upper bounds. “bar” is the time that was aimed at, on "
    "an idle machine.",
    "Trained: Adam at 1e-3 on batches of 64 of the same augmentation, to 95 % of the test images, "
    "on hard labels to 93 % (these 4,000 digits give 94 %). "
    "Noise in units of the entries' own size, on a gradient in float64; dropout in train mode.",
)

SEEDS, SEEDS_OF_LONG_ROWS = 5, 3
LONG_SECONDS = 20.0
"""A batch that takes longer is measured with fewer seeds."""
BAR_SECONDS: Mapping[tuple[int, tuple[int, ...]], int] = {
    (16, (512,)): 2,
    (32, (1024,)): 10,
    (64, (1024,)): 60,
}
"""Time aimed at, by batch and widths."""
LEARNING_RATE = 0.1
TRAINED, TRAINED_ON_HARD = 0.95, 0.93
"""Accuracy on the test images of a trained network; on hard labels 4,000 digits give no more."""


@dataclass(frozen=True)
class Cell:
    """One row of the table.

    Args:
        source: of the images, "mnist-5k" or "photos".
        batch: B.
        widths: of the hidden layers.
        classes: K.
        augmentation: of the labels.
        smoothing: ε of all labels alike; None draws it for each, where the augmentation smooths.
        bias: whether the layers have biases.
        init: "default" (PyTorch's) or "he".
        sent_as: a "float32" gradient, or an "update" of weights.
        lr: of an update.
        is_told: whether the attacker knows B.
        noise: standard deviation of noise on every gradient, in units of its entries' own.
        dropout: share that the client drops behind the last hidden layer.
        is_trained: whether to an accuracy of `TRAINED`, or `TRAINED_ON_HARD`, or not at all.
    """

    source: str = "mnist-5k"
    batch: int = 16
    widths: tuple[int, ...] = (512,)
    classes: int = 10
    augmentation: str = "label-smoothing"
    smoothing: float | None = None
    bias: bool = True
    init: str = "default"
    sent_as: SentAs = "update"
    lr: float = LEARNING_RATE
    is_told: bool = True
    noise: float = 0.0
    dropout: float = 0.0
    is_trained: bool = False


BASE = Cell()
CELLS = (
    BASE,
    *(replace(BASE, augmentation=kind) for kind in ("hard", "mixup", "mixup+label-smoothing")),
    replace(BASE, bias=False),
    replace(BASE, source="photos"),
    replace(BASE, sent_as="float32"),
    replace(BASE, lr=0.01),
    replace(BASE, classes=2),
    replace(BASE, classes=2, augmentation="hard", smoothing=0.1),
    replace(BASE, classes=100),
    replace(BASE, is_told=False),
    replace(BASE, init="he"),
    replace(BASE, batch=8),
    replace(BASE, batch=20),
    replace(BASE, batch=32),
    replace(BASE, batch=32, widths=(1024,)),
    replace(BASE, batch=48, widths=(1024,)),
    replace(BASE, batch=64, widths=(1024,)),
    replace(BASE, batch=96, widths=(1024,)),
    replace(BASE, batch=128, widths=(2048,)),
    replace(BASE, batch=64, widths=(4096,)),
    replace(BASE, batch=24, widths=(128,)),
    *(
        replace(BASE, batch=size, widths=(512, 512), init=init)
        for size in (16, 32)
        for init in ("default", "he")
    ),
    *(replace(BASE, widths=(256, 128, 64), init=init) for init in ("default", "he")),
    replace(BASE, dropout=0.5),
    replace(BASE, dropout=0.5, bias=False),
    replace(BASE, is_trained=True),
    replace(BASE, is_trained=True, augmentation="hard"),
    replace(BASE, is_trained=True, bias=False),
    *(replace(BASE, noise=noise) for noise in (1e-3, 3e-3, 1e-2, 1e-1, 0.3, 1.0)),
)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of one batch.

    Args:
        scores: of the attacks.
        seconds: of both, on one thread.
        reason: of the label attack.
    """

    scores: Scores
    seconds: float
    reason: str


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Yield a row for each cell."""
    for cell in (BASE, replace(BASE, bias=False), replace(BASE, batch=8)) if quick else CELLS:
        outcomes: list[Outcome] = []
        for own in range(seed, seed + (1 if quick else SEEDS)):
            outcomes.append(attack(cell, own))
            is_long = outcomes[0].seconds > LONG_SECONDS
            if is_long and len(outcomes) == SEEDS_OF_LONG_ROWS:
                break
        yield _row(cell, outcomes)


def attack(cell: Cell, seed: int) -> Outcome:
    """Build a victim, attack it, and score the answers."""
    data = dataset(cell.source)
    classes = cell.classes if cell.classes != data.num_classes else None
    images, labels = draw_batch(data, cell.batch, cell.augmentation, classes=classes, seed=seed)
    if cell.smoothing is not None:
        labels = smooth_labels(labels, cell.smoothing)
    widths = (images[0].numel(), *cell.widths, cell.classes)
    model = build_seeded(
        lambda: linear_chain(
            widths, bias=cell.bias, is_he=cell.init == "he", mean=data.mean, std=data.std
        ),
        seed=seed,
    )
    if cell.is_trained:
        target = TRAINED_ON_HARD if cell.augmentation == "hard" else TRAINED
        reached = train(model, data, cell.augmentation, seed=seed, target=target)
        if reached < target:
            raise RuntimeError(f"training ended at an accuracy of {reached:.3f}, under {target}")
    if cell.dropout:
        model = nn.Sequential(*model[:-1], nn.Dropout(cell.dropout), model[-1])
    leak = _leak(cell, model, images, labels, seed)
    started = time.process_time()
    recovery = LABEL_ATTACKS.build("soft-label")(leak, generator=torch_generator(seed, "attack"))
    found = IMAGE_ATTACKS.build("analytic")(
        leak, recovery, generator=torch_generator(seed, "attack")
    )
    seconds = time.process_time() - started
    return Outcome(score_batch(recovery, found, images, labels), seconds, recovery.reason or "")


def gallery(seed: int) -> Figure:
    """Draw what comes out of one weight update of 16 digits."""
    images, _ = draw_batch(dataset(BASE.source), BASE.batch, BASE.augmentation, seed=seed)
    outcome = attack(BASE, seed)
    title = "16 digits of ten classes, one float32 weight update, PyTorch's initialisation"
    return draw_pairs(outcome.scores.images, images, outcome.scores.psnr, title)


def _leak(cell: Cell, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> GradientLeak:
    """Return what the server sees; under noise a gradient in float64, as noise hides rounding."""
    size = cell.batch if cell.is_told else None
    if not cell.noise:
        mode = "train" if cell.dropout else "eval"
        with seeded_layers(seed):  # what dropout draws
            return leak_of(
                model.train(mode == "train"),
                images,
                labels,
                sent_as=cell.sent_as,
                lr=cell.lr,
                batch_size=size,
                mode=mode,
            )
    draws = torch_generator(seed, "noise")
    gradients = {
        name: gradient.double()
        + cell.noise
        * gradient.double().square().mean().sqrt()
        * torch.randn(gradient.shape, generator=draws, dtype=torch.float64)
        for name, gradient in gradients_of(model, images, labels).items()
    }
    return GradientLeak(model, gradients, size, tuple(images.shape[1:]))  # type: ignore[arg-type]


def _row(cell: Cell, outcomes: Sequence[Outcome]) -> dict[str, object]:
    scores = [outcome.scores for outcome in outcomes]
    error, psnr, bar = (
        torch.cat([getattr(s, name) for s in scores])
        for name in ("label_error", "psnr", "psnr_bar")
    )
    reasons = [outcome.reason for outcome in outcomes if outcome.reason]
    return {
        "cell": shown_changes(cell, BASE),
        "seeds": len(outcomes),
        "examples": cell.batch * len(outcomes),
        "found": sum(s.found for s in scores),
        "labels < 1e-3": sum(s.strict for s in scores),
        "false": sum(s.false for s in scores),
        "label_median": f"{np.median(error.numpy()):.1g}",
        "label_worst": f"{error.max():.1g}",
        "psnr_median_db": f"{shown_median(psnr):.1f}",
        "psnr_worst_db": f"{psnr.min():.1f}",
        "psnr_bar_db": f"{shown_median(bar):.1f}",
        "seconds": f"{np.median([outcome.seconds for outcome in outcomes]):.2g}",
        "bar": BAR_SECONDS.get((cell.batch, cell.widths), "–"),
        "published": _published(cell),
        "why not all": reasons[0] if reasons else "–",
    }


def _published(cell: Cell) -> str:
    """Return the published attack that covers a cell."""
    is_covered = cell.augmentation == "hard" and cell.smoothing is None and cell.bias
    if not is_covered or cell.noise or cell.dropout or cell.batch > SPEAR_PLUS:
        return "–"
    return "SPEAR" if cell.batch <= SPEAR else "SPEAR++"
