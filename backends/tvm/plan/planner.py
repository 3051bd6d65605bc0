"""The plan under construction: storages, views of values, constants, kernel calls. Lowerings, one file per family, use
it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from irc.backends.tvm.expression import Expression, ExpressionBuilder
from irc.backends.tvm.magnitude import limit_of
from irc.backends.tvm.plan.integer import float_weights
from irc.backends.tvm.plan.join import image_axis, slot_of
from irc.backends.tvm.plan.kinds import dequantized, is_view, is_weight
from irc.backends.tvm.plan.moves import view_output
from irc.backends.tvm.plan.regions import Region
from irc.backends.tvm.plan.translate import builder_of, data_inputs, storage_dtype
from irc.backends.tvm.plan.views import Halo, Storage, StorageKind, View, collapse, row_major, strides_in_order
from irc.backends.tvm.specs import ElementwiseSpec, FillSpec, Operand, Spec, Strides
from irc.ir.graph import Graph, Node, Value
from irc.ir.types import Array
from irc.targets.target import Target

if TYPE_CHECKING:
    from irc.backends.tvm.plan.small_channels import Kept


@dataclass(frozen=True)
class Pointer:
    """Address of an element of a storage, in bytes from its start."""

    storage: int
    offset: int


@dataclass(frozen=True)
class Call:
    """One kernel call of the plan. `writes` are the storages it changes; `note`, for people, why it is this kernel."""

    spec: Spec
    args: tuple[Pointer, ...]
    writes: tuple[int, ...]
    label: str = ""
    nodes: tuple[str, ...] = ()
    macs: int = 0
    parallel: bool = True
    note: str = ""


@dataclass(frozen=True)
class Demand:
    """What a reader wants of a value's storage: channels innermost, and a filled border."""

    order: tuple[int, ...]
    halo: Halo
    fill: float

    def without_channels(self) -> Demand:
        """The same for some of the channels: others lie behind them."""
        return replace(self, halo=((0, 0), (0, 0), *self.halo[2:]))


@dataclass
class RegionOperands:
    """Operands of a region's expression in the order of their numbers."""

    values: list[Value | Array] = field(default_factory=list)
    numbers: dict[object, int] = field(default_factory=dict)

    def number(self, value: Value | Array) -> int:
        key: object = ("v", id(value)) if isinstance(value, Value) else ("a", value.dtype.str, value.tobytes())
        if key not in self.numbers:
            self.numbers[key] = len(self.values)
            self.values.append(value)
        return self.numbers[key]


class Planner:
    """Walks regions in order; each lowering appends calls and says where its output lies."""

    def __init__(self, graph: Graph, target: Target) -> None:
        self.graph = graph
        self.target = target
        self.storages: list[Storage] = []
        self.views: dict[int, View] = {}
        self.joined: dict[int, View] = {}  # outputs of concatenations that got their place before they were reached
        self.calls: list[Call] = []
        self.constants: list[tuple[int, Array, str]] = []  # (storage, data, name)
        self._data: dict[int, Array] = {}  # by storage
        self._by_digest: dict[str, int] = {}
        self._padded: dict[tuple[int, Demand], View] = {}
        self.kept: dict[int, Kept] = {}  # by id of a value: which of its channels lie in memory (`small_channels.py`)
        self.turned: dict[tuple[int, int], View] = {}  # masks with their rows innermost, by (value, lanes)
        self.origin: tuple[str, ...] = ()
        for port, value in enumerate(graph.inputs):
            shape = value.static_shape()
            dtype = storage_dtype(value.dtype)
            storage = self.new_storage(dtype, math.prod(shape), "input", port)
            self.views[id(value)] = View(storage, dtype, shape, row_major(shape))

    # Storage
    def new_storage(self, dtype: str, elements: int, kind: StorageKind = "workspace", port: int = 0) -> int:
        nbytes = elements * np.dtype(dtype).itemsize
        self.storages.append(Storage(len(self.storages), kind, nbytes, port))
        return len(self.storages) - 1

    def constant(self, data: Array, name: str = "") -> View:
        """A view of `data` among the weights; equal data are stored once."""
        data = np.asarray(data, order="C")  # not ascontiguousarray, which gives scalars a dimension
        if data.dtype == np.bool_:
            data = data.view(np.int8)
        digest = hashlib.sha256(f"{data.dtype.str}{data.shape}".encode() + data.tobytes()).hexdigest()
        number = self._by_digest.get(digest)
        if number is None:
            number = self._by_digest[digest] = self.new_storage(data.dtype.name, data.size, "weights")
            self.constants.append((number, data, name))
            self._data[number] = data
        return View(number, data.dtype.name, tuple(data.shape), row_major(data.shape))

    def limit(self, view: View) -> float:
        """A bound of the magnitude of a constant view; infinity for others."""
        data = self._data.get(view.storage)
        return math.inf if data is None else limit_of(data)

    def pointer(self, view: View) -> Pointer:
        return Pointer(view.storage, view.offset * view.itemsize)

    # Values
    def view(self, value: Value) -> View:
        """Where `value` lies; constants, views and dequantizations are made now if they have not been."""
        chain: list[Value] = []  # views of views are made from the bottom: chains may be longer than Python's stack
        while id(value) not in self.views:
            chain.append(value)
            if value.producer is None or not is_view(value.producer):
                break
            value = value.producer.need(0)
        for made in reversed(chain):
            if id(made) not in self.views:
                self.views[id(made)] = self._make(made)
        return self.views[id(chain[0] if chain else value)]

    def _make(self, value: Value) -> View:
        if value.constant is not None:
            return self.constant(value.numpy(), value.name)
        node = value.producer
        if node is None:
            raise ValueError(f"value '{value.name}' has no producer")
        if 0 in value.static_shape():  # no element: nobody computes it, nobody reads it
            dtype, shape = storage_dtype(value.dtype), value.static_shape()
            return View(self.new_storage(dtype, 0), dtype, shape, row_major(shape))
        if is_weight(value):
            return self.constant(float_weights(value), value.name)
        if node.is_op("DequantizeLinear"):
            return self._dequantize(node)
        return view_output(self, node, value)

    def _dequantize(self, node: Node) -> View:
        build = builder_of(node)
        assert build is not None
        source = self.view(node.need(0))
        b = ExpressionBuilder()
        expression = b.finish(build(b, node, [b.operand(0, source.dtype)], "float32"))
        out = self.output_view(node.output, source.order)
        self.elementwise(out, expression, [source], "DequantizeLinear", node.origin.nodes or (node.name,))
        return out

    def output_view(self, value: Value, order: Sequence[int], *, innermost: int | None = None) -> View:
        """Storage for a value that a kernel is about to write, dimensions in memory `order`.

        A network output that nobody else shapes is written in place; a border that a reader wants is made here.
        `innermost`: the dimension the kernel needs with stride 1 (None: any).
        """
        shape, dtype = value.static_shape(), storage_dtype(value.dtype)
        if value.is_output:
            port = next(i for i, v in enumerate(self.graph.outputs) if v is value)
            strides = row_major(shape)
            if innermost is None or strides[innermost] == 1 or shape[innermost] == 1:
                return View(self.new_storage(dtype, math.prod(shape), "output", port), dtype, shape, strides)
        slot = slot_of(self, value, order, innermost)
        if slot is not None:
            return slot
        demand = self.demand(value)
        if demand is not None and (innermost is None or demand.order[-1] == innermost):
            return self._with_border(shape, dtype, demand)
        order = self._wanted_order(value, order, innermost)
        return View(self.new_storage(dtype, math.prod(shape)), dtype, shape, strides_in_order(shape, order))

    def _wanted_order(self, value: Value, order: Sequence[int], innermost: int | None) -> Sequence[int]:
        """The order in which the transposed value would be row-major, when all readers transpose alike; channels
        innermost where a convolution of a small target reads it, which demands no border that would say so."""
        users = value.users
        if self.target.small and innermost is None and len(order) in (3, 4) and _convolved(value):
            return (0, *range(2, len(order)), 1)
        if not users or any(not u.is_op("Transpose") for u in users):
            return order
        permutations = {u.get_ints("perm", tuple(reversed(range(len(order))))) for u in users}
        if len(permutations) != 1:
            return order
        wanted = permutations.pop()
        if self.target.small and len(order) in (3, 4) and any(_convolved(u.output) for u in users):
            wanted = (wanted[0], *wanted[2:], wanted[1])
        return wanted if innermost is None or wanted[-1] == innermost else order

    def demand(self, value: Value) -> Demand | None:
        """What the convolutions that read `value` (directly or dequantized) agree on, if any of them pads."""
        from irc.backends.tvm.plan.lower_conv import conv_demand
        from irc.backends.tvm.plan.lower_transposed import transposed_demand

        found: list[Demand] = []
        pending = [(value, True)]
        if value.producer is not None and value.producer.is_op("Concat") and image_axis(value.producer) == 1:
            pending += [(v, False) for v in value.producer.inputs if v is not None]  # parts are read by themselves, too
        while pending:
            current, whole = pending.pop()
            for use in current.uses:
                if use.node.is_op("DequantizeLinear") and use.index == 0 and dequantized(use.node.output):
                    pending.append((use.node.output, whole))
                elif use.node.is_op("Split") and use.index == 0 and image_axis(use.node) == 1:
                    pending += [(v, False) for v in use.node.outputs]
                else:
                    find = transposed_demand if use.node.is_op("ConvTranspose") else conv_demand
                    demand = find(self, use.node, use.index)
                    if demand is not None:
                        found.append(demand if whole else demand.without_channels())
        if not found or len({(d.order, d.fill) for d in found}) != 1:
            return None
        halo = tuple(
            (max(d.halo[i][0] for d in found), max(d.halo[i][1] for d in found)) for i in range(len(found[0].halo))
        )
        return replace(found[0], halo=halo)

    def _with_border(self, shape: tuple[int, ...], dtype: str, demand: Demand) -> View:
        full = tuple(d + b + a for d, (b, a) in zip(shape, demand.halo, strict=True))
        strides = strides_in_order(full, demand.order)
        storage = self.new_storage(dtype, math.prod(full))
        offset = sum(b * s for (b, _), s in zip(demand.halo, strides, strict=True))
        view = View(storage, dtype, shape, strides, offset, demand.halo, demand.fill)
        if any(b or a for b, a in demand.halo):
            self._fill_border(view, full, strides, demand)
        return view

    def _fill_border(self, view: View, full: tuple[int, ...], strides: Strides, demand: Demand) -> None:
        """Images [n, c, h, w] (or [n, c, w]) with channels innermost."""
        three = len(full) == 3
        n, c, h, w = (full[0], full[1], 1, full[2]) if three else full
        sh, sw = (0, strides[2]) if three else (strides[2], strides[3])
        top, left = (0, demand.halo[2][0]) if three else (demand.halo[2][0], demand.halo[3][0])
        rows, columns = (1, view.shape[2]) if three else (view.shape[2], view.shape[3])
        inner = (top, left, rows, columns, view.shape[1])
        spec = FillSpec(view.dtype, (n, h, w, c), (strides[0], sh, sw), inner, view.fill, n * strides[0])
        self.call(spec, [Pointer(view.storage, 0)], (view.storage,), "border")

    def padded(self, value: Value, demand: Demand) -> View:
        """`value` with at least the border and the order of `demand`; copied once if it does not lie so."""
        view = self.view(value)
        if _satisfies(view, demand):
            return view
        key = (id(value), demand)
        if key not in self._padded:
            made = self._with_border(view.shape, view.dtype, demand)
            self.copy(view, made, "pad")
            self._padded[key] = made
        return self._padded[key]

    def ordered(self, value: Value, order: Sequence[int]) -> View:
        """`value` gapless with its dimensions in memory `order`; copied if it does not lie so."""
        view = self.view(value)
        wanted = strides_in_order(view.shape, order)
        if all(s == t or d == 1 for d, s, t in zip(view.shape, view.strides, wanted, strict=True)):
            return view
        made = View(self.new_storage(view.dtype, math.prod(view.shape)), view.dtype, view.shape, wanted)
        self.copy(view, made, "reorder")
        return made

    def row_major(self, value: Value) -> View:
        return self.ordered(value, range(len(value.static_shape())))

    # Calls
    def call(
        self,
        spec: Spec,
        args: Sequence[Pointer],
        writes: tuple[int, ...],
        label: str,
        nodes: tuple[str, ...] | None = None,
        macs: int = 0,
        parallel: bool = True,
    ) -> None:
        origin = self.origin if nodes is None else nodes
        self.calls.append(Call(spec, tuple(args), writes, label, origin, macs, parallel))

    def copy(self, source: View, target: View, label: str = "copy") -> None:
        """Element by element. 16-bit floats are moved as integers: LLVM lacks bfloat16 on most processors."""
        if source.dtype in ("float16", "bfloat16"):
            source, target = replace(source, dtype="int16"), replace(target, dtype="int16")
        b = ExpressionBuilder()
        expression = b.finish(b.operand(0, source.dtype))
        self.elementwise(target, expression, [source], label)

    def elementwise(
        self,
        out: View,
        expression: Expression,
        operands: Sequence[View],
        label: str,
        nodes: tuple[str, ...] | None = None,
        tables: Sequence[int] = (),
    ) -> None:
        """One elementwise call; loops in the order in which the output lies. Operands in `tables` are 256-entry
        tables, read by value."""
        if math.prod(out.shape) == 0:
            return
        order = out.order
        read = [o if i in tables else o.broadcast_to(out.shape).transposed(order) for i, o in enumerate(operands)]
        ordered = out.transposed(order)
        strides = [(0,) * len(out.shape) if i in tables else r.strides for i, r in enumerate(read)]
        shape, merged = collapse(ordered.shape, [*strides, ordered.strides])
        specs = tuple(Operand(v.dtype, tuple(m), v.extent) for v, m in zip(read, merged[:-1], strict=True))
        gap = ordered.halo[-1][1] if ordered.halo is not None and shape and shape[-1] == ordered.shape[-1] else 0
        fill = out.fill if gap else 0.0
        spec = ElementwiseSpec(out.dtype, shape, tuple(merged[-1]), expression, specs, out.extent, gap, fill)
        args = [self.pointer(v) for v in read] + [self.pointer(out)]
        self.call(spec, args, (out.storage,), label, nodes)

    # Expressions
    def translate(
        self, region: Region, b: ExpressionBuilder, operands: RegionOperands, start: int | None, skip: int = 1
    ) -> int:
        """Instructions of the region's nodes after the first `skip`; `start` is the value of the last of
        those (None: there is none)."""
        known: dict[int, int] = {} if start is None else {id(region.nodes[skip - 1].output): start}
        for node in region.nodes[skip:]:
            build = builder_of(node)
            assert build is not None, "a region holds only what translates"
            args = [self._argument(v, b, operands, known) for v in data_inputs(node)]
            known[id(node.output)] = build(b, node, args, storage_dtype(node.output.dtype))
        return known[id(region.output)]

    def _argument(self, value: Value, b: ExpressionBuilder, operands: RegionOperands, known: dict[int, int]) -> int:
        if id(value) in known:
            return known[id(value)]
        found = dequantized(value)
        if found is not None:
            source, scale, zero = found
            q = self._argument(source, b, operands, known)
            known[id(value)] = b.dequantize(q, scale, zero)
            return known[id(value)]
        dtype = storage_dtype(value.dtype)
        if value.is_constant and value.numpy().size == 1:
            item = value.numpy().reshape(-1)[0]
            return b.constant(float(item) if dtype.startswith("float") else int(item), dtype)
        known[id(value)] = b.operand(operands.number(value), dtype)
        return known[id(value)]

    def operand_view(self, value: Value | Array, shape: Sequence[int]) -> View:
        """The operand broadcast to `shape`."""
        view = self.view(value) if isinstance(value, Value) else self.constant(value)
        return view.broadcast_to(shape)


def _convolved(value: Value) -> bool:
    """Whether a convolution reads the value, directly or dequantized."""
    readers = [u for user in value.users for u in (user.output.users if user.is_op("DequantizeLinear") else [user])]
    return any(u.is_op("Conv") for u in readers)


def _satisfies(view: View, demand: Demand) -> bool:
    """Dimensions lie in the demanded order, the innermost with stride 1, with enough border of the right value."""
    need = any(b or a for b, a in demand.halo)
    if view.strides[demand.order[-1]] != 1 and view.shape[demand.order[-1]] != 1:
        return False
    if not need:
        return True
    if view.halo is None or view.fill != demand.fill:
        return False
    return all(h[0] >= b and h[1] >= a for h, (b, a) in zip(view.halo, demand.halo, strict=True))
