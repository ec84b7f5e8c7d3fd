"""Networks. Each takes pixels in [0, 1] and normalises them in its first layer."""

from __future__ import annotations

from fl_sim.models.build import build_model
from fl_sim.models.connected import fcn4, mlp
from fl_sim.models.convolutional import convnet, lenet, lenet5
from fl_sim.models.layers import Init, Normalize, Shape
from fl_sim.models.resnet import resnet18
from fl_sim.models.vgg import vgg11

__all__ = [
    "Init",
    "Normalize",
    "Shape",
    "build_model",
    "convnet",
    "fcn4",
    "lenet",
    "lenet5",
    "mlp",
    "resnet18",
    "vgg11",
]
