"""Who trains on what: pure functions of the scenario."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

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


def test_the_initial_model_is_initialised_as_the_scenario_says(tiny: Tiny) -> None:
    default, he = (
        Federation.of(tiny("model.name=mlp", f"model.init={init}")).build_model().state_dict()
        for init in ("default", "he")
    )
    assert all(default[name].any() for name in default)
    assert [name for name in he if not he[name].any()] == ["2.bias", "4.bias", "6.bias"]


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


def held(federation: Federation, client: int) -> list[int]:
    return [int(index) for index in federation.shares[client]]


def epoch_of_rows(
    federation: Federation, steps: range, *, server_round: int = 1
) -> list[list[int]]:
    """Return the raw rows of client 1's steps, as indices into the data set."""
    batches = [federation.client_batch(1, server_round, step) for step in steps]
    return [rows_of(federation.dataset.images, batch.images) for batch in batches]


@pytest.mark.parametrize(("size", "sizes"), [(6, [6, 6, 6, 2]), (5, [5] * 4), (30, [20])])
def test_an_epoch_takes_each_example_once(tiny: Tiny, size: int, sizes: list[int]) -> None:
    """The last batch takes what is left; one that covers the share is the whole of it."""
    federation = Federation.of(tiny(f"client.batch_size={size}", "client.local_epochs=2"))
    steps = len(sizes)
    assert federation.local_steps(1) == 2 * steps
    assert [federation.epoch_of(1, step) for step in range(2 * steps)] == [0] * steps + [1] * steps
    for epoch in (0, 1):
        batches = epoch_of_rows(federation, range(epoch * steps, (epoch + 1) * steps))
        assert [len(rows) for rows in batches] == sizes
        assert sorted(chain.from_iterable(batches)) == held(federation, 1)


def test_every_epoch_and_round_is_shuffled_anew_and_can_be_replayed(tiny: Tiny) -> None:
    federation = Federation.of(tiny("client.batch_size=6", "client.local_epochs=2"))
    orders = [
        tuple(chain.from_iterable(epoch_of_rows(federation, steps, server_round=at)))
        for at in (1, 2)
        for steps in (range(4), range(4, 8))
    ]
    assert len({*orders, tuple(held(federation, 1))}) == 5
    assert orders[0] == tuple(chain.from_iterable(epoch_of_rows(federation, range(4))))


def test_in_an_epoch_every_example_is_mixed_with_another(tiny: Tiny) -> None:
    """Each is once the first of a pair and once the second, whatever the batches."""
    federation = Federation.of(tiny("client.batch_size=6", "client.local_epochs=1", MIXUP))
    first, second = [], []
    for rows in epoch_of_rows(federation, range(federation.local_steps(1))):
        first += rows[: len(rows) // 2]
        second += rows[len(rows) // 2 :]
    assert sorted(first) == sorted(second) == held(federation, 1)
    assert all(a != b for a, b in zip(first, second, strict=True))
    mixed = federation.training_batch(1, server_round=1, step=3)
    assert len(mixed.images) == 2


def test_what_a_client_reports_are_uses_of_examples_or_its_share(tiny: Tiny) -> None:
    steps = Federation.of(tiny("client.batch_size=6", "client.local_steps=3"))
    epochs = Federation.of(tiny("client.batch_size=6", "client.local_epochs=3"))
    assert (steps.local_steps(1), steps.reported_examples(1)) == (3, 18)
    assert (epochs.local_steps(1), epochs.reported_examples(1)) == (12, 20)


def test_a_client_may_keep_some_of_its_share(tiny: Tiny) -> None:
    whole = Federation.of(tiny())
    some = Federation.of(tiny("data.examples_per_client=7"))
    for kept, share in zip(some.shares, whole.shares, strict=True):
        assert len(set(kept.tolist())) == 7
        assert set(kept.tolist()) < set(share.tolist())
        assert sorted(kept.tolist()) == kept.tolist()
    again = Federation.of(tiny("data.examples_per_client=7", "name=other"))
    assert all((a == b).all() for a, b in zip(some.shares, again.shares, strict=True))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["data.examples_per_client=21"],
            "data.examples_per_client must be at most the examples that each client gets: "
            "client 0 gets 20, found 21",
        ),
        (
            ["data.examples_per_client=3", "client.batch_size=4"],
            "client.batch_size must be at most .* has 3, a step takes 4",
        ),
        (
            ["data.examples_per_client=1", "client.local_epochs=1", MIXUP],
            "must hold at least the 2 examples that its defenses mix: client 0 has 1",
        ),
    ],
)
def test_a_share_that_is_too_small_is_one_sentence(
    tiny: Tiny, overrides: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        Federation.of(tiny(*overrides))
