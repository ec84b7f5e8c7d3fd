"""What mixing hides: mixes come back as without a defense, of double mixes the originals too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS
from attacks.unmix import separate
from defenses import DEFENSES, ClientStep
from fl_sim.bench.image_batches import draw_pairs
from fl_sim.bench.victims import dataset, draw_batch, linear_chain
from fl_sim.leakage.judge import Truth, pair_examples, psnr_db
from fl_sim.seeds import torch_generator
from fl_sim.testing.leaks import build_seeded, leak_of

BATCH, SEEDS, LEVEL_DB = 16, 5, 50.0
STAGES: Mapping[str, tuple[str, dict[str, Any]] | None] = {
    "none": None,
    "label-smoothing 0.1": ("label-smoothing", {"smoothing": 0.1}),
    "mixup": ("mixup", {}),
    "cutmix": ("cutmix", {}),
    "vicinal, double-mix": ("vicinal", {"kind": "double-mix"}),
    "vicinal, reverse": ("vicinal", {"kind": "reverse"}),
    "vicinal, recombine": ("vicinal", {"kind": "recombine"}),
}
TITLE = (
    "What mixing and smoothing hide of a batch of 16 digits: the images trained on, the originals"
)
NOTES = (
    "784-512-10 with biases and PyTorch's own initialisation, one step at lr 0.1, float32 weights; "
    f"`soft-label` and `analytic`, {SEEDS} seeds. *Images* are those that the client trained on. "
    "*Originals* come back by `attacks.unmix.separate` from the recovered mixes and labels alone; "
    "pairs of one class don't: their label is a hard one.",
)


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Yield a row for each way of mixing."""
    for name in ("none", "vicinal, reverse") if quick else STAGES:
        found = [_attack(name, s) for s in range(seed, seed + (1 if quick else SEEDS))]
        yield {
            "defense": name,
            "examples": BATCH * len(found),
            "labels < 1e-3": sum(int((one.error < 1e-3).sum()) for one in found),
            "images > 50 dB": sum(int((one.psnr > LEVEL_DB).sum()) for one in found),
            "originals of two classes": sum(one.separable for one in found) or "–",
            "of these > 50 dB": sum(int((one.original_psnr > LEVEL_DB).sum()) for one in found)
            if name.startswith("vicinal")
            else "–",
        }


@dataclass(frozen=True, eq=False)
class _Outcome:
    """What came of one batch.

    Args:
        error: (B,), L∞ of the labels, infinite without one.
        psnr: (B,), of what the client trained on, minus infinity without an image.
        separable: originals whose pair is of two classes.
        originals: (n, C, H, W), those that were separated.
        nearest: (n, C, H, W), the client's own that is nearest to each.
        original_psnr: (n,), of these.
    """

    error: Tensor
    psnr: Tensor
    separable: int
    originals: Tensor
    nearest: Tensor
    original_psnr: Tensor


def gallery(seed: int) -> Figure:
    """Draw originals out of one update of 16 mixed digits."""
    outcome = _attack("vicinal, reverse", seed)
    title = "originals out of one weight update of 16 mixes"
    return draw_pairs(outcome.originals, outcome.nearest, outcome.original_psnr, title)


def _attack(name: str, seed: int) -> _Outcome:
    """Defend a batch, attack its update, and score what comes back."""
    data, stage = dataset("mnist-5k"), STAGES[name]
    draws = 1 if stage is None else DEFENSES[stage[0]].draws
    originals, hard = draw_batch(data, BATCH * draws, "hard", seed=seed)
    step = ClientStep(originals, hard)
    if stage is not None:
        defense = DEFENSES.build(stage[0], **stage[1])
        step = defense.on_batch(step, torch_generator(seed, "defense"))
    images, labels = step.images, step.labels
    widths = (images[0].numel(), 512, data.num_classes)
    model = build_seeded(
        lambda: linear_chain(widths, bias=True, is_he=False, mean=data.mean, std=data.std),
        seed=seed,
    )
    leak = leak_of(model, images, labels, sent_as="update", lr=0.1)
    label_attack, image_attack = LABEL_ATTACKS.build("soft-label"), IMAGE_ATTACKS.build("analytic")
    recovery = label_attack(leak, generator=torch_generator(seed, "attack"))
    found = image_attack(leak, recovery, generator=torch_generator(seed, "attack"))
    error, psnr = torch.full((BATCH,), torch.inf), torch.full((BATCH,), -torch.inf)
    for row, example in enumerate(
        pair_examples(recovery, Truth(images, labels), BATCH, found.images)
    ):
        if example is None or recovery.labels is None or found.images is None:
            continue
        error[example] = (recovery.labels[row] - labels[example]).abs().max().nan_to_num(torch.inf)
        if bool(found.images[row].isfinite().all()):
            psnr[example] = psnr_db(found.images[row], images[example])
    apart = []
    if found.images is not None and recovery.labels is not None:
        apart = separate(found.images, recovery.labels)
    restored = torch.cat([pair.images for pair in apart]) if apart else images[:0].double()
    each = [max((psnr_db(one, own), i) for i, own in enumerate(originals)) for one in restored]
    classes = hard.argmax(dim=1)
    separable = 0
    if stage is not None and stage[0] == "vicinal" and stage[1]["kind"] != "recombine":
        separable = 2 * int((classes[::2] != classes[1::2]).sum())
    return _Outcome(
        error,
        psnr,
        separable,
        restored,
        originals[[place for _, place in each]],
        torch.tensor([score for score, _ in each]),
    )
