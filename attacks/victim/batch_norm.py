"""The statistics of a batch at its batch norm layers, as the client's own update tells them.

In train mode a layer with momentum m leaves `r' = (1 − m) r + m s` in its buffers, s being the
batch's mean or unbiased variance. Who holds both r and r', as the server does, holds
`s = (r' − (1 − m) r) / m`: A. Hatamizadeh et al., *Do gradient inversion attacks make federated
learning unsafe?*, IEEE TMI 2023, arXiv 2202.06924.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from attacks.types import GradientLeak, NotApplicable

Statistics = Mapping[str, tuple[Tensor, Tensor]]
"""Batch norm layer -> mean (C,) and variance (C,) of its input."""


def batch_norms(model: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """Return a model's batch norm layers, by name."""
    kind = nn.modules.batchnorm._BatchNorm
    return {n: m for n, m in model.named_modules() if isinstance(m, kind)}


def statistics_of_batch(leak: GradientLeak) -> Statistics:
    """Return the batch's own statistics, in float64, of layers whose buffers tell them.

    Raises:
        NotApplicable: they weren't sent, or are a mixture of several steps'.
    """
    if leak.mode != "train" or not leak.buffers:
        raise NotApplicable(
            "the batch's statistics at its batch norm layers weren't sent: they come with the "
            "update in train mode alone, in the layers' buffers"
        )
    if leak.local_steps > 1:
        raise NotApplicable(
            f"the buffers of batch norm layers mix the statistics of {leak.local_steps} local steps"
        )
    found = {}
    for name, layer in batch_norms(leak.model).items():
        after = [leak.buffers.get(f"{name}.{kind}") for kind in ("running_mean", "running_var")]
        before = [layer.running_mean, layer.running_var]
        m = layer.momentum  # None: each batch weighs by how many there were, which isn't sent
        told = [
            (new.double() - (1 - m) * old.detach().double()) / m
            for new, old in zip(after, before, strict=True)
            if m and new is not None and old is not None
        ]
        if len(told) == 2:
            found[name] = told[0], told[1].clamp(min=0)
    if not found:
        raise NotApplicable("no batch norm layer's buffers were sent with a momentum that is known")
    return found


def kept_statistics(leak: GradientLeak) -> Statistics:
    """Return the statistics that the model holds of what it was trained on: a proxy.

    Raises:
        NotApplicable: it holds none.
    """
    found = {}
    for name, layer in batch_norms(leak.model).items():
        mean, variance = layer.running_mean, layer.running_var
        if mean is not None and variance is not None and (mean.any() or (variance != 1).any()):
            found[name] = mean.detach(), variance.detach()
    if not found:
        raise NotApplicable(
            "batch_norm asks for statistics of batch norm layers, and the model that was sent "
            "holds none; with batch_norm = 0 it is left out"
        )
    return found
