"""How many victims a GPU attacks in the time of one, beside one thread of the processor."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from fl_sim.bench.matching import SMOOTH, Victim, victims_of
from fl_sim.bench.matching_speed import search_of, start_of
from fl_sim.bench.plain_loop import plain_start, plain_step
from fl_sim.bench.victims import initial_weights

TITLE = "How many victims a GPU attacks in the time of one"
NOTES = (
    "`inverting-gradients` on photographs of 32×32 pixels, ten classes, the last layer without a "
    "bias, one example each, the label given, float32: as in the table of speeds, but by the "
    "clock, and on the device that the row names, the processor with one thread and without "
    "`resnet18`; without a GPU, its rows are left out.",
    "A rate is the median over turns of gradient evaluations a second, each victim's counted; the "
    "plain loop, written for one victim, runs on the device as it is. “start” is what comes before "
    "the first turn: tracing, and recording the kernels. “GiB” is the GPU's memory at its peak.",
    initial_weights("lenet", "convnet", "resnet18"),
)
TURNS = 5
ON_GPU = {"lenet": (1, 16, 256), "convnet": (1, 16, 256), "resnet18": (1, 16)}
"""Victims at once, by network."""
LENGTHS = {"cpu": 20, "cuda": 100}
"""Iterations of a turn, by device."""


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Measure, and yield one row for each network, device and number of victims.

    Args:
        quick: one turn, of `lenet` on the processor.
        seed: of weights and images.
    """
    for network in ("lenet",) if quick else ("lenet", "convnet"):
        yield from _device_rows(network, torch.device("cpu"), (1, 16), 1 if quick else TURNS, seed)
    if torch.cuda.is_available() and not quick:
        for network, sizes in ON_GPU.items():
            yield from _device_rows(network, torch.device("cuda"), sizes, TURNS, seed)


def _device_rows(
    network: str, device: torch.device, sizes: tuple[int, ...], turns: int, seed: int
) -> Iterator[dict[str, object]]:
    length = LENGTHS[device.type]
    victims = victims_of(network, ("label-smoothing",), max(sizes), seed)
    ways = {"plain loop": partial(plain_turn, victims[0], length, device)}
    for size in sizes:
        name = "one victim" if size == 1 else f"{size} victims at once"
        ways[name] = partial(search_turn, victims[:size], length, device)
    plain: float | None = None
    for way, prepare in ways.items():
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        started = time.monotonic()
        turn = prepare()
        turn()
        start = time.monotonic() - started
        rate = statistics.median(_rate(turn) for _ in range(turns))
        plain = plain or rate
        yield {
            "network": network,
            "device": device.type,
            "way": way,
            "evaluations a second": round(rate),
            "times the plain loop": f"{rate / plain:.2f}",
            "start": f"{start:.1f}",
            "GiB": _peak() if device.type == "cuda" else "–",
        }


def _rate(turn: Callable[[], int]) -> float:
    started = time.monotonic()
    evaluations = turn()
    return evaluations / (time.monotonic() - started)


def _peak() -> str:
    return f"{torch.cuda.max_memory_allocated() / 2**30:.2f}"


def search_turn(victims: list[Victim], length: int, device: torch.device) -> Callable[[], int]:
    """Return a turn of the search on victims at once, on a device."""
    search = search_of(victims, length, device=device)

    def turn() -> int:
        found = search()
        float(found.losses.sum())  # waits for the GPU
        return found.evaluations

    return turn


def plain_turn(victim: Victim, length: int, device: torch.device) -> Callable[[], int]:
    """Return a turn of the plain loop on a device."""
    model = copy.deepcopy(victim.leak.model).to(device)
    target = [part.to(device) for part in victim.leak.gradients.values()]
    label = victim.labels.to(device)
    image, optimizer = plain_start(start_of(victim.leak).to(device))

    def turn() -> int:
        for _ in range(length):
            plain_step(model, target, label, image, optimizer, SMOOTH)
        return length

    return turn
