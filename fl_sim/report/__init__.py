"""The report of a run: one self-contained page, and its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fl_sim.errors import UserError
from fl_sim.leakage.headline import headline as headline_of
from fl_sim.leakage.headline import strongest
from fl_sim.leakage.reasons import reasons
from fl_sim.leakage.summary import by_round
from fl_sim.report import own_app, text
from fl_sim.report.counted import counted_classes
from fl_sim.report.examples import image_pairs, label_charts, mass_charts
from fl_sim.report.figures import draw_figures
from fl_sim.report.meaning import meaning
from fl_sim.report.template import template
from fl_sim.results.flags import Evidence, flags
from fl_sim.results.recorded import RecordedRun

PAIRS_SHOWN, CHARTS_SHOWN, REASONS_SHOWN, ROUNDS_SHOWN = 24, 12, 20, 100


def build_report(directory: Path) -> Path:
    """Write `report.html` and `figures/*.png` into a run folder, finished or not.

    Args:
        directory: The run folder; of its files, only `scenario.json` has to be there.

    Returns:
        The path of `report.html`.

    Raises:
        UserError: the folder has no `scenario.json`, or one of its files isn't what it should be;
            it is that of an audit of an app, and has no records.
    """
    run = RecordedRun.read(directory)
    if run.is_audit and not run.records:
        raise UserError(
            f"{directory} holds no records: no update was attacked, since none came in or no "
            "attack covers it"
        )
    by_rounds = by_round(run.records) if run.has_truth else []
    drawings = draw_figures(by_rounds, run.rounds, run.summaries)
    figures = directory / "figures"
    figures.mkdir(exist_ok=True)
    for drawing in drawings:
        (figures / f"{drawing.name}.png").write_bytes(drawing.png)
    page = template("report.html.md").render(
        _context(run, directory),
        figures={drawing.name: drawing for drawing in drawings},
    )
    path = directory / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def notice(directory: Path) -> str | None:
    """Return what a run folder's page says is missing from it, and how to go on; None if nothing.

    Raises:
        UserError: as of `build_report`.
    """
    return text.notice(RecordedRun.read(directory), directory)


def headline(directory: Path) -> str:
    """Return the first sentence of a run folder's page: what the server learned.

    Raises:
        UserError: as of `build_report`.
    """
    return _outcome(RecordedRun.read(directory))


def _outcome(run: RecordedRun) -> str:
    if not run.records and not run.is_audit:
        attacks = len(run.scenario.get("attack") or [])
        found = text.unattacked(attacks, is_finished=run.is_finished)
        if found is not None:
            return found
    return headline_of(run.records, run.summaries, has_truth=run.has_truth)


def _context(run: RecordedRun, directory: Path) -> dict[str, Any]:
    """Gather what the page shows, figures apart."""
    images = directory / "images"
    described, records, rounds, summaries, _ = run
    scenario, has_truth = run.scenario, run.has_truth
    failures = reasons(records)
    delta = float((scenario.get("privacy") or {}).get("delta", 1e-5))
    step = max(1, -(-len(rounds) // ROUNDS_SHOWN))
    best = strongest(summaries, has_truth=has_truth).attack if summaries else None
    context = {
        "name": scenario.get("name", "scenario"),
        "outcome": _outcome(run),
        "setting": text.setting(scenario),
        "notice": text.notice(run, directory),
        "cards": text.cards(summaries, rounds, delta, has_truth=has_truth),
        "delta": delta,
        "facts": text.facts(run),
        "scenario": json.dumps(scenario, indent=2, ensure_ascii=False),
        "summaries": summaries,
        "measures": text.measures(summaries, has_truth=has_truth),
        "pairs": image_pairs(images, records, PAIRS_SHOWN),
        "charts": label_charts(images, records, CHARTS_SHOWN),
        "mass_charts": mass_charts(images, records, CHARTS_SHOWN, first=best),
        "meaning": meaning(described, records, summaries, rounds, has_truth=has_truth),
        "flags": flags([Evidence.of(scenario, records, rounds)]),
        "failures": failures[:REASONS_SHOWN],
        "failures_left": failures[REASONS_SHOWN:],
        "rounds": rounds[::step],
        "rounds_step": step,
        "canaries": text.canaries(scenario),
        "delta_read": any(line.get("epsilon") is not None for line in rounds),
        "attack_seconds": sum(summary.total_seconds for summary in summaries),
        "round_seconds": sum(line.get("seconds") or 0.0 for line in rounds),
        "is_audit": False,
        "has_truth": has_truth,
        "class_names": scenario.get("class_names") or [],
        "holdings": [],
        "counted": [],
        "best": strongest(summaries, has_truth=False).title if summaries else None,
        "clients_shown": own_app.CLIENTS_SHOWN,
    }
    return context | _of_an_audit(run, images) if run.is_audit else context


def _of_an_audit(run: RecordedRun, images: Path) -> dict[str, Any]:
    """Return what the page says otherwise of an app of one's own."""
    return {
        "is_audit": True,
        "facts": own_app.facts(run.described, run.rounds),
        "rounds": [],  # of their training nothing is measured
        "holdings": own_app.holdings(run.records, run.summaries),
        "counted": counted_classes(images, run.summaries, run.scenario.get("class_names") or []),
    }
