"""How fast gradient matching is, beside the plain loop and beside breaching, and its memory."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor

from attacks import GradientLeak
from attacks.matching.evaluation import Given, Problem, evaluation_of, on_device
from attacks.matching.models import OneGradient
from attacks.matching.objectives import CosineDistance, TotalVariation
from attacks.matching.optimisers import Adam
from attacks.matching.schedules import StepDecay
from attacks.matching.search import Found, Stop, search
from attacks.matching.unknowns import Unknowns
from attacks.victim.differentiable import DifferentiableVictim
from fl_sim.bench.breaching_loop import breaching_search, has_breaching, loaded
from fl_sim.bench.matching import SMOOTH, Victim, seeded, victims_of
from fl_sim.bench.memory import added_bytes
from fl_sim.bench.plain_loop import LR, plain_start, plain_step
from fl_sim.bench.victims import initial_weights
from fl_sim.seeds import CPU
from fl_sim.threads import one_thread

TITLE = "How fast gradient matching is: `inverting-gradients` beside a plain loop and breaching"
NOTES = (
    "Photographs of 32×32 pixels, ten classes, the last layer without a bias, the label given, "
    "float32, one thread. All ways do the same steps from the same kind of start: cosine distance, "
    "total variation, Adam on signs. They take short turns one after another, in one process; a "
    "rate is the median over turns of gradient evaluations a CPU second, a ratio that of the "
    "ratios within a round of turns, with its quartiles. Of several victims at once, each one's "
    "evaluation counts.",
    "breaching 0.1.2 takes part where it is installed beside fl-sim; its iterations alone are "
    "timed. “start” is what comes before the first turn, tracing or compiling, in seconds by the "
    "clock; “peak MiB” what a search, prepared and run, adds at its peak to the memory "
    "of a process of its own in which the plain loop has run before (not measured where a compiler "
    "is loaded, too).",
    initial_weights("lenet", "convnet"),
)
TURN = 20
"""Iterations of a turn."""
VICTIMS = 16
PLAIN, ONE, MANY, BREACHING = "plain loop", "one victim", f"{VICTIMS} victims at once", "breaching"
COMPILED = (f"{ONE}, compiled", f"{MANY}, compiled")
MIB = 2**20

Turn = Callable[[], tuple[int, float]]
"""Does a turn; returns gradient evaluations and CPU seconds."""


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Measure, and yield one row for each network and way.

    Args:
        quick: few turns, of `lenet` alone, and nothing compiled.
        seed: of weights and images.
    """
    for network in ("lenet",) if quick else ("lenet", "convnet"):
        yield from _network_rows(network, ways(is_quick=quick), 2 if quick else 10, seed)


def ways(*, is_quick: bool) -> tuple[str, ...]:
    """Return the ways that there are on this machine."""
    can_compile = not is_quick and shutil.which("g++") is not None
    return (
        PLAIN,
        *([BREACHING] if has_breaching() else []),
        *(ONE, MANY),
        *(COMPILED if can_compile else ()),
    )


def _network_rows(
    network: str, names: tuple[str, ...], rounds: int, seed: int
) -> Iterator[dict[str, object]]:
    victims = victims_of(network, ("label-smoothing",), VICTIMS, seed)
    turn_of(PLAIN, victims)()  # what is imported only now
    turns, starts = dict[str, Turn](), dict[str, float]()
    for way in names:
        started = time.monotonic()
        turns[way] = turn_of(way, victims)
        turns[way]()
        starts[way] = time.monotonic() - started
    rates = np.array([[_rate(turn) for turn in turns.values()] for _ in range(rounds)])
    plain = rates[:, names.index(PLAIN)]
    for column, way in enumerate(names):
        own = rates[:, column]
        peer = rates[:, names.index(BREACHING)] if BREACHING in names else None
        yield {
            "network": network,
            "way": way,
            "evaluations a CPU second": round(float(np.median(own))),
            "times the plain loop": _quartiles(own / plain),
            "times breaching": "–" if peer is None else _quartiles(own / peer),
            "start": f"{starts[way]:.1f}",
            "peak MiB": "–" if way in COMPILED else _in_a_process_of_its_own(network, way, seed),
        }


def _rate(turn: Turn) -> float:
    evaluations, seconds = turn()
    return evaluations / seconds


def _quartiles(ratios: np.ndarray) -> str:
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _in_a_process_of_its_own(network: str, way: str, seed: int) -> str:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        added = pool.submit(search_bytes, network, way, seed).result()
    return "–" if added is None else f"{added / MIB:.0f}"


def search_bytes(network: str, way: str, seed: int) -> int | None:
    """Return what a way's preparation and first turns add to this process's memory."""
    victims = victims_of(network, ("label-smoothing",), VICTIMS, seed)
    with one_thread():
        turn_of(PLAIN, victims)()  # after this, all libraries are there
        if way == BREACHING:
            loaded()

        def search_some() -> None:
            turn = turn_of(way, victims)
            turn()
            turn()

        return added_bytes(search_some)


def turn_of(way: str, victims: list[Victim]) -> Turn:
    """Return a turn of one of the `ways`, ready to run."""
    leak, _, label = victims[0]
    if way == PLAIN:
        return partial(_plain_turn, leak, label)
    if way == BREACHING:
        return partial(_breaching_turn, leak, label)
    several = victims if way.startswith(MANY) else victims[:1]
    return _search_turn(several, is_compiled=way in COMPILED)


def start_of(leak: GradientLeak) -> Tensor:
    """Return a start for the plain loop."""
    return torch.rand(1, *leak.input_shape, generator=seeded(0))


def _plain_turn(leak: GradientLeak, label: Tensor) -> tuple[int, float]:
    image, optimizer = plain_start(start_of(leak))
    target = list(leak.gradients.values())
    started = time.process_time()
    for _ in range(TURN):
        plain_step(leak.model, target, label, image, optimizer, SMOOTH)
    return TURN, time.process_time() - started


def _breaching_turn(leak: GradientLeak, label: Tensor) -> tuple[int, float]:
    _, seconds = breaching_search(leak, label, TURN, SMOOTH, start_of(leak))
    return TURN, seconds


def _search_turn(victims: list[Victim], *, is_compiled: bool) -> Turn:
    """Return a turn of the search on victims at once."""
    run_search = search_of(victims, TURN, is_compiled=is_compiled)

    def run() -> tuple[int, float]:
        started = time.process_time()
        found = run_search()
        return found.evaluations, time.process_time() - started

    return run


def search_of(
    victims: Sequence[Victim],
    iterations: int,
    *,
    is_compiled: bool = False,
    device: torch.device = CPU,
) -> Callable[[], Found]:
    """Return a search by `inverting-gradients` on victims of one network at once, ready to run."""
    leak, _, label = victims[0]
    unknowns = Unknowns(1, leak.input_shape, label.shape[1])
    problems = []
    for one in victims:
        view = DifferentiableVictim.of(one.leak, torch.float32)
        given, smooth = Given(view.target, one.labels), (TotalVariation(SMOOTH),)
        problems.append(Problem(view, given, OneGradient(), unknowns, CosineDistance(), smooth))
    evaluate = evaluation_of(on_device(problems, device), 1, 1000, is_compiled=is_compiled)
    draws = seeded(0)
    rows = torch.cat([unknowns.draw(1, draws, torch.float32) for _ in problems]).to(device)
    return partial(
        search,
        evaluate,
        rows,
        optimiser=Adam(),
        schedule=StepDecay(LR),
        stop=Stop(iterations, patience=iterations),
        project=unknowns.project,
    )
