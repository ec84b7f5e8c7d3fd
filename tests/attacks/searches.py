"""Attacks that search, made short for tests that ask whether they answer at all."""

from __future__ import annotations

from typing import Any

SHORT: dict[str, dict[str, Any]] = {
    name: {"iterations": 2, "restarts": 1}
    for name in ("dlg", "inverting-gradients", "gradinversion", "feature-matching", "auto")
}
"""Name -> options."""
