"""How numbers are written for people; None is a dash, and a unit never leaves its number."""

from __future__ import annotations

from collections.abc import Sequence

NONE = "–"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def percent(share: float | None) -> str:
    """Format a share in [0, 1]; only none is 0 % and only all is 100 %."""
    if share is None:
        return NONE
    shown = f"{100 * share:.1f}"
    if shown == "100.0" and share < 1:
        return ">\u00a099.9\u00a0%"
    if shown == "0.0" and share > 0:
        return "<\u00a00.1\u00a0%"
    return f"{shown.removesuffix('.0')}\u00a0%"


def db(value: float | None) -> str:
    """Format decibels."""
    return NONE if value is None else f"{value:.1f}\u00a0dB"


def scientific(value: float | None) -> str:
    """Format an error, as in 3.1 × 10⁻⁸."""
    if value is None:
        return NONE
    if value == 0 or 1e-2 <= abs(value) < 1e2:
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}\u00a0×\u00a010{str(int(exponent)).translate(_SUPERSCRIPT)}"


def epsilon(value: float | None) -> str:
    """Format a privacy ε with three digits."""
    if value is None or value >= 1e4:
        return scientific(value)
    return f"{value:.3g}"


def seconds(value: float | None) -> str:
    """Format a duration with the unit that suits it."""
    if value is None:
        return NONE
    if value >= 120:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes}\u00a0min {rest}\u00a0s"
    return f"{value:.3g}\u00a0s" if value >= 1 else f"{1000 * value:.3g}\u00a0ms"


def number(value: int) -> str:
    """Format a count with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u202f")


def listing(items: Sequence[str], most: int) -> str:
    """Format a list, cut after so many of its items."""
    more = f", and {len(items) - most} more" if len(items) > most else ""
    return f"{', '.join(items[:most])}{more}" or NONE


def count(value: int, noun: str) -> str:
    """Format a count with its noun."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number(value)} {noun if value == 1 else plural}"
