"""`fl-sim attack`: captures, attacked offline."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from fl_sim.errors import UserError
from fl_sim.terminal.display import print_outcome, set_logging, updates_progress
from fl_sim.terminal.folders import new_folder


def attack(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="CAPTURE")],
    label: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The label attack, of `fl-sim list attacks`.",
            show_default="the run's own attacks",
        ),
    ] = None,
    image: Annotated[
        str | None, typer.Option(metavar="NAME", help="The image attack on top of it.")
    ] = None,
    attacker: Annotated[
        str, typer.Option(metavar="unaware|aware", help="Whether it knows the defenses.")
    ] = "unaware",
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of its draws.", show_default="the run's, or 0")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The new run folder.", show_default="runs/<name>-<n>"),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Import code that the files name as module:attr.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False,
) -> None:
    """Attack captured updates; print what leaked, and last the path of the report.

    CAPTURE is a file of `fl-sim capture`, a folder of such files, or the folder of a run that kept
    its own (`[server] capture = true`), which is judged as in the run.
    """
    from fl_sim.scenario import Attack
    from fl_sim.scenario.errors import validated

    if label is None and (image is not None or attacker != "unaware"):
        raise UserError("--image and --attacker belong to --label, found none")
    chosen = None
    if label is not None:
        chosen = validated(Attack, {"label": label, "image": image, "attacker": attacker})
    # PyTorch loads here, after the mistakes that can be found without it.
    from fl_sim.capture.attack import OfflineAttack
    from fl_sim.report import build_report

    set_logging(verbose, debug=ctx.find_root().params["debug"])
    offline = OfflineAttack.of(source, chosen, seed=seed, trusts=trust)
    folder = new_folder(offline.name, out)
    try:
        with updates_progress() as on_progress:
            offline.work_off(folder, jobs=jobs, on_progress=on_progress)
    except UserError:
        with suppress(OSError):  # it isn't empty
            folder.rmdir()
        raise
    path = build_report(folder)
    print_outcome(folder)
    typer.echo(path)
