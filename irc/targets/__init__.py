"""Machines irc compiles for."""

from irc.targets.catalogue import TARGETS, all_targets, get_target, host_level, runs_here
from irc.targets.target import Target

__all__ = ["TARGETS", "Target", "all_targets", "get_target", "host_level", "runs_here"]
