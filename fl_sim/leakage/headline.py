"""What a run's attacks learned, in a few words: as the judge knows, and as the attacker knows."""

from __future__ import annotations

from collections.abc import Sequence

from fl_sim.leakage.leaks import Leak, Record
from fl_sim.leakage.reasons import reasons
from fl_sim.leakage.summary import AttackSummary
from fl_sim.wording import count, number, percent

IMAGE_WORDS = {
    50.0: "identical to the eye",
    30.0: "hardly different to the eye",
    20.0: "recognisable",
}
"""What an image of so many dB and more looks like beside the true one."""


def headline(
    records: Sequence[Record], summaries: Sequence[AttackSummary], *, has_truth: bool = True
) -> str:
    """State what the strongest attack learned, in two sentences at most.

    Args:
        records: all of a run; there may be none.
        summaries: of them.
        has_truth: whether a judge scored them.
    """
    if not summaries and records:
        replies = count(len(records), "reply")
        return f"No update could be attacked: {replies} failed or were quarantined."
    if not summaries:
        return "No update was attacked: none came in, or no attack covers it."
    best = strongest(summaries, has_truth=has_truth)
    who = "The server"
    if len(summaries) > 1:
        who = f"The strongest of {len(summaries)} attacks, {best.title} ({best.attacker}),"
    first = _right(who, best, records) if has_truth else None
    vouched = _vouched(best)
    likely = _likely(best)
    if not has_truth and vouched:
        examples = count(best.examples, "example")
        claim = f"{who} vouches for {vouched} of {examples}{likely}"
        return f"{claim}. No truth was given to compare them with."
    if not has_truth or first is None:
        return _nothing(who, best, records, has_truth=has_truth) + (
            f" The attacker vouches for {vouched}." if vouched else ""
        )
    if best.leak("mass"):
        return f"{first} An attacker can’t vouch for a count."
    return f"{first} As the attacker knows, it vouches for {vouched or 'none of it'}{likely}."


def strongest(summaries: Sequence[AttackSummary], *, has_truth: bool = True) -> AttackSummary:
    """Return the attack with most that is right beyond chance, or without a truth most vouched for.

    Images weigh more than labels, labels more than classes, and these more than a class mass.
    """
    kinds = ("image", "label", "class", "mass")

    def strength(summary: AttackSummary) -> list[float]:
        found = [summary.leak(kind) for kind in kinds]
        vouched = [0.0 if leak is None else leak.vouched.value for leak in found]
        if not has_truth:
            return vouched
        right = [
            leak.right.value if leak and leak.right and leak.is_beyond_chance else 0.0
            for leak in found
        ]
        return [*right, *vouched]

    return max(summaries, key=strength)


def _right(who: str, best: AttackSummary, records: Sequence[Record]) -> str | None:
    """Say what is right beyond chance, as the judge knows; None if nothing is."""
    leaks = [leak for leak in best.leaks if leak.is_beyond_chance]
    labels = best.leak("label")
    parts = []
    for leak in leaks:
        assert leak.right is not None
        is_told = leak.kind == "class" and labels in leaks
        if is_told and labels and labels.right and labels.right.count >= leak.right.count:
            continue  # who has the label has the class
        parts.append(_part(leak, best, records))
    if not parts:
        return None
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    if best.leak("mass"):
        return f"{who} recovered {listed}."
    return f"{who} recovered {listed} of {count(best.examples, 'example')}, as the judge knows."


def _part(leak: Leak, best: AttackSummary, records: Sequence[Record]) -> str:
    assert leak.right is not None
    right = number(leak.right.count)
    if leak.kind == "image":
        assert leak.level_db is not None
        return f"the image ({IMAGE_WORDS[leak.level_db]}) of {right}"
    if leak.kind == "label":
        is_soft = any((record.get("true_augmentation") or "hard") != "hard" for record in records)
        return f"the {'soft ' if is_soft else ''}label of {right}"
    if leak.kind == "class":
        return f"the class of {right} ({percent(leak.chance)} without an update)"
    updates = f"{right} of {count(leak.right.of, 'update')}"
    off = f"off by {percent(best.mass_tv)}, without an update {percent(best.mass_tv_chance)}"
    return f"the class mass of {updates} better than a guess would ({off}), as the judge knows"


def _vouched(best: AttackSummary) -> str:
    """Say what is vouched for, and how much of it wrongly; empty for nothing."""
    parts = []
    for leak in best.claims:
        if leak.vouched.count:
            wrongly = f", {number(leak.false)} wrongly" if leak.false else ""
            parts.append(f"{count(leak.vouched.count, leak.kind)}{wrongly}")
    return " and ".join(parts)


def _likely(best: AttackSummary) -> str:
    """Say what comes with an error bar, as the end of a sentence."""
    parts = [count(leak.likely, leak.kind) for leak in best.claims if leak.likely]
    return f"; likely, with an error bar: {' and '.join(parts)}" if parts else ""


def _nothing(who: str, best: AttackSummary, records: Sequence[Record], *, has_truth: bool) -> str:
    """Say why nothing was learned, and that this is no sign of safety."""
    causes = reasons(records)
    why = f": {causes[0].reason.rstrip('.')}" if causes else ""
    statuses = {record.get(f"{what}_status") for what in ("label", "image") for record in records}
    if statuses <= {None, "NOT_APPLICABLE"}:
        return f"No attack applies to these updates, which is no sign of safety{why}."
    mass = best.leak("mass")
    if has_truth and mass is not None and mass.right is not None:
        better = f"{number(mass.right.count)} of them better than a guess would"
        counted = f"{who} counted the classes of {count(mass.right.of, 'update')}, {better}"
        return f"{counted}: no more than chance explains, which is no sign of safety."
    examples = count(best.examples, "example")
    safety = f"which is no sign of safety{why}."
    if has_truth:
        return f"{who} recovered nothing of {examples} beyond a guess, {safety}"
    found = any(leak.likely + leak.guessed for leak in best.leaks)
    what = "what it found" if found else "anything"
    return f"No attack vouches for {what} of {examples}, {safety}"
