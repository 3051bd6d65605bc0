"""Bring a model to the canonical opset.

Most operators mean the same in all versions (new ones only take more types), so nothing is done for them; for the
others `adapters.py` has one function per change. onnx's own version converter is not used: it leaves some changes out
(the coordinate mode of Resize 10, the channel slope of PRelu 6), and goes through a form that loses attributes.
"""

from __future__ import annotations

import onnx
import onnx.shape_inference

from irc.errors import ModelError, suggest
from irc.frontend.adapters import ADAPTERS, NEEDS_TYPES, REMOVED, AdaptError
from irc.ir.graph import CANONICAL_OPSET, Model, Node
from irc.ir.ops import schema


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
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception:  # many C++ exception types; the reason comes up again in irc.ir.infer
        return proto


def upgrade(model: Model, where: str) -> None:
    """Rewrite every node of the standard domain to its meaning at `CANONICAL_OPSET`.

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
    if used.since_version > CANONICAL_OPSET:
        raise ModelError(
            f"{node.op_type} changed in opset {used.since_version}, which is newer than irc reads",
            where=place,
            expected=f"opset {CANONICAL_OPSET} or older",
            got=f"opset {opset}",
            hint=f"exporting with opset {CANONICAL_OPSET}",
        )


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
