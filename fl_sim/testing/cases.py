"""The small leaks that attacks are examined on: some that they may solve, many that they can't."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attacks import ExampleLabel, GradientLeak, LabelRecovery, Status
from attacks.facts import Fact
from defenses.label_smoothing import smooth_labels
from fl_sim.models import Normalize
from fl_sim.testing.leaks import build_seeded, facts_of, gradients_of

SHAPE = (1, 6, 6)
CLASSES = 6
LR = 0.1


@dataclass(frozen=True, eq=False)
class Case:
    """A leak, and the truth that only the judge may see.

    Args:
        name: the situation, as it goes on after "on", for messages.
        leak: what the attack gets.
        kind: of the network, to build it again.
        images: (B, C, H, W), in [0, 1].
        labels: (B, K), on the simplex.
        determines: whether the leak holds anything of them; nothing may be claimed otherwise.
    """

    name: str
    leak: GradientLeak
    kind: str
    images: Tensor
    labels: Tensor
    determines: bool = True


def through_bytes(case: Case) -> GradientLeak:
    """Return the leak as a server holds it: arrays read from bytes, in a network of its own."""
    arrays = {f"gradient {name}": part for name, part in case.leak.gradients.items()}
    arrays |= {f"weight {name}": part for name, part in case.leak.model.state_dict().items()}
    read = safetensors.torch.load(safetensors.torch.save(arrays))
    model = network(case.kind, seed=99, classes=case.labels.shape[1])
    model.load_state_dict({name: read[f"weight {name}"] for name in model.state_dict()})
    # Clones, because memory of another alignment may round sums differently.
    gradients = {name: read[f"gradient {name}"].clone() for name in case.leak.gradients}
    return dataclasses.replace(case.leak, model=model, gradients=gradients)


@dataclass(frozen=True, eq=False)
class Remains:
    """A forward hook that does nothing but keep a batch, as training code may leave one behind."""

    images: Tensor
    labels: Tensor

    def __call__(self, module: nn.Module, inputs: object, output: object) -> None:
        """Leave the output as it is."""


def with_remains(case: Case) -> GradientLeak:
    """Return the leak on a network that still carries a step: `.grad`, hooks, the batch.

    The remains are those of another batch, so that reading them shows in the answer.
    """
    model = copy.deepcopy(case.leak.model)
    images, labels = batch(len(case.labels), case.labels.shape[1], seed=7)
    torch.autograd.backward(cross_entropy(model(images), labels))
    for module in model.modules():
        module.register_forward_hook(Remains(images, labels))
    for name, value in {"images": images, "labels": labels, "batch": (images, labels)}.items():
        setattr(model, name, value)
    return dataclasses.replace(case.leak, model=model)


def ordinary_cases() -> Iterator[Case]:
    """Yield leaks of one example that some attack in the field solves."""
    _, one_hot = batch(2, seed=1)
    first, second = one_hot[:1], one_hot[1:]
    smoothed = smooth_labels(first, 0.1)
    mixed = 0.7 * first + 0.3 * second
    yield _case("a smoothed label", "fully connected", smoothed)
    yield _case("a hard label, with biases", "fully connected with biases", first)
    yield _case("a mixed label, with convolutions", "convolutional", mixed)
    both = smooth_labels(mixed, 0.1)
    yield _case("a weight update", "fully connected", both, steps=1)


def hard_cases() -> Iterator[Case]:
    """Yield leaks on which an attack that claims or expects too much gives itself away."""
    _, one_hot = batch(3, seed=2)
    label = smooth_labels(one_hot[:1], 0.2)
    plain = partial(_case, kind="fully connected", labels=label)
    biased = partial(_case, kind="fully connected with biases", labels=label)
    yield plain("an aware attacker's leak", knowledge=facts_of("label-smoothing", 0.2))
    yield plain("several local steps", steps=3)
    yield biased("several local steps, with biases", steps=3)
    yield _case("a batch", "fully connected with biases", smooth_labels(one_hot, 0.2))
    several = partial(_case, labels=smooth_labels(one_hot, 0.2), steps=4, batch_size=2)
    yield several("two epochs of unequal batches", "fully connected")
    yield several("two epochs of unequal batches, with biases", "fully connected with biases")
    for case in (
        plain("a batch of unknown size", labels=one_hot),
        biased("a batch of unknown size, with biases", labels=one_hot),
    ):
        yield _with_leak(case, batch_size=None)
    for case in (plain("a scaled gradient"), biased("a scaled gradient, with biases")):
        for factor in (0.3, 4.0):
            yield _with_leak(
                case, gradients={n: factor * g for n, g in case.leak.gradients.items()}
            )
    for case in (plain("heavy noise"), biased("heavy noise, with biases")):
        yield _with_leak(case, gradients=_noisy(case.leak))
    yield _case("two classes", "fully connected", smooth_labels(torch.eye(2)[:1], 0.2))
    yield plain("two heads", kind="two-headed")
    yield plain("a network without a linear head", kind="headless")
    yield from _broken_cases(biased("a plain leak"))


def _broken_cases(case: Case) -> Iterator[Case]:
    gradients = case.leak.gradients

    def named(name: str, kept: dict[str, Tensor], *, determines: bool = False) -> Case:
        return dataclasses.replace(
            _with_leak(case, gradients=kept), name=name, determines=determines
        )

    body = {name: gradients[name] for name in list(gradients)[:-2]}
    yield named("a leak without the last layer's gradient", body, determines=True)
    yield named("a leak without any gradient", {})
    for name, value in (("NaN", torch.nan), ("infinite", torch.inf), ("zero", 0.0)):
        filled = {n: torch.full_like(g, value) for n, g in gradients.items()}
        yield named(f"gradients that are {name}", filled)


def perfect_recovery(case: Case) -> LabelRecovery:
    """Return the label recovery of an attack that gets everything right, for image attacks."""
    inputs: list[Tensor] = []
    model = copy.deepcopy(case.leak.model)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    handle = linear[-1].register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad():
        model(case.images)
    handle.remove()
    pairs = zip(case.labels.double(), inputs[0].flatten(1).double(), strict=True)
    return LabelRecovery.of(
        [
            ExampleLabel(Status.RECOVERED, label=label, feature=feature, feature_bar=1e-6)
            for label, feature in pairs
        ]
    )


def no_recovery(case: Case) -> LabelRecovery:
    """Return the label recovery of an attack that doesn't cover the leak."""
    size = case.leak.batch_size
    return LabelRecovery(Status.NOT_APPLICABLE, "this attack never works", batch_size=size)


def batch(rows: int, classes: int = CLASSES, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return images (B, C, H, W) and one-hot labels (B, K), the classes apart while they can."""
    draws = torch.Generator().manual_seed(seed)
    images = torch.rand(rows, *SHAPE, generator=draws)
    order = torch.randperm(classes, generator=draws)
    return images, torch.eye(classes)[order[torch.arange(rows) % classes]]


def network(kind: str, *, seed: int = 0, classes: int = CLASSES) -> nn.Module:
    """Build a small network in eval mode, and leave PyTorch's global generator alone."""
    return build_seeded(partial(_network, kind, classes), seed=seed)


def _network(kind: str, classes: int) -> nn.Module:
    bias = kind == "fully connected with biases"
    if kind == "convolutional":
        body = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten()]
        layers = [*body, nn.Linear(144, classes)]
    else:
        linear = [nn.Linear(36, 32, bias=bias), nn.ReLU(), nn.Linear(32, 20, bias=bias)]
        layers = [nn.Flatten(), *linear, nn.ReLU(), nn.Linear(20, classes, bias=bias)]
    if kind == "two-headed":
        layers[-1] = _TwoHeads(20, classes)
    if kind == "headless":
        layers.append(nn.LogSoftmax(dim=1))
    return nn.Sequential(Normalize((0.5,), (0.25,)), *layers).eval()


class _TwoHeads(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.one = nn.Linear(width, classes)
        self.two = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        summed: Tensor = self.one(features) + self.two(features)
        return summed


def _case(
    name: str,
    kind: str,
    labels: Tensor,
    *,
    steps: int = 0,
    batch_size: int | None = None,
    knowledge: tuple[Fact, ...] = (),
) -> Case:
    """Compute a leak: a gradient at 0 steps, otherwise the weight update of so many SGD steps.

    Each step takes all examples, or with a batch size the next of an epoch's batches.
    """
    model = network(kind, classes=labels.shape[1])
    images, _ = batch(len(labels), seed=3)
    epoch = torch.split(torch.arange(len(labels)), batch_size or len(labels))
    trained = copy.deepcopy(model)
    path = dict(trained.named_parameters())
    gradients: dict[str, Tensor] = {}
    for step in range(max(steps, 1)):
        taken = epoch[step % len(epoch)]
        gradients = gradients_of(trained, images[taken], labels[taken])
        with torch.no_grad():
            for part, weight in path.items():
                weight.sub_(LR * gradients[part])
    if steps:
        start = {part: weight.detach().double() for part, weight in model.named_parameters()}
        gradients = {part: (start[part] - weight.detach()) / LR for part, weight in path.items()}
    leak = GradientLeak(
        model,
        gradients,
        batch_size or len(labels),
        SHAPE,
        local_steps=max(steps, 1),
        lr=LR if steps else None,
        update_dtype=torch.float32 if steps else None,
        knowledge=knowledge,
        examples=len(labels) if batch_size else None,
        schedule="epochs" if batch_size else None,
    )
    return Case(name, leak, kind, images, labels)


def _noisy(leak: GradientLeak) -> dict[str, Tensor]:
    """Add noise as large as each gradient's own entries."""
    draws = torch.Generator().manual_seed(4)
    return {
        name: gradient
        + gradient.square().mean().sqrt() * torch.randn(gradient.shape, generator=draws)
        for name, gradient in leak.gradients.items()
    }


def _with_leak(case: Case, **changes: object) -> Case:
    return dataclasses.replace(case, leak=dataclasses.replace(case.leak, **changes))  # type: ignore[arg-type]
