"""What noise hides in one round, and in many: clients that reuse their examples."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from attacks import GradientLeak, Normalization
from attacks.images.analytic import AnalyticInversion
from attacks.labels.soft_label import SoftLabelRecovery
from defenses.base import Place
from defenses.dp_noise import DPNoise
from fl_sim.bench.scores import Scores, score_batch, shown_median
from fl_sim.bench.victims import dataset, linear_chain
from fl_sim.copies import copy_model
from fl_sim.leakage.image_scores import is_identified
from fl_sim.privacy import epsilon
from fl_sim.seeds import numpy_generator, seed_for, seeded_layers, torch_generator

ROUNDS, NOISES = (1, 4, 16, 64), (0.3, 1.0, 3.0, 10.0)
"""R, and the noise's standard deviation in root mean squares of an update of the norm C."""
SEEDS, CLIENTS, EXAMPLES, LR, CLIPPING_NORM = 6, 4, 8, 0.01, 0.05
WIDTHS = (784, 512, 10)
LEVELS_DB = (20, 30, 50)
ATTACKERS = ("one round", "all rounds")
TITLE = (
    "`dp-noise` against rounds: what a client that reuses its examples leaks to who takes the "
    "latest round alone, and to who takes all rounds together"
)
NOTES = (
    f"784-512-10 without biases on `mnist-5k`, PyTorch's own initialisation; {CLIENTS} clients "
    f"with {EXAMPLES} examples each, hard labels, one full-batch step a round, lr {LR}: a rate at "
    "which the network learns slowly, and gradients stay about as large as at first for 16 rounds; "
    "in 64 they fade, so that the latest alone shows less than the first. At lr 0.1 they do so "
    f"earlier, and later rounds add less. Updates are clipped to the norm {CLIPPING_NORM}, which "
    "binds in the first rounds. *Noise* is its standard deviation in root mean squares of an "
    f"update of that norm; {SEEDS} seeds, one client of each attacked. More than {max(ROUNDS)} "
    f"rounds and more noise than {max(NOISES):g} weren't measured.",
    "Both attackers know the mechanism (`aware`), and both are `soft-label` and `analytic` with "
    "`attacks.rounds`; the first is given the latest round only. *Classes* counts labels within "
    "0.5, *labels* those within 0.01. *Identified*: the client's own image is the nearest to the "
    "best estimate, among its others and 1,000 that nobody trained on. *False*: claims "
    "(RECOVERED) that aren't so. ε at δ = 1e-5 is that of all R rounds, for any two data sets of "
    "the client (exact Gaussian composition): noise that hides images from one round is still far "
    "from what a meaningful ε takes, as it is spread over 406,528 parameters.",
)


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Train, and attack after R rounds; a quick run takes one seed, one noise and R = 1, 4."""
    for noise in NOISES[1:2] if quick else NOISES:
        lengths = ROUNDS[:2] if quick else ROUNDS
        found: dict[tuple[int, str], list[Attacked]] = defaultdict(list)
        for own in range(seed, seed + (1 if quick else SEEDS)):
            leaks, images, labels = _trained(noise, max(lengths), own)
            for count in lengths:
                for attacker in ATTACKERS:
                    earlier = leaks[: count - 1] if attacker == "all rounds" else ()
                    leak = dataclasses.replace(leaks[count - 1], earlier=tuple(earlier))
                    found[count, attacker].append(_attacked(leak, images, labels, own))
        for (count, attacker), several in found.items():
            yield _row(noise, count, attacker, several)


@dataclasses.dataclass(frozen=True, eq=False)
class Attacked:
    """What came of one client.

    Args:
        scores: of its batch.
        identified: images.
    """

    scores: Scores
    identified: int


def _trained(noise: float, rounds: int, seed: int) -> tuple[list[GradientLeak], Tensor, Tensor]:
    """Return the first client's leaks, images (B, C, H, W) and labels (B, K)."""
    data = dataset("mnist-5k")
    order = torch.from_numpy(numpy_generator(seed, "clients").permutation(len(data.images)))
    shares = order[: CLIENTS * EXAMPLES].reshape(CLIENTS, EXAMPLES)
    images = [data.images[share] for share in shares]
    labels = [one_hot(data.labels[share], data.num_classes).float() for share in shares]
    with seeded_layers(seed_for(seed, "network"), torch.device("cpu")):
        model = linear_chain(WIDTHS, bias=False, is_he=False, mean=data.mean, std=data.std)
    size = sum(parameter.numel() for parameter in model.parameters())
    defense = DPNoise(CLIPPING_NORM, noise_multiplier=noise / math.sqrt(size))
    leaks = []
    for server_round in range(1, rounds + 1):
        updates = []
        for client in range(CLIENTS):
            loss = cross_entropy(model(images[client]), labels[client])
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            names = [name for name, _ in model.named_parameters()]
            update = {n: LR * g for n, g in zip(names, gradients, strict=True)}
            draws = torch_generator(seed, "noise", server_round, client)
            sent = defense.on_update(update, Place(server_round), draws)
            assert isinstance(sent, dict)
            updates.append(sent)
        own = {name: part / LR for name, part in updates[0].items()}
        leaks.append(
            GradientLeak(
                copy_model(model),
                own,
                EXAMPLES,
                data.input_shape,
                lr=LR,
                update_dtype=torch.float32,
                examples=EXAMPLES,
                knowledge=defense.facts(),
                normalization=Normalization.of_range(0, 1),
            )
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.sub_(torch.stack([update[name] for update in updates]).mean(dim=0))
    return leaks, images[0], labels[0]


def _attacked(leak: GradientLeak, images: Tensor, labels: Tensor, seed: int) -> Attacked:
    recovery = SoftLabelRecovery()(leak, generator=torch_generator(seed, "attack"))
    found = AnalyticInversion()(leak, recovery, generator=torch_generator(seed, "attack"))
    scores = score_batch(recovery, found, images, labels)
    others = dataset("mnist-5k").test_images[:1000]
    shown = scores.images.isfinite().flatten(1).all(dim=1)
    identified = sum(
        bool(shown[i]) and bool(is_identified(scores.images[i], images, i, others))
        for i in range(len(images))
    )
    return Attacked(scores, identified)


def _row(noise: float, count: int, attacker: str, several: Sequence[Attacked]) -> dict[str, object]:
    psnr = torch.cat([one.scores.psnr for one in several])
    error = torch.cat([one.scores.label_error for one in several])
    size = sum(math.prod(pair) for pair in pairwise(WIDTHS))
    spent = epsilon(noise / math.sqrt(size), count)
    median = shown_median(psnr)
    return {
        "noise": noise,
        "ε": f"{spent:.3g}" if spent is not None else "none",
        "rounds": count,
        "attacker": attacker,
        "examples": len(psnr),
        "median PSNR, dB": f"{median:.1f}" if math.isfinite(median) else "none",
        **{f"> {level} dB": int((psnr > level).sum()) for level in LEVELS_DB},
        "identified": sum(one.identified for one in several),
        "classes": int((error < 0.5).sum()),
        "labels": int((error < 0.01).sum()),
        "claimed labels": sum(one.scores.found for one in several),
        "false": sum(one.scores.false for one in several),
    }


def figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw images and labels over rounds, a colour for each noise."""
    drawn = Figure(figsize=(13, 4.4), layout="constrained")
    axes = drawn.subplots(1, 3)
    noises = sorted({row["noise"] for row in rows})
    for index, noise in enumerate(noises):
        for attacker, style in zip(ATTACKERS, (":", "-"), strict=True):
            own = [row for row in rows if (row["noise"], row["attacker"]) == (noise, attacker)]
            counts = [row["rounds"] for row in own]
            medians = [float(str(row["median PSNR, dB"]).replace("none", "nan")) for row in own]
            shares = ([row[key] / row["examples"] for row in own] for key in ("> 20 dB", "classes"))
            label = f"noise {noise:g}, ε {own[0]['ε']} to {own[-1]['ε']}"
            for axis, values in zip(axes, (medians, *shares), strict=True):
                axis.plot(
                    counts,
                    values,
                    style,
                    marker="o",
                    color=f"C{index}",
                    label=label if style == "-" else None,
                )
    titles = ("images: median PSNR, dB", "images beyond 20 dB, share", "classes right, share")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xscale="log", xlabel="rounds", title=title)
        axis.set_xticks(ROUNDS, [str(count) for count in ROUNDS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    for axis in axes[1:]:
        axis.set_ylim(-0.03, 1.03)
    handles, labels = axes[0].get_legend_handles_labels()
    drawn.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=len(noises),
        fontsize=8,
        title="all rounds; dotted: the latest alone",
        title_fontsize=8,
    )
    return drawn
