"""What a leak and a label recovery say of the network's inside, with standard deviations."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from attacks.stages import Stage
from attacks.types import GradientLeak, LabelRecovery, NotApplicable


@dataclass(frozen=True, eq=False)
class Evidence:
    """The last feature, the head's δ, and each layer's gradient, of one example in float64.

    Args:
        leak: where the gradients come from.
        feature: x, the last layer's input, (D,).
        feature_std: (D,), above 0.
        delta: `δ = ∂L/∂z = p − y` of the last layer, (K,).
    """

    leak: GradientLeak = field(repr=False)
    feature: Tensor
    feature_std: Tensor
    delta: Tensor

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
        gradient = weight_gradient(leak, head)[:, :, 0, 0]
        square = float(x @ x)
        if square == 0:
            raise NotApplicable("the last layer's feature is zero")
        delta = gradient @ x / square
        if not delta.any():
            raise NotApplicable("the last layer's gradient has nothing along the feature")
        std = weight_gradient_std(leak, head)[:, :, 0, 0]
        noise = (delta.square() @ std.square()).sqrt() / float(delta @ delta)
        # The client computed the feature itself in finite precision.
        noise = noise.hypot(torch.tensor(_eps(leak, head)) * _rms(x[x != 0]))
        return cls(leak, x, noise, delta)

    def gradient(self, stage: Stage) -> Tensor:
        """Return ∂L/∂W of a stage, (O, C, kh, kw)."""
        return weight_gradient(self.leak, stage)

    def gradient_std(self, stage: Stage) -> Tensor:
        """Return the standard deviations of its entries, all above 0."""
        return weight_gradient_std(self.leak, stage)


def weight_gradient(leak: GradientLeak, stage: Stage) -> Tensor:
    """Return the gradient of a stage's weight, (O, C, kh, kw), in float64.

    Raises:
        NotApplicable: it is missing, not finite, or zero.
    """
    name = _name(stage)
    if name not in leak.gradients:
        raise NotApplicable(f"the gradient of layer {stage.name!r} is missing")
    gradient = leak.gradients[name].detach().double().reshape(stage.weight.shape)
    if not torch.isfinite(gradient).all():
        raise NotApplicable(f"the gradient of layer {stage.name!r} has NaN or infinite entries")
    if not gradient.any():
        raise NotApplicable(f"the gradient of layer {stage.name!r} is zero")
    return gradient


def weight_gradient_std(leak: GradientLeak, stage: Stage) -> Tensor:
    """Return what rounding and known noise make of its entries, (O, C, kh, kw).

    To the rounding of the result comes that of the sum behind it, relative to the whole gradient.
    """
    rounding = leak.rounding(_name(stage)).reshape(stage.weight.shape)
    noise = (leak.knowledge.noise_std or 0.0) / (leak.lr or 1.0)
    summed = 2 * _eps(leak, stage) * _rms(weight_gradient(leak, stage))
    return (rounding.square() + summed**2 + noise**2).sqrt()


def _eps(leak: GradientLeak, stage: Stage) -> float:
    """Return the unit roundoff of the precision that the client computed in."""
    dtypes = [leak.model.get_parameter(_name(stage)).dtype]
    if leak.update_dtype is None:
        dtypes.append(leak.gradients[_name(stage)].dtype)
    return max(torch.finfo(dtype).eps for dtype in dtypes)


def _name(stage: Stage) -> str:
    return f"{stage.name}.weight" if stage.name else "weight"


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
