"""Which defense is worth its cost: leakage, accuracy, ε and bytes of the same runs, over rounds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from fl_sim.bench.defense_frontier import draw_frontier, recommended
from fl_sim.results.comparison import Comparison
from fl_sim.results.display import formatted
from fl_sim.results.measures import OF_ATTACKS, OF_RUNS
from fl_sim.results.varied import shown
from fl_sim.results.worst import BAR, holds, recommendations, shown_spread, worst
from fl_sim.scenario import Scenario
from fl_sim.scenario.source import scenario_file
from fl_sim.sweep import run_sweep
from fl_sim.sweep.folder import is_sweep
from fl_sim.sweep.grid import Axis, Grid
from fl_sim.terminal.folders import RUNS

Stages = list[dict[str, Any]]
SEEDS, QUICK_ROUNDS = 3, 10
MNIST, PHOTOS = "mlp on mnist-5k", "lenet on photos"
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    MNIST: {},
    PHOTOS: {
        "data.name": "photos",
        "data.test_examples": None,
        "model.name": "lenet",
        "model.init": "dlg",
        "client.batch_size": 1,
        "client.lr": 0.05,
        "attack.0.clients": [0, 1],
        "attack.1.clients": [0, 1],
    },
}
"""What is run -> what it changes of the scenario `defense-grid`."""
STRENGTHS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "label-smoothing": tuple({"smoothing": s} for s in (0.1, 0.5)),
    "mixup": ({"alpha": 1.0},),
    "cutmix": ({"alpha": 1.0},),
    "vicinal": tuple({"kind": kind} for kind in ("double-mix", "reverse")),
    "dropout": tuple({"p": p} for p in (0.1, 0.5)),
    "precode": ({"size": 256},),
    "gradient-clipping": tuple({"clipping_norm": c} for c in (1.0, 0.1)),
    "learning-rate-noise": ({"low": 0.5, "high": 2.0},),
    "outpost": tuple({"sparsity": s, "noise": n} for s, n in ((0.5, 0.1), (0.8, 0.8))),
    "pruning": tuple({"sparsity": s} for s in (0.5, 0.95)),
    "quantization": tuple({"levels": s} for s in (256, 16)),
    "sign": ({},),
    "dp-sgd": tuple({"clipping_norm": 1.0, "noise_multiplier": z} for z in (0.01, 0.1, 1.0)),
    "dp-noise": tuple({"clipping_norm": 0.3, "noise_multiplier": z} for z in (1e-5, 1e-3, 1e-2)),
    "soteria": ({"pruning_rate": 0.4},),
}
"""Each defense's strengths, the weakest first; with photos, the strongest alone."""
NOT_ON_PHOTOS = ("vicinal", "soteria")
"""The first needs pairs in a batch; the second takes a backward pass for each feature."""
QUICK = {"label-smoothing": 0, "pruning": -1, "dp-noise": -1}
"""What a quick run takes beside no defense: defense -> the number of its strength."""
TITLE = (
    "Which defense is worth its cost: the worst of several attacks and the accuracy of the same "
    "runs"
)
NOTES = (
    "The scenario `defense-grid`: 100 rounds of 8 clients with one step each. `mlp` without "
    "biases: batches of 16, lr 0.2, PyTorch's initialisation. `lenet`: one example a step, lr "
    "0.05, DLG's initialisation. Client 0, of `lenet` 0 and 1, is attacked in rounds 1 and 100, by "
    "`soft-label` with `auto` (the exact image attacks, or a search of 100 iterations, which is "
    "short) and `label-mass`; each number is that of whichever attack got most. Means over the "
    "seeds, with 95 % intervals in brackets.",
    "*Identified*: the client's own image is the nearest among 1,000 others (IIP). *Class counts "
    "off by*: total variation of the class mass, and of a guess. *ε*: at δ = 1e-5, for a client's "
    "update or an example, as the defense claims. *Signal to noise*: the update's L2 norm without "
    "the defense over that of what the defense changes of it. *Bytes*: what a client sends in a "
    "round; this simulator sends weights, all of them, so *non-zero* says what an encoding could "
    "save. *Seconds*: of a run's rounds, its attacks among them; several runs shared the machine.",
    f"Flags are explained in the cards of `docs/defenses`. A defense *holds* where of all attacks, "
    f"unaware and aware, {BAR}. Of class counts nothing is asked: averages show them. Where no "
    "attack applies to most examples, nothing holds.",
)


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Run the grid; a quick run takes three defenses and none, of `mlp`, one seed and ten rounds.

    What a run that was interrupted has finished stays in `runs/bench`, and this one goes on there.
    """
    for setting in (MNIST,) if quick else SETTINGS:
        out = RUNS / "bench" / f"defense_grid-{setting.split()[0]}{'-quick' if quick else ''}"
        run_sweep(grid_of(setting, quick=quick, seed=seed), out, resume=is_sweep(out))
        yield from rows_of(setting, Comparison.of_sweep(out))
        shutil.rmtree(out)


def grid_of(setting: str, *, quick: bool, seed: int) -> Grid:
    """Return the sweep of a setting, a key of `SETTINGS`."""
    with scenario_file("defense-grid") as path:
        base = Scenario.load(path, seed=seed).with_changes({"images": 0, **SETTINGS[setting]})
    if quick:
        attacked = {f"attack.{index}.rounds": [1] for index in range(len(base.attack))}
        base = base.with_changes({"rounds": QUICK_ROUNDS, **attacked})
    cells = [[], *_cells(setting, quick=quick)]
    axes = [
        Axis("defense", tuple(cells)),
        Axis("client.mode", tuple(_mode(stages) for stages in cells)),
    ]
    return Grid.of(base, axes, zipped=True, seeds=1 if quick else SEEDS)


def rows_of(setting: str, comparison: Comparison) -> Iterator[dict[str, object]]:
    """Yield two rows for each cell, of the attacker who doesn't know the defense and who does."""
    weakest = {one.cell for one in recommendations(comparison)}
    for cell, values in enumerate(comparison.cells):
        held = "weakest" if cell in weakest else "yes" if holds(comparison, cell) else "no"
        for attacker in ("unaware", "aware"):
            if comparison.of_cell(cell):
                told = {"setting": setting, "attacker": attacker, "holds": held}
                yield _row(comparison, cell, values["defense"], told)


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw leakage against accuracy, a line for each defense."""
    return draw_frontier(rows)


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return, for each setting and defense, the weakest strength that holds, as Markdown."""
    return recommended(rows)


def _cells(setting: str, *, quick: bool) -> Iterator[Stages]:
    for name, strengths in STRENGTHS.items():
        chosen = strengths if setting == MNIST else strengths[-1:]
        if quick:
            chosen = [strengths[QUICK[name]]] if name in QUICK else []
        if setting == MNIST or name not in NOT_ON_PHOTOS:
            yield from ([{"name": name, **options}] for options in chosen)


def _mode(stages: Stages) -> str:
    return "train" if any(stage["name"] == "dropout" for stage in stages) else "eval"


def _row(
    comparison: Comparison, cell: int, stages: Stages, told: Mapping[str, str]
) -> dict[str, object]:
    attacker = told["attacker"]

    def attacked(name: str) -> str:
        return shown_spread(worst(comparison, cell, name, attacker=attacker))

    def plain(name: str, found: Any) -> str:
        measure = next(m for m in (*OF_ATTACKS, *OF_RUNS) if m.name == name)
        return formatted(found.mean if found else None, measure)

    def ran(name: str) -> str:
        return plain(name, comparison.number(cell, None, name))

    bound = comparison.number(cell, None, "epsilon")
    accuracy = comparison.number(cell, None, "accuracy")
    options = [{**stage, "name": ""} for stage in stages if len(stage) > 1]
    guess = plain("mass_tv_chance", worst(comparison, cell, "mass_tv_chance", attacker=attacker))
    row = {
        "setting": told["setting"],
        "defense": stages[0]["name"] if stages else "none",
        "strength": shown(options).strip(" ()") if options else "–",
        "attacker": attacker,
        "labels": attacked("labels_right"),
        "classes": attacked("classes_right"),
        "images > 20 dB": attacked("images_recognisable"),
        "> 30 dB": attacked("images_close"),
        "> 50 dB": attacked("images_identical"),
        "median PSNR": plain("psnr_db", worst(comparison, cell, "psnr_db", attacker=attacker)),
        "identified": attacked("images_identified"),
        "class counts off by": attacked("mass_tv"),
        "a guess": guess,
        "accuracy": shown_spread(accuracy),
        "ε": "no guarantee" if bound is None else ran("epsilon"),
        "signal to noise": ran("update_snr_db"),
        "bytes": ran("update_bytes"),
        "non-zero": ran("update_nonzero"),
        "seconds": ran("seconds"),
        "holds": told["holds"],
        "flags": "; ".join(dict.fromkeys(flag.kind for flag in comparison.flags(cell))),
    }
    return {key: str(value).replace("\u00a0", " ") for key, value in row.items()}
