"""docs/facts.md says which facts an aware attacker's attacks use, and which defense states them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS
from attacks.facts import GaussianMechanism, HardLabels, LabelSmoothing, Mixup
from defenses import DEFENSES

FACTS = (HardLabels, LabelSmoothing, Mixup, GaussianMechanism)
OPTIONS: dict[str, dict[str, Any]] = {"dp-noise": {"clipping_norm": 1.0, "noise_multiplier": 1.0}}
DOCUMENT = Path(__file__).parents[1] / "docs" / "facts.md"


def table() -> str:
    """Return the document, from what attacks and defenses say of themselves."""
    header = [f"`{fact.__name__}`" for fact in FACTS]
    lines = [
        "# What an aware attacker knows, and uses",
        "",
        "A defense states facts: its parameters, never a draw. The attacks of an aware attacker",
        "get them all, in the order in which the client applies them, and use those marked here.",
        "What none of a plan's attacks uses is named in its records, under `unused_facts`.",
        "",
        "| | " + " | ".join(header) + " |",
        "|---|" + "---|" * len(FACTS),
    ]
    for registry in (LABEL_ATTACKS, IMAGE_ATTACKS):
        for name in registry:
            marks = ["yes" if fact in registry[name].uses else "" for fact in FACTS]
            lines.append(f"| {registry.kind} `{name}` | " + " | ".join(marks) + " |")
    for name in DEFENSES:
        stated = {type(fact) for fact in DEFENSES.build(name, **OPTIONS.get(name, {})).facts()}
        marks = ["states it" if fact in stated else "" for fact in FACTS]
        lines.append(f"| defense `{name}` | " + " | ".join(marks) + " |")
    return "\n".join([*lines, ""])


def test_the_document_is_what_attacks_and_defenses_say() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == table(), f"write this to docs/:\n{table()}"
