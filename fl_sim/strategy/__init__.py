"""Wrappers around any Flower strategy."""

from fl_sim.strategy.audit import LeakageAudit
from fl_sim.strategy.build import build_strategy
from fl_sim.strategy.guard import ReplyGuard
from fl_sim.strategy.wrapper import Wrapper

__all__ = ["LeakageAudit", "ReplyGuard", "Wrapper", "build_strategy"]
