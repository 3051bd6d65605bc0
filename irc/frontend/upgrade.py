"""Bring a model to the canonical opset.

Most operators mean the same in all versions (new ones only take more types), so nothing is done for them; for the
others `adapters.py` has one function per change. onnx's own version converter is not used: it leaves some changes out
(the coordinate mode of Resize 10, the channel slope of PRelu 6), and goes through a form that loses attributes.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx.shape_inference

from irc.errors import ModelError, suggest
from irc.frontend.adapters import ADAPTERS, NEEDS_TYPES, REMOVED, AdaptError
from irc.ir.graph import CANONICAL_OPSET, Model, Node
from irc.ir.ops import schema
from irc.ir.types import DType

REVIEWED_OPSET = 28
"""Up to here it is known what changed after the canonical opset: only more element types and attributes."""


def with_types(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with value types at its own opset, where an adapter needs to know them.

    A model that onnx cannot infer is returned as it is: the adapters say then what they miss.
    """
    opset = max((e.version for e in proto.opset_import if e.domain in ("", "ai.onnx")), default=0)
    used = {node.op_type for node in proto.graph.node}
    if not any(opset < NEEDS_TYPES.get(op, 0) for op in used) and not used & {"If", "Loop", "Scan"}:
        return proto
    if opset >= max(NEEDS_TYPES.values()):
        return proto
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception:  # many C++ exception types; the reason comes up again in irc.ir.infer
        return proto
    known = {dim.dim_param for dim in _dims(proto.graph)}
    for dim in _dims(inferred.graph):
        if dim.dim_param not in known:
            dim.Clear()  # a name that onnx made up for an extent it does not know
    return inferred


def _dims(graph: onnx.GraphProto) -> Iterator[onnx.TensorShapeProto.Dimension]:
    """The dimensions with names in the declared types of a graph and its subgraphs."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield from (d for d in value.type.tensor_type.shape.dim if d.dim_param)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _dims(attribute.g)


def upgrade(model: Model, where: str) -> int:
    """Rewrite every node of the standard domain to its meaning at `CANONICAL_OPSET`; returns the opset it was.

    Raises ModelError naming the first node whose operator is unknown, newer than irc knows, or has no equivalent.
    """
    nodes = list(model.graph.walk())
    opset = model.opsets.get("")
    standard = [node for node in nodes if node.domain == ""]
    if opset is None:
        if standard:
            raise ModelError(f"{standard[0].label} is a standard operator, but the file names no opset", where=where)
        opset = CANONICAL_OPSET
    for node in standard:
        _check_known(node, opset, where)
        if opset < CANONICAL_OPSET:
            _upgrade_node(node, opset, where)
    model.opsets[""] = CANONICAL_OPSET
    return opset


def _check_known(node: Node, opset: int, where: str) -> None:
    place = f"{where}: {node.label}"
    if opset <= CANONICAL_OPSET:
        now = schema(node.op_type)
        if now is None:
            raise ModelError(f"ONNX has no operator '{node.op_type}'", where=place, hint=_near(node.op_type))
        if now.deprecated and node.op_type not in REMOVED:
            raise ModelError("this operator was taken out of ONNX", where=place, hint="exporting with a newer opset")
        return
    used = schema(node.op_type, "", opset)
    if used is None:
        raise ModelError(
            f"ONNX opset {opset} has no operator '{node.op_type}' that is known here",
            where=place,
            hint=f"exporting with opset {CANONICAL_OPSET}",
        )
    reason = _newer(node, used.since_version)
    if reason:
        raise ModelError(
            f"{node.op_type} changed in opset {used.since_version}, which is newer than irc reads, and {reason}",
            where=place,
            expected=f"opset {CANONICAL_OPSET} or older",
            got=f"opset {opset}",
            hint=f"exporting with opset {CANONICAL_OPSET}",
        )


def _newer(node: Node, since: int) -> str:
    """Why a node of an operator that changed after the canonical opset cannot be read; empty when it can.

    The opsets up to `REVIEWED_OPSET` changed nothing but the element types allowed and a few new attributes, so a node
    that uses neither means the same before.
    """
    if since <= CANONICAL_OPSET:
        return ""
    before = schema(node.op_type)
    if before is None:
        return "it did not exist before"
    if since > REVIEWED_OPSET:
        return "what changed is not known"
    added = sorted(node.attributes.keys() - before.attributes.keys())
    return f"attribute '{added[0]}' did not exist before" if added else ""


def check_types(model: Model, opset: int, where: str) -> None:
    """Refuse nodes from an opset newer than the canonical one with element types that they did not take before."""
    if opset <= CANONICAL_OPSET:
        return
    for node in model.graph.walk():
        before, used = schema(node.op_type), schema(node.op_type, "", opset)
        if node.domain != "" or before is None or used is None or used.since_version <= CANONICAL_OPSET:
            continue
        pairs = [*zip(node.inputs, before.inputs, strict=False), *zip(node.outputs, before.outputs, strict=False)]
        for value, formal in pairs:
            dtype = value.dtype if value is not None else None
            remainder = node.op_type == "Mod" and not node.get_int("fmod") and dtype is not None and dtype.is_float
            if dtype is not None and (_type_string(dtype) not in formal.types or remainder):
                raise ModelError(
                    f"{node.op_type} takes {dtype.value} only since opset {used.since_version}",
                    where=f"{where}: {node.label}",
                    expected=f"what opset {CANONICAL_OPSET} has",
                    hint=f"exporting with opset {CANONICAL_OPSET}",
                )


def _type_string(dtype: DType) -> str:
    """The name that schemas use: tensor(float), tensor(int64)."""
    return f"tensor({onnx.TensorProto.DataType.Name(dtype.onnx).lower()})"


def _near(op_type: str) -> str:
    names = {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
    hint = suggest(op_type, names)
    return hint if hint.startswith("did you") else "naming the domain of the custom operator"


def _upgrade_node(node: Node, opset: int, where: str) -> None:
    if opset < 6:
        node.attributes.pop("consumed_inputs", None)
    for version, adapt in ADAPTERS.get(node.op_type, ()):
        if opset >= version:
            continue
        try:
            adapt(node)
        except AdaptError as error:
            raise ModelError(
                f"cannot be brought from opset {opset} to {CANONICAL_OPSET}: {error}",
                where=f"{where}: {node.label}",
                hint="exporting the model with a newer opset",
            ) from None
