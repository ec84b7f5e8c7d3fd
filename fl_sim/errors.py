"""Errors that the command line tells in one sentence."""

from __future__ import annotations


class UserError(ValueError):
    """One clear sentence about a user's mistake; the command line prints it and exits with 2."""


class EngineError(RuntimeError):
    """One clear sentence about processes of an engine that ended early; the run can be resumed."""


class NothingAccepted(RuntimeError):
    """One clear sentence about a run in which no client's reply could be used; exits with 1."""
