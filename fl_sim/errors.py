"""The one error that a user's mistake raises."""

from __future__ import annotations


class UserError(ValueError):
    """One clear sentence about a user's mistake; the command line prints it and exits with 2."""
