"""The report's words and numbers: what happened, in plain English."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fl_sim.leakage.summary import CLAIM_DB, AttackSummary, Record
from fl_sim.report.numbers import NONE, count, db, epsilon, number, percent, scientific, seconds


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


def strongest(summaries: Sequence[AttackSummary]) -> AttackSummary:
    """Return the attack that recovered the largest share of labels, then classes, then images."""
    return max(
        summaries,
        key=lambda s: (
            s.label_success or 0.0,
            s.top1 or 0.0,
            s.images_recovered / s.examples,
            -math.inf if s.psnr_db is None else s.psnr_db,
        ),
    )


def outcome(
    records: Sequence[Record],
    summaries: Sequence[AttackSummary],
    *,
    attacks: int,
    is_finished: bool,
) -> str:
    """State in one sentence what the server recovered; `attacks` is the number in the scenario."""
    if not summaries:
        return _why_nothing(len(records), attacks, is_finished)
    best = strongest(summaries)
    who = "The server"
    if len(summaries) > 1:
        who = f"The strongest of {len(summaries)} attacks, {best.title} ({best.attacker}),"
    examples = count(best.examples, "example")
    if best.label_success is None:
        claims = f"claims the labels of {number(best.recovered)} of {examples}"
        return f"{who} {claims}; without the truth, they aren't scored."
    if records and all(r.get("label_status") == "NOT_APPLICABLE" for r in records):
        reason = records[0]["label_reason"]
        return f"No attack applies to these updates, which is no sign of safety: {reason}."
    classes = round((best.top1 or 0.0) * best.examples)
    more = f"; it named the right class of {number(classes)}"
    more = f"{more if classes > best.labels_recovered else ''}."
    images = _images(best)
    if not best.labels_recovered and not images:
        nothing = "neither a label nor an image" if best.image_attack else "no label"
        return f"{who} recovered {nothing} of the {examples} it attacked{more}"
    if not best.labels_recovered:
        return f"{who} recovered no label of {examples}, but {images}{more}"
    is_soft = any((record.get("true_augmentation") or "hard") != "hard" for record in records)
    labels = f"the {'soft ' if is_soft else ''}label of {number(best.labels_recovered)}"
    if best.image_attack:
        images = f" and {images or 'no image'}"
    return f"{who} recovered {labels} of {examples}{images}{more}"


def _images(best: AttackSummary) -> str:
    """Say what the images show; what they are counts, not what the attack claims."""
    psnr, guess = best.psnr_db, best.baseline_psnr_db
    if not best.image_attack:
        return ""
    if psnr is not None and best.images_recovered == best.examples:
        return f"the image of {number(best.examples)}, at a median PSNR of {db(psnr)}"
    if psnr is not None and (guess is None or psnr > guess):
        against = "" if guess is None else f", against {db(guess)} for the mean image"
        return f"images at a median PSNR of {db(psnr)}{against}"
    return f"the image of {number(best.images_recovered)}" if best.images_recovered else ""


def _why_nothing(unattacked: int, attacks: int, is_finished: bool) -> str:
    if not attacks:
        return "No attack was part of this run: it shows training only."
    if unattacked:
        return (
            f"No update could be attacked: {count(unattacked, 'reply')} failed or were quarantined."
        )
    if not is_finished:
        return "No update has been attacked yet."
    return "No update was attacked: no attack covers the rounds and clients of this run."


def notice(records: Sequence[Record], rounds: Sequence[Record], planned: int) -> str | None:
    """Say what is missing from an unfinished run, or None."""
    done = last_round(rounds)
    if done >= planned:
        return None
    verb = "is" if done == 1 else "are"
    sentence = f"This run is unfinished: {done} of {count(planned, 'round')} {verb} complete."
    beyond = sum(record["round"] > done for record in records)
    if beyond:
        sentence += f" The page counts {count(beyond, 'line')} of a round that was interrupted."
    return sentence


def last_round(rounds: Sequence[Record]) -> int:
    """Return the last complete round, 0 before the first."""
    return max((line["round"] for line in rounds), default=0)


def cards(summaries: Sequence[AttackSummary], rounds: Sequence[Record], delta: float) -> list[Card]:
    """Return the key numbers: of the strongest attack, of training and of privacy (ε, δ)."""
    result = _attack_cards(strongest(summaries)) if summaries else []
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
        note = f"proven bound after round {last['round']}, at δ = {delta:g}"
        result.append(Card("Privacy ε", epsilon(last["epsilon"]), note))
    if any(line["round"] > 0 for line in rounds):
        replies, quarantined = (
            sum(line.get(key) or 0 for line in rounds) for key in ("replies", "quarantined")
        )
        result.append(Card("Replies", number(replies), f"{number(quarantined)} quarantined"))
    return result


def _attack_cards(best: AttackSummary) -> list[Card]:
    result = [
        Card(
            "Labels recovered",
            percent(best.label_success),
            f"{number(best.labels_recovered)} of {number(best.examples)} within "
            f"L∞\u00a0<\u00a00.01; a guess finds the class of {percent(best.baseline_top1)}",
        )
    ]
    if best.image_attack:
        note = f"{number(best.images_recovered)} of {number(best.examples)} claimed as recovered"
        if best.baseline_psnr_db is not None:
            note += f"; the mean image: {db(best.baseline_psnr_db)}"
        result.append(Card("Median PSNR", db(best.psnr_db), note))
    note = f"wrong labels among {number(best.recovered)} claimed as recovered"
    wrong = number(best.false_accepts)
    if best.image_attack:
        wrong += f" + {number(best.false_images)}"
        note += f", and images below {CLAIM_DB:g} dB among {number(best.images_recovered)}"
    return [*result, Card("False accepts", wrong, note)]


def measures(summaries: Sequence[AttackSummary]) -> list[Measures]:
    """Return the comparison of all attacks, in groups of rows."""
    groups: dict[str, dict[str, Callable[[AttackSummary], str]]] = {
        "Attack": {
            "attacker": lambda s: s.attacker or NONE,
            "examples": lambda s: number(s.examples),
        },
        "Label": {
            "L∞ < 0.01": lambda s: percent(s.label_success),
            "L∞ < 0.001": lambda s: percent(s.label_strict),
            "median L∞": lambda s: scientific(s.median_linf),
            "right class": lambda s: percent(s.top1),
            "majority-class guess": lambda s: percent(s.baseline_top1),
            "claimed as recovered": lambda s: number(s.recovered),
            "false accepts": lambda s: number(s.false_accepts),
        },
        "Class mass": {
            "total variation": lambda s: percent(s.mass_tv),
            "guess from test data": lambda s: percent(s.mass_tv_chance),
            "instances recovered": lambda s: percent(s.mass_irec),
        },
        "Image": {
            "claimed as recovered": lambda s: (
                number(s.images_recovered) if s.image_attack else NONE
            ),
            "false accepts": lambda s: number(s.false_images) if s.image_attack else NONE,
            "median PSNR": lambda s: db(s.psnr_db),
            "mean-image guess": lambda s: db(s.baseline_psnr_db),
        },
        "Cost": {
            "label, median": lambda s: seconds(s.label_seconds),
            "image, median": lambda s: seconds(s.image_seconds),
            "whole run": lambda s: seconds(s.total_seconds),
        },
    }
    if all(summary.mass_tv is None for summary in summaries):
        del groups["Class mass"]
    return [
        Measures(title, [(term, [show(s) for s in summaries]) for term, show in rows.items()])
        for title, rows in groups.items()
    ]


def facts(run: Mapping[str, Any], rounds: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """Describe what ran, as terms with one or more descriptions."""
    scenario = run["scenario"]
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
        ("Model", [f"{model.get('name')}{_bracketed(model.get('options'))}, {bias}"]),
        (
            "Training",
            [
                f"batches of {client.get('batch_size')}, {steps}",
                _options(client, "optimizer", "lr", "momentum", "nesterov", "weight_decay", "mode"),
            ],
        ),
        ("Server", [f"{server.get('strategy')}{_bracketed(server.get('options'))}"]),
        ("Rounds", [f"{last_round(rounds)} of {scenario.get('rounds')}"]),
        ("Defenses", [_stage(stage) for stage in scenario.get("defense") or []] or ["none"]),
        ("Attacks", [_attack(attack) for attack in scenario.get("attack") or []] or ["none"]),
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
