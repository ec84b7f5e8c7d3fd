"""docs/facts.md says which facts an aware attacker's attacks use, and which defense states them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS, facts
from defenses import DEFENSES

FACTS = [
    fact
    for fact in vars(facts).values()
    if isinstance(fact, type) and issubclass(fact, facts.Fact)
    if fact not in (facts.Fact, facts.NoiseMechanism)
]
OPTIONS: dict[str, dict[str, Any]] = {
    "dp-noise": {"clipping_norm": 1.0, "noise_multiplier": 1.0},
    "dp-sgd": {"clipping_norm": 0.1, "noise_multiplier": 1.0},
    "gradient-clipping": {"clipping_norm": 1.0},
}
DOCUMENT = Path(__file__).parents[1] / "docs" / "facts.md"


def table() -> str:
    """Return the document, from what attacks and defenses say of themselves."""
    lines = [
        "# What an aware attacker knows, and uses",
        "",
        "A defense states facts: its parameters, never a draw. The attacks of an aware attacker",
        "get them all, in the order in which the client applies them; here is who uses what.",
        "What none of a plan's attacks uses is named in its records, under `unused_facts`.",
        "",
        "| fact | stated by | used by |",
        "|---|---|---|",
    ]
    attacks = {
        name: registry[name].uses
        for registry in (LABEL_ATTACKS, IMAGE_ATTACKS)
        for name in registry
    }
    stated = {name: DEFENSES.build(name, **OPTIONS.get(name, {})).facts() for name in DEFENSES}
    for fact in FACTS:
        by = [name for name, told in stated.items() if any(isinstance(one, fact) for one in told)]
        users = [name for name, used in attacks.items() if issubclass(fact, used)]
        cells = (", ".join(f"`{name}`" for name in names) for names in (by, users))
        lines.append(f"| `{fact.__name__}` | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def test_the_document_is_what_attacks_and_defenses_say() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == table(), f"write this to docs/:\n{table()}"
