"""What an image must pass before it is claimed, whatever label attack came before."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS, GradientLeak, Reconstruction
from attacks.batch.second_example import second_example
from attacks.victim.network import Network
from defenses.label_smoothing import smooth_labels
from fl_sim.testing import check_no_claim, gradients_of

SHAPE = (1, 16, 16)
LABEL_ATTACK_NAMES = ["soft-label", "bias-ratio", "idlg", "llg", "ilrg", "label-mass"]


@pytest.fixture(autouse=True)
def _own_draws() -> object:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def network(*widths: int, zero_biases: bool = False) -> nn.Sequential:
    """A ReLU network with biases and PyTorch's initialisation."""
    layers: list[nn.Module] = [nn.Flatten()]
    sizes = [256, *widths, 10]
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    if zero_biases:
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
    return model


def mask() -> Tensor:
    """An image half of whose pixels are black, which keeps its zeros under any map."""
    return (torch.rand(1, *SHAPE) - 0.5).clamp(min=0)


def attack(model: nn.Module, gradients: dict[str, Tensor], labels: str) -> Reconstruction:
    leak = GradientLeak(model, gradients, 1, SHAPE)
    recovery = LABEL_ATTACKS[labels]()(leak, generator=torch.Generator())
    return IMAGE_ATTACKS["analytic"]()(leak, recovery, generator=torch.Generator())


def soft() -> Tensor:
    return smooth_labels(one_hot(torch.tensor([3]), 10).float(), 0.1)


MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "Adam": lambda g: g / (g.abs() + 1e-8),
    "signs": lambda g: 1e-3 * g.sign(),
    "RMSprop": lambda g: g / (0.1 * g.abs() + 1e-8),
    "clipped by value": lambda g: g.clamp(-1e-6, 1e-6),
    "square roots": lambda g: g.sign() * g.abs().sqrt(),
}


@pytest.mark.parametrize("labels", LABEL_ATTACK_NAMES)
@pytest.mark.parametrize("kind", MAPS)
def test_a_mapped_gradient_keeps_its_rank_and_yields_no_claim(kind: str, labels: str) -> None:
    model, image = network(64), mask()
    mapped = {n: MAPS[kind](g) for n, g in gradients_of(model, image, soft()).items()}
    assert torch.linalg.matrix_rank(mapped["1.weight"].double(), rtol=1e-3) == 1
    check_no_claim(attack(model, mapped, labels))


@pytest.mark.parametrize("labels", LABEL_ATTACK_NAMES)
@pytest.mark.parametrize("widths", [(64,), (64, 48, 32)])
def test_the_gradient_itself_is_claimed_whatever_gave_the_label(
    labels: str, widths: tuple[int, ...]
) -> None:
    model, image = network(*widths), mask()
    found = attack(model, gradients_of(model, image, soft()), labels)
    assert found.status == "RECOVERED"
    torch.testing.assert_close(found.images, image.double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("labels", LABEL_ATTACK_NAMES)
def test_a_single_layer_tests_nothing_but_the_label(labels: str) -> None:
    model, image = network(), mask()
    gradients = gradients_of(model, image, soft())
    found = attack(model, gradients, labels)
    claims = labels in ("soft-label", "bias-ratio")
    assert (found.status == "RECOVERED") == claims
    if not claims:
        assert found.reason == (
            "nothing above the first layer tests the image, and its label isn't RECOVERED"
        )
    signs = {name: g.sign() for name, g in gradients.items()}
    check_no_claim(attack(model, signs, labels))


@pytest.mark.parametrize("zero_biases", [False, True])
def test_biases_that_learn_faster_leave_no_false_scale(zero_biases: bool) -> None:
    """The gradient of the biases doubled: half the image. With biases of 0 only labels tell."""
    model, image = network(64, zero_biases=zero_biases), mask()
    gradients = gradients_of(model, image, soft())
    doubled = {n: g * (2 if n.endswith("bias") else 1) for n, g in gradients.items()}
    for labels in LABEL_ATTACK_NAMES:
        found = attack(model, doubled, labels)
        told = "the network doesn't tell the image from a wrong one"
        check_no_claim(found, told if zero_biases and labels == "idlg" else "")


def test_a_linear_networks_image_is_told_by_its_biases() -> None:
    """One example alone: its direction and, by the biases' values, its scale."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.Linear(64, 10))
    assert attack(model, gradients_of(model, mask(), soft()), "idlg").status == "RECOVERED"


def test_the_first_layer_of_another_image_is_found_out() -> None:
    model, image = network(64), mask()
    gradients = gradients_of(model, image, soft())
    other = gradients_of(model, mask(), soft())
    spliced = {n: other[n] if n.startswith("1.") else g for n, g in gradients.items()}
    for labels in LABEL_ATTACK_NAMES:
        check_no_claim(attack(model, spliced, labels))


@pytest.mark.parametrize("share", [1e-3, 0.02, 0.5])
def test_a_second_example_that_the_last_layer_hides_shows_in_the_first(share: float) -> None:
    """A deep sigmoid network gives all images the same feature: their labels mix to a soft one."""
    model = nn.Sequential(
        nn.Flatten(),
        *(m for n in (256, 32, 32) for m in (nn.Linear(n, 32), nn.Sigmoid())),
        nn.Linear(32, 10),
    ).double()
    images = torch.rand(2, *SHAPE, dtype=torch.float64)
    one, two = (
        gradients_of(model, images[i : i + 1], one_hot(torch.tensor([i]), 10).double())
        for i in (0, 1)
    )
    mixed = {name: (1 - share) * one[name] + share * two[name] for name in one}
    whole, both = (GradientLeak(model, g, 1, SHAPE) for g in (one, mixed))
    assert second_example(whole, Network(whole)) is None
    assert second_example(both, Network(both)) == (
        "the gradient of layer '1' holds more than one example"
    )
    for name in ("soft-label", "bias-ratio"):
        check_no_claim(LABEL_ATTACKS[name]()(both, generator=torch.Generator()))


@pytest.mark.parametrize(
    "change",
    [
        lambda g: g + 0.05 * g.square().mean().sqrt() * torch.randn(g.shape),
        lambda g: g * (g.abs() > g.abs().median()),
        lambda g: (g / g.abs().max() * 8).round() / 8,
    ],
    ids=["noise", "pruned", "quantised"],
)
def test_what_changes_entries_one_by_one_is_no_second_example(
    change: Callable[[Tensor], Tensor],
) -> None:
    model = network(64)
    changed = {name: change(g) for name, g in gradients_of(model, mask(), soft()).items()}
    leak = GradientLeak(model, changed, 1, SHAPE)
    assert second_example(leak, Network.of(leak)) is None


def near(count: int) -> Tensor:
    """Images that differ little, as a client's augmentations of one do."""
    image = torch.rand(1, *SHAPE)
    return (image + 0.05 * torch.randn(count, *SHAPE)).clamp(0, 1)


@pytest.mark.parametrize("labels", [[0, 0], [0, 1]])
@pytest.mark.parametrize("name", ["soft-label", "bias-ratio"])
def test_of_two_classes_a_batch_that_is_not_told_is_no_single_example(
    name: str, labels: list[int]
) -> None:
    """Two rows that sum to zero have rank one, however many examples there are."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.ReLU(), nn.Linear(16, 2))
    gradients = gradients_of(model, near(2), torch.tensor(labels))
    leak = GradientLeak(model, gradients, None, SHAPE)
    check_no_claim(LABEL_ATTACKS[name]()(leak, generator=torch.Generator()))


@pytest.mark.parametrize("name", ["soft-label", "bias-ratio"])
@pytest.mark.parametrize(("told", "sentence"), [(1, None), (None, "of two classes any batch")])
def test_of_two_classes_one_example_must_be_told(
    name: str, told: int | None, sentence: str | None
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.ReLU(), nn.Linear(16, 2))
    leak = GradientLeak(model, gradients_of(model, near(1), torch.tensor([1])), told, SHAPE)
    answer = LABEL_ATTACKS[name]()(leak, generator=torch.Generator())
    assert (answer.status == "RECOVERED") == (told == 1)
    assert sentence is None or sentence in str(answer.reason)


@pytest.mark.parametrize("name", ["soft-label", "bias-ratio"])
@pytest.mark.parametrize("seed", range(5))
def test_near_images_of_one_class_are_no_single_example(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 5))
    images = near(3)
    gradients = gradients_of(model, images, torch.tensor([3, 3, 3]))
    leak = GradientLeak(model, gradients, None, SHAPE)
    recovery = LABEL_ATTACKS[name]()(leak, generator=torch.Generator())
    found = IMAGE_ATTACKS["analytic"]()(leak, recovery, generator=torch.Generator())
    check_no_claim(recovery)
    check_no_claim(found)
