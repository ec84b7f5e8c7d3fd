"""When a run started, and with what: what every run folder says of its origin."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from torch import nn

from fl_sim import __version__
from fl_sim.leakage.plan import AttackPlan

AUDIT = "audit"
"""The `kind` in the `scenario.json` that `LeakageAudit` leaves of an app of one's own,
and an attack on captures of which no truth is known."""
REPLAY = "replay"
"""Likewise, of an attack on the captures of a run."""


def when_and_with() -> dict[str, Any]:
    """Return the time, and the versions that a run starts with."""
    # As a Flower app, this package needn't be installed.
    versions = {"fl-sim": __version__}
    versions |= {package: version(package) for package in ("flwr", "torch", "numpy", "scipy")}
    return {
        "versions": versions | {"python": platform.python_version()},
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe_audit(
    *,
    model: nn.Module,
    input_shape: tuple[int, int, int],
    training: Mapping[str, Any],
    plans: Sequence[AttackPlan],
    strategy: str,
    **more: Any,
) -> dict[str, Any]:
    """Return what is audited as plain values, with keys as a scenario has them.

    Args:
        model: the network.
        input_shape: (C, H, W).
        training: how the clients train, as far as the server knows.
        plans: the attacks.
        strategy: the name of the strategy that is audited.
        **more: further keys, with values that JSON has.
    """
    return {
        "model": {
            "name": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
            "input_shape": list(input_shape),
        },
        "client": dict(training),
        "server": {"strategy": strategy},
        "attack": [
            {"label": plan.label_name, "image": plan.image_name, "attacker": plan.attacker}
            for plan in plans
        ],
        **more,
    }
