"""Errors that the command line tells in one sentence."""

from __future__ import annotations

from pathlib import Path


class UserError(ValueError):
    """One clear sentence about a user's mistake; the command line prints it and exits with 2."""


class EngineError(RuntimeError):
    """One clear sentence about processes of an engine that ended early; the run can be resumed."""


class NothingAccepted(RuntimeError):
    """One clear sentence about a run in which no client's reply could be used; exits with 1.

    Args:
        sentence: what was lost, and why.
        folder: of the run, which is complete; None where the server raises this.

    `report` is the path of the run's report, where it is built.
    """

    def __init__(self, sentence: str, folder: Path | None = None) -> None:
        super().__init__(sentence)
        self.folder = folder
        self.report: Path | None = None
