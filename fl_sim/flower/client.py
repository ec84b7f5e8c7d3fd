"""The client: a Flower `ClientApp` that trains on its own data, behind its defenses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from attacks.devices import device_named
from defenses import ClientStep, Place
from defenses.base import NOTHING, States
from fl_sim.client_state import ClientState
from fl_sim.errors import UserError
from fl_sim.federation import Federation
from fl_sim.flower.provenance import code_hash
from fl_sim.flower.wire import TRAIN_LOSS, load_tensors, wire_tensors
from fl_sim.optimizers import build_optimizer
from fl_sim.privacy.canaries import canary_update
from fl_sim.scenario import Scenario
from fl_sim.scenario.source import configured_scenario
from fl_sim.seeds import seed_for, seeded_layers
from fl_sim.threads import one_thread

app = ClientApp()


@app.query()
def identify(message: Message, context: Context) -> Message:
    """Answer which client this node is, and which code it runs.

    A server asks when it starts or goes on, and says which round it has committed: what later ones
    left here is forgotten.
    """
    partition = int(context.node_config["partition-id"])
    committed = message.content.config_records["query"].get("committed")
    if committed is not None:
        _state_of(context).forget_after(int(str(committed)))
    identity = ConfigRecord({"partition-id": partition, "code": code_hash()})
    return Message(RecordDict({"identity": identity}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on this client's data and send the weights back.

    The training loss goes with them, unless defenses claim privacy, which it has no part in.
    """
    scenario = configured_scenario(context.run_config)
    client = int(context.node_config["partition-id"])
    config = message.content.config_records["config"]
    server_round = int(str(config["server-round"]))
    received = message.content.array_records["arrays"].to_torch_state_dict()
    kept, before = _state_of(context), NOTHING
    if _may_keep(scenario):
        before = kept.before(server_round, resolve_device(scenario.device))
    with one_thread():
        trained = train_locally(scenario, client, server_round, received, before)
    if trained.states is not before:
        kept.keep(server_round, trained.states)
    federation = Federation.of(scenario)
    metrics = MetricRecord({"num-examples": federation.reported_examples(client)})
    if not federation.claims_privacy:
        metrics[TRAIN_LOSS] = trained.loss
    reply = RecordDict({"arrays": to_arrays(trained.weights), "metrics": metrics})
    return Message(reply, reply_to=message)


def _state_of(context: Context) -> ClientState:
    """Find what this client's defenses keep, in the folder that the node or the run names."""
    configs = (context.node_config, context.run_config)
    named = [str(config["client-state"]) for config in configs if config.get("client-state")]
    scenario = configured_scenario(context.run_config)
    client = int(context.node_config["partition-id"])
    return ClientState.of(scenario, client, named[0] if named else "")


def _may_keep(scenario: Scenario) -> bool:
    defenses = Federation.of(scenario).defenses
    return defenses.overrides("on_gradient") or defenses.overrides("on_update")


def to_arrays(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Pack named tensors for the wire."""
    arrays = {name: Array.from_numpy_ndarray(t.cpu().numpy()) for name, t in tensors.items()}
    return ArrayRecord(arrays)


class Trained(NamedTuple):
    """What a round of training leaves: two things to send, and one to keep.

    Args:
        weights: to send.
        loss: the mean training loss, to send where no defense claims privacy.
        states: what the defenses keep; those given where they keep nothing new.
    """

    weights: dict[str, Tensor]
    loss: float
    states: States


def train_locally(
    scenario: Scenario,
    client: int,
    server_round: int,
    received: Mapping[str, Tensor],
    states: States = NOTHING,
) -> Trained:
    """Run a client's local steps; pure in all its arguments.

    Args:
        scenario: what to do.
        client: whose data.
        server_round: from 1.
        received: the global weights.
        states: what the defenses kept in the client's last round, on the training's device.
    """
    federation = Federation.of(scenario)
    settings = scenario.client
    device = resolve_device(scenario.device)
    model = federation.build_model()
    load_tensors(model, received)
    if device.type != "cpu":
        model.to(device)
    model.train(settings.mode == "train")
    start = None
    if federation.defenses.overrides("on_update") or client in scenario.canaries:
        start = {name: t.clone() for name, t in wire_tensors(model, settings.mode).items()}
    optimizer = build_optimizer(
        settings.optimizer,
        model.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )
    losses = []
    steps = federation.local_steps(client)
    for step in range(steps):
        at = (client, server_round, step)
        loss, states = _protected_gradient(federation, model, at, states)
        losses.append(loss)
        optimizer.step()
    end = wire_tensors(model, settings.mode)
    if start is not None:
        draws = federation.draws_of(client, server_round, steps)
        trained = {name: end[name].double() - start[name].double() for name in end}
        update: Mapping[str, Tensor] = trained
        if client in scenario.canaries:
            update = canary_update(federation, client, trained)
        place = Place(server_round, steps)
        sent, states = federation.defenses.on_update(update, place, states, draws)
        if sent is not trained:
            end = {name: (start[name].double() + sent[name]).to(end[name]) for name in end}
    return Trained(end, sum(losses) / len(losses), states)


def _protected_gradient(
    federation: Federation, model: nn.Module, at: tuple[int, int, int], states: States
) -> tuple[float, States]:
    """Leave a step's gradient, as the defenses make it, at the parameters.

    Args:
        federation: the client's data and defenses.
        model: at the step's weights.
        at: (client, server round, step).
        states: what the defenses kept in the step before.

    Returns:
        The loss, and what the defenses keep.
    """
    draws = federation.draws_of(*at)
    batch = federation.training_batch(*at)
    device = next(model.parameters()).device
    images, labels = batch.images.to(device), batch.labels.to(device)
    client, server_round, step = at
    seed = seed_for(federation.scenario.seed, "layers", server_round, client, step)
    with seeded_layers(seed, device):
        logits = model(images)
        loss = cross_entropy(logits, labels) if len(labels) else logits.sum()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # A parameter that the loss doesn't reach has a gradient of zero.
    computed = torch.autograd.grad(loss, list(trained.values()), materialize_grads=True)
    gradients: Mapping[str, Tensor] = dict(zip(trained, computed, strict=True))
    if federation.defenses.overrides("on_gradient"):
        per_example = partial(_per_example_gradients, model, images, labels, seed)
        place = Place(server_round, step)
        expected = federation.scenario.client.batch_size if federation.defenses.is_poisson else None
        seen = ClientStep(images, labels, model, loss.detach(), per_example, place, expected)
        gradients, states = federation.defenses.on_gradient(seen, gradients, states, draws)
    for name, parameter in trained.items():
        parameter.grad = gradients[name]
    return float(loss.detach()), states


def resolve_device(device: str) -> torch.device:
    """Return the device that "auto" stands for, or the one named.

    Raises:
        UserError: this machine hasn't got it.
    """
    try:
        return device_named(device)
    except ValueError as error:
        raise UserError(str(error)) from error


def _per_example_gradients(
    model: nn.Module, images: Tensor, labels: Tensor, seed: int
) -> dict[str, Tensor]:
    """Return parameter name -> (B, *shape), each example's own gradient.

    They average to the batch's where no layer draws or mixes examples, mostly in eval mode.
    """
    trainable = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    if not len(images):
        return {name: p.new_zeros(0, *p.shape) for name, p in trainable.items()}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, parameters, (image[None],)), label[None])

    per_example = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
    with seeded_layers(seed, images.device):
        return dict(per_example(trainable, images, labels))
