"""Who trains on what: pure functions of the scenario."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fl_sim.errors import UserError
from fl_sim.federation import Federation
from fl_sim.scenario import Scenario

Tiny = Callable[..., Scenario]
MIXUP = 'defense=[{name="mixup"}]'


def rows_of(dataset_images: Tensor, images: Tensor) -> list[int]:
    """Return where images stand in a data set without duplicates."""
    same = (dataset_images[None] == images[:, None]).flatten(2).all(dim=2)
    assert (same.sum(dim=1) == 1).all()
    return [int(row) for row in same.int().argmax(dim=1)]


@pytest.fixture
def federation(tiny: Tiny) -> Federation:
    return Federation.of(tiny("client.batch_size=4"))


def test_shares_are_disjoint(federation: Federation) -> None:
    held = [index for share in federation.shares for index in share]
    assert len(held) == len(set(held)) == 60


def test_a_batch_comes_from_the_clients_share_with_its_labels(federation: Federation) -> None:
    dataset = federation.dataset
    for client, share in enumerate(federation.shares):
        batch = federation.client_batch(client, server_round=1, step=0)
        rows = rows_of(dataset.images, batch.images)
        assert set(rows) <= set(share.tolist())
        assert batch.labels.sum(dim=1).tolist() == [1.0] * 4
        assert batch.labels.argmax(dim=1).tolist() == dataset.labels[rows].tolist()


def test_a_batch_is_drawn_without_replacement(tiny: Tiny) -> None:
    federation = Federation.of(tiny("client.batch_size=20"))
    batch = federation.client_batch(1, server_round=1, step=0)
    rows = rows_of(federation.dataset.images, batch.images)
    assert sorted(rows) == federation.shares[1].tolist()


def test_a_batch_depends_on_its_place_and_the_seed_alone(tiny: Tiny) -> None:
    places = [(c, r, s) for c in (0, 1) for r in (1, 2) for s in (0, 1)]
    scenario = tiny("client.batch_size=4")
    forwards = [Federation.of(scenario).client_batch(*place).images for place in places]
    afresh = Federation.of(tiny("client.batch_size=4", "name=other"))
    backwards = [afresh.client_batch(*place).images for place in reversed(places)]
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    assert len({images.numpy().tobytes() for images in forwards}) == len(places)
    other = Federation.of(tiny("client.batch_size=4", "seed=4")).client_batch(*places[0])
    assert not torch.equal(other.images, forwards[0])


def test_mixup_draws_two_examples_for_each(tiny: Tiny) -> None:
    federation = Federation.of(tiny("client.batch_size=4", MIXUP))
    raw = federation.client_batch(0, server_round=1, step=0)
    assert len(set(rows_of(federation.dataset.images, raw.images))) == 8
    mixed = federation.training_batch(0, server_round=1, step=0)
    assert mixed.images.shape == (4, 1, 4, 4)
    share = (mixed.images[0] - raw.images[4]).sum() / (raw.images[0] - raw.images[4]).sum()
    expected = share * raw.labels[0] + (1 - share) * raw.labels[4]
    # float32 sums of 16 pixels: 16 · 6e-8, over a difference of about 1.
    torch.testing.assert_close(mixed.labels[0], expected, atol=1e-5, rtol=0)


def test_a_training_batch_can_be_replayed(tiny: Tiny) -> None:
    scenario = tiny("client.batch_size=4", MIXUP)
    first = Federation.of(scenario).training_batch(2, server_round=3, step=1)
    again = Federation.of(scenario).training_batch(2, server_round=3, step=1)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)


def test_every_stage_and_hook_has_a_generator_of_its_own(federation: Federation) -> None:
    draws = federation.draws_of(0, 1, 0)
    places = [(stage, hook) for stage in (0, 1) for hook in ("batch", "gradient", "update")]
    values = {float(torch.rand((), generator=draws(*place))) for place in places}
    values.add(float(torch.rand((), generator=federation.draws_of(0, 1, 1)(0, "batch"))))
    assert len(values) == 7
    assert float(torch.rand((), generator=draws(0, "batch"))) in values


@pytest.mark.parametrize(("fraction", "count"), [(1.0, 7), (0.5, 4), (0.3, 2), (0.01, 1)])
def test_a_fraction_of_the_clients_is_sampled(tiny: Tiny, fraction: float, count: int) -> None:
    scenario = tiny("data.clients=7", f"client.fraction={fraction}")
    samples = [Federation.of(scenario).sampled_clients(server_round) for server_round in range(30)]
    assert samples == [Federation.of(scenario).sampled_clients(r) for r in range(30)]
    assert all(len(set(sample)) == count and sample == sorted(sample) for sample in samples)
    assert {client for sample in samples for client in sample} == set(range(7))


def test_the_initial_model_is_the_same_and_ones_own(federation: Federation) -> None:
    first, second = federation.build_model(), federation.build_model()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    third = federation.build_model()
    assert not second.training
    for b, c in zip(second.parameters(), third.parameters(), strict=True):
        assert b.any()
        assert torch.equal(b, c)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.test_examples=21", "data.test_examples must be at most 20.*, found 21"),
        ("client.batch_size=21", "client.batch_size must be at most .* has 20, a step takes 21"),
        ("data.clients=61", "from 1 to the number of training examples, 60, found 61"),
        ("data.name=third_party:patterns2", "can't be imported"),
        ("data.options.classes=1", "needs at least 2 classes, found 1"),
        ("data.options.colour=true", "unknown option 'colour'"),
    ],
)
def test_what_cannot_be_set_up_is_one_sentence(tiny: Tiny, override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Federation.of(tiny(override))


def test_mixup_counts_two_examples_for_each(tiny: Tiny) -> None:
    Federation.of(tiny("client.batch_size=10", MIXUP))
    with pytest.raises(UserError, match=r"batch_size × 2 must be .* has 20, a step takes 22"):
        Federation.of(tiny("client.batch_size=11", MIXUP))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), 20),
        (("data.test_examples=7",), 7),
        (("data.name=mnist-5k", "data.clients=2"), 1000),
        (("data.name=photos", "data.clients=2"), 320),
    ],
)
def test_accuracy_is_measured_on_what_there_is_up_to_1000(
    tiny: Tiny, overrides: tuple[str, ...], expected: int
) -> None:
    values = tiny(*overrides).model_dump(mode="json")
    if not any("test_examples" in change for change in overrides):
        del values["data"]["test_examples"]
    assert Federation.of(Scenario.parse(values)).test_examples == expected
