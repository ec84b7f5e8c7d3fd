"""VGG-11."""

from __future__ import annotations

from torch import nn

from fl_sim.models.layers import Init, Normalize, Shape, initialised, require_init

BLOCKS = ((64,), (128,), (256, 256), (512, 512), (512, 512))
"""Channels of the convolutions before each pooling: configuration A of the paper."""
WIDTH = 512
"""Of the classifier's hidden layers, and of what it reads."""


def vgg11(
    *,
    num_classes: int,
    input_shape: Shape,
    bias: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    init: Init = "default",
) -> nn.Module:
    """Return torchvision's VGG-11 without batch norm, with the classifier for CIFAR: 512-512-512-K.

    K. Simonyan, A. Zisserman, ICLR 2015, arXiv 1409.1556. Eight 3×3 convolutions with ReLU, five
    2×2 max poolings, three linear layers. At 32×32 pixels it is just that; smaller images aren't
    pooled along a side that is down to one pixel, larger ones (from 64) are averaged before the
    classifier.

    Args:
        num_classes: K.
        input_shape: (C, H, W).
        bias: whether the linear layers have biases; the convolutions do.
        mean: of each channel.
        std: of each channel.
        init: "default", PyTorch's; "he"; or "torchvision": convolutions normal with variance
            2/(9·outputs), linear layers with deviation 0.01, biases 0.

    Raises:
        ValueError: it is another `init`.
    """
    require_init(init, "torchvision")
    inputs, *sides = input_shape
    layers: list[nn.Module] = [Normalize(mean, std)]
    for block in BLOCKS:
        for outputs in block:
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
            layers += [initialised(convolution, init), nn.ReLU()]
            inputs = outputs
        window = tuple(min(side, 2) for side in sides)
        layers.append(nn.MaxPool2d(window))
        sides = [side // reach for side, reach in zip(sides, window, strict=True)]
    if max(sides) > 1:
        layers.append(nn.AdaptiveAvgPool2d(1))
    layers.append(nn.Flatten())
    for _ in range(2):
        layers += [initialised(nn.Linear(WIDTH, WIDTH, bias=bias), init), nn.ReLU()]
    layers.append(initialised(nn.Linear(WIDTH, num_classes, bias=bias), init))
    model = nn.Sequential(*layers)
    if init == "torchvision":
        _initialise_as_torchvision(model)
    return model


def _initialise_as_torchvision(model: nn.Module) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, 0.01)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
