"""The client: a Flower `ClientApp` that trains on its own data, behind its defenses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from defenses import ClientStep
from fl_sim.errors import UserError
from fl_sim.federation import Federation
from fl_sim.optimizers import build_optimizer
from fl_sim.provenance import code_hash
from fl_sim.scenario import Scenario
from fl_sim.scenario_source import configured_scenario
from fl_sim.seeds import seed_for
from fl_sim.threads import one_thread
from fl_sim.wire import load_tensors, wire_tensors

app = ClientApp()


@app.query()
def identify(message: Message, context: Context) -> Message:
    """Answer which client this node is, and which code it runs."""
    partition = int(context.node_config["partition-id"])
    identity = ConfigRecord({"partition-id": partition, "code": code_hash()})
    return Message(RecordDict({"identity": identity}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on this client's data and send the weights back."""
    scenario = configured_scenario(context.run_config)
    client = int(context.node_config["partition-id"])
    config = message.content.config_records["config"]
    server_round = int(str(config["server-round"]))
    received = message.content.array_records["arrays"].to_torch_state_dict()
    with one_thread():
        weights, loss = train_locally(scenario, client, server_round, received)
    examples = scenario.client.batch_size * scenario.client.local_steps
    return Message(
        RecordDict(
            {
                "arrays": to_arrays(weights),
                "metrics": MetricRecord({"num-examples": examples, "train-loss": loss}),
            }
        ),
        reply_to=message,
    )


def to_arrays(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Pack named tensors for the wire."""
    return ArrayRecord({name: Array(tensor.cpu().numpy()) for name, tensor in tensors.items()})


def train_locally(
    scenario: Scenario, client: int, server_round: int, received: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], float]:
    """Run a client's local steps; pure in all its arguments.

    Args:
        scenario: what to do.
        client: whose data.
        server_round: from 1.
        received: the global weights.

    Returns:
        The weights to send, and the mean training loss.
    """
    federation = Federation.of(scenario)
    settings = scenario.client
    device = resolve_device(scenario.device)
    model = federation.build_model()
    load_tensors(model, received)
    model.to(device).train(settings.mode == "train")
    start = {name: tensor.clone() for name, tensor in wire_tensors(model, settings.mode).items()}
    optimizer = build_optimizer(
        settings.optimizer,
        model.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )
    losses = []
    for step in range(settings.local_steps):
        draws = federation.draws_of(client, server_round, step)
        batch = federation.training_batch(client, server_round, step)
        images, labels = batch.images.to(device), batch.labels.to(device)
        seed = seed_for(scenario.seed, "layers", server_round, client, step)
        with _layer_draws(model, seed):
            loss = cross_entropy(model(images), labels)
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        parameters = [model.get_parameter(name) for name in names]
        # A parameter that the loss doesn't reach has a gradient of zero.
        computed = torch.autograd.grad(loss, parameters, materialize_grads=True)
        gradients = dict(zip(names, computed, strict=True))
        per_example = partial(_per_example_gradients, model, images, labels, seed)
        state = ClientStep(images, labels, model, loss.detach(), per_example)
        protected = federation.defenses.on_gradient(state, gradients, draws)
        for name, parameter in zip(names, parameters, strict=True):
            parameter.grad = protected[name]
        optimizer.step()
        losses.append(float(loss.detach()))
    end = wire_tensors(model, settings.mode)
    draws = federation.draws_of(client, server_round, settings.local_steps)
    update = {name: end[name].double() - start[name].double() for name in end}
    sent = federation.defenses.on_update(update, draws)
    if sent is not update:
        end = {name: (start[name].double() + sent[name]).to(end[name]) for name in end}
    return end, sum(losses) / len(losses)


def resolve_device(device: str) -> torch.device:
    """Return the device that "auto" stands for, or the one named.

    Raises:
        UserError: this machine hasn't got it.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    named = torch.device(device)
    mps = int(torch.backends.mps.is_available())
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": mps}[named.type]
    if (named.index or 0) >= present:
        raise UserError(f"device must be one that PyTorch finds on this machine, found {device!r}")
    return named


@contextlib.contextmanager
def _layer_draws(model: nn.Module, seed: int) -> Iterator[None]:
    """Seed what layers such as dropout draw, and leave the global generator as it was."""
    if not model.training:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _per_example_gradients(
    model: nn.Module, images: Tensor, labels: Tensor, seed: int
) -> dict[str, Tensor]:
    """Return parameter name -> (B, *shape), each example's own gradient.

    They average to the batch's where no layer draws or mixes examples: in eval mode.
    """
    trainable = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, parameters, (image[None],)), label[None])

    per_example = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
    with _layer_draws(model, seed):
        return dict(per_example(trainable, images, labels))
