"""ResNet-18."""

from __future__ import annotations

from torch import nn

from fl_sim.models.layers import Init, Normalize, Shape, initialised, require_init


def resnet18(
    *,
    num_classes: int,
    input_shape: Shape,
    bias: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    init: Init = "default",
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
        init: "default", torchvision's (convolutions normal with variance 2/(k²·outputs) for k×k
            kernels, the last layer PyTorch's), or "he".

    Raises:
        ValueError: it is another `init`.
    """
    require_init(init)
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
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            initialised(layer, init)
    blocks = [layer for layer in network.modules() if isinstance(layer, resnet.BasicBlock)]
    for block in blocks:
        nn.init.constant_(block.bn2.weight, len(blocks) ** -0.5)
    return nn.Sequential(Normalize(mean, std), network)
