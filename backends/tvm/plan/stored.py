"""Weights that a model stores in 8 or 16 bits, and multiplies in float32, stay small in the library.

The plan is made with float32 weights. Here the packed constants of linear and recurrent kernels become 16-bit ones
(float16, bfloat16) or, of linear ones, bytes with a scale for each output channel, which joins the kernel's expression;
kernels widen weights when they load them. This is done only where it loses nothing; everything else reads float32
weights that are made now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from irc.backends.tvm.expression import Expression, Instr
from irc.backends.tvm.geometry import lanes_of
from irc.backends.tvm.plan.kinds import is_weight, stored_half
from irc.backends.tvm.plan.pack import pack_linear
from irc.backends.tvm.plan.planner import Call, Planner
from irc.backends.tvm.specs import LinearSpec, Operand, RecurrentSpec, Spec
from irc.ir.graph import Graph, Node, Value
from irc.ir.types import Array
from irc.targets.target import Target


@dataclass(frozen=True)
class _Small:
    """Packed weights as they are stored. `scale`: float32, one for each output channel of all groups, or a single
    one; None where the numbers are the weights."""

    dtype: str
    packed: Array
    scale: Array | None = None


class _Kind(Protocol):
    """How some value is stored."""

    def small(self, packed: Array, spec: LinearSpec | RecurrentSpec, target: Target) -> _Small | None:
        """The packed float32 weights of a kernel, small; None where that would change a number."""
        ...


def keep_stored(planner: Planner, graph: Graph) -> None:
    """Give linear kernels of `planner` the weights of `graph` as they are stored."""
    kinds = _kinds(graph)
    if not kinds:
        return
    constants = {number: (data, name) for number, data, name in planner.constants}
    for i, call in enumerate(planner.calls):
        if not _reads_float_weights(call.spec):
            continue
        pointer = call.args[1]
        data, name = constants.get(pointer.storage, (None, ""))
        if data is None or pointer.offset or name not in kinds:
            continue
        small = kinds[name].small(data, call.spec, planner.target)  # type: ignore[arg-type]  # as asked for above
        if small is not None:
            planner.calls[i] = _with_weights(planner, call, small, name)


def _reads_float_weights(spec: Spec) -> bool:
    """Whether the second argument of the kernel is packed weights that may be stored small."""
    if isinstance(spec, LinearSpec):
        return spec.x_dtype == "float32" and not spec.w_rows
    return isinstance(spec, RecurrentSpec)


def _kinds(graph: Graph) -> Mapping[str, _Kind]:
    """By the names of the float32 values."""
    found: dict[str, _Kind] = {}
    for node in graph.nodes:
        if node.is_op("Cast") and (half := stored_half(node.output)) is not None:
            found[node.output.name] = _Half(half)
        elif node.is_op("DequantizeLinear") and is_weight(node.output) and (made := _Bytes.of(node)) is not None:
            found[node.output.name] = made
    return found


def _with_weights(planner: Planner, call: Call, small: _Small, name: str) -> Call:
    spec = call.spec
    assert isinstance(spec, LinearSpec | RecurrentSpec)
    made = planner.pointer(planner.constant(small.packed, name))
    before, operands, after = call.args[:1], call.args[2:-1], call.args[-1:]
    spec = replace(spec, w_dtype=small.dtype)
    if small.scale is not None:
        assert isinstance(spec, LinearSpec)
        factors = planner.constant(small.scale, f"{name}_scale")
        per_group = spec.oc if small.scale.size > 1 and spec.batch[1] > 1 else 0
        strides = (0, per_group, 0, 0, 1 if small.scale.size > 1 else 0)
        number = len(spec.operands)
        spec = replace(
            spec,
            expression=_scaled(spec.expression, number),
            operands=(*spec.operands, Operand("float32", strides, small.scale.size)),
        )
        operands = (*operands, planner.pointer(factors))
    return replace(call, spec=spec, args=(*before, made, *operands, *after))


def _scaled(expression: Expression, number: int) -> Expression:
    """`expression` of the accumulator times operand `number`."""
    made: list[Instr] = []
    place: list[int] = []
    for instr in expression or (Instr("accumulator", "float32"),):
        made.append(replace(instr, args=tuple(place[a] for a in instr.args)))
        if instr.op == "accumulator":
            made.append(Instr("operand", "float32", (), (number,)))
            made.append(Instr("mul", "float32", (len(made) - 2, len(made) - 1)))
        place.append(len(made) - 1)
    return tuple(made)


@dataclass(frozen=True)
class _Half:
    """Numbers of 16 bits."""

    dtype: str

    def small(self, packed: Array, spec: LinearSpec | RecurrentSpec, target: Target) -> _Small | None:
        bits = narrowed(packed, self.dtype)
        return None if bits is None else _Small(self.dtype, bits)


def narrowed(data: Array, kind: str) -> Array | None:
    """The bits (uint16) of float32 `data` as `kind`; None where that would change a number, or where one is not
    finite."""
    if data.dtype != np.float32 or not np.isfinite(data).all():
        return None
    if kind == "bfloat16":
        bits = np.ascontiguousarray(data).view(np.uint32)
        return None if (bits & 0xFFFF).any() else (bits >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        half = data.astype(np.float16)
    return half.view(np.uint16) if np.array_equal(half.astype(np.float32), data) else None


@dataclass(frozen=True)
class _Bytes:
    """Integers of up to 8 bits, less their zero points, times `scale` (float32, one or one for each output channel)."""

    scale: Array

    @staticmethod
    def of(node: Node) -> _Bytes | None:
        """None for what is scaled in blocks, or along an axis that is not that of the output channels."""
        scale = node.need(1).numpy().astype(np.float32).reshape(-1)
        if node.get_int("block_size", 0) or not np.isfinite(scale).all() or not (scale > 0).all():
            return None
        if scale.size == 1:
            return _Bytes(scale)
        axes = {_output_axis(use.node, use.index, node.output) for use in node.output.uses}
        rank = len(node.output.static_shape())
        if axes != {node.get_int("axis", 1) % rank}:
            return None
        return _Bytes(scale)

    def small(self, packed: Array, spec: LinearSpec | RecurrentSpec, target: Target) -> _Small | None:
        if not isinstance(spec, LinearSpec):
            return None  # the scale would have to be taken into every gate
        each = self.scale if self.scale.size == 1 else _by_place(self.scale, packed, spec, target)
        if each is None or packed.dtype != np.float32:
            return None
        q = np.rint(packed / each)
        if (np.abs(q) > 128).any() or (q == 128).any() or not np.array_equal(q.astype(np.float32) * each, packed):
            return None
        return _Small("int8", q.astype(np.int8), self.scale)


def _output_axis(node: Node, index: int, value: Value) -> int:
    """The axis of a weight that counts output channels; -1 for inputs that are no weight."""
    if index != 1:
        return -1
    if node.is_op("Conv"):
        return 0
    if node.is_op("MatMul"):
        return len(value.static_shape()) - 1
    if node.is_op("Gemm"):
        return 0 if node.get_int("transB", 0) else 1
    return -1


def _by_place(scale: Array, packed: Array, spec: LinearSpec, target: Target) -> Array | None:
    """The scale of each packed weight; 1 for what fills up."""
    groups = max(spec.batch[1], 1) if spec.w_strides[1] else 1
    if scale.size != groups * spec.oc or spec.w_strides[0]:
        return None
    shape = (spec.oc, *spec.kernel, spec.ic)
    channels = np.broadcast_to(np.arange(1, spec.oc + 1, dtype=np.int32).reshape(-1, 1, 1, 1), shape)
    lanes, vectors = (spec.block, 1) if spec.block else (lanes_of(target), spec.tile[2])
    order = pack_linear(channels, lanes, vectors, 1)
    if order.size * groups != packed.size:
        return None
    padded = np.concatenate([np.ones((groups, 1), np.float32), scale.reshape(groups, spec.oc)], axis=1)
    return padded[:, order].reshape(packed.shape)
