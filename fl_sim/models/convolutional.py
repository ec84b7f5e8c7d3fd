"""Small convolutional networks."""

from __future__ import annotations

import math

from torch import nn

from fl_sim.models.layers import Init, Normalize, Shape, initialised, require_init


def lenet(
    *,
    num_classes: int,
    input_shape: Shape,
    bias: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    init: Init = "default",
) -> nn.Module:
    """Return the LeNet of "Deep leakage from gradients".

    L. Zhu, Z. Liu, S. Han, NeurIPS 2019, arXiv 1906.08935. Three 5×5 convolutions of 12 channels,
    strides 2, 2, 1, sigmoids, one linear layer.

    Args:
        num_classes: K.
        input_shape: (C, H, W).
        bias: whether the last layer has one.
        mean: of each channel.
        std: of each channel.
        init: "default", PyTorch's; "he"; or "dlg", the paper's: weights and biases uniform in
            [-0.5, 0.5].

    Raises:
        ValueError: it is another `init`.
    """
    require_init(init, "dlg")
    channels, height, width = input_shape
    layers: list[nn.Module] = [Normalize(mean, std)]
    for inputs, stride in ((channels, 2), (12, 2), (12, 1)):
        convolution = nn.Conv2d(inputs, 12, 5, stride=stride, padding=2)
        layers += [initialised(convolution, init), nn.Sigmoid()]
    features = 12 * math.ceil(height / 4) * math.ceil(width / 4)
    head = initialised(nn.Linear(features, num_classes, bias=bias), init)
    model = nn.Sequential(*layers, nn.Flatten(), head)
    if init == "dlg":
        for parameter in model.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)
    return model


def lenet5(
    *,
    num_classes: int,
    input_shape: Shape,
    bias: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    init: Init = "default",
) -> nn.Module:
    """Return LeNet-5 as it is trained today: with ReLU and max pooling.

    After Y. LeCun et al., "Gradient-based learning applied to document recognition", 1998: 5×5
    convolutions of 6 channels (padded by 2) and 16, each with ReLU and 2×2 max pooling, then
    linear layers of 120, 84 and K.

    Args:
        num_classes: K.
        input_shape: (C, H, W), of at least 12×12 pixels.
        bias: whether the linear layers have biases; the convolutions do.
        mean: of each channel.
        std: of each channel.
        init: "default", PyTorch's, or "he".

    Raises:
        ValueError: it is another `init`, or images are smaller.
    """
    require_init(init)
    channels, height, width = input_shape
    if min(height, width) < 12:
        raise ValueError(f"images must have at least 12×12 pixels, found {height}×{width}")
    features = 16 * ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2)
    layers: list[nn.Module] = [Normalize(mean, std)]
    for inputs, outputs, padding in ((channels, 6, 2), (6, 16, 0)):
        convolution = nn.Conv2d(inputs, outputs, 5, padding=padding)
        layers += [initialised(convolution, init), nn.ReLU(), nn.MaxPool2d(2)]
    layers.append(nn.Flatten())
    for inputs, outputs in ((features, 120), (120, 84)):
        layers += [initialised(nn.Linear(inputs, outputs, bias=bias), init), nn.ReLU()]
    return nn.Sequential(*layers, initialised(nn.Linear(84, num_classes, bias=bias), init))


def convnet(
    *,
    num_classes: int,
    input_shape: Shape,
    bias: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    init: Init = "default",
) -> nn.Module:
    """Return two 3×3 convolutions (32 channels; 64 with stride 2), ReLU, and one linear layer.

    Args:
        num_classes: K.
        input_shape: (C, H, W).
        bias: whether the last layer has one.
        mean: of each channel.
        std: of each channel.
        init: "default", PyTorch's, or "he".

    Raises:
        ValueError: it is another `init`.
    """
    require_init(init)
    channels, height, width = input_shape
    features = 64 * math.ceil(height / 2) * math.ceil(width / 2)
    return nn.Sequential(
        Normalize(mean, std),
        initialised(nn.Conv2d(channels, 32, 3, padding=1), init),
        nn.ReLU(),
        initialised(nn.Conv2d(32, 64, 3, stride=2, padding=1), init),
        nn.ReLU(),
        nn.Flatten(),
        initialised(nn.Linear(features, num_classes, bias=bias), init),
    )
