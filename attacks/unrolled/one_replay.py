"""The image whose training leaves an update of a network with convolutions, and a test of it."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from attacks.types import GradientLeak, NotApplicable
from attacks.unrolled.found import BAR_SIGMAS, TIED_FROM, Replay, judged
from attacks.unrolled.one_image import ImageEquations
from attacks.unrolled.one_start import rough_images
from attacks.unrolled.refine import Effort, Refined, refine
from attacks.unrolled.solve import MET
from attacks.victim.network import Network
from attacks.victim.pixel_map import PixelMap

LONGEST = 100
"""Local steps, at most: each takes memory for every direction."""
NEAR_IMAGE, HOPS, HOP_STEPS = 0.1, (1e-2, 3e-3, 1e-3) * 2, 12
"""Misfit, relative, from which an image that Gauss-Newton ends at is near; noise on its pixels, to
start again from, in turns; steps from there. A unit on the wrong side of its kink holds an image in
place, and noise lets it go."""


def replay_image(leak: GradientLeak, network: Network) -> Replay:
    """Find the image and label of one example behind several steps.

    Raises:
        NotApplicable: the steps can't be repeated, or no closed form leads to a start.
    """
    classes = network.head.out_features
    if classes < TIED_FROM:
        raise NotApplicable(
            f"of {classes} classes nothing tells a label from another rate's: at least "
            f"{TIED_FROM} are asked for"
        )
    if leak.local_steps > LONGEST:
        raise NotApplicable(
            f"{leak.local_steps} local steps were told, and through convolutions at most "
            f"{LONGEST} are tried"
        )
    equations, effort = ImageEquations.of(leak, classes), Effort()
    best: Refined | None = None
    for start in rough_images(leak, equations):
        found = refine(equations, equations.model_at(start), effort)
        if best is None or found.typical < best.typical:
            best = found
        if best.typical < MET or effort.is_spent:
            break
    assert best is not None
    best = _hopped(equations, best, effort)
    return _judged(leak, network, equations, best)


def _hopped(equations: ImageEquations, best: Refined, effort: Effort) -> Refined:
    """Start again from noise around the best image, while it is near and not met."""
    generator = torch.Generator().manual_seed(0)
    for size in HOPS:
        if best.typical < MET or not best.misfit < NEAR_IMAGE or effort.is_spent:
            break
        pixels = best.client.inputs
        noise = size * torch.randn(pixels.shape, generator=generator, dtype=pixels.dtype)
        start = dataclasses.replace(best.client, inputs=pixels + noise)
        found = refine(equations, equations.model_at(start), effort, HOP_STEPS)
        best = found if found.typical < best.typical else best
    return best


def _judged(
    leak: GradientLeak, network: Network, equations: ImageEquations, found: Refined
) -> Replay:
    client = found.client
    inverse = PixelMap.of(network, network.trace[0].name)
    shape = (1, *leak.input_shape)
    image = client.inputs.reshape(shape)
    spread = found.spread.inputs.reshape(shape)
    worst = float((BAR_SIGMAS * found.noise * spread * inverse.slope).square().mean().sqrt())
    label_bars, reasons = judged(found, *_misfit(equations, equations.all_residuals(client)))
    return Replay(
        inverse.inputs(image).flatten(1),
        network.double_features(image),
        client.labels,
        label_bars,
        torch.tensor([worst if worst < math.inf else math.inf], dtype=torch.float64),
        found.typical,
        reasons,
    )


def _misfit(equations: ImageEquations, residuals: Tensor) -> tuple[float, float]:
    """Return the relative misfit of the whole update, and what rounding leaves."""
    size = float(equations.sent.square().sum())
    misfit = (float((residuals / equations.scale).square().sum()) / size) ** 0.5
    usual = (float(equations.scale.reciprocal().square().sum()) / size) ** 0.5
    return (misfit if misfit < math.inf else math.inf), usual
