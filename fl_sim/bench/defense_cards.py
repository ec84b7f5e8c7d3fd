"""A card for each defense: what it claims, the worst case that was measured, what it costs."""

from __future__ import annotations

import csv
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path

from defenses import DEFENSES, Defense
from fl_sim.bench.defense_frontier import recommended
from fl_sim.bench.table import RESULTS
from fl_sim.results.flags import MEANINGS

Row = Mapping[str, str]
CARDS = Path("docs") / "defenses"
BARE = "no defense"
_GRID = ("strength", "attacker", "labels", "images > 20 dB", "identified", "class counts off by")
_COSTS = ("strength", "accuracy", "ε", "signal to noise", "bytes", "non-zero", "seconds")
_ONE = ("strength", "B", "labels", "images > 20 dB", "images > 50 dB", "flag")


def write_cards(results: Path) -> None:
    """Write a card for each defense from the tables in a folder, as far as they are there.

    Args:
        results: the folder; of `docs/results`, cards go to `docs/defenses`, of another to
            `defenses` within it.
    """
    folder = CARDS if results == RESULTS else results / "defenses"
    for name, text in cards(results).items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.md").write_text(text, encoding="utf-8")


def cards(results: Path) -> dict[str, str]:
    """Return each defense's card, as Markdown, of those that come with fl-sim.

    Args:
        results: a folder with `defense_grid.csv`, `defense_strengths.csv`, both or none.
    """
    grid, strengths = (_read(results / f"defense_{name}.csv") for name in ("grid", "strengths"))
    return {
        name: _card(name, _of(grid, name), _of(strengths, name), grid)
        for name in DEFENSES
        if DEFENSES[name].__module__.startswith("defenses.")
    }


def _card(name: str, mine: Sequence[Row], at_once: Sequence[Row], grid: Sequence[Row]) -> str:
    parts = [
        f"# {name}",
        f"*Written by `fl-sim bench defenses`, from {_link('grid')} and {_link('strengths')}; no "
        "number is changed by hand.*",
        "## What it does and claims",
        _claim(name),
        "## Our worst case",
    ]
    settings = {
        setting: (_within(_of(grid, "none"), setting), _within(mine, setting))
        for setting in dict.fromkeys(row["setting"] for row in mine)
    }
    if mine:
        parts.append(
            f"Over a whole run, the best of several attacks for each column; “{BARE}” is the same "
            "run without one."
        )
        for setting, (bare, own) in settings.items():
            parts += [f"{setting}:", _table([*_named_none(bare), *own], _GRID)]
    if at_once:
        parts += [
            "One update, one step, or as many rounds as are told, an attacker who doesn't know it "
            "/ who does:",
            _table(at_once, _ONE),
        ]
    if not (mine or at_once):
        parts.append("Not measured here.")
    if mine:
        parts.append("## What it costs")
        for setting, (bare, own) in settings.items():
            once = [r for r in [*_named_none(bare), *own] if r["attacker"] == "aware"]
            parts += [f"{setting}:", _table(once, _COSTS), recommended([*bare, *own])]
    parts += ["## Flags", _flags(mine, at_once)]
    return "\n\n".join(parts) + "\n"


def _claim(name: str) -> str:
    """Return what the defense's own module and class say, and whether it claims an ε."""
    defense = DEFENSES[name]
    module = inspect.getdoc(inspect.getmodule(defense)) or ""
    text = inspect.getdoc(defense) or ""
    has_bound = defense.privacy is not Defense.privacy
    bound = (
        "It claims an ε where it clips and adds Gaussian noise; see `fl_sim.privacy`."
        if has_bound
        else "It claims no ε: no guarantee."
    )
    options = text.partition("Raises:")[0].rstrip()
    head, _, arguments = options.partition("Args:")
    shown = f"\n\n```\n{inspect.cleandoc(arguments)}\n```" if arguments else ""
    return f"{module}\n\n{head.strip()}\n\n{bound}{shown}"


def _flags(mine: Sequence[Row], at_once: Sequence[Row]) -> str:
    found: dict[str, list[str]] = {}
    for row in mine:
        for kind in filter(None, row["flags"].split("; ")):
            place = f"{row['strength']} ({row['setting']})"
            places = found.setdefault(kind, [])
            if place not in places:
                places.append(place)
    for row in at_once:
        for kind in filter(None, row["flag"].split("; ")):
            place = f"{row['strength']}, B = {row['B']} (one update)"
            found.setdefault(kind, []).append(place)
    if not found:
        return "None."
    return "\n".join(
        f"* **{kind}** ({MEANINGS[kind]}): {'; '.join(places)}." for kind, places in found.items()
    )


def _table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row[column] for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _within(rows: Sequence[Row], setting: str) -> list[Row]:
    return [row for row in rows if row["setting"] == setting]


def _named_none(bare: Sequence[Row]) -> list[Row]:
    return [{**row, "strength": BARE} for row in bare]


def _of(rows: Sequence[Row], name: str) -> list[Row]:
    return [row for row in rows if row["defense"] == name]


def _link(table: str) -> str:
    return f"[defense_{table}](../results/defense_{table}.md)"


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
