"""Trackers: what follows a run from round to round and shows it elsewhere."""

from fl_sim.trackers.base import TrackedRun, Tracker

__all__ = ["TrackedRun", "Tracker"]
