"""Rewriting: patterns, rules that refuse with a reason, a bounded fixpoint driver."""

from irc.rewrite.driver import apply_rules, remove_dead
from irc.rewrite.matcher import Match, is_uniform, match, uniform
from irc.rewrite.pattern import const, op, scalar, var
from irc.rewrite.rule import NOT_A_CANDIDATE, Editor, Rule

__all__ = [
    "NOT_A_CANDIDATE",
    "Editor",
    "Match",
    "Rule",
    "apply_rules",
    "const",
    "is_uniform",
    "match",
    "op",
    "remove_dead",
    "scalar",
    "uniform",
    "var",
]
