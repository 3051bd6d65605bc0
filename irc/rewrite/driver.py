"""Applies rules until none fires, in sweeps over the graph and its subgraphs."""

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

MAX_SWEEPS = 100
"""A sweep visits every node once. A graph that still changes after so many has rules that undo each other."""


def apply_rules(model: Model, rules: Sequence[Rule], ctx: PassContext, *, pass_name: str = "") -> PassResult:
    """Rewrite `model` in place to a fixpoint of `rules`.

    `statistics` counts how often each rule fired; `refusals` are those that hold at the end. `pass_name` goes into
    the refusals' rule names. Raises InternalError when the bound is reached.
    """
    by_op = _by_root(rules)
    fired: Counter[str] = Counter()
    for _ in range(MAX_SWEEPS):
        tracer = Tracer(pass_name)
        count = sum(fired.values())
        for graph in _graphs(model.graph):
            _sweep(graph, by_op, fired, tracer)
        if sum(fired.values()) == count:
            return PassResult(bool(fired), dict(sorted(fired.items())), tracer.refusals)
    often = ", ".join(name for name, _ in fired.most_common(3))
    raise InternalError(f"rewrite rules do not come to an end; the most active are {often}", where=model.name)


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


def _sweep(graph: Graph, by_op: dict[str, list[Rule]], fired: Counter[str], tracer: Tracer) -> None:
    for node in graph.nodes:
        if node.graph is not graph or node.domain:  # taken out by an earlier rewrite, or not a standard operator
            continue
        for rule in by_op.get(node.op_type, ()):
            if _try(rule, node, tracer):
                fired[rule.name] += 1
                break


def _try(rule: Rule, node: Node, tracer: Tracer) -> bool:
    found = match(rule.pattern, node)
    if found is None:
        return False
    reason = rule.check(found)
    if reason is not None:
        if reason != NOT_A_CANDIDATE:
            tracer.refuse(node, rule.name, reason)
        return False
    _replace(found, rule)
    return True


def _replace(m: Match, rule: Rule) -> None:
    edit = Editor(m, rule.name)
    result = rule.rewrite(m, edit)
    new = [result] if isinstance(result, Value) else list(result)
    new += [None] * (len(m.root.outputs) - len(new))
    for old, value in zip(m.root.outputs, new, strict=True):
        if value is not None and value is not old:
            if value.producer is not None and old.type is not None and not is_static(value):
                value.type = old.type  # a rule keeps types, and inference of one node alone may know less
            edit.graph.replace_uses(old, value)
    remove_dead(m.root)


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
