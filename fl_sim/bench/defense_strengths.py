"""What each defense hides, at three strengths, from an attacker who knows it and who doesn't."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fl_sim.bench.recorded import recorded
from fl_sim.leakage.leaks import TOLERANCE, Record, Share
from fl_sim.results.flags import Evidence, flags
from fl_sim.results.recorded import RecordedRun
from fl_sim.scenario import Scenario

Stage = dict[str, Any]
SEEDS, CLIENTS = 3, {1: 10, 16: 1}
"""Runs a row, and by the batch size the clients of each."""
LEVELS_DB = (20, 30, 50)
ROUNDS = 9
"""In the last of which `outpost` perturbs every other gradient."""
TITLE = (
    "What a defense hides, from an attacker who doesn't know it / who does: labels within 0.01 and "
    "images beyond 20, 30 and 50 dB"
)
NOTES = (
    "`mlp` (784-512-512-10) without biases on `mnist-5k`, PyTorch's own initialisation. One round, "
    "one step, lr 0.1, float32 weights; labels are smoothed by 0.1 unless the defense mixes them. "
    f"`soft-label` and `analytic`; {SEEDS} seeds, each with {CLIENTS[1]} clients of one example "
    f"and {CLIENTS[16]} of 16. Flags are explained in the cards of `docs/defenses`.",
    "*False* counts what either vouched for and was wrong. The images of mixing defenses are those "
    "that the client trained on, mixed. Of `dp-sgd`, which draws its batches, *examples* is how "
    "many there are on average.",
    f"*rounds {ROUNDS}*: clients train on the same examples in each, and after the last one all "
    "rounds are attacked together. `outpost` perturbs every gradient in the first round and every "
    f"other in round {ROUNDS}; who knows that takes a round that went unperturbed, which the rank "
    "of its gradients shows, and leaves out the others. So does, unaware, who attacks each round "
    "by itself: an answer vouches for itself.",
    "Behind `precode` it decides that hidden layers with a ReLU stand before its encoder, and that "
    "this has a bias: they show inputs and their scale, whatever is drawn behind. Labels of `sign` "
    f"at B = {max(CLIENTS)} count each class, unclaimed and in no order, before training; they are "
    "paired with the examples that they fit.",
)
DEFENSES: dict[str, tuple[Stage, ...]] = {
    "none": ({},),
    "label-smoothing": tuple({"smoothing": s} for s in (0.1, 0.3, 0.5)),
    "mixup": tuple({"alpha": a} for a in (0.2, 1.0, 8.0)),
    "cutmix": tuple({"alpha": a} for a in (0.2, 1.0, 8.0)),
    "vicinal": tuple({"kind": kind} for kind in ("double-mix", "reverse", "recombine")),
    "dropout": tuple({"p": p} for p in (0.1, 0.3, 0.5)),
    "precode": tuple({"size": k} for k in (64, 256, 512)),
    "gradient-clipping": tuple({"clipping_norm": c} for c in (4.0, 1.0, 0.1)),
    "learning-rate-noise": tuple({"low": 1 / f, "high": f} for f in (1.25, 2.0, 8.0)),
    "soteria": tuple({"pruning_rate": r} for r in (0.1, 0.4, 0.8)),
    "outpost": (
        *({"sparsity": s, "noise": n} for s, n in ((0.5, 0.1), (0.8, 0.8), (0.9, 4.0))),
        {"sparsity": 0.8, "noise": 0.8, "rounds": ROUNDS},
    ),
    "pruning": tuple({"sparsity": s} for s in (0.5, 0.8, 0.95)),
    "quantization": tuple({"levels": s} for s in (4096, 256, 16)),
    "sign": ({}, {"error_feedback": True}),
    "dp-sgd": tuple({"clipping_norm": 1.0, "noise_multiplier": z} for z in (1e-3, 1e-2, 0.1)),
    "dp-noise": tuple({"noise_std": s} for s in (1e-5, 1e-4, 1e-3)),
}
MIXING = ("label-smoothing", "mixup", "cutmix", "vicinal")


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Run each defense at each strength; a quick run takes the first strength, one seed, B = 1."""
    for name, strengths in DEFENSES.items():
        for options in strengths[: 1 if quick else None]:
            for batch in (1,) if quick else CLIENTS:
                if name == "vicinal" and batch == 1:
                    continue  # it mixes pairs within the batch
                seeds = range(seed, seed + (1 if quick else SEEDS))
                yield _row(name, options, batch, [_run(name, options, batch, s) for s in seeds])


def _run(name: str, options: Stage, batch: int, seed: int) -> RecordedRun:
    rounds = options.get("rounds", 1)
    own = {key: value for key, value in options.items() if key != "rounds"}
    stages = [] if name == "none" else [{"name": name, **own}]
    if name not in MIXING:
        stages.append({"name": "label-smoothing", "smoothing": 0.1})
    attack = {"label": "soft-label", "image": "analytic"}
    data = {"name": "mnist-5k", "clients": CLIENTS[batch], "test_examples": 10}
    if rounds > 1:
        attack["combine"] = "rounds"
        data["examples_per_client"] = batch
    scenario = Scenario.parse(
        {
            "seed": seed,
            "rounds": rounds,
            "images": 0,
            "data": data,
            "server": {"capture": rounds > 1},
            "model": {"name": "mlp"},
            "client": {"batch_size": batch, "mode": "train" if name == "dropout" else "eval"},
            "defense": stages,
            "attack": [attack | {"attacker": attacker} for attacker in ("unaware", "aware")],
        }
    )
    return recorded(scenario)


def _row(name: str, options: Stage, batch: int, runs: Sequence[RecordedRun]) -> Stage:
    records = [record for run in runs for record in run.records]
    examples = len(runs) * CLIENTS[batch] * batch
    counts: dict[str, list[Share]] = {}
    for key, is_right in _MEASURES.items():
        counts[key] = [
            Share(sum(is_right(r) for r in records if r["attacker"] == who), examples)
            for who in ("unaware", "aware")
        ]
    false = sum(
        (r["label_status"] == "RECOVERED" and not _is_right(r))
        or (r["image_status"] == "RECOVERED" and (r["psnr_db"] or 0.0) < LEVELS_DB[-1])
        for r in records
    )
    found = flags([Evidence.of(run.scenario, run.records, run.rounds) for run in runs])
    return {
        "defense": name,
        "strength": ", ".join(f"{key} {_short(value)}" for key, value in options.items()) or "–",
        "B": batch,
        "examples": examples,
        **{key: f"{unaware.count} / {aware.count}" for key, (unaware, aware) in counts.items()},
        "false": false,
        "flag": "; ".join(dict.fromkeys(flag.kind for flag in found)),
    }


def _is_right(record: Record) -> bool:
    return record["label_linf"] is not None and record["label_linf"] < TOLERANCE


def _is_beyond(level: float) -> Callable[[Record], bool]:
    return lambda record: (record["psnr_db"] or 0.0) > level


_MEASURES = {
    "labels": _is_right,
    **{f"images > {level} dB": _is_beyond(level) for level in LEVELS_DB},
}


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
