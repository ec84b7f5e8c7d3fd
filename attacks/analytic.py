"""The exact image behind the gradient of a fully connected network, for one example.

Wang, Liang, He, ICLR 2024, arXiv 2402.03124, section 5, invert such networks layer by layer from
the recovered label. For one example there is a shorter way. The first layer's gradient has rank
one, `∂L/∂W₁ = δ₁ aᵀ`, so its rows are multiples of the layer's input a. With biases,
`∂L/∂b₁ = δ₁` gives a outright. Without, let u be the unit row: a network of ReLU-like activations f
up to its last layer is homogeneous, `f(s u) = s f(u)` for s > 0, and the recovered feature x fixes

    a = s u,      s = ⟨f(u), x⟩ / ‖f(u)‖²,      u of the sign that leaves the smaller residual.

`‖f(a) − x‖ / ‖x‖` is a test of the answer that needs no truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from attacks.network import Network
from attacks.rank_one import rank_one
from attacks.types import (
    GradientLeak,
    ImageAttack,
    LabelRecovery,
    NotApplicable,
    Reconstruction,
    Status,
    require_one_example,
)


@dataclass(frozen=True)
class AnalyticInversion(ImageAttack):
    """Invert a fully connected network, with biases in all layers or in none.

    Args:
        tolerance: root mean square error in pixels that RECOVERED stays below, above 0; the default
            is a PSNR of 50 dB. The error is estimated from the feature residual and from the noise.

    Raises:
        ValueError: tolerance isn't above 0.

    Note:
        A mixed-up example yields the mixed image, which is what the client trained on.
    """

    tolerance: float = 10 ** (-50 / 20)

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be above 0, found {self.tolerance}")

    def reconstruct(
        self, leak: GradientLeak, labels: LabelRecovery, generator: torch.Generator
    ) -> Reconstruction:
        """Recover the first layer's input and undo what stands before it."""
        require_one_example(leak)
        network = Network(leak)
        first = network.executed[0]
        inverse = PixelMap.of(network, first)
        gradient = _gradient(leak, f"{first}.weight")
        scale_bar = 0.0
        if network.linear[first].bias is not None:
            a, noise = _from_bias(gradient, _gradient(leak, f"{first}.bias"))
        else:
            _require_known_layers(leak)
            a, noise = _from_feature(network, inverse, gradient, labels)
            if labels.feature_bar is not None:
                scale_bar = float(labels.feature_bar[0].nan_to_num())
        image = inverse.pixels(a)
        residual = None
        errors = [noise * inverse.worth, scale_bar * _rms(a) * inverse.worth]
        errors.append(_rms(image - image.clamp(0, 1)))
        if labels.features is not None and torch.isfinite(labels.features).all():
            x = labels.features[0]
            residual = float((network.double_features(image) - x).norm() / x.norm())
            errors.append(residual * _rms(a) * inverse.worth)
        status, reason = Status.RECOVERED, None
        if network.linear[first].bias is None and labels.status is not Status.RECOVERED:
            status = Status.NOT_IDENTIFIABLE
            reason = "without biases the image's scale is as uncertain as the label recovery"
        elif not max(errors) <= self.tolerance:
            status = Status.NOT_CONVERGED
            reason = (
                f"the image's error is estimated at {max(errors):.2g}, more than "
                f"{self.tolerance:.2g}"
            )
        return Reconstruction(
            status,
            reason,
            image.clamp(0, 1),
            statuses=(status,),
            reasons=(reason,),
            residual=torch.tensor([torch.nan if residual is None else residual]).double(),
        )


@dataclass(frozen=True, eq=False)
class PixelMap:
    """The affine, entry-by-entry map `a = slope · image + offset` before the first layer.

    Args:
        slope: (C·H·W,), never zero.
        offset: (C·H·W,).
        shape: (1, C, H, W).
    """

    slope: Tensor
    offset: Tensor
    shape: tuple[int, int, int, int]

    @classmethod
    def of(cls, network: Network, first: str) -> PixelMap:
        """Find the map by probing, and test it on a random image.

        Raises:
            NotApplicable: what stands before the first linear layer isn't such a map.
        """
        shape = (1, *network.input_shape)
        flat = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        probes = torch.cat([torch.zeros(shape), torch.ones(shape), flat]).double()
        inputs = network.double_input(first, probes)
        message = "the first layer must be linear on the pixels, up to normalisation"
        if inputs.shape[1] != flat.numel():
            raise NotApplicable(message)
        offset, slope = inputs[0], inputs[1] - inputs[0]
        matches = torch.allclose(inputs[2], slope * flat.flatten() + offset, atol=1e-9)
        if not matches or not slope.all():
            raise NotApplicable(message)
        return cls(slope, offset, shape)

    @property
    def worth(self) -> float:
        """Error in pixels of a unit error in a, root mean square."""
        return _rms(1 / self.slope)

    def pixels(self, a: Tensor) -> Tensor:
        """Return the image (1, C, H, W) whose first-layer input is a (C·H·W,)."""
        return ((a - self.offset) / self.slope).reshape(self.shape)


def _gradient(leak: GradientLeak, name: str) -> Tensor:
    if name not in leak.gradients:
        raise NotApplicable(f"the gradient of the first layer, {name!r}, is missing")
    gradient = leak.gradients[name].detach().double()
    if not torch.isfinite(gradient).all():
        raise NotApplicable("the first layer's gradient has NaN or infinite entries")
    if not gradient.any():
        raise NotApplicable("the first layer's gradient is zero")
    return gradient


def _from_bias(gradient: Tensor, bias_gradient: Tensor) -> tuple[Tensor, float]:
    """Return `a = δᵀ ∂L/∂W / ‖δ‖²`, δ = ∂L/∂b, and the error that noise leaves in its entries."""
    square = float(bias_gradient @ bias_gradient)
    if square == 0:
        raise NotApplicable("the first layer's bias gradient is zero")
    a = bias_gradient @ gradient / square
    rest = gradient - torch.outer(bias_gradient, a)
    sigma = float(rest.norm()) / max(rest.numel() - rest.shape[1], 1) ** 0.5
    return a, sigma / square**0.5


def _from_feature(
    network: Network, inverse: PixelMap, gradient: Tensor, labels: LabelRecovery
) -> tuple[Tensor, float]:
    """Return `a = s u` by the recovered feature, and the error that noise leaves in its entries."""
    if labels.features is None or not torch.isfinite(labels.features).all():
        raise NotApplicable(
            "without biases the image's scale needs the last layer's feature, which the label "
            "attack didn't recover"
        )
    _require_homogeneous(network, inverse)
    u, noise = _direction(gradient)
    fits = [_scale(network, inverse, sign * u, labels.features[0]) for sign in (1, -1)]
    sign, (scale, residual) = min(zip((1, -1), fits, strict=True), key=lambda fit: fit[1][1])
    if residual == float("inf"):
        raise NotApplicable("the network's feature vanishes on both directions of the gradient")
    return scale * sign * u, scale * noise


def _direction(gradient: Tensor) -> tuple[Tensor, float]:
    """Return the unit row u (n,) of a rank-one gradient (m, n), and its entries' noise."""
    live = gradient[(gradient != 0).any(dim=1)].numpy()
    delta, u, sigma, _ = rank_one(live, zero_sum=False)
    return torch.from_numpy(u), sigma / float(np.linalg.norm(delta))


def _require_known_layers(leak: GradientLeak) -> None:
    """Raise `NotApplicable` if a layer did to the client's image what the server can't repeat."""
    drawing = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
    for name, module in leak.model.named_modules():
        if leak.mode == "train" and isinstance(module, drawing):
            raise NotApplicable(
                f"layer {name!r} ({type(module).__name__}) ran in train mode, which the server "
                "can't repeat"
            )


def _require_homogeneous(network: Network, inverse: PixelMap) -> None:
    """Raise `NotApplicable` unless doubling the first layer's input doubles the feature."""
    probe = torch.rand(
        inverse.slope.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    once, twice = (network.double_features(inverse.pixels(k * probe)) for k in (1, 2))
    if not torch.allclose(twice, 2 * once, rtol=1e-6, atol=1e-9):
        raise NotApplicable(
            "without a bias in the first layer, the network must be homogeneous: linear layers "
            "without biases and ReLU-like activations"
        )


def _scale(network: Network, inverse: PixelMap, u: Tensor, feature: Tensor) -> tuple[float, float]:
    """Return s > 0 with `f(s u) ≈ x`, and the relative residual; infinite where there is none."""
    response = network.double_features(inverse.pixels(u))[0]
    scale = float(response @ feature) / max(float(response @ response), 1e-300)
    if scale <= 0:
        return 0.0, float("inf")
    return scale, float((scale * response - feature).norm() / feature.norm())


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
