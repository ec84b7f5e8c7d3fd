"""When a run started, and with what: what every run folder says of its origin."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from fl_sim import __version__

AUDIT = "audit"
"""The `kind` in the `scenario.json` that `LeakageAudit` leaves of an app of one's own."""


def when_and_with() -> dict[str, Any]:
    """Return the time, and the versions that a run starts with."""
    # As a Flower app, this package needn't be installed.
    versions = {"fl-sim": __version__}
    versions |= {package: version(package) for package in ("flwr", "torch", "numpy", "scipy")}
    return {
        "versions": versions | {"python": platform.python_version()},
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
