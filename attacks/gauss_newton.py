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
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.evidence import Evidence
from attacks.layer_recursion import Front
from attacks.layer_system import by_channel
from attacks.layers import Chain, PixelMap
from attacks.least_squares import cgls
from attacks.stages import Stage

INNER = 1e-2
"""Factor by which conjugate gradients lower a linear problem's gradient, and at most so many: """
INNER_STEPS = 60
SETTLED = 1e-3
"""Relative fall of the cost that isn't worth another step."""


@dataclass(frozen=True, eq=False)
class Point:
    """An image with what the solver needs there.

    Args:
        image: (C·H·W,), in pixels.
        residual: weighted, (m,).
        slopes: σ' of each stage below the top.
        weight: of each of the top's outputs; 0 where it is inactive, as it should be.
    """

    image: Tensor
    residual: Tensor
    slopes: tuple[Tensor, ...]
    weight: Tensor

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
        top: the last convolution.
        patches: D, of δ_z.
        z: the top's output where it is known, (O·H'·W',).
        active: where that is; elsewhere it is at most zero.
        output_weight: 1 / its standard deviation.
        gradient: of the top's weight, by input channel.
        gradient_weight: 1 / its standard deviation.
    """

    pixels: PixelMap
    below: tuple[Stage, ...]
    top: Stage
    patches: Tensor
    z: Tensor
    active: Tensor
    output_weight: Tensor
    gradient: Tensor
    gradient_weight: Tensor

    @classmethod
    def of(
        cls, chain: Chain, stages: Sequence[Stage], front: Front, evidence: Evidence
    ) -> ImageProblem:
        """Set it up from what is known of the last of `stages`' output."""
        *below, top = stages
        slope = top.activation.slope(front.value)
        active = slope > 0
        delta = (front.delta * slope).reshape(top.output_shape)
        z = torch.where(active, top.activation.inverse(front.value), 0.0)
        return cls(
            chain.pixels,
            tuple(below),
            top,
            patches=top.patches(delta),
            z=z,
            active=active,
            output_weight=torch.where(active, slope, 1.0) / front.std,
            gradient=by_channel(evidence.gradient(top)),
            gradient_weight=1 / by_channel(evidence.gradient_std(top)),
        )

    @property
    def known(self) -> int:
        """How many of the top's outputs are known."""
        return int(self.active.sum())

    @property
    def rows(self) -> int:
        """How many of the top's output channels have a δ."""
        live = self.patches.any(dim=1).reshape(self.top.weight.shape[0], -1).any(dim=1)
        return int(live.sum())

    def at(self, image: Tensor) -> Point:
        """Compute the residuals of an image (C·H·W,)."""
        a = (self.pixels.slope.flatten() * image + self.pixels.offset.flatten())[None]
        slopes = []
        for stage in self.below:
            a = stage.activation(stage.preactivation(a))
            slopes.append(stage.activation.slope(a))
        z = self.top.preactivation(a).flatten()
        weight = torch.where(self.active | (z > 0), self.output_weight, 0.0)
        modelled = a.reshape(self.top.input_shape[0], -1) @ self.patches.T
        gradients = (modelled - self.gradient) * self.gradient_weight
        residual = torch.cat([(z - self.z) * weight, gradients.flatten()])
        return Point(image, residual, tuple(slopes), weight)

    def product(self, point: Point, u: Tensor) -> Tensor:
        """Return the Jacobian's product with changes of the image (N, C·H·W)."""
        a = u * self.pixels.slope.flatten()
        for stage, slope in zip(self.below, point.slopes, strict=True):
            a = slope * stage.linear(a)
        outputs = self.top.linear(a).flatten(1) * point.weight
        channels = self.top.input_shape[0]
        gradients = (a.reshape(len(u) * channels, -1) @ self.patches.T).reshape(
            len(u), channels, -1
        )
        return torch.cat([outputs, (gradients * self.gradient_weight).flatten(1)], dim=1)

    def adjoint(self, point: Point, r: Tensor) -> Tensor:
        """Return the transpose's product with rows (N, m)."""
        known = len(point.weight)
        gradients = r[:, known:].reshape(len(r), *self.gradient_weight.shape) * self.gradient_weight
        a = self.top.adjoint(r[:, :known] * point.weight)
        a = a + (gradients.flatten(0, 1) @ self.patches).reshape(a.shape)
        for stage, slope in zip(reversed(self.below), reversed(point.slopes), strict=True):
            a = stage.adjoint(a * slope)
        return a.flatten(1) * self.pixels.slope.flatten()

    def step(
        self, point: Point, rows: Tensor, *, scale: Tensor, damping: float, tolerance: float = INNER
    ) -> Tensor:
        """Solve `min ‖J u − r‖² + damping ‖u / scale‖²` at a point, for rows r (N, m)."""
        return cgls(
            lambda u: self.product(point, u),
            lambda r: self.adjoint(point, r),
            rows,
            scale=scale,
            damping=damping,
            tolerance=tolerance,
            steps=INNER_STEPS,
        )

    def column_size(self, point: Point, generator: torch.Generator) -> float:
        """Return the root mean square norm of the Jacobian's columns, from four random rows."""
        rows = torch.randn(4, len(point.residual), generator=generator, dtype=torch.float64)
        return max(float(self.adjoint(point, rows).square().mean().sqrt()), 1e-300)


def fit_image(
    problem: ImageProblem, generator: torch.Generator, *, iterations: int
) -> tuple[Point, float]:
    """Minimise the residuals from a random grey image.

    Args:
        problem: the residuals.
        generator: draws the start.
        iterations: of Levenberg-Marquardt, at most.

    Returns:
        The best point, and the root mean square error in pixels that noise of the residuals' size
        leaves there.
    """
    count = problem.pixels.slope.numel()
    start = torch.rand(count, generator=generator, dtype=torch.float64)
    point = problem.at(0.4 + 0.2 * start)
    scale = torch.full((count,), 1 / problem.column_size(point, generator)).double()
    damping = 1e-3
    for _ in range(iterations):
        step = problem.step(point, -point.residual[None], scale=scale, damping=damping)
        tried = problem.at(point.image + step[0])
        fall = 1 - tried.cost / point.cost if point.cost else 0.0
        if fall > 0:
            point, damping = tried, damping / 5
        else:
            damping *= 8
        if abs(fall) < SETTLED or damping > 1e3:
            break
    noise = torch.randn(2, len(point.residual), generator=generator, dtype=torch.float64)
    spread = problem.step(point, noise, scale=scale, damping=0.0)
    return point, float(spread.square().mean().sqrt()) * max(point.misfit, 1.0)
