"""What a third party's package may hold, named as `third_party:attr` in the tests' scenarios."""

from __future__ import annotations

import copy
import json
import os
import signal
import time
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from attacks import (
    LABEL_ATTACKS,
    ExampleImage,
    ExampleLabel,
    GradientLeak,
    ImageAttack,
    LabelAttack,
    LabelRecovery,
    Reconstruction,
    Status,
)
from attacks.answers import without_claim
from attacks.types import NotApplicable
from attacks.victim.require import require_one_example
from defenses import ClientStep, Defense, LocalPlan, Place, Privacy, WithState
from defenses.base import Gradients
from defenses.dp_noise import DPNoise
from fl_sim.data import Dataset
from fl_sim.models import Normalize

SHAPE = (1, 4, 4)


def patterns(*, classes: int = 4, examples: int = 60) -> Dataset:
    """Return random images, no two alike; classes take turns."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(examples + 20, *SHAPE, generator=generator)
    labels = torch.arange(examples + 20) % classes
    names = tuple(f"class {index}" for index in range(classes))
    return Dataset(images[20:], labels[20:], images[:20], labels[:20], names)


def linear(*, num_classes: int, input_shape: Any, bias: bool, mean: Any, std: Any) -> nn.Module:
    """Return a linear classifier."""
    return nn.Sequential(Normalize(mean, std), nn.Flatten(), nn.Linear(16, num_classes, bias=bias))


def bottleneck(*, num_classes: int, bias: bool, mean: Any, std: Any, **_: Any) -> nn.Module:
    """Return two linear layers."""
    layers = [nn.Flatten(), nn.Linear(16, 3, bias=bias), nn.Linear(3, num_classes, bias=bias)]
    return nn.Sequential(Normalize(mean, std), *layers)


class EndsItsProcess(nn.Flatten):
    """A linear classifier that ends the process that shows it an image, as a full memory does."""

    def __init__(self, *, num_classes: int, bias: bool, **_: Any) -> None:
        super().__init__()
        self.head = nn.Linear(16, num_classes, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of no image."""
        if images.any():
            os._exit(7)
        logits: Tensor = self.head(images.flatten(1))
        return logits


class TellsThreads(nn.Flatten):
    """A linear classifier that prints on how many threads it is computed."""

    def __init__(self, *, num_classes: int, bias: bool, **_: Any) -> None:
        super().__init__()
        self.head = nn.Linear(16, num_classes, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K)."""
        told = {name: value for name, value in os.environ.items() if name.endswith("_THREADS")}
        told["VECLIB_MAXIMUM_THREADS"] = os.environ["VECLIB_MAXIMUM_THREADS"]
        print(json.dumps({"torch": torch.get_num_threads(), **told}))
        logits: Tensor = self.head(images.flatten(1))
        return logits


def dropout(*, num_classes: int, mean: Any, std: Any, **_: Any) -> nn.Module:
    """Return two linear layers with dropout between them."""
    layers = [nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(Normalize(mean, std), *layers, nn.Linear(32, num_classes))


def batch_norm(*, num_classes: int, mean: Any, std: Any, **_: Any) -> nn.Module:
    """Return two linear layers with batch norm between them."""
    layers = [nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU()]
    return nn.Sequential(Normalize(mean, std), *layers, nn.Linear(8, num_classes))


class AlwaysDrops(nn.Module):
    """Two linear layers with dropout between them, in eval mode too, and a drawn shift."""

    def __init__(self, *, num_classes: int, **_: Any) -> None:
        super().__init__()
        self.body = nn.Linear(16, 32)
        self.head = nn.Linear(32, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K)."""
        hidden = nn.functional.dropout(self.body(images.flatten(1)).relu(), 0.5, training=True)
        logits: Tensor = self.head(hidden + 0.1 * torch.bernoulli(torch.full_like(hidden, 0.5)))
        return logits


class Tempered(nn.Module):
    """A linear classifier with a learned scalar temperature, and a layer that isn't used."""

    def __init__(self, *, num_classes: int, **_: Any) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.head = nn.Linear(16, num_classes)
        self.unused = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K)."""
        logits: Tensor = self.head(images.flatten(1)) * self.temperature
        return logits


@dataclass(frozen=True)
class Averages(Defense):
    """Replaces the batch's gradient by the mean of the examples' own."""

    def on_gradient(
        self, step: ClientStep, gradients: Gradients, generator: torch.Generator
    ) -> Gradients:
        """Return what should be the same."""
        assert step.per_example_gradients is not None
        return {name: rows.mean(dim=0) for name, rows in step.per_example_gradients().items()}


@dataclass(frozen=True)
class LargestEntries(Defense):
    """Sends the largest entries and keeps the rest for the next round: error feedback.

    S. Stich, J. Cordonnier, M. Jaggi, "Sparsified SGD with memory", NeurIPS 2018, arXiv 1809.07599.
    """

    share: float = 0.2

    def on_update(self, update: Gradients, place: Place, generator: torch.Generator) -> WithState:
        """Add what was kept, and part the sum in two."""
        sent, rest = {}, {}
        for name, part in update.items():
            whole = part + place.state[name] if name in place.state else part
            count = max(1, round(self.share * whole.numel()))
            least = whole.abs().flatten().topk(count).values[-1]
            sent[name] = torch.where(whole.abs() >= least, whole, torch.zeros_like(whole))
            rest[name] = whole - sent[name]
        return WithState(sent, rest)


@dataclass(frozen=True)
class Velocity(Defense):
    """Trains by a mean of all the client's gradients so far, and counts them."""

    def on_gradient(
        self, step: ClientStep, gradients: Gradients, generator: torch.Generator
    ) -> WithState:
        """Mix the gradient into what was kept."""
        kept = step.place.state
        seen = kept.get("seen", torch.tensor(0)) + 1
        mean = {
            n: g if n not in kept else kept[n] + (g - kept[n]) / seen for n, g in gradients.items()
        }
        return WithState(mean, {**mean, "seen": seen})


@dataclass(frozen=True)
class Keeps(Defense):
    """Keeps what no client can, from the second round on."""

    what: str

    def on_update(self, update: Gradients, place: Place, generator: torch.Generator) -> WithState:
        """Return it."""
        one = torch.ones(1)
        states: dict[str, Any] = {
            "a list": [one],
            "a number": {"seen": 3},
            "no name": {"": one},
            "a sparse tensor": {"w": one.to_sparse()},
            "a surrogate": {"\ud800": one},
            "complex numbers": {"w": one.to(torch.complex128)},
        }
        return WithState(update, states[self.what] if place.round > 1 else {"w": one})


@dataclass(frozen=True)
class Formula(LabelAttack):
    """The closed form for one example and a last layer with a bias: x = ∂W / ∂b, y = p − ∂b."""

    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Apply it; it is always right here, so that a test needn't ask whether it is sure."""
        require_one_example(leak)
        weight, bias = list(leak.gradients.values())[-2:]
        row = int(bias.abs().argmax())
        feature = weight[row] / bias[row]
        head = copy.deepcopy(cast(nn.Sequential, leak.model)[-1]).double()
        with torch.no_grad():
            label = head(feature).softmax(dim=0) - bias
        return LabelRecovery.of([ExampleLabel(Status.RECOVERED, label=label, feature=feature)])


@dataclass(frozen=True)
class FormulaImage(ImageAttack):
    """A linear classifier's last feature is the normalised image."""

    def reconstruct(
        self, leak: GradientLeak, labels: LabelRecovery, generator: torch.Generator
    ) -> Reconstruction:
        """Undo the normalisation."""
        if labels.features is None or labels.features.shape[1] != 16:
            raise NotApplicable("there is no feature of 16 pixels")
        normalize = cast(Normalize, cast(nn.Sequential, leak.model)[0])
        [image] = labels.features.reshape(1, *SHAPE) * normalize.std + normalize.mean
        return Reconstruction.of([ExampleImage(Status.RECOVERED, image=image.clamp(0, 1))])


@dataclass(frozen=True)
class HalfSure(LabelAttack):
    """Recover a batch, and vouch for every other example only."""

    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Take claims back."""
        found = LABEL_ATTACKS.build("soft-label")(leak, generator=generator)
        return LabelRecovery.of(
            [
                without_claim(example, "it isn't sure") if index % 2 else example
                for index, example in enumerate(found.examples)
            ]
        )


@dataclass(frozen=True)
class Raises(LabelAttack):
    """An attack with a bug."""

    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Fail."""
        raise RuntimeError("index 7 is out of bounds")


@dataclass(frozen=True)
class Answers(LabelAttack):
    """An attack that answers `rows` times `classes` labels of zero."""

    rows: int
    classes: int

    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Answer."""
        label = torch.zeros(self.classes, dtype=torch.float64)
        return LabelRecovery.of([ExampleLabel(Status.NOT_CONVERGED, "zeros", label)] * self.rows)


@dataclass(frozen=True)
class Draws(LabelAttack):
    """An attack that returns a random guess."""

    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Draw."""
        rows = leak.steps.distinct or 1
        guess = torch.rand(rows, 4, generator=generator, dtype=torch.float64)
        return LabelRecovery.of(
            [ExampleLabel(Status.NOT_CONVERGED, "a guess", row) for row in guess / guess.sum()]
        )


def returns_nothing() -> Any:
    """Return an "attack" that returns None."""
    return lambda leak, *, generator: None


@dataclass(frozen=True)
class RaisesImage(ImageAttack):
    """An image attack with a bug."""

    def reconstruct(
        self, leak: GradientLeak, labels: LabelRecovery, generator: torch.Generator
    ) -> Reconstruction:
        """Fail."""
        raise ZeroDivisionError("division by zero")


@dataclass(frozen=True)
class Spoils(Defense):
    """Sends NaN, from the first round on."""

    def on_update(self, update: Gradients, place: Place, generator: torch.Generator) -> Gradients:
        """Return what no server can use."""
        return {name: torch.full_like(part, torch.nan) for name, part in update.items()}


PLACES: list[tuple[str, int, int]] = []
"""Where the hooks of `Notes` were called: hook, round and step."""


@dataclass(frozen=True)
class Notes(Defense):
    """Changes nothing, and notes where it is called."""

    def on_batch(self, step: ClientStep, generator: torch.Generator) -> ClientStep:
        """Note."""
        PLACES.append(("batch", step.place.round, step.place.step))
        return step

    def on_gradient(
        self, step: ClientStep, gradients: Gradients, generator: torch.Generator
    ) -> Gradients:
        """Note."""
        PLACES.append(("gradient", step.place.round, step.place.step))
        return gradients

    def on_update(self, update: Gradients, place: Place, generator: torch.Generator) -> Gradients:
        """Note."""
        PLACES.append(("update", place.round, place.step))
        return update


@dataclass(frozen=True)
class NoisySteps(Defense):
    """Claims what noise on each step's clipped gradients would guarantee."""

    noise: float
    unit: str = "example"

    def privacy(self, plan: LocalPlan) -> Privacy:
        """Claim that each example is drawn at a rate, in every step."""
        rate = plan.batch_size / plan.share_size
        unit = cast(Any, self.unit)
        return Privacy(1.0, self.noise, sampling=rate, unit=unit, releases=plan.local_steps)


@dataclass(frozen=True)
class ForgetsFactorTwo(DPNoise):
    """Takes the sensitivity of two updates of norm C for C."""

    def privacy(self, plan: LocalPlan) -> Privacy | None:
        """Claim too much."""
        return Privacy(cast(float, self.clipping_norm), noise=self.std)


def own(num_classes: int) -> nn.Module:
    """Return a network by a factory that knows of one of our arguments."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, num_classes))


def fixed() -> nn.Module:
    """Return a network by a factory that knows of none."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4))


@dataclass(frozen=True)
class Takes(LabelAttack):
    """A formula that takes its time, and says so."""

    is_long = True
    seconds: float = 0.0

    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Sleep, then draw a guess and answer as the formula does."""
        time.sleep(self.seconds)
        return Formula().recover(leak, generator)


@dataclass(frozen=True)
class Dies(LabelAttack):
    """An attack that takes its process down, on one of three updates."""

    is_long = True

    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """End, below Python."""
        if float(torch.rand((), generator=generator)) < 1 / 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return Formula().recover(leak, generator)
