"""The same search by breaching 0.1.2, where it is installed beside fl-sim.

J. Geiping, https://github.com/JonasGeiping/breaching. It is no dependency: `pip install
breaching==0.1.2` into an environment with fl-sim, best a scratch one, adds its rows to tables.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import time
import warnings
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from attacks import ExampleImage, GradientLeak, Reconstruction, Status
from fl_sim.bench.plain_loop import LR


def has_breaching() -> bool:
    """Say whether it is installed."""
    return importlib.util.find_spec("breaching") is not None


def loaded() -> Any:
    """Return the package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of releases after those that it was written for
        import breaching
    return breaching


def breaching_search(
    leak: GradientLeak, label: Tensor, iterations: int, smooth: float, start: Tensor
) -> tuple[Reconstruction, float]:
    """Return what breaching's `invertinggradients` finds, and the CPU seconds of its iterations.

    Its own settings but for the iterations and the weight of total variation. The model normalises
    pixels itself, as for ours. What comes before the first iteration isn't timed.

    Args:
        leak: of one example, in eval mode.
        label: (1, K).
        iterations: of Adam at 0.1.
        smooth: weight of total variation.
        start: (1, C, H, W).
    """
    stamps: list[float] = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        stamps.append(time.process_time())  # once an iteration, and once to score the last image
        return cross_entropy(logits, labels)

    attacker = _attacker(leak, loss, iterations, smooth)
    parameters = [parameter.detach() for parameter in leak.model.parameters()]
    metadata = SimpleNamespace(shape=leak.input_shape, modality="vision")
    told = {"num_data_points": 1, "labels": label, "local_hyperparams": None}
    sent = {"gradients": list(leak.gradients.values()), "buffers": None, "metadata": told}
    server = {
        "parameters": parameters,
        "buffers": list(leak.model.buffers()),
        "metadata": metadata,
    }
    with torch.random.fork_rng(devices=[]):  # it draws a start of its own, and drops it
        found, _ = attacker.reconstruct([server], [sent], {}, initial_data=start)
    image = found["data"][0].detach().double()
    example = ExampleImage(Status.NOT_CONVERGED, "breaching says nothing", image)
    answer = Reconstruction.of([example], gradient_evaluations=iterations)
    return answer, stamps[iterations] - stamps[0]


def _attacker(leak: GradientLeak, loss: Any, iterations: int, smooth: float) -> Any:
    breaching = loaded()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        config = breaching.get_attack_config("invertinggradients")
        config.optim.max_iterations = iterations
        config.optim.step_size = LR
        config.regularization.total_variation.scale = smooth
        setup = {"device": torch.device("cpu"), "dtype": torch.float32}
        return breaching.attacks.prepare_attack(leak.model, loss, config, setup)
