"""Networks. Each takes pixels in [0, 1] and normalises them in its first layer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import fl_sim
from fl_sim.errors import UserError
from fl_sim.seeds import seed_for, seeded_layers

Shape = tuple[int, int, int]


class Normalize(nn.Module):
    """Map pixels x to (x - mean) / std, channel by channel.

    The buffers aren't part of the state: they belong to the data set and are never sent.

    Args:
        mean: of each channel.
        std: of each channel, above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ValueError(
                f"mean and std must be equally long and std above 0, found {mean} and {std}"
            )
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        return (images - self.mean) / self.std


def fcn4(
    *,
    num_classes: int,
    input_shape: Shape,
    bias: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> nn.Module:
    """Return four linear layers with ReLU between them, He-initialised.

    With n = C·H·W inputs, the hidden widths are 256, 128, 64 up to n = 784, and n/3, n/12, n/48
    beyond: 4096, 1024, 256 for 64×64 colour images.

    Args:
        num_classes: K.
        input_shape: (C, H, W).
        bias: whether the layers have biases (all of them; initially 0).
        mean: of each channel.
        std: of each channel.
    """
    n = math.prod(input_shape)
    hidden = (256, 128, 64) if n <= 784 else (n // 3, n // 12, n // 48)
    return _fully_connected((n, *hidden, num_classes), bias, Normalize(mean, std))


def mlp(
    *,
    num_classes: int,
    input_shape: Shape,
    bias: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> nn.Module:
    """Return linear layers n-512-512-K with ReLU between them, He-initialised; see `fcn4`."""
    n = math.prod(input_shape)
    return _fully_connected((n, 512, 512, num_classes), bias, Normalize(mean, std))


def _fully_connected(widths: Sequence[int], bias: bool, normalize: Normalize) -> nn.Module:
    layers: list[nn.Module] = [normalize, nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        linear = nn.Linear(inputs, outputs, bias=bias)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        if bias:
            nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet(
    *,
    num_classes: int,
    input_shape: Shape,
    bias: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> nn.Module:
    """Return the LeNet of "Deep leakage from gradients".

    L. Zhu, Z. Liu, S. Han, NeurIPS 2019, arXiv 1906.08935. Three 5×5 convolutions of 12 channels,
    strides 2, 2, 1, sigmoids, one linear layer; weights and biases uniform in [-0.5, 0.5].

    Args:
        num_classes: K.
        input_shape: (C, H, W).
        bias: whether the last layer has one.
        mean: of each channel.
        std: of each channel.
    """
    channels, height, width = input_shape
    layers: list[nn.Module] = [Normalize(mean, std)]
    for inputs, stride in ((channels, 2), (12, 2), (12, 1)):
        layers += [nn.Conv2d(inputs, 12, 5, stride=stride, padding=2), nn.Sigmoid()]
    features = 12 * math.ceil(height / 4) * math.ceil(width / 4)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, num_classes, bias=bias))
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return model


def convnet(
    *,
    num_classes: int,
    input_shape: Shape,
    bias: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> nn.Module:
    """Return two 3×3 convolutions (32 channels; 64 with stride 2), ReLU, and one linear layer.

    Args:
        num_classes: K.
        input_shape: (C, H, W).
        bias: whether the last layer has one.
        mean: of each channel.
        std: of each channel.
    """
    channels, height, width = input_shape
    features = 64 * math.ceil(height / 2) * math.ceil(width / 2)
    return nn.Sequential(
        Normalize(mean, std),
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(features, num_classes, bias=bias),
    )


def resnet18(
    *,
    num_classes: int,
    input_shape: Shape,
    bias: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> nn.Module:
    """Return torchvision's ResNet-18 with random weights, each residual branch scaled by 1/√8.

    Batch norm in eval mode starts as the identity, so that nothing holds the activations' growth
    over L = 8 blocks; with torchvision's own initialisation, SGD at batch size 1 and a learning
    rate of 0.1 overflows within five rounds. The scale is 1/√L: S. Hayou et al., "Stable ResNet",
    AISTATS 2021, arXiv 2010.12859. It is the initial value of the weight of each block's last
    batch norm; at 0, a common choice, most gradients would vanish.

    Args:
        num_classes: K.
        input_shape: (C, H, W); below 64 pixels the stem is that for CIFAR, a 3×3 convolution with
            stride 1 and no pooling.
        bias: whether the last layer has one.
        mean: of each channel.
        std: of each channel.
    """
    # Takes two seconds to import.
    from torchvision.models import resnet

    channels, height, width = input_shape
    network = resnet.resnet18(weights=None, num_classes=num_classes)
    if min(height, width) < 64:
        network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    else:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.fc = nn.Linear(network.fc.in_features, num_classes, bias=bias)
    for layer in network.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # a hook would otherwise see an activation that is overwritten
    blocks = [layer for layer in network.modules() if isinstance(layer, resnet.BasicBlock)]
    for block in blocks:
        nn.init.constant_(block.bn2.weight, len(blocks) ** -0.5)
    return nn.Sequential(Normalize(mean, std), network)


def build_model(
    name: str,
    *,
    options: Mapping[str, Any],
    num_classes: int,
    input_shape: Shape,
    bias: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
) -> nn.Module:
    """Build a network by its name in `fl_sim.MODELS`, or by `module:attr`.

    The same seed gives the same weights; PyTorch's global generator is left as it was.

    Args:
        name: of the factory; `module:attr` gets those of our keyword arguments that it takes.
        options: more keyword arguments for the factory.
        num_classes: K.
        input_shape: (C, H, W).
        bias: whether the last linear layer has one; in `fcn4` and `mlp`, all layers.
        mean: of each channel of the training images.
        std: of each channel of the training images.
        seed: the run's.

    Returns:
        The network, in eval mode and float32, with its normalisation inside.

    Raises:
        UserError: the name is unknown, an option is wrong, `bias` is set and isn't read, or the
            result isn't a module that maps zeros of shape (2, C, H, W) to finite values of (2, K).
    """
    arguments = {
        "num_classes": num_classes,
        "input_shape": input_shape,
        "bias": bias,
        "mean": mean,
        "std": std,
    }
    for key in options.keys() & arguments.keys():
        raise UserError(f"the options of model {name!r} can't set {key!r}: the simulator does")
    with seeded_layers(seed_for(seed, "model")):
        try:
            taken = _taken(name, arguments) if ":" in name else arguments
            if bias and "bias" not in taken:
                raise UserError(
                    f"model.bias: must be false, since {name} has no such parameter, found true"
                )
            model = fl_sim.MODELS.build(name, **taken, **options)
        except ValueError as error:
            given = f"; it gets what it takes of {', '.join(arguments)}, and model.options"
            ending = given if ":" in name and str(error).endswith("required") else ""
            raise UserError(f"{error}{ending}") from error
        if not isinstance(model, nn.Module):
            raise UserError(f"model {name!r} must be an nn.Module, found {type(model).__name__}")
        model = model.float().eval()
        _check_output(name, model, input_shape, num_classes)
    return model


def _taken(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that a factory has parameters for: anyone's, as torchvision's."""
    factory = fl_sim.MODELS[name]
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # it isn't callable, or doesn't tell
        return dict(arguments)
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        # Written for us; or as torchvision's, which hand num_classes on to their class.
        named |= set(arguments) if not named or named & set(arguments) else {"num_classes"}
    return {key: value for key, value in arguments.items() if key in named}


def _check_output(name: str, model: nn.Module, input_shape: Shape, num_classes: int) -> None:
    zeros = torch.zeros(2, *input_shape)
    rule = f"model {name!r} must map {tuple(zeros.shape)} to finite values of {(2, num_classes)}"
    try:
        with torch.no_grad():
            output = model(zeros)
    except Exception as error:  # a user's module may raise anything
        raise UserError(f"{rule}, and raised {type(error).__name__}: {error}") from error
    if not isinstance(output, Tensor):
        raise UserError(f"{rule}, found {type(output).__name__}")
    if output.shape != (2, num_classes):
        raise UserError(f"{rule}, found shape {tuple(output.shape)}")
    if not output.isfinite().all():
        raise UserError(f"{rule}, found NaN or infinity")
