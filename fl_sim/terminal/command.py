"""A command of the command line, and how it tells an error."""

from __future__ import annotations

import errno
from typing import Any

import typer
from typer.core import TyperCommand, TyperOption

from fl_sim.errors import EngineError, NothingAccepted, UserError

USER_MISTAKE, FAILURE, INTERRUPTED = 2, 1, 130


class Command(TyperCommand):
    """A command that tells an error in one sentence; `--debug` brings the traceback."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        debug = TyperOption(
            param_decls=["--debug"], is_flag=True, expose_value=False, help="Show tracebacks."
        )
        debug.callback = _note_debug
        self.params.append(debug)

    def invoke(self, ctx: Any) -> Any:
        """Run the command, and turn an error into its sentence and exit status."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            # The reader of our output went away: typer ends quietly.
            is_broken_pipe = isinstance(error, OSError) and error.errno == errno.EPIPE
            if ctx.find_root().params["debug"] or is_broken_pipe:
                raise
            sentence, status = _explain(error)
            notes = getattr(error, "__notes__", [])
            typer.echo(f"fl-sim: {'; '.join([sentence, *notes])}", err=True)
            raise typer.Exit(status) from error


def _note_debug(ctx: Any, option: Any, wanted: bool) -> None:
    """Take `--debug` behind a command's name as before it."""
    if wanted:
        ctx.find_root().params["debug"] = True


def _explain(error: BaseException) -> tuple[str, int]:
    """Return the sentence and the exit status of an error."""
    if isinstance(error, UserError):
        return str(error), USER_MISTAKE
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, EngineError | NothingAccepted):
        return str(error), FAILURE
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}", FAILURE
    cause = f"{type(error).__name__}: {error}".replace("\n", " ")
    return f"unexpected {cause} (fl-sim --debug shows where)", FAILURE
