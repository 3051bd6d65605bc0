"""Under which older opsets a model means the same.

Most new versions of operators only admit more element types. Readers that lag behind (other compilers, kernels of
runtimes) can then take the model when it names the older opset.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from irc.ir.graph import CANONICAL_OPSET, Model, Node
from irc.ir.ops import schema
from irc.ir.types import Constant, OptionalType, SequenceType, TensorType, ValueType

OLDEST = 18
"""Below it an operator counts as the same only if its version is; from it on, `CHANGED` is complete."""

CHANGED = {"DFT": 20, "GridSample": 20, "GroupNormalization": 21}
"""Operators that mean something else from this opset on (from `OLDEST` on)."""

_NEW_CHOICES: dict[tuple[str, str, str | int], int] = {
    ("Pad", "mode", "wrap"): 19,
    ("Resize", "coordinate_transformation_mode", "half_pixel_symmetric"): 19,
    ("AveragePool", "ceil_mode", 1): 22,  # windows that start in the padding at the end count no more
    ("LpPool", "ceil_mode", 1): 22,
    ("MaxPool", "ceil_mode", 1): 22,
}
"""Attribute values that came, or changed their meaning, with an opset."""


def opset_problem(node: Node, opset: int) -> str:
    """Why `node` would not mean the same under an older `opset`; empty when it would."""
    if node.domain != "":
        return ""
    now, then = schema(node.op_type), schema(node.op_type, "", opset)
    if now is None or then is None:
        return f"there is no {node.op_type} in it"
    if now.since_version == then.since_version:
        return ""
    if then.deprecated or opset < max(OLDEST, CHANGED.get(node.op_type, 0)):
        return f"{node.op_type} changed in opset {now.since_version}"
    return _not_in(node, then, opset)


def _not_in(node: Node, then: Any, opset: int) -> str:
    """What of `node` the older schema `then` does not have."""
    inputs, outputs, attributes = then.inputs, then.outputs, then.attributes
    if len(node.inputs) > then.max_input or len(node.outputs) > then.max_output:
        return f"{node.op_type} took fewer inputs or outputs"
    for name, given in node.attributes.items():
        if name not in attributes:
            return f"{node.op_type} had no attribute '{name}'"
        if isinstance(given, str | int) and _NEW_CHOICES.get((node.op_type, name, given), 0) > opset:
            return f"{node.op_type} knew no {name}={given}"
        if isinstance(given, Constant) and outputs and _name(given.type) not in outputs[0].types:
            return f"{node.op_type} had no {given.dtype.value}"
    formals = [(inputs, node.inputs), (outputs, node.outputs)]
    for formal, values in formals:
        for i, value in enumerate(values):
            kind = _name(value.type) if value is not None else ""
            if value is not None and formal and kind not in formal[min(i, len(formal) - 1)].types:
                return f"{node.op_type} did not take {kind or 'all types, and this one is not known'}"
    return ""


def _name(type: ValueType | None) -> str:
    """The type as schemas write it; empty where it is unknown."""
    if isinstance(type, TensorType):
        return f"tensor({type.dtype.name.lower()})"  # DType has the names of TensorProto
    if isinstance(type, SequenceType | OptionalType):
        elem = _name(type.elem)
        return f"{'seq' if isinstance(type, SequenceType) else 'optional'}({elem})" if elem else ""
    return ""


def compatible_opset(model: Model, at_least: int = OLDEST) -> int:
    """The lowest opset, but not below `at_least`, under which every node means the same (readable by older tools)."""
    return oldest_opset(model.graph.walk(), model.opsets.get("", CANONICAL_OPSET), at_least)


def oldest_opset(nodes: Iterable[Node], newest: int = CANONICAL_OPSET, at_least: int = OLDEST) -> int:
    """The same for some nodes (and not those inside them)."""
    lowest = min(at_least, newest)
    for node in nodes:
        while lowest < newest and opset_problem(node, lowest):
            lowest += 1
    return lowest
