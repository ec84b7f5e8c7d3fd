"""An image fitted to what depends on it continuously, by Levenberg-Marquardt.

Where an activation hides what went into it, as ReLU does, the recursion over layers doesn't close.
Put the layers below the last convolution in as functions of the image instead. Two blocks are
continuous in it: the last convolution's output z, known where it is active and below zero where it
isn't, and its gradient `D(δ_z) a(image)`, δ_z frozen from the label. Gradients of lower layers jump
as units switch on and off, and stay out.

K. Levenberg (1944), D. Marquardt (1963); the Jacobian is never formed: between two jumps the layers
are linear, with the slopes of their activations, and so are their transposes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks.convolution.evidence import Evidence
from attacks.convolution.recursion import Front, bounded_scale, gradient_noise, known_outputs
from attacks.convolution.stages import Chain, Stage
from attacks.convolution.system import LayerSystem, by_channel
from attacks.numerics.cgls import cgls
from attacks.numerics.rms import rms
from attacks.victim.pixel_map import PixelMap

INNER = 1e-2
"""Factor by which conjugate gradients lower a linear problem's gradient, and at most so many: """
INNER_STEPS = 60
ALIVE = 6.0
"""A unit is active beyond this many standard deviations; of thousands none may pass by chance."""
UNFIT = 30.0
"""Misfit, in standard deviations, from which on another start is worth its while."""
SETTLED = 1e-3
"""Relative fall of the cost that isn't worth another step."""


@dataclass(frozen=True, eq=False)
class Point:
    """An image with what the solver needs there.

    Args:
        image: (C·H·W,), in pixels.
        residual: weighted, (m,).
        slopes: σ' of each stage below the top.
        top: the problem's, without the outputs that are inactive, as they should be.
    """

    image: Tensor
    residual: Tensor
    slopes: tuple[Tensor, ...]
    top: LayerSystem

    @property
    def cost(self) -> float:
        """Sum of the squared residuals."""
        return float(self.residual @ self.residual)

    @property
    def misfit(self) -> float:
        """Root mean square residual; 1 is what the standard deviations explain."""
        return math.sqrt(self.cost / len(self.residual))


@dataclass(frozen=True, eq=False)
class ImageProblem:
    """The weighted residuals of an image, and products with their Jacobian.

    Args:
        pixels: the normalisation.
        below: the stages below the top one.
        top: the equations of the last convolution, its outputs at most zero counted too.
        active: where its output is known; elsewhere it is at most zero.
        z: that output, (O·H'·W',); 0 where it isn't known.
        growth: its derivative by the logarithm of the feature's scale, likewise.
        gradient: of the top's weight, by input channel.
    """

    pixels: PixelMap
    below: tuple[Stage, ...]
    top: LayerSystem
    active: Tensor
    z: Tensor
    growth: Tensor
    gradient: Tensor

    @classmethod
    def of(
        cls,
        chain: Chain,
        stages: Sequence[Stage],
        front: Front,
        evidence: Evidence,
        active: Tensor,
    ) -> ImageProblem:
        """Set it up from what is known of the last of `stages`' output, and where it is active."""
        *below, top = stages
        slope, z = active.double(), front.value
        if top.activation.is_invertible:
            slope, z = top.activation.slope(front.value), top.activation.inverse(front.value)
        delta = (front.delta * slope).reshape(top.output_shape)
        system = LayerSystem(
            top,
            patches=top.patches(delta),
            output_weight=torch.where(active, slope, 1.0) / front.std,
            gradient_weight=1 / by_channel(gradient_noise(front, top, evidence)),
        )
        return cls(
            chain.pixels,
            tuple(below),
            system,
            active,
            torch.where(active, z, 0.0),
            torch.where(active, front.value / slope, 0.0),
            by_channel(evidence.gradient(top)),
        )

    def at(self, image: Tensor) -> Point:
        """Compute the residuals of an image (C·H·W,)."""
        a = self.pixels.inputs(image.reshape(1, *self.pixels.slope.shape))
        slopes = []
        for stage in self.below:
            a = stage.activation(stage.preactivation(a))
            slopes.append(stage.activation.slope(a))
        z = self.top.stage.preactivation(a).flatten()
        weight = torch.where(self.active | (z > 0), self.top.output_weight, 0.0)
        top = replace(self.top, output_weight=weight)
        residual = top.residual(z, a, self.z, self.gradient)
        return Point(image, residual, tuple(slopes), top)

    def product(self, point: Point, u: Tensor) -> Tensor:
        """Return the Jacobian's product with changes of the image (N, C·H·W)."""
        a = u * self.pixels.slope.flatten()
        for stage, slope in zip(self.below, point.slopes, strict=True):
            a = slope * stage.linear(a)
        return point.top.product(a)

    def adjoint(self, point: Point, r: Tensor) -> Tensor:
        """Return the transpose's product with rows (N, m)."""
        a = point.top.adjoint(r)
        for stage, slope in zip(reversed(self.below), reversed(point.slopes), strict=True):
            a = stage.adjoint(a.reshape(-1, *stage.output_shape) * slope)
        return a.flatten(1) * self.pixels.slope.flatten()

    def step(
        self,
        point: Point,
        rows: Tensor,
        scale: float,
        *,
        damping: float,
        tolerance: float = INNER,
        steps: int = INNER_STEPS,
    ) -> Tensor:
        """Solve `min ‖J u − r‖² + damping ‖u / scale‖²` at a point, for rows r (N, m)."""
        return cgls(
            lambda u: self.product(point, u),
            lambda r: self.adjoint(point, r),
            rows,
            scale=torch.full_like(point.image, scale),
            damping=damping,
            tolerance=tolerance,
            steps=steps,
        )

    def scale(self, point: Point, generator: torch.Generator) -> float:
        """Return the inverse of the Jacobian's columns' norm, from four random rows."""
        rows = torch.randn(4, len(point.residual), generator=generator, dtype=torch.float64)
        size = float(self.adjoint(point, rows).square().mean().sqrt())
        return 1 / max(size, torch.finfo(torch.float64).tiny)


def active_outputs(front: Front, top: Stage) -> Tensor:
    """Say which outputs of the top convolution are known, rather than at most zero."""
    if top.activation.is_invertible:
        return known_outputs(front, top)
    return front.value > ALIVE * front.noise


def fit_image(
    chain: Chain,
    stages: Sequence[Stage],
    front: Front,
    evidence: Evidence,
    generator: torch.Generator,
    *,
    iterations: int,
    starts: int,
) -> tuple[Point, float]:
    """Minimise the residuals from random grey images, until one explains the leak.

    Where noise hides whether a unit is active, the fitted image tells, and is fitted again.

    Args:
        chain: the network.
        stages: its convolutions.
        front: what is known of the last one's output.
        evidence: the gradients.
        generator: draws the starts.
        iterations: of Levenberg-Marquardt for each start, at most.
        starts: at most.

    Returns:
        The best point, and the root mean square error in pixels that it may have.
    """
    active = active_outputs(front, stages[-1])
    problem = ImageProblem.of(chain, stages, front, evidence, active)
    best: Point | None = None
    for _ in range(starts):
        grey = torch.rand(chain.pixels.slope.numel(), generator=generator, dtype=torch.float64)
        point = _descend(problem, 0.4 + 0.2 * grey, generator, iterations)
        if best is None or point.cost < best.cost:
            best = point
        if best.misfit < UNFIT:
            break
    assert best is not None
    if not stages[-1].activation.is_invertible:
        unsure = front.value.abs() <= ALIVE * front.noise
        found = active | (unsure & (best.top.output_weight > 0))
        if not found.equal(active):
            problem = ImageProblem.of(chain, stages, front, evidence, found)
            best = _descend(problem, best.image, generator, iterations)
    return best, _error(problem, best, front.scale_bar, generator)


def _descend(
    problem: ImageProblem, image: Tensor, generator: torch.Generator, iterations: int
) -> Point:
    point = problem.at(image)
    scale = problem.scale(point, generator)
    damping = 1e-3
    for _ in range(iterations):
        step = problem.step(point, -point.residual[None], scale, damping=damping)
        tried = problem.at(point.image + step[0])
        fall = 1 - tried.cost / point.cost if point.cost else 0.0
        if fall > 0:
            point, damping = tried, damping / 5
        else:
            damping *= 8
        if abs(fall) < SETTLED or damping > 1e3:
            break
    return point


def _error(
    problem: ImageProblem, point: Point, scale_bar: float, generator: torch.Generator
) -> float:
    """Return the error in pixels that noise of the residuals' size and an unknown scale leave."""
    noise = torch.randn(2, len(point.residual), generator=generator, dtype=torch.float64)
    outputs = problem.growth * point.top.output_weight
    gradients = problem.gradient * problem.top.gradient_weight
    scaled = torch.cat([outputs, gradients.flatten()])[None]
    rows = torch.cat([noise, scaled])
    scale = problem.scale(point, generator)
    moved = problem.step(point, rows, scale, damping=0.0, tolerance=1e-3, steps=5 * INNER_STEPS)
    unexplained = problem.product(point, moved[2:]) - scaled
    bar = bounded_scale(scale_bar, point.misfit, unexplained)
    return math.hypot(max(point.misfit, 1.0) * rms(moved[:2]), bar * rms(moved[2]))
