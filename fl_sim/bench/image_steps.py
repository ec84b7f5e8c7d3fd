"""Clients that train several steps before they send: labels and images out of the whole update.

One factor at a time around a base cell that is what clients do: an epoch over 16 digits in shuffled
batches of 4, PyTorch's own float32 SGD at 0.1, 784-512-10 without biases and with PyTorch's
initialisation, smoothed labels, and the float32 weights that come back. Which batch took which
example isn't told, but in a row that says so. Everything is blind: `soft-label`, then `analytic`;
an example counts as found where its label is called RECOVERED. Beside them what is done without a
simulation: the update over lr times steps, taken for the gradient of one step of all examples.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS, GradientLeak, LabelRecovery, Reconstruction
from attacks.training import SGD, Schedule
from fl_sim.bench.scores import Scores, score_batch, shown_changes, shown_median
from fl_sim.bench.victims import dataset, draw_batch, linear_chain
from fl_sim.seeds import numpy_generator, torch_generator
from fl_sim.testing.leaks import build_seeded, leak_of_steps

TITLE = "Several local steps and epochs: labels and images by `soft-label` and `analytic`"
NOTES = (
    "One factor at a time around the first row: an epoch over 16 digits in shuffled batches of 4, "
    "at 0.1. “batch” equal to “examples” is full batches, “epochs” then their number of steps; "
    "“told” is an attacker who is told which example each step took, as no server is. "
    "“found” counts examples whose label is called RECOVERED, “false” those of them that are off "
    "by 1e-2 or more, and images that are claimed and below 50 dB. An image that wasn't found "
    "counts as minus infinity. “masks that change” is the share of the pairs of an example and a "
    "hidden unit whose mask isn't the same at all steps, measured on the client.",
    "“naive > 20 dB” counts images of more than 20 dB, claimed or not, that the same two attacks "
    "find in the update over lr times steps, taken for the gradient of one step of all examples. "
    "Published for several steps, with success from 20 dB: more than 45 % of the images at ten "
    "epochs (Dimitrov et al., TMLR 2022, arXiv 2206.12395).",
    "Seeds start at 200: thresholds were set on others. Where an update takes more than 15 "
    "seconds, three seeds in place of five.",
)

FIRST_SEED, SEEDS, SEEDS_OF_LONG_ROWS = 200, 5, 3
LONG_SECONDS = 15.0
"""An update that takes longer is measured with fewer seeds."""
NAIVE_DB = 20.0
"""What is called success of several steps elsewhere."""


@dataclass(frozen=True)
class Cell:
    """One row of the table.

    Args:
        source: of the images, "mnist-5k" or "photos".
        examples: of the client.
        batch: examples in a step; all of them, for full batches.
        epochs: passes over the examples, in batches shuffled each time.
        lr: learning rate.
        momentum: of SGD, told.
        widths: of the hidden layers.
        bias: whether the layers have biases.
        init: "default" (PyTorch's) or "he".
        told: whether the attacker is told which examples each step takes, as no server is.
    """

    source: str = "mnist-5k"
    examples: int = 16
    batch: int = 4
    epochs: int = 1
    lr: float = 0.1
    momentum: float = 0.0
    widths: tuple[int, ...] = (512,)
    bias: bool = False
    init: str = "default"
    told: bool = False

    def batches(self, seed: int) -> list[list[int]]:
        """Return the examples of each step, in orders that are drawn for each epoch."""
        draws = numpy_generator(seed, "epochs")
        orders = [draws.permutation(self.examples).tolist() for _ in range(self.epochs)]
        starts = range(0, self.examples, self.batch)
        return [order[at : at + self.batch] for order in orders for at in starts]

    def schedule(self, batches: Sequence[Sequence[int]]) -> Schedule:
        """Return what the attacker is told of these."""
        if self.told:
            return tuple(map(tuple, batches))
        return "full-batch" if self.batch == self.examples else "epochs"


def _full(examples: int, steps: int, **other: tuple[int, ...]) -> Cell:
    return replace(BASE, examples=examples, batch=examples, epochs=steps, **other)  # type: ignore[arg-type]


BASE = Cell()
CELLS = (
    BASE,
    replace(BASE, bias=True),
    replace(BASE, lr=0.01),
    replace(BASE, source="photos"),
    *(replace(BASE, source="photos", lr=lr) for lr in (0.05, 0.03, 0.01)),
    replace(BASE, source="photos", examples=8),
    replace(BASE, init="he"),
    replace(BASE, momentum=0.9),
    replace(BASE, examples=8, batch=2),
    replace(BASE, examples=8, batch=4),
    replace(BASE, examples=8, batch=4, epochs=2, lr=0.05),
    replace(BASE, epochs=2, lr=0.05),
    replace(BASE, epochs=2, lr=0.05, told=True),
    replace(BASE, examples=32, batch=8),
    _full(8, 5),
    _full(16, 5),
    _full(8, 20),
    _full(1, 50),
    _full(8, 5, widths=(512, 512)),
    replace(BASE, examples=8, batch=4, widths=(512, 512)),
)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of one update.

    Args:
        scores: of the attacks.
        naive: images above 20 dB that a single step of all examples explains.
        masks: share of (example, unit) pairs whose mask changes on the way.
        seconds: of both attacks, on one thread.
        reason: of the label attack.
    """

    scores: Scores
    naive: int
    masks: float
    seconds: float
    reason: str


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Yield a row for each cell."""
    for cell in (_full(4, 5), replace(BASE, examples=8)) if quick else CELLS:
        outcomes: list[Outcome] = []
        first = FIRST_SEED + seed
        for own in range(first, first + (1 if quick else SEEDS)):
            outcomes.append(attack(cell, own))
            is_long = outcomes[0].seconds > LONG_SECONDS
            if is_long and len(outcomes) == SEEDS_OF_LONG_ROWS:
                break
        yield _row(cell, outcomes)


def attack(cell: Cell, seed: int) -> Outcome:
    """Train a client, attack what it sends, and score the answers."""
    client = trained_client(cell, seed)
    leak, images, labels = client.leak, client.images, client.labels
    started = time.process_time()
    found = answers(leak, seed)
    seconds = time.process_time() - started
    naive = score_batch(*answers(as_one_step(leak), seed), images, labels)
    scores = score_batch(*found, images, labels)
    above = int((naive.psnr > NAIVE_DB).sum())
    return Outcome(scores, above, changed_masks(client), seconds, found[0].reason or "")


@dataclass(frozen=True, eq=False)
class Client:
    """A client after its training.

    Args:
        leak: what the server sees.
        images: (B, C, H, W).
        labels: (B, K).
        path: its network after each step.
    """

    leak: GradientLeak
    images: Tensor
    labels: Tensor
    path: tuple[nn.Module, ...]


def trained_client(cell: Cell, seed: int) -> Client:
    """Train a client by PyTorch's own SGD."""
    data = dataset(cell.source)
    images, labels = draw_batch(data, cell.examples, "label-smoothing", seed=seed)
    model = build_seeded(
        lambda: linear_chain(
            (images[0].numel(), *cell.widths, data.num_classes),
            bias=cell.bias,
            is_he=cell.init == "he",
            mean=data.mean,
            std=data.std,
        ),
        seed=seed,
    )
    batches = cell.batches(seed)
    path = _trained(model, images, labels, cell, batches)
    leak = leak_of_steps(
        model,
        path[-1],
        SGD(cell.lr, cell.momentum),
        len(batches),
        batch_size=cell.batch,
        input_shape=tuple(images.shape[1:]),
        examples=cell.examples,
        schedule=cell.schedule(batches),
    )
    return Client(leak, images, labels, path)


def _trained(
    model: nn.Module, images: Tensor, labels: Tensor, cell: Cell, batches: Sequence[Sequence[int]]
) -> tuple[nn.Module, ...]:
    path, local = [], copy.deepcopy(model)
    optimizer = torch.optim.SGD(local.parameters(), lr=cell.lr, momentum=cell.momentum)
    for batch in batches:
        optimizer.zero_grad()
        loss = cross_entropy(local(images[list(batch)]), labels[list(batch)])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        path.append(copy.deepcopy(local))
    return tuple(path)


def changed_masks(client: Client) -> float:
    """Return the share of (example, unit) pairs whose mask isn't the same at all steps."""
    changed: list[Tensor] = []
    masks: list[Tensor] | None = None
    for at in (client.leak.model, *client.path):
        now, value = [], client.images
        with torch.no_grad():
            for layer in at.children():
                value = layer(value)
                if isinstance(layer, nn.ReLU):
                    now.append((value > 0).flatten())
        if masks is None:
            masks, changed = now, [torch.zeros_like(mask) for mask in now]
        changed = [c | (m != n) for c, m, n in zip(changed, masks, now, strict=True)]
    return float(torch.cat(changed).double().mean())


def as_one_step(leak: GradientLeak) -> GradientLeak:
    """Return the mean of the steps' gradients, as if it were that of one step of all examples."""
    steps = leak.local_steps
    assert leak.lr is not None
    return GradientLeak(
        leak.model,
        {name: gradient / steps for name, gradient in leak.gradients.items()},
        leak.examples,
        leak.input_shape,
        lr=leak.lr * steps,
        update_dtype=leak.update_dtype,
    )


def answers(leak: GradientLeak, seed: int) -> tuple[LabelRecovery, Reconstruction]:
    """Attack a leak by `soft-label` and `analytic`."""
    labels = LABEL_ATTACKS.build("soft-label")(leak, generator=torch_generator(seed, "attack"))
    images = IMAGE_ATTACKS.build("analytic")(
        leak, labels, generator=torch_generator(seed, "attack")
    )
    return labels, images


def _row(cell: Cell, outcomes: Sequence[Outcome]) -> dict[str, object]:
    scores = [outcome.scores for outcome in outcomes]
    error, psnr = (torch.cat([getattr(s, n) for s in scores]) for n in ("label_error", "psnr"))
    reasons = [outcome.reason for outcome in outcomes if outcome.reason]
    return {
        "cell": shown_changes(cell, BASE),
        "seeds": len(outcomes),
        "examples": cell.examples * len(outcomes),
        "found": sum(s.found for s in scores),
        "labels < 1e-3": sum(s.strict for s in scores),
        "false": sum(s.false for s in scores),
        "naive > 20 dB": sum(outcome.naive for outcome in outcomes),
        "masks that change": f"{sum(one.masks for one in outcomes) / len(outcomes):.1%}",
        "label_worst": f"{error.max():.1g}",
        "psnr_median_db": f"{shown_median(psnr):.1f}",
        "psnr_worst_db": f"{psnr.min():.1f}",
        "seconds": f"{sorted(outcome.seconds for outcome in outcomes)[len(outcomes) // 2]:.2g}",
        "why not all": reasons[0] if reasons else "–",
    }
