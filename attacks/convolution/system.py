"""The two linear constraints on a layer's input: what came out of the layer, and its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import unfold

from attacks.convolution.stages import Stage
from attacks.numerics.cgls import cgls
from attacks.numerics.rms import row_rms

DENSE = 4096
"""Up to so many unknowns the normal equations are factorised; beyond, conjugate gradients."""
NOISE_ROWS = 32
"""Right-hand sides of noise."""
MOST_STEPS = 2000
"""Of conjugate gradients, at most."""


@dataclass(frozen=True, eq=False)
class LayerSystem:
    """The weighted least-squares problem for the input v of a stage.

        min ‖(W ∗ v − z) / s_z‖² + Σ_c ‖(D v_c − ∂L/∂W_c) / s_g‖²

    D (O·kh·kw, H·W) holds the patches of δ, the same for every input channel c.

    Args:
        stage: with `W ∗ v`.
        patches: D.
        output_weight: 1 / s_z, (O·H'·W',); 0 where z isn't known.
        gradient_weight: 1 / s_g, (C, O·kh·kw).
    """

    stage: Stage
    patches: Tensor
    output_weight: Tensor
    gradient_weight: Tensor

    def target(self, z: Tensor, gradient: Tensor) -> Tensor:
        """Return the weighted right-hand side (1, m), for z without the bias and ∂L/∂W."""
        known = torch.where(self.output_weight > 0, z.flatten(), 0.0) * self.output_weight
        return torch.cat([known, (by_channel(gradient) * self.gradient_weight).flatten()])[None]

    def product(self, v: Tensor) -> Tensor:
        """Return the weighted left-hand sides (N, m) of inputs (N, n)."""
        outputs = self.stage.linear(v).flatten(1) * self.output_weight
        gradients = self._gradients(v) * self.gradient_weight
        return torch.cat([outputs, gradients.flatten(1)], dim=1)

    def residual(self, z: Tensor, v: Tensor, known: Tensor, gradient: Tensor) -> Tensor:
        """Return the weighted misfit (m,) of an input.

        Args:
            z: what comes out for it, with the bias, (O·H'·W',).
            v: the input, (1, n).
            known: what is known to come out, (O·H'·W',).
            gradient: ∂L/∂W by input channel, (C, O·kh·kw).
        """
        gradients = (self._gradients(v)[0] - gradient) * self.gradient_weight
        return torch.cat([(z - known) * self.output_weight, gradients.flatten()])

    def adjoint(self, r: Tensor) -> Tensor:
        """Return the transpose of `product` on (N, m); (N, n)."""
        rows, channels = len(r), len(self.gradient_weight)
        known = len(self.output_weight)
        v = self.stage.adjoint(r[:, :known] * self.output_weight).flatten(1)
        gradients = r[:, known:].reshape(rows, channels, -1) * self.gradient_weight
        added: Tensor = (gradients.flatten(0, 1) @ self.patches).reshape(rows, -1)
        return v + added

    def _gradients(self, v: Tensor) -> Tensor:
        """Return D v (N, C, O·kh·kw)."""
        rows, channels = len(v), len(self.gradient_weight)
        return (v.reshape(rows * channels, -1) @ self.patches.T).reshape(rows, channels, -1)

    @cached_property
    def scale(self) -> Tensor:
        """The inverse norm of each unknown's column, (n,); 0 for a column of zeros."""
        squares = self.stage.adjoint(self.output_weight**2, self.stage.weight**2).flatten()
        squares = squares + (self.gradient_weight**2 @ self.patches**2).flatten()
        return torch.where(squares > 0, squares.rsqrt(), 0.0)

    def solve(self, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the solutions (N, n) for right-hand sides (N, m), and their standard deviations.

        These (n,) are measured on right-hand sides of unit noise. They are infinite where the
        problem is singular; the solutions are then those of least norm, roughly.
        """
        if len(self.scale) > DENSE or not self.scale.all():
            return self._iterate(targets, generator)
        factor, failed = torch.linalg.cholesky_ex(self._normal_matrix())
        if failed:
            found = self._iterate(targets, generator)[0]
            return found, torch.full_like(self.scale, torch.inf)
        rows = torch.cat([targets, self._noise(targets, generator)])
        found, count = self._solved(rows, factor), len(targets)
        # Forming normal equations squares the condition; a second pass makes up for it.
        found[:count] += self._solved(targets - self.product(found[:count]), factor)
        return found[:count], row_rms(found[count:].T)

    def _iterate(self, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Solve by conjugate gradients, where two rows of noise give one error for all entries."""
        rows, count = torch.cat([targets, self._noise(targets, generator)[:2]]), len(targets)
        found = cgls(self.product, self.adjoint, rows, scale=self.scale, steps=MOST_STEPS)
        error = found[count:].square().mean().sqrt()
        return found[:count], torch.where(self.scale > 0, error, torch.inf)

    def _noise(self, targets: Tensor, generator: torch.Generator) -> Tensor:
        shape = (NOISE_ROWS, targets.shape[1])
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def _solved(self, rows: Tensor, factor: Tensor) -> Tensor:
        right = (self.adjoint(rows) * self.scale).T
        return self.scale * torch.cholesky_solve(right, factor).T

    def _normal_matrix(self) -> Tensor:
        """Return `S Aᵀ A S`, (n, n), S the columns' scale."""
        pixels = self.patches.shape[1]
        normal = self._output_normal()
        for channel, weight in enumerate(self.gradient_weight):
            weighted = self.patches * weight[:, None]
            own = slice(channel * pixels, (channel + 1) * pixels)
            normal[own, own] += weighted.T @ weighted
        return normal.mul_(self.scale).mul_(self.scale[:, None])

    def _output_normal(self) -> Tensor:
        """Return the part of Aᵀ A that comes from W ∗ v, place by place of the output."""
        stage = self.stage
        count = len(self.scale)
        numbers = torch.arange(1, count + 1, dtype=torch.float64).reshape(1, *stage.input_shape)
        kernel_size = (stage.weight.shape[2], stage.weight.shape[3])
        # Which unknowns each place reads, (C·kh·kw, places); 0 is the padding.
        reads = unfold(numbers, kernel_size, stage.dilation, stage.padding, stage.stride)[0].long()
        kernels = stage.weight.flatten(1)
        weights = (self.output_weight**2).reshape(len(kernels), -1)
        normal = torch.zeros((count + 1) ** 2, dtype=torch.float64)
        chunk = max(1, 4_000_000 // len(reads) ** 2)
        for start in range(0, reads.shape[1], chunk):
            places = reads[:, start : start + chunk].T
            weight = weights[:, start : start + chunk]
            blocks = torch.einsum("op,oa,ob->pab", weight, kernels, kernels)
            index = places[:, :, None] * (count + 1) + places[:, None, :]
            normal.index_add_(0, index.flatten(), blocks.flatten())
        return normal.reshape(count + 1, count + 1)[1:, 1:].contiguous()


def by_channel(gradient: Tensor) -> Tensor:
    """Return ∂L/∂W (O, C, kh, kw) with the input channels first, (C, O·kh·kw)."""
    return gradient.transpose(0, 1).flatten(1)
