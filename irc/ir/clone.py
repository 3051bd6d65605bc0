"""Copies of models and graphs. Constants are shared: no weight is ever copied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping

from irc.ir.graph import AttributeValue, Graph, Model, Node, Value


def clone(model: Model) -> Model:
    """A copy with the same names that can be changed without touching `model`. Constants are shared."""
    graph = Graph(model.graph.name)
    copy_into(graph, model.graph, {})
    return Model(
        graph,
        opsets=dict(model.opsets),
        functions=dict(model.functions),
        metadata=dict(model.metadata),
        source=model.source,
        notes=list(model.notes),
    )


def copy_into(target: Graph, source: Graph, values: MutableMapping[Value, Value]) -> None:
    """Copy inputs, constants, nodes and outputs of `source` into the empty graph `target`, under the same names.

    `values` maps values of the source to their copies: it must hold what the source captures from graphs around it,
    unless those graphs are the target's own surroundings; it is filled with everything that is copied.
    Raises ValueError when a name is taken in the target.
    """
    for value in source.inputs:
        values[value] = target.add_input(value.name, value.type)
    for value in source.constants.values():
        assert value.constant is not None
        if value.name in target.root._names:
            raise ValueError(f"a value named '{value.name}' exists already")
        copied = target.add_constant(value.constant, value.name)
        copied.type = value.type
        values[value] = copied
    copy_nodes(target, source.nodes, values, keep_names=True)
    target.set_outputs(values[v] for v in source.outputs)


def copy_nodes(
    target: Graph,
    nodes: Iterable[Node],
    values: MutableMapping[Value, Value],
    *,
    keep_names: bool = False,
    before: Node | None = None,
) -> list[Node]:
    """Append copies of `nodes` (in topological order) to `target`, reading `values[v]` for every v that has an entry.

    Values without an entry are read as they are. Without `keep_names` the copies get new names.
    """
    copies = []
    for node in nodes:
        names = [v.name for v in node.outputs] if keep_names else _new_names(target, node)
        made = target.add(
            node.op_type,
            [None if v is None else values.get(v, v) for v in node.inputs],
            names,
            {k: _copy_attribute(v, target, values, keep_names) for k, v in node.attributes.items()},
            types=[v.type for v in node.outputs],
            domain=node.domain,
            name=node.name,
            origin=node.origin,
            overload=node.overload,
            before=before,
        )
        values.update(zip(node.outputs, made.outputs, strict=True))
        copies.append(made)
    return copies


def _new_names(target: Graph, node: Node) -> list[str]:
    names: list[str] = []
    for value in node.outputs:
        name = target.unique_name(value.name)
        while name in names:  # "a" can become "a_1", which another output may be called
            name = target.unique_name(name + "_")
        names.append(name)
    return names


def _copy_attribute(
    value: AttributeValue, target: Graph, values: Mapping[Value, Value], keep_names: bool
) -> AttributeValue:
    if isinstance(value, Graph):
        return _copy_subgraph(value, target, values, keep_names)
    if isinstance(value, tuple) and value and isinstance(value[0], Graph):
        return tuple(_copy_subgraph(v, target, values, keep_names) for v in value if isinstance(v, Graph))
    return value


def _copy_subgraph(source: Graph, parent: Graph, outer: Mapping[Value, Value], keep_names: bool) -> Graph:
    target = parent.subgraph(source.name)
    values = dict(outer)
    if keep_names:
        copy_into(target, source, values)
        return target
    for value in source.inputs:
        values[value] = target.add_input(target.unique_name(value.name), value.type)
    for value in source.constants.values():
        assert value.constant is not None
        values[value] = target.add_constant(value.constant, value.name)
    copy_nodes(target, source.nodes, values)
    target.set_outputs(values[v] for v in source.outputs)
    return target
