"""The report's words and numbers: what happened, in plain English."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_sim.capture.pending import Left
from fl_sim.leakage.headline import strongest
from fl_sim.leakage.leaks import Leak, Record, Share
from fl_sim.leakage.summary import AttackSummary
from fl_sim.results.recorded import RecordedRun
from fl_sim.wording import NONE, count, db, epsilon, number, percent, scientific, seconds


@dataclass(frozen=True)
class Card:
    """A key number with what it means."""

    term: str
    value: str
    note: str


@dataclass(frozen=True)
class Measures:
    """Rows of the comparison that belong together: a term, and a value for each attack."""

    title: str
    rows: list[tuple[str, list[str]]]


def unattacked(attacks: int, *, is_finished: bool) -> str | None:
    """Say why a run without a record attacked nothing; None where nothing but the page knows."""
    if not attacks:
        return "No attack was part of this run: it shows training only."
    return None if is_finished else "No update has been attacked yet."


def notice(run: RecordedRun, folder: Path) -> str | None:
    """Say what is missing from a run, and how it goes on; None where nothing is missing.

    Args:
        run: what was recorded.
        folder: where, as the command line is told it.
    """
    pending = _pending(run.left, folder, is_run="kind" not in run.described)
    return " ".join(filter(None, [_missing_rounds(run), pending])) or None


def _missing_rounds(run: RecordedRun) -> str | None:
    """Say why there are fewer rounds than planned."""
    done, planned = run.last_round, int(run.scenario.get("rounds") or 0)
    if done >= planned:
        return None
    if run.ended_by_target:
        target, following = run.scenario["privacy"]["epsilon_target"], run.rounds[-1]
        return (
            f"Training ended after {done} of {count(planned, 'round')}: one more would have taken "
            f"ε to {epsilon(following['next_epsilon'])}, beyond its target of {target:g}."
        )
    verb = "is" if done == 1 else "are"
    sentence = f"This run is unfinished: {done} of {count(planned, 'round')} {verb} complete."
    beyond = sum(record["round"] > done for record in run.records)
    if beyond:
        sentence += f" The page counts {count(beyond, 'line')} of a round that was interrupted."
    return sentence


def _pending(left: Left, folder: Path, *, is_run: bool) -> str | None:
    """Say which attacks are owed, and how they are worked off."""
    if not left.rounds:
        return None
    missing = f"the records of {count(left.rounds, 'round')} aren’t here yet"
    if left.updates:
        verb = "is" if left.updates == 1 else "are"
        missing = f"{count(left.updates, 'update')} {verb} still to be attacked, and {missing}"
    again = (
        f"The same `fl-sim run` with `--resume --out {folder}` works them off."
        if is_run
        else "`fl-sim attack` on the same captures, into another folder, makes them all."
    )
    return f"Attacks are pending: {missing}. {again}"


def cards(
    summaries: Sequence[AttackSummary],
    rounds: Sequence[Record],
    delta: float,
    *,
    has_truth: bool = True,
) -> list[Card]:
    """Return the key numbers: of the strongest attack, of training and of privacy (ε, δ)."""
    result = []
    if summaries:
        best = strongest(summaries, has_truth=has_truth)
        result = _attack_cards(best, has_truth=has_truth)
    measured = [line for line in rounds if line.get("accuracy") is not None]
    if measured:
        first, last = measured[0], measured[-1]
        note = f"after round {last['round']}"
        if first["round"] == 0 and last["round"] > 0:
            note += f"; {percent(first['accuracy'])} untrained"
        result.append(Card("Accuracy", percent(last["accuracy"]), note))
    private = [line for line in rounds if line.get("epsilon") is not None]
    if private:
        last = private[-1]
        note = f"proven bound after round {last['round']}, at δ = {delta:g}: "
        note += privacy_word(last["epsilon"])
        result.append(Card("Privacy ε", epsilon(last["epsilon"]), note))
    found = canary_bound(rounds)
    if found is not None:
        result.append(Card("ε, by canaries", f"≥ {epsilon(found)}", CANARY_NOTE))
    if any(line["round"] > 0 for line in rounds):
        replies, quarantined = (
            sum(line.get(key) or 0 for line in rounds) for key in ("replies", "quarantined")
        )
        result.append(Card("Replies", number(replies), f"{number(quarantined)} quarantined"))
    return result


CANARY_NOTE = "what is found of random vectors that clients sent; 95 % confidence, normal noise"


def canary_bound(rounds: Sequence[Record]) -> float | None:
    """Return the largest of the canaries' bounds on ε after the last round; None without any."""
    last = rounds[-1] if rounds else {}
    views = (last.get(f"canary_{view}_epsilon") for view in ("updates", "model"))
    return max((bound for bound in views if bound is not None), default=None)


def canaries(scenario: Mapping[str, Any]) -> str | None:
    """Say how many clients are canaries, and what that costs; None without any."""
    number_of = int((scenario.get("audit") or {}).get("canaries") or 0)
    if not number_of:
        return None
    clients = int((scenario.get("data") or {}).get("clients") or 0)
    verb, each = ("is a canary", "It sends") if number_of == 1 else ("are canaries", "Each sends")
    return (
        f"{number_of} of {count(clients, 'client')} {verb}. {each} a random vector of its own in "
        "place of what it trains, which disturbs training: the model is worse than without. How "
        "much of the vectors is found bounds ε from below: in the canaries’ own updates, all "
        "rounds together, which is what the claim speaks of; and in the model, which hides them "
        "behind all other clients. A claim below such a bound is wrong."
    )


def privacy_word(epsilon: float) -> str:
    """Say in a few words what an ε promises."""
    if epsilon > 10:
        return "hardly a bound"
    return "a weak bound" if epsilon > 1 else "a strong bound"


def _attack_cards(best: AttackSummary, *, has_truth: bool) -> list[Card]:
    """Return a card for each kind: what is right, and what is vouched for."""
    result = []
    for leak in best.leaks:
        vouched = f"{number(leak.vouched.count)} vouched for"
        if leak.false:
            vouched += f", {number(leak.false)} wrongly"
        if not has_truth or leak.right is None:
            if leak in best.claims:
                note = f"{share(leak.vouched)}, by {best.title}"
                name = f"{leak.kind.capitalize()}s vouched for"
                result.append(Card(name, percent(leak.vouched.value), note))
            continue
        note = f"{share(leak.right)}; {percent(leak.chance)} without an update"
        if leak.kind != "mass":
            note += f"; as the attacker knows, {vouched}"
        result.append(Card(KINDS[leak.kind], percent(leak.right.value), note))
    return result


KINDS = {
    "image": "Images right",
    "label": "Labels right",
    "class": "Classes right",
    "mass": "Class counts nearer than a guess",
}


def share(found: Share) -> str:
    """Format a share as a count with its 95 % interval."""
    low, high = found.interval
    ends = f"{100 * low:.0f}–{100 * high:.0f}\u00a0%"
    return f"{number(found.count)} of {number(found.of)} ({ends})"


def measures(summaries: Sequence[AttackSummary], *, has_truth: bool = True) -> list[Measures]:
    """Return the comparison of all attacks, in groups of rows, but for those without a value.

    What is right, as the judge knows, and what is vouched for, as the attacker knows, stand apart.
    """
    groups: dict[str, dict[str, Callable[[AttackSummary], str]]] = {
        "Attack": {
            "attacker": lambda s: s.attacker or NONE,
            "examples": lambda s: number(s.examples),
        },
        **{
            title: _kind_rows(kind, has_truth=has_truth)
            for kind, title in (("image", "Image"), ("label", "Label"), ("class", "Class"))
        },
        "Class mass": {
            "nearer than a guess": lambda s: _right(s.leak("mass")),
            "total variation": lambda s: percent(s.mass_tv),
            "guess from test data": lambda s: percent(s.mass_tv_chance),
            "instances recovered": lambda s: percent(s.mass_irec),
        },
        "Cost": {
            "label, median": lambda s: seconds(s.label_seconds),
            "image, median": lambda s: seconds(s.image_seconds),
            "whole run": lambda s: seconds(s.total_seconds),
        },
    }
    if has_truth:
        groups["Image"] |= {
            "median PSNR": lambda s: db(s.psnr_db),
            "mean-image guess": lambda s: db(s.baseline_psnr_db),
        }
        groups["Label"] |= {
            "L∞ < 0.001": lambda s: percent(s.label_strict),
            "median L∞": lambda s: scientific(s.median_linf),
        }
    found = [
        Measures(title, [(term, [show(s) for s in summaries]) for term, show in rows.items()])
        for title, rows in groups.items()
    ]
    kept = [
        Measures(group.title, [row for row in group.rows if {*row[1]} != {NONE}]) for group in found
    ]
    return [group for group in kept if group.rows]


def _kind_rows(kind: str, *, has_truth: bool) -> dict[str, Callable[[AttackSummary], str]]:
    """Return the rows of a kind: right beside a guess, then the attacker's ladder of certainty."""

    def of(show: Callable[[Leak], str]) -> Callable[[AttackSummary], str]:
        def value(summary: AttackSummary) -> str:
            leak = summary.leak(kind)
            return NONE if leak is None else show(leak)

        return value

    rows = {
        "right, as the judge knows": of(_right),
        "right without an update": of(lambda leak: percent(leak.chance)),
    }
    ladder = {
        "vouched for, as the attacker knows": of(lambda leak: share(leak.vouched)),
        "vouched for, and wrong": of(lambda leak: number(leak.false)),
        "likely, with an error bar": of(lambda leak: number(leak.likely)),
        "guessed": of(lambda leak: number(leak.guessed)),
    }
    if not has_truth:
        del ladder["vouched for, and wrong"]
        rows = {}
    return rows | (ladder if kind != "class" else {})


def _right(leak: Leak | None) -> str:
    if leak is None or leak.right is None:
        return NONE
    level = f" at {leak.level_db:g}\u00a0dB" if leak.level_db is not None else ""
    return f"{share(leak.right)}{level}"


def facts(recorded: RecordedRun) -> list[tuple[str, list[str]]]:
    """Describe what ran, as terms with one or more descriptions."""
    run, scenario = recorded.described, recorded.scenario
    data, model, client, server = (
        scenario.get(key) or {} for key in ("data", "model", "client", "server")
    )
    split = {
        "dirichlet": f" (α = {data.get('alpha')})",
        "pathological": f" ({data.get('classes')} classes each)",
    }
    partition = data.get("partition", NONE)
    bias = "with bias" if model.get("bias") else "no bias"
    epochs = client.get("local_epochs")
    steps = count(epochs or client.get("local_steps", 1), f"local {'epoch' if epochs else 'step'}")
    versions = [f"{name} {version}" for name, version in (run.get("versions") or {}).items()]
    started = str(run.get("started", NONE)).replace("T", " ").replace("+00:00", " UTC")
    return [
        ("Data", [f"{data.get('name')}{_bracketed(data.get('options'))}"]),
        (
            "Clients",
            [
                f"{data.get('clients')}, split {partition}{split.get(partition, '')}",
                f"{percent(client.get('fraction'))} of them each round",
            ],
        ),
        (
            "Model",
            [
                f"{model.get('name')}{_bracketed(model.get('options'))}, {bias}",
                f"{model.get('init') or 'default'} initialisation",
            ],
        ),
        (
            "Training",
            [
                f"batches of {client.get('batch_size')}, {steps}",
                _options(client, "optimizer", "lr", "momentum", "nesterov", "weight_decay", "mode"),
            ],
        ),
        ("Server", [f"{server.get('strategy')}{_bracketed(server.get('options'))}"]),
        ("Rounds", [f"{recorded.last_round} of {scenario.get('rounds')}"]),
        ("Defenses", [_stage(stage) for stage in scenario.get("defense") or []] or ["none"]),
        ("Attacks", [_attack(attack) for attack in scenario.get("attack") or []] or ["none"]),
        *(
            [("Canaries", [f"{audit['canaries']}, the last clients"])]
            if (audit := scenario.get("audit") or {}).get("canaries")
            else []
        ),
        ("Seed", [str(scenario.get("seed"))]),
        ("Engine", [f"{scenario.get('engine')}, on {scenario.get('device')} device"]),
        ("Started", [started, f"digest {run.get('digest', NONE)}"]),
        ("Versions", [", ".join(versions) or NONE]),
    ]


def _options(section: Mapping[str, Any], *keys: str) -> str:
    """Write the options that are set, as in `lr 0.1, mode "eval"`."""
    shown = {key: section[key] for key in keys or section if section.get(key)}
    return ", ".join(f"{key.replace('_', ' ')} {_value(value)}" for key, value in shown.items())


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _bracketed(section: Mapping[str, Any] | None) -> str:
    return f" ({_options(section)})" if section else ""


def _stage(stage: Mapping[str, Any]) -> str:
    return f"{stage.get('name')}{_bracketed({k: v for k, v in stage.items() if k != 'name'})}"


def _attack(attack: Mapping[str, Any]) -> str:
    """Describe an `[[attack]]`: its names, who is behind it and what it covers."""
    names = [f"{attack.get('label')}{_bracketed(attack.get('label_options'))}"]
    if attack.get("image"):
        names.append(f"{attack['image']}{_bracketed(attack.get('image_options'))}")
    rounds, clients = attack.get("rounds", "all"), attack.get("clients", "all")
    when = (
        f"every {rounds['every']} rounds" if isinstance(rounds, dict) else _covered(rounds, "round")
    )
    return f"{' + '.join(names)}, {attack.get('attacker')}; {when}, {_covered(clients, 'client')}"


def _covered(which: Any, noun: str) -> str:
    if not isinstance(which, list):
        return f"{which} {noun}s"
    return f"{noun}s {', '.join(map(str, which))}"


def setting(scenario: Mapping[str, Any]) -> str:
    """Say in a line what stands between clients and server, and who attacks."""
    stages = [_stage(stage) for stage in scenario.get("defense") or []]
    told = scenario.get("defenses")
    defenses = " → ".join(stages) or (told if isinstance(told, str) and told else "none")
    attackers = sorted({str(line.get("attacker")) for line in scenario.get("attack") or []})
    return f"Defense: {defenses}. Attacker: {' and '.join(attackers) or 'none'}."
