"""The ClientApp for Flower's simulation on Ray, in processes that are replaced when they die.

Flower keeps a dead process in its pool: it answers every message at once with an error, and so
takes most of what is left of the run. Ray replaces processes if it is asked to.
"""

from __future__ import annotations

import ray
from flwr.server.superlink.fleet.vce.backend import raybackend
from flwr.simulation.ray_transport.ray_actor import VirtualClientEngineActor

from fl_sim.flower.client import app

__all__ = ["app"]


class ClientProcess(VirtualClientEngineActor):
    """Flower's actor, as it is."""


# A client whose process dies twice over one message gives an error, and the round goes on.
_REPLACED = ray.remote(max_restarts=-1, max_task_retries=1)(ClientProcess)
raybackend.ClientAppActor = _REPLACED  # type: ignore[attr-defined, assignment]
