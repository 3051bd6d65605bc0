"""A rewrite rule: a pattern, a check that may refuse with a reason, and the replacement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from irc.ir.graph import AttributeValue, Node, Value
from irc.ir.infer import infer_node
from irc.ir.types import Array, Constant, Origin
from irc.rewrite.matcher import Match
from irc.rewrite.pattern import Op

NOT_A_CANDIDATE = ""
"""What a check returns when the match is not worth a word: the rule was never meant for it."""


class Rule(ABC):
    """One equivalence. The docstring of a subclass states its maths.

    `check` returns None to go ahead, NOT_A_CANDIDATE, or the reason why a real candidate must be left alone.
    `rewrite` returns what replaces the root's outputs, in order; None for an output that nobody reads.
    It is called only after `check` agreed, and must change nothing but through the editor.
    """

    name: ClassVar[str]
    pattern: ClassVar[Op]

    def check(self, m: Match) -> str | None:
        return None

    @abstractmethod
    def rewrite(self, m: Match, edit: Editor) -> Value | Sequence[Value | None]: ...


class Editor:
    """Adds nodes in front of the root of a match, with inferred types and the origin of all matched nodes."""

    def __init__(self, m: Match, rule: str) -> None:
        if m.root.graph is None:
            raise ValueError(f"{m.root.label} is in no graph")
        self.graph, self.root, self.rule = m.root.graph, m.root, rule
        self.origin = Origin.merge(*(n.origin for n in m.nodes))
        self.added: list[Node] = []

    def include(self, nodes: Iterable[Node]) -> None:
        """Count nodes that the pattern does not name, but that the new nodes stand for, among the origins."""
        self.origin = Origin.merge(self.origin, *(n.origin for n in nodes))

    def constant(self, data: Constant | Array, name: str) -> Value:
        """A new constant of the graph that holds the root; `name` is made unique."""
        return self.graph.add_constant(data, name)

    def node(
        self,
        op_type: str,
        inputs: Sequence[Value | None],
        attributes: Mapping[str, AttributeValue] | None = None,
        *,
        outputs: int = 1,
        name: str = "",
    ) -> Node:
        """A new node before the root. Its name starts with the root's."""
        made = self.graph.add(
            op_type,
            _without_trailing_none(inputs),
            outputs,
            attributes,
            name=name or self.root.name,
            origin=self.origin,
            before=self.root,
        )
        infer_node(made)
        self.added.append(made)
        return made

    def value(
        self, op_type: str, inputs: Sequence[Value | None], attributes: Mapping[str, AttributeValue] | None = None
    ) -> Value:
        """The output of a new node with one output."""
        return self.node(op_type, inputs, attributes).output

    def like_root(self, inputs: Sequence[Value | None], **changed: AttributeValue | None) -> Value:
        """The root again, with other inputs and some attributes changed (None: dropped)."""
        attributes = {k: v for k, v in {**self.root.attributes, **changed}.items() if v is not None}
        return self.value(self.root.op_type, inputs, attributes)


def _without_trailing_none(inputs: Sequence[Value | None]) -> list[Value | None]:
    kept = list(inputs)
    while kept and kept[-1] is None:
        kept.pop()
    return kept
