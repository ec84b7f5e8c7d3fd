"""The global model on the server's test images."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord
from torch.nn.functional import cross_entropy

from fl_sim.federation import Federation
from fl_sim.flower.client import resolve_device
from fl_sim.flower.wire import load_tensors
from fl_sim.seeds import seed_for, seeded_layers


def evaluate(federation: Federation, arrays: ArrayRecord, server_round: int) -> tuple[float, float]:
    """Return accuracy and mean loss on the server's test images.

    Args:
        federation: whose.
        arrays: the global model's.
        server_round: for the draws of layers that draw in eval mode too.
    """
    dataset, count = federation.dataset, federation.test_examples
    device = resolve_device(federation.scenario.device)
    seed = seed_for(federation.scenario.seed, "evaluation", server_round)
    hits, total = 0, 0.0
    with seeded_layers(seed, device), torch.no_grad():
        model = federation.build_model()
        load_tensors(model, arrays.to_torch_state_dict())
        model.to(device).eval()
        for start in range(0, count, 500):
            part = slice(start, min(start + 500, count))
            labels = dataset.test_labels[part].to(device)
            logits = model(dataset.test_images[part].to(device))
            hits += int((logits.argmax(dim=1) == labels).sum())
            total += float(cross_entropy(logits, labels, reduction="sum"))
    return hits / count, total / count
