"""Weights that a model stores in 8 or 16 bits, and multiplies in float32, stay small in the library.

The plan is made with float32 weights. Here the packed constants of linear and recurrent kernels become 16-bit ones
(float16, bfloat16) or, of linear ones, bytes with a scale for each output channel, which joins the kernel's expression;
kernels widen weights when they load them. This is done only where it loses nothing; everything else reads float32
weights that are made now.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from irc.backends.tvm.expression import Expression, Instr
from irc.backends.tvm.geometry import BLOCK, fields_of, lanes_of
from irc.backends.tvm.plan.kinds import is_weight, stored_half
from irc.backends.tvm.plan.pack import pack_linear, pad_channels, share_bytes, small_type
from irc.backends.tvm.plan.planner import Call, Planner
from irc.backends.tvm.specs import LinearSpec, Operand, RecurrentSpec, Spec
from irc.ir.graph import Graph, Node, Value
from irc.ir.types import Array
from irc.targets.target import Target


@dataclass(frozen=True)
class _Small:
    """Packed weights as they are stored. `scale`: float32, one for each output channel of all groups, or a single
    one; None where the numbers are the weights. `scaled` > 0: for so many input channels (LinearSpec)."""

    dtype: str
    packed: Array
    scale: Array | None = None
    scaled: int = 0


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
    if isinstance(spec, LinearSpec):
        spec = replace(spec, w_size=small.packed.size, scaled=small.scaled)
        if spec.w_strides[1]:
            spec = replace(spec, w_strides=(spec.w_strides[0], small.packed.size // spec.batch[1]))
    if small.scaled and small.scale is not None:
        assert isinstance(spec, LinearSpec)
        factors = planner.constant(small.scale, f"{name}_scale")
        operand = Operand("float32", (0, 0, 0, 0, 1), small.scale.size)
        spec = replace(spec, operands=(*spec.operands, operand))
        operands = (*operands, planner.pointer(factors))
    elif small.scale is not None:
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
    """Integers of up to 8 bits, less their zero points, times `scale` (float32, one or one for each output channel; or
    one for each `scaled` input channels at every tap: [kh, kw, ic / scaled, oc])."""

    scale: Array
    scaled: int = 0

    @staticmethod
    def of(node: Node) -> _Bytes | None:
        """None for what is scaled along an axis that is not that of the output channels."""
        scale = node.need(1).numpy().astype(np.float32)
        if not np.isfinite(scale).all() or not (scale > 0).all():
            return None
        if node.get_int("block_size", 0):
            return _Bytes._in_blocks(node, scale)
        scale = scale.reshape(-1)
        if scale.size == 1:
            return _Bytes(scale)
        axes = {_output_axis(use.node, use.index, node.output) for use in node.output.uses}
        rank = len(node.output.static_shape())
        if axes != {node.get_int("axis", 1) % rank}:
            return None
        return _Bytes(scale)

    def small(self, packed: Array, spec: LinearSpec | RecurrentSpec, target: Target) -> _Small | None:
        if not isinstance(spec, LinearSpec) or packed.dtype != np.float32 or spec.w_strides[0]:
            return None  # of recurrent kernels the scale would have to be taken into every gate
        order = _order(spec, target)
        groups = max(spec.batch[1], 1) if spec.w_strides[1] else 1
        if order.size * groups != packed.size:
            return None
        each = self._factors(spec, groups, order)
        if each is None:
            return None
        q = np.rint(packed.reshape(groups, -1) / each)
        if (q < -128).any() or (q > 127).any() or not np.array_equal((q.astype(np.float32) * each).ravel(), packed):
            return None
        whole = np.zeros((groups, spec.oc * math.prod(spec.kernel) * spec.ic + 1), np.int8)
        whole[:, order] = q
        dense = whole[:, 1:].reshape(groups * spec.oc, *spec.kernel, spec.ic)
        kind = small_type(dense, 1, self.scale)
        if self.scaled and (self.scaled % fields_of(kind) or spec.ic % fields_of(kind)):
            kind = ""
        scale = self.scale
        if self.scaled:
            scale = np.ascontiguousarray(pad_channels(scale, BLOCK, axis=3))
        parts = np.split(dense, groups)
        stored = [_packed(share_bytes(part, 1, kind), spec, target) for part in parts]
        return _Small(kind or "int8", np.concatenate(stored), scale, self.scaled)

    @staticmethod
    def _in_blocks(node: Node, scale: Array) -> _Bytes | None:
        """Blocks of input channels of a product or a convolution, whole ones."""
        users = {(use.node.op_type, use.index, use.node.get_int("transB", 0)) for use in node.output.uses}
        shape, block = node.output.static_shape(), node.get_int("block_size", 0)
        if len(users) != 1 or len(shape) != len(scale.shape):
            return None
        op, index, turned = users.pop()
        axis = node.get_int("axis", 1) % len(shape)
        inner = 1 if op == "Conv" or turned else 0
        if index != 1 or axis != inner or shape[axis] % block or (op != "Conv" and len(shape) != 2):
            return None
        if any(
            use.node.get_int("group", 1) != 1 or use.node.get_float("alpha", 1.0) != 1.0 for use in node.output.uses
        ):
            return None
        if op == "Conv":
            full = scale.reshape(*scale.shape[:2], *((1,) * (4 - len(shape))), *scale.shape[2:])
            return _Bytes(np.ascontiguousarray(full.transpose(2, 3, 1, 0)), block)
        if op not in ("MatMul", "Gemm"):
            return None
        return _Bytes(np.ascontiguousarray(scale.T if turned else scale)[None, None], block)

    def _factors(self, spec: LinearSpec, groups: int, order: Array) -> Array | None:
        """The scale of each packed weight of each group; 1 for what fills up."""
        shape = (spec.oc, *spec.kernel, spec.ic)
        if self.scaled:
            if self.scale.shape != (*spec.kernel, spec.ic // self.scaled, spec.oc) or spec.ic % self.scaled:
                return None
            full = np.repeat(self.scale, self.scaled, 2).transpose(3, 0, 1, 2)
        elif self.scale.size == 1:
            full = np.broadcast_to(self.scale.reshape(1, 1, 1, 1), shape)
        elif self.scale.size == groups * spec.oc:
            full = np.broadcast_to(self.scale.reshape(-1, 1, 1, 1), (groups * spec.oc, *shape[1:]))
        else:
            return None
        flat = np.broadcast_to(full.reshape(-1, math.prod(shape)), (groups, math.prod(shape)))
        return np.asarray(np.concatenate([np.ones((groups, 1), np.float32), flat], axis=1)[:, order])


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


def _packed(w: Array, spec: LinearSpec, target: Target) -> Array:
    """Weights [oc, kh, kw, ic] as the kernel reads them."""
    lanes, vectors = (spec.block, 1) if spec.block else (lanes_of(target), spec.tile[2])
    return pack_linear(w, lanes, vectors, 1)


def _order(spec: LinearSpec, target: Target) -> Array:
    """The number of the weight (from 1 on, in the order [oc, kh, kw, ic]) at each place of a group's packed weights; 0
    for what fills up."""
    shape = (spec.oc, *spec.kernel, spec.ic)
    return _packed(np.arange(1, math.prod(shape) + 1, dtype=np.int64).reshape(shape), spec, target)
