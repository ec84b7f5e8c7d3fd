"""From weights that travelled to the gradient behind them."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attacks import GradientLeak
from attacks.training import SGD
from fl_sim.flower.wire import LocalTraining, gradient_leak, load_tensors, wire_tensors
from fl_sim.optimizers import build_optimizer

SHAPE = (1, 5, 8)


def network(dtype: torch.dtype = torch.float64, *, batch_norm: bool = False) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm = [nn.BatchNorm1d(50)] if batch_norm else []
        layers = [nn.Flatten(), nn.Linear(40, 50), *norm, nn.Tanh(), nn.Linear(50, 4)]
        return nn.Sequential(*layers).to(dtype)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.rand(3, *SHAPE, generator=generator, dtype=torch.float64)
    return images, torch.randint(4, (3,), generator=generator)


def train(
    model: nn.Module, training: LocalTraining, *, same_batch: bool = False
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Run PyTorch's optimizer; return the weights, and autograd's gradient of each step, flat."""
    model = copy.deepcopy(model).train(training.mode == "train")
    optimizer = build_optimizer(
        training.optimizer,
        model.parameters(),
        lr=training.lr,
        momentum=training.momentum,
        nesterov=training.nesterov,
        weight_decay=training.weight_decay,
    )
    for group in optimizer.param_groups:
        group.update({"dampening": training.dampening} if training.dampening else {})
    gradients = []
    for step in range(training.local_steps):
        images, labels = batch(0 if same_batch else step)
        loss = cross_entropy(model(images.to(next(model.parameters()).dtype)), labels)
        optimizer.zero_grad()
        loss.backward()
        gradients.append(flat({n: p.grad for n, p in model.named_parameters()}))
        optimizer.step()
    return wire_tensors(model, training.mode), gradients


def flat(tensors: dict[str, Tensor | None]) -> Tensor:
    return torch.cat([t.double().flatten() for t in tensors.values() if t is not None])


def leak_of(
    model: nn.Module, training: LocalTraining
) -> tuple[GradientLeak, list[Tensor], dict[str, Tensor]]:
    sent, gradients = train(model, training)
    return gradient_leak(model, sent, training, input_shape=SHAPE), gradients, sent


ONE_STEP = {
    "plain": LocalTraining(lr=0.1),
    "momentum": LocalTraining(lr=0.1, momentum=0.9),
    "nesterov": LocalTraining(lr=0.1, momentum=0.9, nesterov=True),
    "weight decay": LocalTraining(lr=0.1, weight_decay=0.3),
    "all": LocalTraining(lr=0.02, momentum=0.5, nesterov=True, weight_decay=0.3),
    "train mode": LocalTraining(lr=0.1, weight_decay=0.3, mode="train"),
}


@pytest.mark.parametrize("training", ONE_STEP.values(), ids=ONE_STEP)
def test_one_step_gives_the_gradient(training: LocalTraining) -> None:
    model = network(batch_norm=training.mode == "train")
    leak, [gradient], _ = leak_of(model, training)
    found = flat(dict(leak.gradients))
    # A few float64 roundings of weights below 1, divided by lr.
    torch.testing.assert_close(found, gradient, atol=4e-16 / training.lr, rtol=1e-14)
    assert leak.update_dtype == torch.float64


def test_buffers_come_with_weights_of_train_mode_alone() -> None:
    model = network(batch_norm=True)
    names = {"2.running_mean", "2.running_var"}
    for mode, is_told in (("train", True), ("eval", False)):
        training = LocalTraining(lr=0.1, mode=mode)  # type: ignore[arg-type]
        sent, _ = train(model, training)
        sent |= {name: torch.ones(50).double() for name in names - sent.keys()}
        leak = gradient_leak(model, sent, training, input_shape=SHAPE)
        assert set(leak.buffers) == (names if is_told else set())
        assert all(torch.equal(part, sent[name]) for name, part in leak.buffers.items())
        sent["2.running_var"] = sent["2.running_var"][:1]  # of no use to anybody
        leak = gradient_leak(model, sent, training, input_shape=SHAPE)
        assert set(leak.buffers) == ({"2.running_mean"} if is_told else set())


@pytest.mark.parametrize("lr", [0.1, 1e-3])
@pytest.mark.parametrize("name", ["plain", "weight decay", "nesterov"])
def test_float32_is_as_exact_as_the_leak_states(name: str, lr: float) -> None:
    model = network(torch.float32)
    training = LocalTraining(
        lr=lr, **{k: getattr(ONE_STEP[name], k) for k in ("momentum", "nesterov", "weight_decay")}
    )
    leak, [gradient], _ = leak_of(model, training)
    stated = flat({parameter: leak.rounding(parameter) for parameter in leak.gradients})
    error = (flat(dict(leak.gradients)) - gradient).abs()
    # Half an ulp is √3 standard deviations of the rounding; SGD itself rounds g and lr·g, too.
    assert (error <= 1.8 * stated + 3e-7 * gradient.abs() + 3e-7 * training.weight_decay).all()
    assert 0.8 < float((error / stated).square().mean().sqrt()) < 1.3
    assert leak.update_dtype == torch.float32


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_several_steps_give_the_sum_of_gradients(weight_decay: float) -> None:
    training = LocalTraining(lr=0.1, local_steps=4, weight_decay=weight_decay)
    leak, gradients, _ = leak_of(network(), training)
    shrink = 1 - training.lr * weight_decay  # what a step leaves of all that came before it
    weights = torch.tensor([shrink ** (3 - step) for step in range(4)], dtype=torch.float64)
    weights *= 4 / weights.sum()  # of equal gradients, the sum
    expected = sum(weight * gradient for weight, gradient in zip(weights, gradients, strict=True))
    assert leak.local_steps == 4
    # As for one step, four times.
    torch.testing.assert_close(flat(dict(leak.gradients)), expected, atol=2e-14, rtol=1e-14)


MOMENTUM = {
    # A gradient moves the weights in its own step and in all later ones.
    "momentum": ({"momentum": 0.5}, [1 + 0.5 + 0.25, 1 + 0.5, 1]),
    "nesterov": (
        {"momentum": 0.5, "nesterov": True},
        [1.5 + 0.25 + 0.125, 1.5 + 0.25, 1.5],
    ),
    # The first step isn't dampened.
    "dampening": ({"momentum": 0.5, "dampening": 0.2}, [1.75, 0.8 * 1.5, 0.8]),
}


@pytest.mark.parametrize("kind", MOMENTUM)
def test_momentum_over_several_steps_is_divided_out_to_first_order(kind: str) -> None:
    options, weights = MOMENTUM[kind]
    training = LocalTraining(lr=0.1, local_steps=3, **options)
    leak, gradients, _ = leak_of(network(), training)
    shares = 3 * torch.tensor(weights, dtype=torch.float64) / sum(weights)
    expected = sum(share * g for share, g in zip(shares, gradients, strict=True))
    torch.testing.assert_close(flat(dict(leak.gradients)), expected, atol=2e-14, rtol=1e-14)
    assert leak.caveat == (
        "momentum 0.5 over 3 steps is divided out to first order: the gradients of early steps "
        "weigh more"
    )


@pytest.mark.parametrize("nesterov", [False, True])
def test_where_gradients_hardly_change_their_sum_is_exact(nesterov: bool) -> None:
    """Twenty steps with momentum on one batch: six times the sum, if it weren't divided out."""
    model = network()
    training = LocalTraining(lr=1e-6, local_steps=20, momentum=0.9, nesterov=nesterov)
    sent, gradients = train(model, training, same_batch=True)
    leak = gradient_leak(model, sent, training, input_shape=SHAPE)
    # The steps move the gradients by some 1e-5 of themselves.
    torch.testing.assert_close(flat(dict(leak.gradients)), sum(gradients), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop", "adagrad"])
def test_the_first_step_of_adam_and_its_kin_leaves_signs(optimizer: str) -> None:
    model = network(torch.float32)
    decay = 0.1 if optimizer == "adamw" else 0.0
    training = LocalTraining(lr=1e-3, optimizer=optimizer, weight_decay=decay)
    sent, [gradient] = train(model, training)
    leak = gradient_leak(model, sent, training, input_shape=SHAPE)
    assert (leak.keeps, leak.lr) == ("signs", 1e-3 * (10 if optimizer == "rmsprop" else 1))
    large = gradient.abs() > 1e-4  # beside ε, 1e-8, and RMSprop's tenth of the gradient
    # Weights near 0.15 are rounded by 7e-9, of a step of 1e-3; ε is a thousandth of 1e-5.
    torch.testing.assert_close(
        flat(dict(leak.gradients))[large], gradient[large].sign(), atol=1e-3, rtol=0
    )


def test_a_difference_and_a_gradient_are_what_they_are() -> None:
    model = network()
    training = LocalTraining(lr=0.1, momentum=0.9, weight_decay=0.3)
    sent, [gradient] = train(model, training)
    start = wire_tensors(model, "eval")
    difference = {name: sent[name] - start[name] for name in sent}
    told = dataclasses.replace(training, sends="difference")
    leak = gradient_leak(model, difference, told, input_shape=SHAPE)
    torch.testing.assert_close(flat(dict(leak.gradients)), gradient, atol=4e-15, rtol=1e-14)
    told = LocalTraining(lr=0.1, sends="gradient")
    as_sent = {name: torch.full_like(tensor, 2.0) for name, tensor in start.items()}
    leak = gradient_leak(model, as_sent, told, input_shape=SHAPE)
    assert (flat(dict(leak.gradients)) == 2).all()
    assert (leak.lr, leak.update_dtype) == (None, None)


def test_train_mode_sends_the_running_statistics() -> None:
    model = network(batch_norm=True)
    training = LocalTraining(lr=0.1, mode="train", batch_size=3)
    leak, _, sent = leak_of(model, training)
    parameters = dict(model.named_parameters())
    assert sent.keys() - parameters.keys() == {"2.running_mean", "2.running_var"}
    assert leak.gradients.keys() == parameters.keys()
    assert wire_tensors(model, "eval").keys() == parameters.keys()
    load_tensors(model, sent)
    assert torch.equal(model.get_buffer("2.running_var"), sent["2.running_var"])


def test_a_leak_knows_how_clients_train_and_nothing_of_defenses() -> None:
    training = LocalTraining(lr=0.1, momentum=0.5, nesterov=True, batch_size=3, mode="train")
    leak, _, _ = leak_of(network(batch_norm=True), training)
    assert (leak.batch_size, leak.local_steps, leak.mode) == (3, 1, "train")
    assert leak.lr == pytest.approx(0.15, abs=1e-15)  # one rounding; 0.1 · (1 + 0.5)
    assert leak.knowledge == ()


@pytest.mark.parametrize("sends", ["weights", "difference"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.3},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        {"momentum": 0.5, "dampening": 0.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [1, 4])
def test_a_leak_gives_the_weights_back_and_tells_the_sgd(
    options: dict[str, Any], steps: int, sends: Any
) -> None:
    model = network()
    training = LocalTraining(lr=0.1, batch_size=3, local_steps=steps, sends=sends, **options)
    weights, _ = train(model, training)
    received = dict(model.named_parameters())
    sent = weights
    if sends == "difference":
        sent = {name: weights[name] - received[name].detach() for name in weights}
    leak = gradient_leak(model, sent, training, input_shape=SHAPE)
    for name, weight in weights.items():
        # Some float64 roundings of weights below 1.
        torch.testing.assert_close(leak.returned(name), weight, atol=1e-14, rtol=0)
    assert leak.optimizer == SGD(0.1, **options)


EPOCHS = LocalTraining(lr=0.1, batch_size=4, local_epochs=2)


@pytest.mark.parametrize(
    ("training", "reported", "told"),
    [
        (EPOCHS, {"examples": 16}, (8, 4, 16, "epochs")),
        (EPOCHS, {"examples": 10}, (6, 4, 10, "epochs")),
        (EPOCHS, {"examples": 10, "steps": 6}, (6, 4, 10, "epochs")),
        (EPOCHS, {"examples": 4}, (2, 4, 4, "full-batch")),
        (EPOCHS, {"examples": 3}, (2, 3, 3, "full-batch")),
        (replace(EPOCHS, examples=16), {}, (8, 4, 16, "epochs")),
        (replace(EPOCHS, examples=16), {"examples": 8}, (4, 4, 8, "epochs")),
        # Other steps than the epochs': the last batches were dropped, for one.
        (EPOCHS, {"examples": 10, "steps": 4}, (4, 4, None, None)),
        (EPOCHS, {"steps": 4}, (4, 4, None, None)),
        (replace(EPOCHS, batch_size=None), {"examples": 10, "steps": 4}, (4, None, None, None)),
        # With steps, what a client calls its examples isn't read.
        (LocalTraining(lr=0.1, batch_size=4), {"examples": 16}, (1, 4, None, None)),
        (LocalTraining(lr=0.1, batch_size=4), {"steps": 3}, (3, 4, None, None)),
        (
            LocalTraining(lr=0.1, batch_size=4, local_steps=8, schedule="steps"),
            {"examples": 16, "steps": 3},
            (3, 4, None, "steps"),
        ),
        (
            LocalTraining(lr=0.1, batch_size=4, local_steps=8, schedule="epochs", examples=16),
            {"steps": 3},
            (3, 4, None, None),
        ),
    ],
)
def test_a_leak_tells_what_the_server_knows_of_the_batches(
    training: LocalTraining,
    reported: dict[str, int],
    told: tuple[int, int | None, int | None, str | None],
) -> None:
    model = network()
    own = training.of_client(**reported)
    leak = gradient_leak(model, wire_tensors(model, "eval"), own, input_shape=SHAPE)
    assert (leak.local_steps, leak.batch_size, leak.examples, leak.schedule) == told


@pytest.mark.parametrize(
    ("training", "reported", "found"),
    [(EPOCHS, {}, "4 and None"), (replace(EPOCHS, batch_size=None), {"examples": 16}, "None and")],
)
def test_epochs_of_unknown_steps_are_refused(
    training: LocalTraining, reported: dict[str, int], found: str
) -> None:
    with pytest.raises(ValueError, match=f"local_epochs tell the steps only .* found {found}"):
        training.of_client(**reported)


def test_of_another_optimizer_no_sgd_is_told() -> None:
    model, training = network(), LocalTraining(lr=0.1, optimizer="adamw", weight_decay=0.1)
    leak = gradient_leak(model, wire_tensors(model, "eval"), training, input_shape=SHAPE)
    assert (leak.weight_decay, leak.optimizer_lr, leak.keeps) == (0.0, None, "signs")


def test_frozen_and_missing_parameters_have_no_gradient() -> None:
    model = network()
    model.get_parameter("1.bias").requires_grad_(False)
    sent = {name: t for name, t in wire_tensors(model, "eval").items() if name != "3.bias"}
    leak = gradient_leak(model, sent, LocalTraining(lr=0.1), input_shape=SHAPE)
    assert leak.gradients.keys() == {"1.weight", "3.weight"}


def test_the_coarsest_precision_that_came_back_counts() -> None:
    model = network(torch.float32)
    sent = dict(wire_tensors(model, "eval"))
    sent["3.bias"] = sent["3.bias"].half()
    leak = gradient_leak(model, sent, LocalTraining(lr=0.1), input_shape=SHAPE)
    assert leak.update_dtype == torch.float16


@pytest.mark.parametrize(
    ("training", "server_round", "obstacle"),
    [
        (LocalTraining(lr=0.1, momentum=0.9), 5, None),
        (LocalTraining(lr=0.1, fresh_optimizer=False), 5, None),
        (LocalTraining(lr=0.1, momentum=0.9, fresh_optimizer=False), 1, None),
        (
            LocalTraining(lr=0.1, momentum=0.9, fresh_optimizer=False),
            2,
            "the update carries momentum (0.9) from earlier rounds, which the server doesn't see",
        ),
        (LocalTraining(lr=0.1, optimizer="adam"), 5, None),
        (LocalTraining(lr=0.1, optimizer="adamw", weight_decay=0.1), 5, None),
        (
            LocalTraining(lr=0.1, optimizer="rmsprop", weight_decay=0.1),
            1,
            "RMSprop adds the weight decay to the gradient before it divides each entry: what is "
            "left are the signs of both together",
        ),
        (
            LocalTraining(lr=0.1, optimizer="adamw", local_steps=4),
            1,
            "AdamW divides each entry by its own history: 4 steps leave neither a gradient nor its "
            "signs",
        ),
        (
            LocalTraining(lr=0.1, optimizer="adagrad", fresh_optimizer=False),
            2,
            "Adagrad divides each entry by its history of earlier rounds, which isn't sent",
        ),
    ],
)
def test_what_an_optimizer_hides_is_named(
    training: LocalTraining, server_round: int, obstacle: str | None
) -> None:
    assert training.obstacle(server_round) == obstacle


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lr": 0.0}, "lr must be above 0 and finite, found 0.0"),
        ({"lr": -0.1}, "lr must be above 0 and finite, found -0.1"),
        ({"lr": float("nan")}, "lr must be above 0 and finite, found nan"),
        ({"momentum": 1.5}, r"momentum must be in \[0, 1\), found 1.5"),
        ({"dampening": 1.5}, r"dampening must be in \[0, 1\], found 1.5"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0 and finite, found -1.0"),
        ({"local_steps": 0}, "local_steps must be a whole number of at least 1, found 0"),
        ({"local_epochs": 0}, "local_epochs must be a whole number of at least 1, found 0"),
        (
            {"local_epochs": 2, "local_steps": 3},
            "local_epochs take the place of local_steps: leave one out, found 2 and 3",
        ),
        (
            {"local_epochs": 2, "schedule": "steps"},
            "local_epochs are a schedule of their own: leave schedule out, found 'steps'",
        ),
        (
            {"schedule": "shuffled"},
            "schedule must be one of full-batch, epochs, steps, None, found 'shuffled'",
        ),
        (
            {"schedule": "epochs", "local_steps": 3, "batch_size": 4, "examples": 8},
            "schedule 'epochs' takes 2 steps for 8 examples in batches of 4: .* found 3",
        ),
        ({"batch_size": 1.5}, "batch_size must be a whole number of at least 1, found 1.5"),
        ({"optimizer": "lion"}, "optimizer must be one of sgd, adam, .*, found 'lion'"),
        ({"mode": "test"}, "mode must be one of eval, train, found 'test'"),
        ({"sends": "deltas"}, "sends must be one of weights, difference, gradient, found 'deltas'"),
        ({"nesterov": True}, "nesterov needs a momentum above 0 and no dampening, found 0 and 0"),
        (
            {"optimizer": "adam", "momentum": 0.9},
            "momentum is SGD's, found 0.9 with optimizer 'adam'",
        ),
        ({"dampening": 0.5}, "dampening is the momentum's, found 0.5 and a momentum of 0"),
        ({"momentum": "0.9"}, r"momentum must be .*, found '?0\.9"),
        ({"lr": None}, "lr must be .*, found None"),
        ({"sends": "gradient", "momentum": 0.9}, "hasn't been through an optimizer"),
    ],
)
def test_impossible_training_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LocalTraining(**{"lr": 0.1, **options})


def test_a_reply_without_any_of_the_models_arrays_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trainable parameter's name, such as '1.weight'; found"):
        gradient_leak(network(), {"a": torch.ones(2)}, LocalTraining(lr=0.1), input_shape=SHAPE)


def test_numbered_and_wrapped_names_are_the_models() -> None:
    model, training = network(), LocalTraining(lr=0.1)
    sent, [gradient] = train(model, training)
    for named in (
        {str(index): tensor for index, tensor in enumerate(sent.values())},
        {f"module.{name}": tensor for name, tensor in sent.items()},
        {f"_orig_mod.{name}": tensor for name, tensor in sent.items()},
    ):
        leak = gradient_leak(model, named, training, input_shape=SHAPE)
        torch.testing.assert_close(flat(dict(leak.gradients)), gradient, atol=4e-15, rtol=1e-14)
        load_tensors(copy.deepcopy(model), named)


@pytest.mark.parametrize(
    ("name", "shape"), [("3.bias", (1,)), ("3.bias", (5,)), ("1.weight", (40, 50))]
)
def test_an_array_that_does_not_fit_is_refused(name: str, shape: tuple[int, ...]) -> None:
    model = network()
    sent = dict(wire_tensors(model, "eval")) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=rf"array '{name}' of shape .* doesn't fit the model"):
        gradient_leak(model, sent, LocalTraining(lr=0.1), input_shape=SHAPE)
    with pytest.raises(ValueError, match=rf"array '{name}' of shape .* doesn't fit the model"):
        load_tensors(model, sent)


def test_an_array_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"array 'head' of shape \(3,\) doesn't fit the model"):
        load_tensors(network(), {"head": torch.zeros(3)})


def test_a_network_that_is_wrapped_on_one_side_only_is_named() -> None:
    inner = network()
    outer = nn.Sequential(nn.Identity(), inner)
    for model, other in ((inner, outer), (outer, inner)):
        sent = wire_tensors(other, "train")
        sentence = r"array '.*' would be the model's '.*' with.* give the (wrapped|inner) one"
        with pytest.raises(ValueError, match=sentence):
            load_tensors(model, sent)
        with pytest.raises(ValueError, match=sentence):
            gradient_leak(model, sent, LocalTraining(lr=0.1), input_shape=SHAPE)


def test_loaded_tensors_are_copied_in_the_models_precision() -> None:
    model = network(torch.float32)
    values = torch.full((4,), 1 / 3, dtype=torch.float64)
    load_tensors(model, {"3.bias": values})
    values.zero_()
    bias = model.get_parameter("3.bias")
    assert bias.dtype == torch.float32
    assert bias.requires_grad
    assert bias.tolist() == torch.full((4,), 1 / 3).tolist()
