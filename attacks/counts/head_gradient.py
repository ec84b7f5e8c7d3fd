"""The gradient of the last layer for any number of examples, as class counts are read from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attacks.answers import LabelRecovery, Status
from attacks.numerics.softmax import softmax
from attacks.types import GradientLeak, NotApplicable
from attacks.victim.gradients import Array, as_double, read_gradient
from attacks.victim.loss import require_mean_loss
from attacks.victim.network import Network, parameter_name
from attacks.victim.require import require_values

LAST = "the last layer"
DUMMIES = 64
"""Random images in place of auxiliary ones; their mean features settle sooner."""


@dataclass(frozen=True, eq=False)
class HeadGradient:
    """`G = (1/N) Σ_b (p_b − y_b) x_bᵀ` and `g = (1/N) Σ_b (p_b − y_b)` over all N examples.

    N counts an example as often as it was used: the batch size times the local steps, less where
    the last batch of an epoch is smaller. The sum over S steps that a leak holds is divided by S.
    Over several steps p and x are those of the weights at each example's own step.

    Note:
        Each step's gradient is a mean over its own batch, so that an example in a batch of b has
        the weight 1/(S·b), which is 1/N where all batches are alike. In a smaller last batch it
        weighs more, B/b times as much as others; right on average over the order of an epoch, off
        in any single one. `answer` says so.

    Args:
        leak: what it comes from.
        network: a view of the leak's model.
        weights: (K, D), W of the last layer.
        biases: (K,), its b; zeros without any.
        gradient: (K, D), G.
        bias_gradient: (K,), g; None where the leak has none.
        examples: N; None where the batches' sizes are unknown.
    """

    leak: GradientLeak
    network: Network
    weights: Array
    biases: Array
    gradient: Array
    bias_gradient: Array | None
    examples: int | None

    @classmethod
    def of(cls, leak: GradientLeak) -> HeadGradient:
        """Take the last layer's gradient out of a leak.

        Raises:
            NotApplicable: the gradient is missing, not finite, zero or equal for all classes, or no
                mean cross-entropy has one like it.
        """
        require_values(leak)
        network = Network.of(leak)
        head = network.head
        weight, bias = (parameter_name(network.head_name, part) for part in ("weight", "bias"))
        gradient = as_double(read_gradient(leak, weight, LAST)) / leak.local_steps
        bias_gradient = None
        if bias in leak.gradients:
            given = read_gradient(leak, bias, LAST, may_vanish=True)
            bias_gradient = as_double(given) / leak.local_steps
        if not np.ptp(gradient, axis=0).max() > 0:
            raise NotApplicable("the last layer's gradient is equal for all classes")
        require_mean_loss(leak, network, gradient, bias_gradient)
        return cls(
            leak=leak,
            network=network,
            weights=as_double(head.weight),
            biases=np.zeros(len(gradient)) if head.bias is None else as_double(head.bias),
            gradient=gradient,
            bias_gradient=bias_gradient,
            examples=leak.processed,
        )

    @property
    def drawn(self) -> int | None:
        """Examples whose chance decides G: of those that were used several times, each once.

        The spread of G over clients is that of one example, divided by this, not by N; and a class
        that is there has at least this share of N. None where neither number is known.
        """
        distinct = self.leak.steps.distinct
        known = [number for number in (self.examples, distinct) if number is not None]
        return min(known, default=None)

    @property
    def row_sums(self) -> Array:
        """Σ_j G_kj, (K,); negative only where a class is there, if features aren't negative."""
        return np.asarray(self.gradient.sum(axis=1))

    def require_examples(self) -> int:
        """Return N.

        Raises:
            NotApplicable: the batch size is unknown.
        """
        if self.examples is None:
            raise NotApplicable("the batch size is unknown, and counts need it")
        return self.examples

    def require_same_statistics(self) -> None:
        """Raise unless images that the attacker feeds in meet the network that the client ran.

        Raises:
            NotApplicable: batch norm ran on the statistics of the client's batch.
        """
        if self.leak.mode == "eval":
            return
        for name, module in self.leak.model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise NotApplicable(
                    f"layer {name!r} (batch norm) ran in train mode: on the attacker's images the "
                    "network isn't the client's"
                )

    def features(self, images: Tensor, *, parameters: Mapping[str, Tensor] | None = None) -> Array:
        """Return the last layer's input (M, D) on the attacker's images (M, C, H, W).

        Args:
            images: pixels in [0, 1].
            parameters: other weights than the leak's; all of the model's where given.
        """
        name = self.network.head_name
        pixels = images.to(self.network.dtype)
        return as_double(self.network.inputs_of([name], pixels, parameters=parameters)[name])

    @property
    def moving(self) -> tuple[Array, ...]:
        """The layer's weights, and its bias, as far as there is a gradient."""
        return (self.weights,) if self.bias_gradient is None else (self.weights, self.biases)

    def probabilities(
        self, x: Array, weights: Array | None = None, biases: Array | None = None
    ) -> Array:
        """Return what the layer predicts from features x (M, D), with its weights or others."""
        weights = self.weights if weights is None else weights
        biases = self.biases if biases is None else biases
        return np.asarray(softmax(x @ weights.T + biases))

    def answer(self, mass: Array, assumption: str) -> LabelRecovery:
        """Return a count attack's answer; NOT_IDENTIFIABLE, since no count vouches for itself.

        Args:
            mass: (K,), at least 0, not all 0; scaled to sum to N, or to 1 where N is unknown.
            assumption: what the attack assumes, beside the loss, as the start of a sentence.
        """
        total = 1 if self.examples is None else self.examples
        caveats = (self.leak.caveat, self._of_smaller_batches())
        caveat = "".join(f"; {caveat}" for caveat in caveats if caveat is not None)
        return LabelRecovery(
            Status.NOT_IDENTIFIABLE,
            f"{assumption}, and the loss is a mean cross-entropy: all this is assumed{caveat}",
            mass=torch.from_numpy(mass * (total / mass.sum())),
            batch_size=self.leak.batch_size,
        )

    def _of_smaller_batches(self) -> str | None:
        """Say how unevenly the examples weigh, as the end of a sentence."""
        sizes = self.leak.steps.batch_sizes
        if sizes is None or min(sizes) == max(sizes):
            return None
        return (
            f"an example in a batch of {min(sizes)} weighs {max(sizes) / min(sizes):.3g} times as "
            f"much as one in a batch of {max(sizes)}"
        )


@dataclass(frozen=True, eq=False)
class Auxiliary:
    """Labelled images that the attacker has, of the clients' kind but not theirs.

    Args:
        images: (M, C, H, W), pixels in [0, 1].
        labels: (M,) int64, in 0..K-1.

    Raises:
        ValueError: the shapes don't fit, or there is no image.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                "auxiliary images and labels must have shapes (M, C, H, W) and (M,), found "
                f"{tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            )
        if not len(self.labels):
            raise ValueError("auxiliary must hold at least one image, found none")

    @classmethod
    def load(cls, path: str) -> Auxiliary:
        """Read `images` and `labels` from an `.npz` file.

        Raises:
            ValueError: the file can't be read, or an array is missing.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                images, labels = arrays["images"], arrays["labels"]
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(
                f"auxiliary must name an .npz file with images and labels, found {path!r}: {error}"
            ) from error
        return cls(torch.from_numpy(images).float(), torch.from_numpy(labels).long())

    def require_fit(self, leak: GradientLeak, classes: int) -> None:
        """Raise unless these are images that the leak's model takes, of its classes.

        Raises:
            NotApplicable: they aren't.
        """
        if tuple(self.images.shape[1:]) != leak.input_shape:
            raise NotApplicable(
                f"the auxiliary images have the shape {tuple(self.images.shape[1:])}, the model "
                f"takes {leak.input_shape}"
            )
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= classes:
            raise NotApplicable(
                f"the auxiliary labels go from {low} to {high}, the model's from 0 to {classes - 1}"
            )


def as_auxiliary(value: Auxiliary | str | None) -> Auxiliary | None:
    """Return auxiliary images as given, or read from the path that is given."""
    return Auxiliary.load(value) if isinstance(value, str) else value


def round_to_sum(values: Array | Sequence[float], total: int) -> NDArray[np.int64]:
    """Round values that are at least 0 to counts that sum to `total`, by largest remainder.

    Args:
        values: (K,), not all 0; their scale doesn't matter.
        total: of the counts.

    Returns:
        (K,); of equal remainders, those of the first classes are rounded up.
    """
    scaled = np.asarray(values, dtype=np.float64)
    scaled = scaled * (total / math.fsum(scaled))
    counts = np.floor(scaled).astype(np.int64)
    missing = total - int(counts.sum())
    # The floor of a sum that rounds to just below an integer may leave a whole unit: a stable sort.
    counts[np.argsort(counts - scaled, kind="stable")[:missing]] += 1
    return counts
