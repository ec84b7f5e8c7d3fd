"""What a leak and a label recovery say of the network's inside, with standard deviations."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from attacks.answers import LabelRecovery
from attacks.convolution.stages import Stage
from attacks.numerics.rms import rms
from attacks.types import GradientLeak, NotApplicable
from attacks.victim.gradients import read_gradient
from attacks.victim.network import parameter_name

NOISY = 4.0
"""What is left beside rank one is noise from this many standard deviations of rounding on."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """The last feature, the head's δ, and each layer's gradient, of one example in float64.

    Args:
        leak: where the gradients come from.
        feature: x, the last layer's input, (D,).
        feature_noise: standard deviations that its recovery from the gradient leaves, (D,).
        delta: `δ = ∂L/∂z = p − y` of the last layer, (K,).
        scale_bar: relative error bar of x's scale, and of 1/δ's.
        noise: standard deviation of what was added to the gradients beside rounding.
        eps: unit roundoff of the precision that the client computed in.
        is_shared: whether the gradients are a batch's, and say nothing of one example.
    """

    leak: GradientLeak = field(repr=False)
    feature: Tensor
    feature_noise: Tensor
    delta: Tensor
    scale_bar: float
    noise: float
    eps: float
    is_shared: bool = False

    @classmethod
    def of_one_in_batch(cls, leak: GradientLeak, feature: Tensor, head: Stage) -> Evidence:
        """Take one example's feature (D,), which the whole batch's gradients gave."""
        nothing = torch.zeros_like(feature)
        delta = torch.zeros(head.output_shape[0], dtype=torch.float64)
        eps = _eps(leak, head)
        return cls(leak, feature, nothing, delta, 0.0, 0.0, eps, is_shared=True)

    @classmethod
    def of(cls, leak: GradientLeak, labels: LabelRecovery, head: Stage) -> Evidence:
        """Take the recovered feature, and δ from it: `∂L/∂W = δ xᵀ`, so `δ = ∂L/∂W x / ‖x‖²`.

        That is more exact than p − y where the network is confident and both are nearly equal.

        Raises:
            NotApplicable: there is no feature, or the gradient is missing, not finite, or zero.
        """
        features = labels.features
        if features is None or len(features) != 1 or not torch.isfinite(features).all():
            raise NotApplicable(
                "it starts from the last layer's feature, which the label attack didn't recover"
            )
        x = features[0].detach().double()
        if len(x) != head.input_shape[0]:
            raise NotApplicable("the recovered feature isn't the last layer's input")
        gradient = _gradient(leak, head)[:, :, 0, 0]
        square = float(x @ x)
        if square == 0:
            raise NotApplicable("the last layer's feature is zero")
        delta = gradient @ x / square
        if not delta.any():
            raise NotApplicable("the last layer's gradient has nothing along the feature")
        rounding = leak.rounding(_name(head))
        noise = _noise(leak, gradient - torch.outer(delta, x), rounding)
        variance = rounding.square() + noise**2
        feature_noise = (delta.square() @ variance).sqrt() / float(delta @ delta)
        bar = labels.examples[0].feature_bar or 0.0
        return cls(leak, x, feature_noise, delta, bar, noise, _eps(leak, head))

    def gradient(self, stage: Stage) -> Tensor:
        """Return ∂L/∂W of a stage, (O, C, kh, kw).

        Raises:
            NotApplicable: it is missing, not finite, or zero.
        """
        return _gradient(self.leak, stage)

    def gradient_std(self, stage: Stage) -> Tensor:
        """Return the standard deviations of its entries, above 0; infinite where it is a batch's.

        To the rounding of the result comes that of the sum behind it, relative to the whole.
        """
        if self.is_shared:
            return torch.full_like(stage.weight, torch.inf)
        summed = 2 * self.eps * rms(self.gradient(stage))
        rounding = self.leak.rounding(_name(stage)).reshape(stage.weight.shape)
        return (rounding.square() + summed**2 + self.noise**2).sqrt()


def _gradient(leak: GradientLeak, stage: Stage) -> Tensor:
    gradient = read_gradient(leak, _name(stage), f"layer {stage.name!r}")
    return gradient.double().reshape(stage.weight.shape)


def _noise(leak: GradientLeak, rest: Tensor, rounding: Tensor) -> float:
    """Return the noise that is known, or seen beside rank one in the last layer's gradient.

    It is seen best in the columns where rounding is least, those of dead features.
    """
    known = (leak.told.noise_std or 0.0) / (leak.lr or 1.0)
    sizes = rounding.square().sum(dim=0)
    least = sizes <= sizes.sort().values[len(sizes) // 4]
    seen = rms(rest[:, least])
    return max(known, seen if seen > NOISY * rms(rounding[:, least]) else 0.0)


def _eps(leak: GradientLeak, stage: Stage) -> float:
    """Return the unit roundoff of the precision that the client computed in."""
    dtypes = [leak.model.get_parameter(_name(stage)).dtype]
    if leak.update_dtype is None:
        dtypes.append(leak.gradients[_name(stage)].dtype)
    return max(torch.finfo(dtype).eps for dtype in dtypes)


def _name(stage: Stage) -> str:
    return parameter_name(stage.name, "weight")
