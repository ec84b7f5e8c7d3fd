"""`fl-sim audit-dp`: does a defense's noise keep its promise?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from defenses import DEFENSES
from fl_sim.errors import UserError
from fl_sim.scenario.changes import change, parse_change
from fl_sim.terminal.display import output_console, progress_bars, rows_table

if TYPE_CHECKING:
    from fl_sim.privacy import MechanismAudit

BROKEN = 1
"""Exit status of a promise that isn't kept."""


def audit_dp(
    name: Annotated[str, typer.Argument(metavar="DEFENSE")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A parameter of the defense, as in noise_multiplier=1.0; repeatable.",
        ),
    ] = None,
    delta: Annotated[float, typer.Option(help="δ of the (ε, δ) in the table.")] = 1e-5,
    draws: Annotated[int, typer.Option(min=100, help="Of either data set.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of all draws.")] = 0,
) -> None:
    """Does a defense's noise keep its promise? Bound its privacy loss from below, by its own draws.

    DEFENSE is one of `fl-sim list defenses` that claims differential privacy, or your own as
    module:attr. Exit status 0: no draw contradicts the claim; 1: it is broken; 2: there is none, or
    the defense can't be run.
    """
    parameters: dict[str, Any] = {}
    try:
        for override in overrides or ():
            change(parameters, *parse_change(override))
    except UserError as error:
        raise UserError(f"--set {error}") from error
    from defenses.base import Defense  # PyTorch loads here
    from fl_sim.privacy import audit_mechanism

    try:
        defense = DEFENSES.build(name, **parameters)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not isinstance(defense, Defense):
        raise UserError(f"defense {name!r} must build a Defense, found {type(defense).__name__}")
    with progress_bars() as bars:
        task = bars.add_task("draws", total=draws)
        audit = audit_mechanism(
            name,
            defense,
            delta=delta,
            draws=draws,
            seed=seed,
            on_draw=lambda done, _: bars.update(task, completed=done),
        )
    console = output_console()
    console.print(rows_table(*_table(audit)))
    console.print(_verdict(name, audit), highlight=False, markup=False, soft_wrap=True)
    if not audit.holds:
        raise typer.Exit(BROKEN)


def _table(audit: MechanismAudit) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows: what is claimed beside what the draws show."""
    claim, delta = audit.claim, f"{audit.delta:g}"
    at_least = f"at least, with {100 * audit.confidence:g} % confidence"
    return ["", "claimed", at_least], [
        ["μ, shift over noise", _short(audit.claimed_mu), _short(audit.mu)],
        [f"ε at δ = {delta}, if normal", _short(audit.claimed_epsilon), _short(audit.mu_epsilon)],
        [f"ε at δ = {delta}, any noise", _short(audit.claimed_epsilon), _short(audit.epsilon)],
        ["coordinates without noise", "0", f"{audit.bare} of {audit.coordinates}"],
        ["releases with noise used before", "0", f"{audit.repeated} of {2 * audit.draws}"],
        ["sensitivity, noise, unit", f"{claim.sensitivity:g}, {claim.noise:g}, {claim.unit}", ""],
    ]


def _short(value: float) -> str:
    return f"{value:.3g}"


def _verdict(name: str, audit: MechanismAudit) -> str:
    step = "one step that takes all examples, so that no sampling hides any"
    if not audit.holds:
        return f"{name} breaks its promise: {'; '.join(audit.findings)}. Measured on {step}."
    seen = (
        f"a μ beyond {_short(audit.visible_mu)} would have shown"
        if audit.visible_mu < float("inf")
        else "so little noise is claimed that no number of draws like this one shows too little"
    )
    return (
        f"Nothing in {audit.draws} draws of either data set contradicts {name}'s promise; {seen}. "
        f"Measured on {step}; that nothing is found proves nothing."
    )
