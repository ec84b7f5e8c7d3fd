"""What a run means for whoever trains such clients: what the server holds, and what to try next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS
from fl_sim.leakage.headline import strongest
from fl_sim.leakage.leaks import Record
from fl_sim.leakage.records import senders
from fl_sim.leakage.summary import AttackSummary
from fl_sim.report.text import privacy_word
from fl_sim.results.recorded import is_audit_of
from fl_sim.wording import count, epsilon, percent


@dataclass(frozen=True)
class Meaning:
    """A few sentences, and commands with what each of them tries."""

    sentences: list[str]
    commands: list[tuple[str, str]]


def meaning(
    run: Mapping[str, Any],
    records: Sequence[Record],
    summaries: Sequence[AttackSummary],
    rounds: Sequence[Record],
    *,
    has_truth: bool,
) -> Meaning | None:
    """Return what the records of a run mean; None where no update was attacked.

    Args:
        run: the run's description.
        records: the lines of `leakage.jsonl`.
        summaries: of them.
        rounds: the lines of `rounds.jsonl`.
        has_truth: whether a judge scored the records.
    """
    if not summaries:
        return None
    best = strongest(summaries, has_truth=has_truth)
    mine = [record for record in records if record.get("attack") == best.attack]
    scenario = run["scenario"]
    sentences = [
        _held(best, mine),
        _beyond_knowledge(best) if has_truth else None,
        _guarantee(rounds, float((scenario.get("privacy") or {}).get("delta", 1e-5)), scenario),
        _reach(best),
    ]
    return Meaning(
        [sentence for sentence in sentences if sentence],
        [] if is_audit_of(run) else commands(scenario),
    )


def _held(best: AttackSummary, records: Sequence[Record]) -> str:
    """Say what a curious server holds of each client, by its own knowledge."""
    groups = {senders(record) for record in records}
    clients = max(len(groups), 1)
    parts = []
    for certainty, words in (("vouched", "for certain"), ("likely", "as its best estimate")):
        held = [
            (kind, sum(record.get(f"{kind}_certainty") == certainty for record in records))
            for kind in ("image", "label")
        ]
        shown = [_some(number / clients, kind) for kind, number in held if number]
        if shown:
            parts.append(f"{words}, {' and '.join(shown)}")
    each = count(round(len(records) / clients), "example")
    of_each = f"Of {each} of each of {count(clients, 'client')}"
    if any(len(group) > 1 for group in groups):
        of_each = f"Of {each} behind each of {count(clients, 'sum')} of clients’ updates"
    if parts:
        return f"{of_each}, a curious server holds on average, {'; and '.join(parts)}."
    if best.mass_tv is not None:
        return (
            "Of an update’s examples, a curious server estimates how many are of each class, off "
            f"by {percent(best.mass_tv)} of them; without the update it would be off by "
            f"{percent(best.mass_tv_chance)}. How far off, it can’t tell."
        )
    return (
        f"{of_each}, a curious server holds at most guesses by these attacks. That is no proof: it "
        "may run others, and keeps every update for later."
    )


def _some(value: float, noun: str) -> str:
    return f"{value:.3g} {noun}" if value == 1 else f"{value:.3g} {noun}s"


def _beyond_knowledge(best: AttackSummary) -> str | None:
    """Say how much more is right than the attacker can know."""
    for leak in best.claims:
        if leak.right is None or not leak.is_beyond_chance:
            continue
        if leak.right.count > leak.vouched.count:
            more = count(leak.right.count - leak.vouched.count, leak.kind)
            return (
                f"More is right than the attacker can know: {more} beyond those that it vouches "
                "for. Who knows a client, or looks at the picture, may tell."
            )
    return None


def _guarantee(rounds: Sequence[Record], delta: float, scenario: Mapping[str, Any]) -> str | None:
    bounds = [line["epsilon"] for line in rounds if line.get("epsilon") is not None]
    if bounds:
        return (
            f"The defenses’ own claim is ε = {epsilon(bounds[-1])} at δ = {delta:g}, for a "
            "client’s update, or for an example where they claim no more: "
            f"{privacy_word(bounds[-1])} on what any attack can learn."
        )
    if scenario.get("defense"):
        return "No defense here gives a guarantee: what these attacks miss, others may find."
    return None


def _reach(best: AttackSummary) -> str | None:
    """Say what the attack works on, by its own rules."""
    found = []
    for registry, name in (
        (LABEL_ATTACKS, best.label_attack),
        (IMAGE_ATTACKS, best.image_attack),
    ):
        reach = getattr(registry[name], "reach", "") if name and name in registry else ""
        if reach:
            found.append(f"{name} takes {reach}")
    if not found:
        return None
    return f"By their own rules, {'; '.join(found)}. Beyond that they say so, and claim nothing."


def commands(scenario: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what to try next with a scenario, as commands, each with what it changes."""
    name = str(scenario.get("name"))
    is_shipped = (resources.files("scenarios") / f"{name}.toml").is_file()
    run = f"fl-sim run {name if is_shipped else name + '.toml'}"
    client, stages = scenario.get("client") or {}, scenario.get("defense") or []
    size = int(client.get("batch_size") or 1)
    found = [(f"--set client.batch_size={max(8, 2 * size)}", "larger batches")]
    if not stages:
        stage = 'defense=[{name="dp-noise", clipping_norm=1.0, noise_multiplier=0.01}]'
        found.append((f"--set '{stage}'", "a defense: clipping and noise"))
    if not (scenario.get("model") or {}).get("bias"):
        found.append(("--set model.bias=true", "layers with biases, as most people train them"))
    if client.get("local_steps") == 1:
        found.append(("--set client.local_steps=5", "several local steps, as in FedAvg"))
    for index, stage in enumerate(stages):
        if "noise_multiplier" in stage:
            noise = 10 * float(stage["noise_multiplier"])
            found.append((f"--set defense.{index}.noise_multiplier={noise:g}", "more noise"))
    if stages and any(line.get("attacker") == "unaware" for line in scenario.get("attack") or []):
        found.append(("--set attack.0.attacker=aware", "an attacker who knows the defense"))
    return [(f"{run} {change}", what) for change, what in found]
