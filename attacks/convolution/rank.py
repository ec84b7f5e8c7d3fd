"""How many equations a gradient holds for the image, and how many unknowns they face."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from attacks.convolution.stages import Chain, Stage


class NotIdentifiable(Exception):
    """Raised where equations are missing; becomes a status, with the sentence."""


@dataclass(frozen=True)
class LayerRank:
    """An upper bound on the rank of the constraints on a layer's input, beside its size.

    Args:
        layer: the layer's name.
        unknowns: how many there are.
        outputs: equations that what comes out of the layer gives.
        gradients: equations that its weight gradient gives.
        target: what the unknowns are of.
    """

    layer: str
    unknowns: int
    outputs: int
    gradients: int
    target: str = "its input"

    @property
    def deficit(self) -> int:
        """Equations that are missing at least; 0 where none need be."""
        return max(0, self.unknowns - self.outputs - self.gradients)

    @classmethod
    def of(cls, stage: Stage, *, outputs: int | None = None, rows: int | None = None) -> LayerRank:
        """Count for one stage of the recursion.

        Args:
            stage: the layer.
            outputs: how many of its outputs are known; None for all.
            rows: how many of its output channels have a δ; None for all.
        """
        unknowns = math.prod(stage.input_shape)
        every = math.prod(stage.output_shape)
        return cls(
            stage.name,
            unknowns,
            min(every if outputs is None else outputs, unknowns),
            _gradient_rank(stage, rows),
        )


def recursion_ranks(stages: Iterable[Stage], *, is_shared: bool) -> tuple[LayerRank, ...]:
    """Count for each stage, from shapes alone; gradients not at all where a batch shares them."""
    return tuple(LayerRank.of(stage, rows=0 if is_shared else None) for stage in stages)


def image_rank(
    chain: Chain, top: Stage, *, outputs: int | None = None, rows: int | None = None
) -> LayerRank:
    """Count for the image, which the fit finds from the top convolution's output and gradient.

    Args:
        chain: the network.
        top: its last convolution.
        outputs: how many of the top's outputs are known; None for all.
        rows: how many of the top's output channels have a δ; None for all.
    """
    unknowns = chain.pixels.slope.numel()
    every = math.prod(top.output_shape) if outputs is None else outputs
    return LayerRank(top.name, unknowns, every, _gradient_rank(top, rows), "the image")


def require_rank(ranks: Iterable[LayerRank]) -> None:
    """Raise unless no layer misses equations.

    Raises:
        NotIdentifiable: one does; the sentence says which, and how many.
    """
    for rank in ranks:
        if rank.deficit:
            raise NotIdentifiable(
                f"for the {rank.unknowns} unknowns of {rank.target}, layer {rank.layer!r} gives at "
                f"most {rank.outputs} equations by its output and {rank.gradients} by its "
                f"gradient, {rank.deficit} too few"
            )


def _gradient_rank(stage: Stage, rows: int | None) -> int:
    outputs, channels, height, width = stage.weight.shape
    pixels = math.prod(stage.input_shape[1:])
    live = outputs if rows is None else rows
    return channels * min(live * height * width, pixels)
