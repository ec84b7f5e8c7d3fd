"""Wrappers around any Flower strategy."""

from fl_sim.flower.strategy.build import build_strategy
from fl_sim.flower.strategy.leakage_audit import LeakageAudit
from fl_sim.flower.strategy.reply_guard import ReplyGuard
from fl_sim.flower.strategy.wrapper import Wrapper

__all__ = ["LeakageAudit", "ReplyGuard", "Wrapper", "build_strategy"]
