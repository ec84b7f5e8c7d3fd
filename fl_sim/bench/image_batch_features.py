"""Batches through convolutions: each example's flattened features and label, and images from these.

Networks with two dense layers or more. `soft-label` recovers the labels, by the masks of a dense
layer where there are more examples than classes; the dense layers then give what the convolutions
made of each example; and where those have no pooling, `relu-fit` goes down to the image.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor, nn

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS, GradientLeak, LabelRecovery, NotApplicable, Status
from attacks.dense.batch import invert_batch
from attacks.dense.network import FullyConnected
from attacks.victim.network import Network
from fl_sim.bench.training import accuracy, take_steps
from fl_sim.bench.victims import dataset, draw_batch, untrained
from fl_sim.seeds import numpy_generator, torch_generator
from fl_sim.testing.leaks import SentAs, build_seeded, leak_of

TITLE = "Batches through convolutions: features, labels and images of each example"
NOTES = (
    "“found” counts examples whose label is called RECOVERED, “false” those of them that are off "
    "by 1e-2 or more, and images that are claimed and below 50 dB. “features” counts examples "
    "whose input to the first dense layer is right to a relative 1e-3. “mixed” are the units of "
    "each hidden dense layer that some of the batch turn on and some don't: no others tell "
    "examples apart. `convnet+256` is `convnet` with a hidden layer of 256; of `lenet5` and "
    "`vgg11`, which pool by maxima, no attack here goes down to the pixels.",
    "Trained: Adam at 1e-3 (`vgg11` 1e-4) on batches of 32, all batches against the same weights.",
)

SEEDS, SEEDS_OF_IMAGES = 3, 1
"""Batches a row; of networks whose images are fitted one by one."""
STRICT, TOLERANCE, CLAIM_DB = 1e-3, 1e-2, 50.0
TRAINING_BATCH = 32
RATES = {"vgg11": 1e-4}
"""Adam's learning rate where it isn't 1e-3."""


@dataclass(frozen=True)
class Cell:
    """One row of the table.

    Args:
        network: "vgg11", "lenet5" or "convnet+256".
        source: of the images.
        batch: B.
        init: how the weights are drawn.
        classes: K.
        sent_as: a "float32" gradient, or an "update" at a learning rate of 0.1.
        steps: of training.
    """

    network: str
    source: str
    batch: int
    init: str = "default"
    classes: int = 10
    sent_as: SentAs = "float32"
    steps: int = 0


VGG = Cell("vgg11", "photos", 12)
LENET = Cell("lenet5", "mnist-5k", 12)
CONVNET = Cell("convnet+256", "photos", 12)
CELLS = (
    *(
        replace(VGG, init=init, batch=size)
        for init in ("default", "he", "torchvision")
        for size in (12, 16)
    ),
    replace(VGG, init="torchvision", sent_as="update"),
    replace(VGG, init="torchvision", classes=8, steps=40),
    *(replace(LENET, batch=size) for size in (12, 16, 20, 24, 32, 40, 48)),
    *(replace(LENET, init="he", batch=size) for size in (16, 32)),
    *(replace(LENET, sent_as="update", batch=size) for size in (16, 32)),
    replace(LENET, steps=400),
    CONVNET,
    replace(CONVNET, sent_as="update"),
)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of one batch.

    Args:
        claims: examples whose label is called RECOVERED.
        false: claims that aren't so, of labels and images.
        label_error: (B,), L∞, infinite without a label.
        feature_error: (B,), relative, infinite without one.
        psnr: (B,), in dB, minus infinity without an image.
        mixed: units of each hidden dense layer whose masks differ.
        seconds: of all attacks, of this process.
        reason: of the label attack, or where it has none, of the image attack.
    """

    claims: int
    false: int
    label_error: Tensor
    feature_error: Tensor
    psnr: Tensor
    mixed: tuple[int, ...]
    seconds: float
    reason: str


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Yield a row for each cell."""
    for cell in (LENET, replace(LENET, sent_as="update")) if quick else CELLS:
        count = SEEDS_OF_IMAGES if quick or cell.network == CONVNET.network else SEEDS
        yield _row(cell, [attack(cell, own) for own in range(seed, seed + count)])


def attack(cell: Cell, seed: int) -> Outcome:
    """Build a victim, attack it, and score the answers."""
    data = dataset(cell.source)
    classes = cell.classes if cell.classes != data.num_classes else None
    images, labels = draw_batch(data, cell.batch, "label-smoothing", classes=classes, seed=seed)
    model = model_of(cell, seed)
    leak = leak_of(model, images, labels, sent_as=cell.sent_as, batch_size=cell.batch)
    dense = [index for index, layer in enumerate(model) if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        features = model[: dense[0]](images).double()
        outputs = [model[: index + 1](images) for index in dense[:-1]]
    mixed = [int(((z > 0).any(0) & (z <= 0).any(0)).sum()) for z in outputs]
    started = time.process_time()
    recovery = LABEL_ATTACKS.build("soft-label")(leak, generator=torch_generator(seed, "attack"))
    found = recovered_features(leak, recovery, seed)
    pictures = None
    if cell.network == CONVNET.network:
        pictures = IMAGE_ATTACKS.build("relu-fit")(
            leak, recovery, generator=torch_generator(seed, "attack")
        )
    seconds = time.process_time() - started
    off = _apart(recovery.labels, labels, torch.inf)
    images_off = _apart(None if pictures is None else pictures.images, images, 2.0)
    claimed = [one.status is Status.RECOVERED for one in recovery.examples]
    false = int((off.amin(dim=1)[claimed] >= TOLERANCE).sum()) if any(claimed) else 0
    if pictures is not None and Status.RECOVERED in pictures.statuses:
        claimed = [one.status is Status.RECOVERED for one in pictures.examples]
        worst = -20 * images_off.amin(dim=1)[claimed].log10()
        false += int((worst < CLAIM_DB).sum())
    why = recovery.reason or (pictures.reason if pictures is not None else "") or ""
    size = features.square().mean(dim=1).sqrt()
    return Outcome(
        recovery.statuses.count(Status.RECOVERED),
        false,
        off.amin(dim=0),
        _apart(found, features, 2.0).amin(dim=0) / size,
        -20 * images_off.amin(dim=0).log10(),
        tuple(mixed),
        seconds,
        why,
    )


def model_of(cell: Cell, seed: int) -> nn.Sequential:
    """Return a cell's network, all its parts in one sequence; a trained one is that of seed 0."""
    return _trained(_start(cell)) if cell.steps else _untrained(cell, seed)


def _untrained(cell: Cell, seed: int) -> nn.Sequential:
    data = dataset(cell.source)
    if cell.network != CONVNET.network:
        model = untrained(
            cell.network, data, classes=cell.classes, bias=True, seed=seed, init=cell.init
        )
        assert isinstance(model, nn.Sequential)
        return model
    body = untrained("convnet", data, classes=cell.classes, bias=True, seed=seed, init=cell.init)
    assert isinstance(body, nn.Sequential)
    head = body[-1]
    assert isinstance(head, nn.Linear)
    width = head.in_features

    def top() -> nn.Sequential:
        return nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, cell.classes))

    return nn.Sequential(*body[:-1], *build_seeded(top, seed=seed))


def _start(cell: Cell) -> Cell:
    """Return what of a cell its training depends on, as one of the same network."""
    return replace(cell, batch=0, sent_as="float32")


@functools.cache
def _trained(cell: Cell) -> nn.Sequential:
    """Return the network of seed 0 after some steps on augmented examples."""
    data, model = dataset(cell.source), _untrained(cell, 0)
    take_steps(
        model,
        data,
        cell.steps,
        batch=TRAINING_BATCH,
        classes=data.num_classes,
        learning_rate=RATES.get(cell.network, 1e-3),
        draws=numpy_generator(0, "training", cell.network),
    )
    return model


def recovered_features(leak: GradientLeak, recovery: LabelRecovery, seed: int) -> Tensor | None:
    """Return the inputs (B, n) of the first dense layer; None without the last one's."""
    if recovery.features is None or recovery.labels is None:
        return None
    network = Network.of(leak)
    layers = FullyConnected.above(leak, network, network.executed[0])
    try:
        return invert_batch(
            layers.rescaled(recovery.gradient_scale or 1.0),
            recovery.features.double().numpy(),
            recovery.labels.double().numpy(),
            torch_generator(seed, "attack"),
        ).a
    except NotApplicable:
        return None


def _apart(found: Tensor | None, truth: Tensor, order: float) -> Tensor:
    """Return the distance of each row found from each true one, (B, B): L∞, or rms where 2.

    Infinite where there is none.
    """
    if found is None:
        return torch.full((len(truth), len(truth)), torch.inf, dtype=torch.float64)
    apart = (found.flatten(1)[:, None] - truth.double().flatten(1)).abs()
    distance = apart.amax(dim=2) if order == torch.inf else apart.square().mean(dim=2).sqrt()
    return distance.nan_to_num(torch.inf)


def _row(cell: Cell, outcomes: Sequence[Outcome]) -> dict[str, object]:
    label, feature, psnr = (
        torch.cat([getattr(outcome, name) for outcome in outcomes]).numpy()
        for name in ("label_error", "feature_error", "psnr")
    )
    reasons = [outcome.reason for outcome in outcomes if outcome.reason]
    mixed = np.median([outcome.mixed for outcome in outcomes], axis=0)
    reached = accuracy(_trained(_start(cell)), dataset(cell.source)) if cell.steps else None
    return {
        **{field.name: getattr(cell, field.name) for field in fields(cell)},
        "accuracy": "–" if reached is None else f"{reached:.2f}",
        "seeds": len(outcomes),
        "examples": cell.batch * len(outcomes),
        "mixed": "+".join(f"{count:.0f}" for count in mixed),
        "found": sum(outcome.claims for outcome in outcomes),
        "labels < 1e-3": int((label < STRICT).sum()),
        "features": int((feature < STRICT).sum()),
        "false": sum(outcome.false for outcome in outcomes),
        "label_median": f"{_median(label):.1g}",
        "feature_median": f"{_median(feature):.1g}",
        "psnr_median_db": f"{_median(psnr):.1f}" if cell.network == CONVNET.network else "–",
        "psnr_worst_db": f"{psnr.min():.1f}" if cell.network == CONVNET.network else "–",
        "seconds": f"{np.median([outcome.seconds for outcome in outcomes]):.2g}",
        "why not all": reasons[0] if reasons else "–",
    }


def _median(values: np.ndarray) -> float:
    """Return the median by the nearest rank, as some may be infinite."""
    return float(np.sort(values)[(len(values) - 1) // 2])
