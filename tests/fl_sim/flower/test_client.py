"""A client trains as PyTorch's SGD does, and its defenses act where they should."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import import_module

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from torch import Tensor
from torch.nn.functional import cross_entropy

from fl_sim.errors import UserError
from fl_sim.federation import Federation
from fl_sim.flower import client
from fl_sim.flower.client import resolve_device, to_arrays, train_locally
from fl_sim.flower.engines.local import LocalGrid
from fl_sim.flower.wire import load_tensors, wire_tensors
from fl_sim.scenario import Scenario

Tiny = Callable[..., Scenario]
Tensors = Mapping[str, Tensor]


def start_of(scenario: Scenario) -> dict[str, Tensor]:
    return wire_tensors(Federation.of(scenario).build_model(), scenario.client.mode)


def flat(tensors: Tensors) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors.values()])


def plain_sgd(scenario: Scenario, number: int, server_round: int, start: Tensors) -> Tensors:
    """Train as a PyTorch user would."""
    federation = Federation.of(scenario)
    model = federation.build_model()
    load_tensors(model, start)
    settings = scenario.client
    keys = ("lr", "momentum", "nesterov", "weight_decay")
    options = {key: getattr(settings, key) for key in keys}
    optimizer = torch.optim.SGD(model.parameters(), **options)
    for step in range(federation.local_steps(number)):
        batch = federation.client_batch(number, server_round, step)
        optimizer.zero_grad()
        cross_entropy(model(batch.images), batch.labels).backward()
        optimizer.step()
    return wire_tensors(model, settings.mode)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["client.batch_size=5", "client.local_steps=3"],
        ["client.local_steps=2", "client.momentum=0.9", "client.nesterov=true"],
        ["client.local_steps=2", "client.momentum=0.5", "client.weight_decay=0.1"],
        ["client.local_epochs=2", "client.batch_size=6", "client.momentum=0.5"],
    ],
    ids=["one step", "three steps", "nesterov", "momentum and decay", "epochs"],
)
def test_without_defenses_the_weights_are_those_of_sgd(tiny: Tiny, overrides: list[str]) -> None:
    scenario = tiny(*overrides)
    start = {name: tensor + 0.25 for name, tensor in start_of(scenario).items()}
    sent, loss, _ = train_locally(scenario, 1, 2, start)
    expected = plain_sgd(scenario, 1, 2, start)
    assert sent.keys() == expected.keys()
    assert all(torch.equal(sent[name], expected[name]) for name in expected)
    assert 0 < loss < 10
    assert not any(torch.equal(sent[name], start[name]) for name in start)


def test_training_is_pure(tiny: Tiny) -> None:
    scenario = tiny()
    start = start_of(scenario)
    kept = {name: tensor.clone() for name, tensor in start.items()}
    first, *_ = train_locally(scenario, 0, 1, start)
    train_locally(scenario, 2, 1, start)
    again, *_ = train_locally(scenario, 0, 1, start)
    assert all(torch.equal(start[name], kept[name]) for name in start)
    assert all(torch.equal(first[name], again[name]) for name in first)


def noisy(tiny: Tiny, clipping_norm: float, multiplier: float, *overrides: str) -> Scenario:
    stage = f'{{name="dp-noise", clipping_norm={clipping_norm}, noise_multiplier={multiplier}}}'
    return tiny(f"defense=[{stage}]", *overrides)


def test_dp_noise_clips_the_weight_difference(tiny: Tiny) -> None:
    start = start_of(tiny())
    plain, *_ = train_locally(tiny(), 0, 1, start)
    clipped, *_ = train_locally(noisy(tiny, 0.01, 0.0), 0, 1, start)
    update, clipped_update = (flat(sent) - flat(start) for sent in (plain, clipped))
    assert float(update.norm()) > 0.02
    expected = update * 0.01 / update.norm()
    # Both weights are rounded to float32: half an ulp of weights below 1, twice.
    torch.testing.assert_close(clipped_update, expected, atol=6e-8, rtol=0)
    loose, *_ = train_locally(noisy(tiny, 100.0, 0.0), 0, 1, start)
    torch.testing.assert_close(flat(loose), flat(plain), atol=6e-8, rtol=0)


def test_dp_noise_has_its_standard_deviation(tiny: Tiny) -> None:
    overrides = ("model.name=mlp", "client.local_steps=2")
    start = start_of(tiny(*overrides))
    clipped, *_ = train_locally(noisy(tiny, 0.5, 0.0, *overrides), 0, 1, start)
    sent, *_ = train_locally(noisy(tiny, 0.5, 4.0, *overrides), 0, 1, start)
    noise = flat(sent) - flat(clipped)
    count = len(noise)
    assert count > 250_000
    # Five standard errors of each; the noise is 4.0 · 0.5, once, however many steps there were.
    assert float(noise.mean()) == pytest.approx(0, abs=5 * 2 / count**0.5)
    assert float(noise.std()) == pytest.approx(2, abs=5 * 2 / (2 * count) ** 0.5)


def test_noise_differs_between_clients_and_rounds_and_can_be_repeated(tiny: Tiny) -> None:
    # Nothing but noise: the clipped update is a thousandth of it.
    scenario = noisy(tiny, 0.001, 1000.0)
    start = start_of(scenario)

    def noise(number: int, server_round: int) -> Tensor:
        return flat(train_locally(scenario, number, server_round, start)[0]) - flat(start)

    assert torch.equal(noise(0, 1), noise(0, 1))
    for other in (noise(1, 1), noise(0, 2)):
        assert float((other - noise(0, 1)).abs().median()) > 0.1


def test_examples_own_gradients_average_to_the_batchs(tiny: Tiny) -> None:
    overrides = ("client.batch_size=6", "model.name=lenet", "model.bias=true")
    scenario = tiny(*overrides)
    start = start_of(scenario)
    plain, *_ = train_locally(scenario, 0, 1, start)
    averaged, *_ = train_locally(
        tiny(*overrides, 'defense=[{name="third_party:Averages"}]'), 0, 1, start
    )
    update = flat(plain) - flat(start)
    assert float(update.abs().max()) > 1e-3
    # Float32 gradients of this size are exact to 1e-6; lr is 0.05; weights below 1 round to 6e-8.
    torch.testing.assert_close(flat(averaged), flat(plain), atol=1.2e-7, rtol=0)


@pytest.mark.parametrize("defense", ["", "third_party:Averages"], ids=["batch", "examples"])
def test_dropout_is_reproducible_and_differs_between_rounds(tiny: Tiny, defense: str) -> None:
    """That the global generators stay where they are is checked around every test."""
    stages = [f'defense=[{{name="{defense}"}}]'] if defense else []
    # All examples of the client, so that nothing but dropout tells one round from another.
    overrides = ["model.name=third_party:dropout", "client.batch_size=20", *stages]
    start = start_of(tiny(*overrides))

    def weights(mode: str, server_round: int) -> Tensor:
        scenario = tiny(*overrides, f"client.mode={mode}")
        return flat(train_locally(scenario, 0, server_round, start)[0])

    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = weights("train", 1)
        torch.manual_seed(2)
        assert torch.equal(weights("train", 1), first)
    assert float((weights("train", 2) - first).abs().max()) > 1e-3
    # Sums over the examples in another order: float32 rounding.
    assert float((weights("eval", 2) - weights("eval", 1)).abs().max()) < 1e-6


@pytest.mark.parametrize("defense", ["", "third_party:Averages"], ids=["batch", "examples"])
def test_layers_that_draw_in_eval_mode_are_seeded(tiny: Tiny, defense: str) -> None:
    stages = [f'defense=[{{name="{defense}"}}]'] if defense else []
    scenario = tiny("model.name=third_party:AlwaysDrops", "client.batch_size=20", *stages)
    start = start_of(scenario)

    def weights(server_round: int) -> Tensor:
        return flat(train_locally(scenario, 0, server_round, start)[0])

    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = weights(1)
        assert torch.equal(torch.get_rng_state(), _state_after_seed(1))
        torch.manual_seed(2)
        assert torch.equal(weights(1), first)
    assert float((weights(2) - first).abs().max()) > 1e-3


def _state_after_seed(seed: int) -> Tensor:
    return torch.Generator().manual_seed(seed).get_state()


def test_eval_mode_drops_nothing(tiny: Tiny) -> None:
    scenario = tiny("model.name=third_party:dropout")
    start = start_of(scenario)
    sent, *_ = train_locally(scenario, 0, 1, start)
    expected = plain_sgd(scenario, 0, 1, start)
    assert torch.equal(flat(sent), flat(expected))


def test_running_statistics_travel_in_train_mode_only(tiny: Tiny) -> None:
    overrides = ("model.name=third_party:batch_norm", "client.batch_size=4")
    in_eval, *_ = train_locally(tiny(*overrides), 0, 1, start_of(tiny(*overrides)))
    assert not [name for name in in_eval if "running" in name]
    scenario = tiny(*overrides, "client.mode=train")
    start = start_of(scenario)
    sent, *_ = train_locally(scenario, 0, 1, start)
    assert {name for name in sent if "running" in name} == {"3.running_mean", "3.running_var"}
    assert not torch.equal(sent["3.running_mean"], start["3.running_mean"])


def test_a_parameter_that_is_not_used_stays(tiny: Tiny) -> None:
    scenario = tiny("model.name=third_party:Tempered")
    start = start_of(scenario)
    sent, *_ = train_locally(scenario, 0, 1, start)
    assert torch.equal(sent["unused.weight"], start["unused.weight"])
    assert sent["temperature"].shape == ()
    assert sent["temperature"] != start["temperature"]


def ask(scenario: Scenario, kind: str, content: RecordDict) -> Message:
    """Send client 2 a message, as a server would."""
    grid = LocalGrid(client.app, 3, {"scenario": scenario.to_json()})
    [reply] = grid.send_and_receive([Message(content, dst_node_id=3, message_type=kind)])
    assert not reply.has_error(), reply.error.reason
    return reply


def test_the_app_answers_who_it_is(tiny: Tiny) -> None:
    reply = ask(tiny(), "query", RecordDict({"query": ConfigRecord({})}))
    assert reply.content.config_records["identity"]["partition-id"] == 2


def test_the_app_trains_and_sends_weights_and_counts(tiny: Tiny) -> None:
    scenario = tiny("client.batch_size=4", "client.local_steps=3")
    start = start_of(scenario)
    config = ConfigRecord({"server-round": 5})
    reply = ask(scenario, "train", RecordDict({"arrays": to_arrays(start), "config": config}))
    expected, loss, _ = train_locally(scenario, 2, 5, start)
    arrays: ArrayRecord = reply.content.array_records["arrays"]
    sent = arrays.to_torch_state_dict()
    assert list(sent) == list(expected)
    assert all(torch.equal(sent[name], expected[name]) for name in expected)
    metrics = reply.content.metric_records["metrics"]
    assert metrics == {"num-examples": 12, "train-loss": loss}


@pytest.mark.parametrize(
    ("options", "is_sent"),
    [
        ("clipping_norm=1.0, noise_multiplier=1.0", False),
        ("clipping_norm=1.0, noise_multiplier=0.0", True),
        ("noise_std=0.1", True),
    ],
    ids=["a claim", "no noise", "no sensitivity"],
)
def test_no_loss_goes_beside_a_claim_of_privacy(tiny: Tiny, options: str, is_sent: bool) -> None:
    scenario = tiny(f'defense=[{{name="dp-noise", {options}}}]')
    arrays, config = to_arrays(start_of(scenario)), ConfigRecord({"server-round": 1})
    reply = ask(scenario, "train", RecordDict({"arrays": arrays, "config": config}))
    assert ("train-loss" in reply.content.metric_records["metrics"]) == is_sent


def test_an_epoch_is_what_a_loader_would_make_of_it(tiny: Tiny) -> None:
    """The last batch of an epoch is smaller, and its loss is a mean of its own."""
    scenario = tiny("client.batch_size=6", "client.local_epochs=1", "client.lr=0.5")
    federation, start = Federation.of(scenario), start_of(scenario)
    order = torch.cat([federation.client_batch(1, 1, step).images for step in range(4)])
    labels = torch.cat([federation.client_batch(1, 1, step).labels for step in range(4)])
    data = torch.utils.data.TensorDataset(order, labels)
    model = federation.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader = torch.utils.data.DataLoader(data, batch_size=6, generator=torch.Generator())
    for images, targets in loader:
        optimizer.zero_grad()
        cross_entropy(model(images), targets).backward()
        optimizer.step()
    sent, *_ = train_locally(scenario, 1, 1, start)
    assert torch.equal(flat(sent), flat(wire_tensors(model, "eval")))
    assert len(order) == 20


def test_with_epochs_the_app_reports_its_share(tiny: Tiny) -> None:
    scenario = tiny("client.batch_size=6", "client.local_epochs=3")
    config = ConfigRecord({"server-round": 1})
    content = RecordDict({"arrays": to_arrays(start_of(scenario)), "config": config})
    metrics = ask(scenario, "train", content).content.metric_records["metrics"]
    assert metrics["num-examples"] == 20


def test_hooks_know_the_step_of_the_round(tiny: Tiny) -> None:
    """Steps are counted over all epochs, and the update comes after the last."""
    notes = 'defense=[{name="third_party:Notes"}]'
    scenario = tiny("client.batch_size=8", "client.local_epochs=2", notes)
    places: list[tuple[str, int, int]] = import_module("third_party").PLACES
    places.clear()
    train_locally(scenario, 1, 4, start_of(scenario))
    hooks = [hook for _ in range(6) for hook in ("batch", "gradient")]
    steps = [step for step in range(6) for _ in range(2)]
    expected = [(hook, 4, step) for hook, step in zip(hooks, steps, strict=True)]
    assert places == [*expected, ("update", 4, 6)]


def test_nothing_but_weights_and_counts_is_on_the_wire(tiny: Tiny) -> None:
    scenario = tiny()
    content = RecordDict(
        {"arrays": to_arrays(start_of(scenario)), "config": ConfigRecord({"server-round": 1})}
    )
    reply = ask(scenario, "train", content)
    assert set(reply.content) == {"arrays", "metrics"}
    json.dumps(dict(reply.content.metric_records["metrics"]))


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(UserError, match=r"device must be one that PyTorch finds .* 'cuda:99'"):
        resolve_device("cuda:99")
