"""Which linear layer gives a model's output, and what a model does that has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from attacks.types import NotApplicable

OUTPUT_ROUNDINGS = 8
"""Roundings by which two computations of one thing may differ."""


def find_head(logits: Any, outputs: Mapping[str, Tensor], images: int) -> str:
    """Return the linear layer whose output the model's is.

    Args:
        logits: the model's output.
        outputs: of the linear layers, by name, in the order in which they ran.
        images: how many were given.

    Raises:
        NotApplicable: there is none; the sentence says what the output is instead.
    """
    if not isinstance(logits, Tensor):
        raise NotApplicable(_several_outputs(logits, outputs))
    if logits.ndim != 2 or len(logits) != images:
        raise NotApplicable(
            f"the model's output for {images} images has the shape {tuple(logits.shape)}, and must "
            "be one row of logits for each image: no other places, tokens or pixels"
        )
    if logits.shape[1] < 2:
        raise NotApplicable(
            "the model has one output: cross-entropy over classes needs two or more, and of other "
            "losses these gradients mean something else"
        )
    like = {name: z for name, z in outputs.items() if z.numel() == logits.numel()}
    for name, z in reversed(like.items()):
        rows = z.reshape(logits.shape)
        if _is_equal(rows, logits) or _same(rows.log_softmax(1), logits):
            return name
    for name, z in reversed(like.items()):
        rows = z.reshape(logits.shape)
        if _same(rows.softmax(1), logits):
            raise NotApplicable(
                f"after the last linear layer, {name!r}, the model takes a softmax: the "
                "cross-entropy of its output isn't that of logits; if the loss takes its "
                "logarithm, give the model without that layer"
            )
        if _same(rows.sigmoid(), logits):
            raise NotApplicable(
                f"after the last linear layer, {name!r}, the model takes a sigmoid, as for a "
                "binary cross-entropy; attacks here read a softmax's"
            )
    raise NotApplicable(
        "the model's output must be that of a linear layer, its logits, or their log-softmax"
    )


def _same(a: Tensor, b: Tensor) -> bool:
    limit = OUTPUT_ROUNDINGS * torch.finfo(b.dtype).eps * b.abs().max()
    return bool((a - b).abs().max() <= limit) and bool(b.isfinite().all())


def _is_equal(a: Tensor, b: Any) -> bool:
    """Say whether two things are tensors of one kind and of equal entries, NaN included."""
    if not isinstance(b, Tensor) or (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    return torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def _several_outputs(output: Any, outputs: Mapping[str, Tensor]) -> str:
    """Say why a model's output isn't one tensor."""
    parts = list(output.values()) if isinstance(output, Mapping) else output
    if isinstance(parts, list | tuple):
        heads = [name for name, one in outputs.items() if any(_is_equal(one, p) for p in parts)]
        names = ", ".join(map(repr, heads)) or "none"
        return (
            f"the model has several outputs, of which {names} are linear layers'; wrap it in a "
            "module that returns one of them"
        )
    return f"the model's output must be a tensor of logits, found {type(output).__name__}"
