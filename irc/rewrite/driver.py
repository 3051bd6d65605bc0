"""Applies rules until none fires: sweeps over the graph and its subgraphs that follow up each rewrite at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from irc.errors import InternalError
from irc.ir.graph import Graph, Model, Node, Value
from irc.pipeline.contract import PassContext, PassResult
from irc.rewrite.facts import is_static
from irc.rewrite.matcher import Match, match
from irc.rewrite.rule import NOT_A_CANDIDATE, Editor, Rule
from irc.rewrite.tracer import Tracer

REWRITES_PER_NODE = 50
"""Bound on the rewrites of one run, times its nodes. A graph that takes more has rules that undo each other."""


def apply_rules(model: Model, rules: Sequence[Rule], ctx: PassContext, *, pass_name: str = "") -> PassResult:
    """Rewrite `model` in place to a fixpoint of `rules`.

    `statistics` counts how often each rule fired; `refusals` are those that hold at the end. `pass_name` goes into
    the refusals' rule names. Raises InternalError when the bound is reached.
    """
    by_op = _by_root(rules)
    fired: Counter[str] = Counter()
    limit = REWRITES_PER_NODE * (len(tuple(model.graph.walk())) + 10)
    while True:
        tracer = Tracer(pass_name)
        count = fired.total()
        for graph in _graphs(model.graph):
            _sweep(graph, by_op, fired, tracer, limit)
        if fired.total() >= limit:
            often = ", ".join(name for name, _ in fired.most_common(3))
            raise InternalError(f"rewrite rules do not come to an end; the most active are {often}", where=model.name)
        if fired.total() == count:
            return PassResult(bool(fired), dict(sorted(fired.items())), tracer.refusals)


def _by_root(rules: Sequence[Rule]) -> dict[str, list[Rule]]:
    table: dict[str, list[Rule]] = {}
    for rule in rules:
        for op_type in rule.pattern.op_types:
            table.setdefault(op_type, []).append(rule)
    return table


def _graphs(graph: Graph) -> Iterator[Graph]:
    yield graph
    for node in graph.nodes:
        for sub in node.subgraphs:
            yield from _graphs(sub)


def _sweep(graph: Graph, by_op: dict[str, list[Rule]], fired: Counter[str], tracer: Tracer, limit: int) -> None:
    """Visit every node in order. New nodes and the readers of a new result are visited at once, before the others."""
    stack = list(reversed(graph.nodes))
    while stack and fired.total() < limit:
        node = stack.pop()
        if node.graph is not graph or node.domain:  # taken out by an earlier rewrite, or not a standard operator
            continue
        for rule in by_op.get(node.op_type, ()):
            again = _try(rule, node, tracer)
            if again is not None:
                fired[rule.name] += 1
                stack.extend(reversed(again))
                break


def _try(rule: Rule, node: Node, tracer: Tracer) -> list[Node] | None:
    """The nodes to visit again when the rule fired, else None."""
    found = match(rule.pattern, node)
    if found is None:
        return None
    reason = rule.check(found)
    if reason is not None:
        if reason != NOT_A_CANDIDATE:
            tracer.refuse(node, rule.name, reason)
        return None
    return _replace(found, rule)


def _replace(m: Match, rule: Rule) -> list[Node]:
    edit = Editor(m, rule.name)
    result = rule.rewrite(m, edit)
    new = [result] if isinstance(result, Value) else list(result)
    new += [None] * (len(m.root.outputs) - len(new))
    again = list(edit.added)
    for old, value in zip(m.root.outputs, new, strict=True):
        if value is not None and value is not old:
            if value.producer is not None and old.type is not None and not is_static(value):
                value.type = old.type  # a rule keeps types, and inference of one node alone may know less
            again.extend(old.users)
            edit.graph.replace_uses(old, value)
    remove_dead(m.root)
    return again


def remove_dead(node: Node) -> int:
    """Remove `node` if nothing reads it, and then its producers likewise. Returns the number removed.

    Needed at once, not in a later pass: rules look at uses, and a dead reader would make a value look shared.
    """
    count, stack = 0, [node]
    while stack:
        current = stack.pop()
        graph = current.graph
        if graph is None or any(v.uses or v.is_output for v in current.outputs):
            continue
        read = [v for v in current.inputs if v is not None]
        for sub in current.subgraphs:
            read.extend(sub.captured())
        graph.remove(current)
        count += 1
        for value in dict.fromkeys(read):  # a value may be read twice
            if value.producer is not None:
                stack.append(value.producer)
            elif value.is_constant and value.graph is not None and not value.uses and not value.is_output:
                value.graph.remove_constant(value)
    return count
