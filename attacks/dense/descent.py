"""From a label attack's answer down to the first layer's inputs: the ways, and what is uncertain.

One example's shortcut is that of `attacks.dense.shortcut`; the chain, for a batch too, that of
`attacks.dense.batch`. Without biases an input's scale is as certain as the label.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attacks.answers import LabelRecovery, Status
from attacks.dense.batch import invert_batch
from attacks.dense.dropout import Dropped
from attacks.dense.inputs import UNCERTAIN, Inputs
from attacks.dense.network import FullyConnected
from attacks.dense.shortcut import from_bias, from_feature
from attacks.types import GradientLeak, NotApplicable
from attacks.victim.network import Network
from attacks.victim.pixel_map import PixelMap

UNKNOWN_SCALE = 0.05
"""Error of a feature's scale where neither the label attack nor the images tell: no claim."""


def by_shortcut(
    leak: GradientLeak, network: Network, first: str, inverse: PixelMap, labels: LabelRecovery
) -> Inputs:
    """Take the way for one example; without a bias in the first layer it needs the feature.

    Args:
        leak: with its gradients.
        network: a view of its model.
        first: the first layer's name.
        inverse: from its inputs to pixels.
        labels: the label attack's answer.

    Raises:
        NotApplicable: the feature is needed and unknown, or a gradient is missing.
    """
    features = labels.features
    known = features is not None and bool(features.isfinite().all())
    unknown = torch.full((1, network.head.in_features), torch.nan, dtype=torch.float64)
    feature = features[:1].double() if features is not None and known else unknown
    if network.linear[first].bias is not None:
        a, noise = from_bias(leak, first)
        bar = torch.zeros(1, dtype=torch.float64)
        reasons: tuple[str | None, ...] = (None,)
    elif known:
        a, noise = from_feature(leak, network, first, inverse, feature[0])
        bar, reasons = _scale_bars(labels, 1), _uncertain(labels, 1)
    else:
        raise NotApplicable(
            "without biases the image's scale needs the last layer's feature, which the label "
            "attack didn't recover"
        )
    return Inputs(a[None], torch.tensor([noise], dtype=torch.float64), feature, bar, reasons)


def by_chain(
    leak: GradientLeak,
    network: Network,
    batch: int,
    labels: LabelRecovery,
    generator: torch.Generator,
) -> Inputs:
    """Go down layer by layer.

    Args:
        leak: with its gradients.
        network: a view of its model.
        batch: B.
        labels: the label attack's answer.
        generator: draws the probes of the gradients' column spaces.

    Raises:
        NotApplicable: features are missing, or the network isn't such a chain.
    """
    layers = FullyConnected.of(leak, network).rescaled(labels.gradient_scale or 1.0)
    if labels.features is None:
        raise NotApplicable(
            "the chain starts at the last layer's features, which the label attack didn't recover"
        )
    features = labels.features.double().numpy()
    soft = _soft(labels, batch, network)
    if features.shape != (batch, network.head.in_features):
        raise NotApplicable(
            f"a batch of {batch} needs features of shape {(batch, network.head.in_features)}, "
            f"found {features.shape}"
        )
    found = invert_batch(layers, features, soft, generator)
    reasons, bar = found.reasons, found.scale_bar
    if not layers.layers[0].has_bias:
        own = _uncertain(labels, batch)
        reasons = tuple(a or b for a, b in zip(reasons, own, strict=True))
        bar = torch.where(bar.isnan(), _scale_bars(labels, batch, default=UNKNOWN_SCALE), bar)
    return dataclasses.replace(found, scale_bar=bar.nan_to_num(0.0), reasons=reasons)


def through_dropout(
    leak: GradientLeak,
    network: Network,
    found: Inputs,
    labels: LabelRecovery,
    generator: torch.Generator,
) -> Dropped:
    """Return the way forward through what the client's dropout left.

    Args:
        leak: with its gradients.
        network: a view of its model.
        found: the first layer's inputs.
        labels: the label attack's answer, with features.
        generator: draws the probes of the gradients' column spaces.
    """
    assert labels.features is not None
    layers = FullyConnected.of(leak, network).rescaled(labels.gradient_scale or 1.0)
    features, soft = labels.features.double().numpy(), _soft(labels, len(found.a), network)
    return Dropped.of(layers, found, features, soft, generator)


def _soft(labels: LabelRecovery, batch: int, network: Network) -> NDArray[np.float64]:
    """Return the labels (B, K), NaN where they aren't known."""
    if labels.labels is None:
        return np.full((batch, network.head.out_features), np.nan)
    return labels.labels.double().numpy()


def _uncertain(labels: LabelRecovery, batch: int) -> tuple[str | None, ...]:
    """Say of which examples the scale isn't known, because the label isn't."""
    return tuple(
        None if status is Status.RECOVERED else UNCERTAIN for status in statuses_of(labels, batch)
    )


def statuses_of(labels: LabelRecovery, batch: int) -> tuple[Status, ...]:
    """Return the status of each of B examples."""
    return labels.statuses or (labels.status,) * batch


def _scale_bars(labels: LabelRecovery, batch: int, *, default: float = 0.0) -> Tensor:
    bars = [example.feature_bar for example in labels.examples] or [None] * batch
    given = [default if bar is None else bar for bar in bars]
    return torch.tensor(given, dtype=torch.float64)
