"""Attacks that count classes: the published rules, what they refuse, and what they never claim."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from attacks import LABEL_ATTACKS, GradientLeak, Normalization, Status
from attacks.counts.head_gradient import Auxiliary, HeadGradient, round_to_sum
from attacks.counts.training import HeadTraining
from attacks.labels.gradinversion_labels import GradInversionLabels
from attacks.labels.ilrg import ILRG
from attacks.labels.label_mass import LabelMass
from attacks.labels.llg import LLG, give_out
from attacks.training import SGD
from attacks.victim.loss import largest_projection
from attacks.victim.network import Network
from fl_sim.testing import check_label_attack
from fl_sim.testing.leaks import leak_of_steps

SHAPE = (1, 12, 12)
Maker = Callable[..., nn.Sequential]


def labels_of(counts: list[int]) -> Tensor:
    """Return hard labels (B, K), so many of each class."""
    return torch.eye(len(counts)).repeat_interleave(torch.tensor(counts), dim=0)


def leak_of(
    model: nn.Module, batches: list[Tensor], *, lr: float | None = None, **fields: Any
) -> GradientLeak:
    """Return what a server sees of one or more steps on random images with given labels."""
    generator = torch.Generator().manual_seed(1)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    total = {name: torch.zeros_like(p) for name, p in weights.items()}
    for labels in batches:
        current = {name: p.clone().requires_grad_() for name, p in weights.items()}
        images = torch.rand(len(labels), *SHAPE, generator=generator)
        logits = torch.func.functional_call(model, current, (images,))
        computed = torch.autograd.grad(cross_entropy(logits, labels), list(current.values()))
        for name, gradient in zip(current, computed, strict=True):
            total[name] += gradient
            if lr is not None:
                weights[name] -= lr * gradient
    options: dict[str, Any] = {
        "batch_size": len(batches[0]),
        "input_shape": SHAPE,
        "lr": lr,
    } | fields
    return GradientLeak(model, total, **options, local_steps=len(batches))


def distance(mass: Tensor | None, true: Tensor) -> float:
    assert mass is not None
    return float((mass / mass.sum() - true / true.sum()).abs().sum() / 2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def known() -> Auxiliary:
    """Eight random images of each of ten classes: the clients' images are random as well."""
    images = torch.rand(80, *SHAPE, generator=seeded(8))
    return Auxiliary(images, torch.arange(10).repeat_interleave(8))


@pytest.mark.parametrize(
    ("name", "options"),
    [("llg", {"variant": "llg*"}), ("label-mass", {"dummies": 8})],
)
def test_the_variants_conform(name: str, options: dict[str, Any]) -> None:
    check_label_attack(name, **options)


@pytest.mark.parametrize("name", ["label-mass", "llg"])
def test_with_auxiliary_images_they_conform(name: str) -> None:
    generator = seeded(2)
    given = Auxiliary(torch.rand(12, 1, 6, 6, generator=generator), torch.arange(12) % 6)
    check_label_attack(name, auxiliary=given, **({"variant": "llg+"} if name == "llg" else {}))


@pytest.mark.parametrize("bias", [True, False])
def test_gradinversion_finds_the_classes_of_a_batch_without_repetition(
    make_model: Maker, bias: bool
) -> None:
    labels = labels_of([1, 0, 0, 1, 1, 0, 0, 0, 1, 0])
    leak = leak_of(make_model(10, bias=bias), [labels])
    recovery = GradInversionLabels()(leak, generator=seeded())
    assert recovery.mass is not None
    assert torch.equal(recovery.mass, labels.sum(dim=0).double())


@pytest.mark.parametrize(
    ("rows", "impact", "counts"),
    [
        ([-3.0, -1.0, 0.5], -1.0, [3, 1, 0]),
        ([-1.0, -1.0, -0.5], -1.0, [2, 1, 1]),
        ([0.1, 0.2, 0.3], -1.0, [2, 1, 1]),
        ([-5.0, -4.0, -3.0], -0.1, [2, 1, 1]),
    ],
)
def test_llg_gives_out_examples_as_in_algorithm_1(
    rows: list[float], impact: float, counts: list[int]
) -> None:
    found = give_out(np.array(rows), sum(counts), impact, np.zeros(3))
    assert found.tolist() == counts


def test_an_example_of_a_smaller_last_batch_weighs_more(make_model: Maker) -> None:
    """In two epochs of 4, 4 and 2 examples, without an lr at the same weights, so that p is one."""
    model = make_model(10, bias=True, activation=nn.Sigmoid)
    nn.init.zeros_(model.get_parameter("2.weight"))
    order = torch.eye(10)
    batches = [*order.split(4), *order.flip(0).split(4)]
    leak = leak_of(model, batches, examples=10, schedule="epochs")
    head = HeadGradient.of(leak)
    assert head.examples == 20
    assert head.bias_gradient is not None
    p = model(torch.zeros(1, *SHAPE)).detach().softmax(dim=1).double()[0].numpy()
    weighed = 20 * (p - head.bias_gradient)
    # 20 / (6 · 4) in a batch of four, 20 / (6 · 2) in one of two; two epochs.
    expected = [5 / 6 + 5 / 3] * 2 + [5 / 6 + 5 / 6] * 6 + [5 / 3 + 5 / 6] * 2
    assert weighed == pytest.approx(expected, abs=1e-5)  # float32 gradients


@pytest.mark.parametrize(
    ("told", "drawn"),
    [
        ({"batch_size": 4}, 8),
        ({"batch_size": None}, None),
        ({"examples": 4, "schedule": "full-batch"}, 4),
        ({"examples": 5}, 5),
        ({"batch_size": None, "examples": 5}, 5),
    ],
    ids=str,
)
def test_what_was_used_twice_was_drawn_once(
    make_model: Maker, told: dict[str, Any], drawn: int | None
) -> None:
    leak = leak_of(make_model(10, bias=True), [torch.eye(10)[:4]] * 2, lr=0.1, **told)
    assert HeadGradient.of(leak).drawn == drawn


@pytest.mark.parametrize(("size", "weight"), [(4, 2), (5, None), (10, None)])
def test_a_mass_counts_every_use_of_an_example_and_names_unequal_weights(
    make_model: Maker, size: int, weight: int | None
) -> None:
    labels = torch.eye(10)[torch.arange(10) % 3]
    batches = [*labels.split(size)] * 2
    leak = leak_of(make_model(10, bias=True), batches, lr=0.1, examples=10, schedule="epochs")
    for attack in (LabelMass(), ILRG(), LLG()):
        recovery = attack(leak, generator=seeded())
        assert recovery.mass is not None
        assert float(recovery.mass.sum()) == pytest.approx(20)
        said = "an example in a batch of 2 weighs 2 times as much as one in a batch of 4"
        assert (said in (recovery.reason or "")) == (weight is not None)


def test_a_mass_of_epochs_of_unknown_length_sums_to_one(make_model: Maker) -> None:
    leak = leak_of(make_model(10, bias=True), [torch.eye(10)[:4]] * 2, lr=0.1, schedule="epochs")
    assert leak.processed is None
    recovery = LabelMass()(leak, generator=seeded())
    assert recovery.mass is not None
    assert float(recovery.mass.sum()) == pytest.approx(1)
    assert ILRG()(leak, generator=seeded()).status is Status.NOT_APPLICABLE


def test_ilrg_is_exact_where_the_features_are_equal(make_model: Maker) -> None:
    """Its assumption, met by a network that no image reaches the end of."""
    model = make_model(10, bias=True, activation=nn.Sigmoid)
    nn.init.zeros_(model.get_parameter("2.weight"))
    counts = [4, 0, 1, 0, 0, 7, 2, 0, 0, 18]
    recovery = ILRG()(leak_of(model, [labels_of(counts)]), generator=seeded())
    assert recovery.mass is not None
    assert recovery.mass.tolist() == counts


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("has_auxiliary", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_label_mass_is_real_valued(
    make_model: Maker, known: Auxiliary, bias: bool, has_auxiliary: bool, smoothing: float
) -> None:
    """Hard labels and smoothed ones alike, though the smoothed mass isn't whole anywhere."""
    labels = labels_of([4, 0, 1, 0, 0, 7, 2, 0, 0, 18])
    labels = (1 - smoothing) * labels + smoothing / 10
    # Without a bias the features' length has to come from the attacker's images: it varies less.
    model = make_model(10, bias=bias, activation=nn.ReLU if bias else nn.Sigmoid)
    leak = leak_of(model, [labels])
    attack = LabelMass(known if has_auxiliary else None)
    recovery = attack(leak, generator=seeded())
    true = labels.sum(dim=0).double()
    assert recovery.labels is None
    assert recovery.status is Status.NOT_IDENTIFIABLE
    assert recovery.mass is not None
    assert float(recovery.mass.sum()) == pytest.approx(32)
    # An example is 0.03; the features' spread leaves up to a third of one.
    assert distance(recovery.mass, true) < 0.03


def test_label_mass_follows_several_steps(make_model: Maker, known: Auxiliary) -> None:
    """Taking the steps for one batch at the start's weights is worse."""
    batches = [labels_of([3, 0, 1, 0, 0, 2, 0, 0, 0, 2])] * 6
    leak = leak_of(make_model(10, bias=True), batches, lr=0.3)
    true = torch.stack(batches).sum(dim=(0, 1)).double()
    recovery = LabelMass(known)(leak, generator=seeded())
    assert recovery.mass is not None
    assert float(recovery.mass.sum()) == pytest.approx(6 * 8)
    at_start = LabelMass(known)(dataclasses.replace(leak, lr=None), generator=seeded())
    # At this learning rate the predictions change by half; measured: 0.077 against 0.123.
    assert distance(recovery.mass, true) < 0.8 * distance(at_start.mass, true)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "optimizer",
    [SGD(0.3), SGD(0.3, momentum=0.9, nesterov=True), SGD(0.3, momentum=0.5, weight_decay=0.1)],
    ids=["plain", "nesterov", "decay"],
)
def test_a_training_is_repeated_on_the_clients_own_images(
    make_model: Maker, bias: bool, optimizer: SGD
) -> None:
    """Of the last layer alone, so that features stay: p of every step is the client's."""
    model, steps, counts = make_model(10, bias=bias).double(), 6, [3, 0, 1, 0, 0, 2, 0, 0, 0, 2]
    labels = labels_of(counts).double()
    images = torch.rand(8, *SHAPE, generator=seeded(3))
    head = model[-1]
    x = model[:-1](images.double()).detach()
    weights = tuple(p.detach() for p in head.parameters())
    buffers, told = None, []
    for _ in range(steps):
        p = (x @ weights[0].T + (weights[1] if bias else 0)).softmax(dim=1)
        told.append(p)
        down = (p - labels) / 8
        weights, buffers = optimizer.step(weights, (down.T @ x, down.sum(0))[: 1 + bias], buffers)
    local = copy.deepcopy(model)
    for parameter, weight in zip(local[-1].parameters(), weights, strict=True):
        parameter.data = weight
    leak = leak_of_steps(model, local, optimizer, steps, batch_size=8, input_shape=SHAPE)
    names = {name for name in leak.gradients if name.startswith("6.")}
    leak = dataclasses.replace(leak, gradients={name: leak.gradients[name] for name in names})
    training = HeadTraining.of(HeadGradient.of(leak), images, labels.argmax(dim=1).numpy())
    found = training.probabilities(labels.mean(dim=0).numpy())
    assert found == pytest.approx(torch.cat([told[t] for t in training.watched]).numpy(), abs=1e-6)
    mass = LabelMass(Auxiliary(images, labels.argmax(dim=1)))(leak, generator=seeded()).mass
    assert distance(mass, labels.sum(dim=0)) < 0.02


@pytest.mark.parametrize("name", ["gradinversion-labels", "llg", "ilrg"])
def test_counts_need_the_batch_size(make_model: Maker, name: str) -> None:
    leak = leak_of(make_model(10, bias=True), [labels_of([1] * 10)], batch_size=None)
    recovery = LABEL_ATTACKS.build(name)(leak, generator=seeded())
    assert recovery.status is Status.NOT_APPLICABLE
    assert "batch size is unknown" in str(recovery.reason)


def test_label_mass_of_an_unknown_batch_sums_to_one(make_model: Maker) -> None:
    labels = labels_of([4, 0, 1, 0, 0, 7, 2, 0, 0, 18])
    leak = leak_of(make_model(10, bias=True), [labels], batch_size=None)
    recovery = LabelMass()(leak, generator=seeded())
    assert recovery.batch_size is None
    assert recovery.mass is not None
    assert float(recovery.mass.sum()) == pytest.approx(1)
    assert distance(recovery.mass, labels.sum(dim=0).double()) < 0.05


@pytest.mark.parametrize(
    ("attack", "counts", "bias", "reason"),
    [
        (GradInversionLabels(), [2] * 10, True, "repeat a class"),
        (ILRG(), [1] * 10, False, "no bias gradient"),
    ],
)
def test_a_leak_that_an_attack_does_not_cover_is_refused(
    make_model: Maker, attack: Any, counts: list[int], bias: bool, reason: str
) -> None:
    recovery = attack(leak_of(make_model(10, bias=bias), [labels_of(counts)]), generator=seeded())
    assert recovery.status is Status.NOT_APPLICABLE
    assert reason in str(recovery.reason)
    assert recovery.mass is None


@pytest.mark.parametrize("attack", [LabelMass(), LLG("llg*")])
def test_batch_norm_in_train_mode_is_refused(make_model: Maker, attack: Any) -> None:
    """What the attacker's images do to the statistics isn't what the client's did."""
    layers = list(make_model(10, bias=True))
    model = nn.Sequential(*layers[:3], nn.BatchNorm1d(64), *layers[3:]).eval()
    leak = leak_of(model, [labels_of([1] * 10)], mode="train")
    recovery = attack(leak, generator=seeded())
    assert recovery.status is Status.NOT_APPLICABLE
    assert "train mode" in str(recovery.reason)


def test_auxiliary_images_of_another_shape_or_class_are_refused(make_model: Maker) -> None:
    leak = leak_of(make_model(10, bias=True), [labels_of([1] * 10)])
    for given, reason in (
        (Auxiliary(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])), "shape"),
        (Auxiliary(torch.zeros(2, *SHAPE), torch.tensor([0, 10])), "labels go from 0 to 10"),
    ):
        recovery = LabelMass(given)(leak, generator=seeded())
        assert recovery.status is Status.NOT_APPLICABLE
        assert reason in str(recovery.reason)


def test_auxiliary_images_are_read_from_a_file(tmp_path: Path, known: Auxiliary) -> None:
    file = tmp_path / "known.npz"
    np.savez(file, images=known.images.numpy(), labels=known.labels.numpy())
    read = LABEL_ATTACKS.build("label-mass", auxiliary=str(file)).auxiliary
    assert torch.equal(read.images, known.images)
    assert torch.equal(read.labels, known.labels)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LLG("llg++"), "variant must be"),  # type: ignore[arg-type]
        (lambda: LLG("llg+"), "needs them"),
        (lambda: LabelMass(dummies=1), "dummies must be at least 2"),
        (
            lambda: LabelMass(Auxiliary(torch.zeros(1, 1, 4, 4), torch.arange(1)), dummies=8),
            "dummies must be left out where auxiliary images take their place, found 8",
        ),
        (lambda: LABEL_ATTACKS.build("label-mass", auxiliary="none.npz"), "must name an .npz"),
        (lambda: Auxiliary(torch.zeros(2, 4, 4), torch.arange(2)), "shapes"),
        (lambda: Auxiliary(torch.zeros(0, 1, 4, 4), torch.arange(0)), "at least one image"),
    ],
)
def test_a_bad_argument_is_a_value_error(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("values", "total", "counts"),
    [([0.5, 0.25, 0.25], 4, [2, 1, 1]), ([1, 1, 1], 4, [2, 1, 1]), ([2.6, 0.3, 0.1], 3, [3, 0, 0])],
)
def test_masses_round_to_counts_that_keep_their_sum(
    values: list[float], total: int, counts: list[int]
) -> None:
    assert round_to_sum(values, total).tolist() == counts


def test_every_class_may_be_missing_from_the_auxiliary_images(make_model: Maker) -> None:
    """A class without images takes all of them."""
    leak = leak_of(make_model(10, bias=True), [labels_of([4, 0, 1, 0, 0, 7, 2, 0, 0, 18])])
    images = torch.rand(20, *SHAPE, generator=seeded(4))
    recovery = LabelMass(Auxiliary(images, torch.zeros(20, dtype=torch.int64)))(
        leak, generator=seeded()
    )
    true = one_hot(torch.tensor([0] * 4 + [2] + [5] * 7 + [6] * 2 + [9] * 18), 10).sum(dim=0)
    assert distance(recovery.mass, true.double()) < 0.05


COUNTS = [16, 2, 0, 10, 0, 1, 0, 1, 0, 2]


def dense(bias: bool, *, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(144, 64), nn.ReLU(), nn.Linear(64, 10, bias=bias)
        )


@pytest.mark.parametrize(
    ("name", "counts", "bias"),
    [
        ("label-mass", COUNTS, True),
        ("label-mass", COUNTS, False),
        ("llg", COUNTS, True),
        ("llg", COUNTS, False),
        ("ilrg", COUNTS, True),
        ("gradinversion-labels", [1, 1, 1, 0, 0, 0, 0, 0, 0, 0], True),
    ],
)
def test_no_mean_loss_has_a_summed_ones_gradient(name: str, counts: list[int], bias: bool) -> None:
    """A summed loss is B times the mean's; read as that, the counts would be wrong."""
    leak = leak_of(dense(bias), [labels_of(counts)], normalization=Normalization.of_range(0, 1))
    summed = {n: sum(counts) * g for n, g in leak.gradients.items()}
    assert LABEL_ATTACKS[name]()(leak, generator=torch.Generator()).mass is not None
    answer = LABEL_ATTACKS[name]()(
        dataclasses.replace(leak, gradients=summed), generator=torch.Generator()
    )
    assert answer.mass is None
    assert "a summed loss, another learning rate" in (answer.reason or "")


class Rows(nn.Module):
    """Its last layer runs on a row of tokens, one for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(144, 64)
        self.head = nn.Linear(64, 10, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.body(images.flatten(1)).relu()
        logits: Tensor = self.head(hidden[:, None])[:, 0]
        return logits


class Frozen(nn.Module):
    """Its body runs without gradients, as a frozen extractor's does."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(144, 64)
        self.head = nn.Linear(64, 10, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = self.body(images.flatten(1)).relu()
        logits: Tensor = self.head(hidden)
        return logits


@pytest.mark.parametrize("build", [Rows, Frozen])
def test_counts_are_taken_where_features_cannot_be_bounded(build: type[nn.Module]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
    draws = torch.Generator().manual_seed(0)
    counts = [4, 3, 0, 2, 0, 1, 0, 1, 0, 1]
    loss = cross_entropy(model(torch.rand(12, *SHAPE, generator=draws)), labels_of(counts))
    gradient = torch.autograd.grad(loss, model.head.weight)[0]  # type: ignore[union-attr]
    leak = GradientLeak(model, {"head.weight": gradient}, 12, SHAPE)
    answer = LLG()(leak, generator=torch.Generator())
    assert answer.mass is not None and int(answer.mass.sum()) == 12


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("noise", [0.1, 1.0, 10.0])
def test_noise_is_no_other_loss(noise: float, bias: bool) -> None:
    leak = leak_of(dense(bias), [labels_of(COUNTS)], normalization=Normalization.of_range(0, 1))
    draws = torch.Generator().manual_seed(0)
    size = noise * leak.gradients["3.weight"].square().mean().sqrt()
    noisy = {n: g + size * torch.randn(g.shape, generator=draws) for n, g in leak.gradients.items()}
    answer = LLG()(dataclasses.replace(leak, gradients=noisy), generator=torch.Generator())
    assert answer.mass is not None


def test_features_are_bounded_by_the_images_that_the_network_may_be_given() -> None:
    """The bound is met by the images themselves, and loose without a range that is told."""
    network = Network(leak_of(dense(False), [labels_of(COUNTS)]))
    u = torch.ones(64, dtype=torch.float64)
    images = torch.rand(200, *SHAPE, generator=torch.Generator().manual_seed(0))
    seen = float((network.double_features(images) @ u).max())
    tight, loose = (
        largest_projection(network, u, low, high, enough=float("inf"))
        for low, high in ((0.0, 1.0), (-3.0, 3.0))
    )
    assert seen < tight < loose
    # One hidden layer of features is convex in the image: no corner near this one is better.
    assert tight > 1.5 * seen


@pytest.mark.parametrize("name", ["label-mass", "llg", "ilrg", "gradinversion-labels"])
def test_every_count_says_what_it_assumes(name: str) -> None:
    counts = [1] * 10
    leak = leak_of(dense(True), [labels_of(counts)], caveat="momentum is divided out")
    reason = LABEL_ATTACKS[name]()(leak, generator=torch.Generator()).reason or ""
    assert "the loss is a mean cross-entropy: all this is assumed" in reason
    assert reason.endswith("; momentum is divided out")
