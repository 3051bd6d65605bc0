"""Linear kernels whose constant weights are zero in whole blocks pass over them, where the model says that it pays.

The pattern is found in the packed weights of a finished plan, at the size that the machine multiplies at once: the
output channels of one or a few vectors by the input channels of a step, at one tap. Weights that only the dense kernel
read are dropped with it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from irc.backends.tvm.geometry import fields_of, lanes_of, step_channels, stored_counts, without_matrices
from irc.backends.tvm.plan.pack import own_bytes, unpack_linear
from irc.backends.tvm.plan.planner import Call, Planner
from irc.backends.tvm.plan.sparse_model import SparseChoice, choose, columns_of, rank, units_of
from irc.backends.tvm.plan.tiles import Product
from irc.backends.tvm.specs import LinearSpec, SparseSpec
from irc.ir.types import Array
from irc.targets.target import Target

_LEAST_ZEROS = 0.25  # share of the weights: below, no kernel gains
_KINDS = frozenset(
    [(x, w, "int8") for x in ("uint8", "int8") for w in ("", "int4", "int2")]
    + [("float32", "", "float32"), ("float32", "float16", "uint16"), ("float32", "bfloat16", "uint16")]
    + [("float32", "int8", "int8")]
)
"""Types of data, of weights as they are called and as they are stored."""
_MINUS_ZERO = 0x8000  # the bits, of both types of 16
_SHORT = 1 << 16  # offsets that fit 16 bits


def skip_zeros(planner: Planner) -> None:
    """Replace calls of dense linear kernels in `planner` by sparse ones where those are faster."""
    constants = {number: (data, name) for number, data, name in planner.constants}
    for i, call in enumerate(planner.calls):
        if not isinstance(call.spec, LinearSpec) or call.args[1].offset:
            continue
        data, name = constants.get(call.args[1].storage, (None, ""))
        if data is None or not _readable(call.spec, data):
            continue
        if data.dtype == np.uint16:
            data = np.where(data == _MINUS_ZERO, np.uint16(0), data)
        if np.count_nonzero(data) <= (1 - _LEAST_ZEROS) * data.size:
            planner.calls[i] = _skipping(planner, call, _in_one_row(call.spec), data, name)


def _readable(spec: LinearSpec, data: Array) -> bool:
    """Whether these are packed weights that a sparse kernel reads, too, the same for all images."""
    plain = (spec.x_dtype, spec.w_dtype, data.dtype.name) in _KINDS
    each_group = spec.batch[1] == 1 or spec.w_strides[1] > 0
    special = spec.w_rows or spec.sum_x or spec.w_strides[0] or spec.scaled
    return plain and each_group and not special and spec.w_size == data.size


def _in_one_row(spec: LinearSpec) -> LinearSpec:
    """The rows of 1x1 convolutions as one, where they follow each other in memory everywhere."""
    height, width = spec.out
    images = (spec.x_strides, spec.y_strides, *(o.strides for o in spec.operands))
    if spec.kernel != (1, 1) or spec.stride != (1, 1) or any(s[2] != width * s[3] for s in images):
        return spec
    return replace(spec, out=(1, height * width))


def _skipping(planner: Planner, call: Call, spec: LinearSpec, data: Array, name: str) -> Call:
    blocks = blocks_of(spec, data, planner.target)
    found: SparseChoice | None = None
    for unit in units_of(planner.target):
        kept = kept_blocks(blocks, unit)
        choice = choose(spec, planner.target, unit, kept.sum() / (kept.shape[0] * kept.shape[1]))
        if found is None or choice.tile.cycles < found.tile.cycles:
            found = choice
    assert found is not None
    left = kept_blocks(blocks, found.unit).mean()
    cycles = f"{found.tile.cycles:.3g} cycles, {found.dense:.3g} dense"
    note = f"{left:.0%} of its {found.unit}x{blocks.shape[3]} blocks are not zero: {cycles}"
    if not found.pays or left * fields_of(spec.w_dtype) > 1:  # several weights to a byte would take less room
        return replace(call, note=note)
    made, tables = sparse_form(spec, blocks, found, planner.target)
    ends = ("", "_offsets", "_starts")
    views = [planner.constant(t, f"{name}{end}") for t, end in zip(tables, ends, strict=True)]
    args = (call.args[0], *(planner.pointer(v) for v in views), *call.args[2:])
    return replace(call, spec=made, args=args, note=note)


def sparse_cycles(w: Array, out: tuple[int, int], target: Target) -> tuple[float, int]:
    """Of a float32 convolution to `out` places with stride 1 and weights [oc, ic, taps...] that passes over zeros, and
    how many weights it reads; infinity where it has too few zeros."""
    if np.count_nonzero(w) > (1 - _LEAST_ZEROS) * w.size:
        return math.inf, w.size
    blocks = w.reshape(1, w.shape[0], -1, 1)
    product = Product(out, -(-w.shape[0] // lanes_of(target)), blocks.shape[2])
    found = []
    for unit in units_of(target):
        kept = kept_blocks(blocks, unit)
        found.append((rank(product, target, unit, float(kept.sum(2).mean()))[0].cycles, int(kept.sum()) * unit))
    return min(found)


def blocks_of(spec: LinearSpec, data: Array, target: Target) -> Array:
    """Packed weights as [group, output channel, tap and step, input channel of the step]."""
    step = step_channels(spec.x_dtype, target, spec.ic)
    lanes, vectors = (spec.block, 1) if spec.block else (lanes_of(target), spec.tile[2])
    groups = spec.batch[1] if spec.w_strides[1] else 1
    counts = (*spec.kernel, spec.ic // step)
    rows, columns, steps = stored_counts(counts, fields_of(spec.w_dtype))
    shape = (spec.oc, rows, columns, steps * step)
    parts = [unpack_linear(part, shape, lanes, vectors, step) for part in data.reshape(groups, -1)]
    whole = [own_bytes(part, counts, step, spec.w_dtype) for part in parts]
    each = step_channels(spec.x_dtype, without_matrices(target), spec.ic)
    return np.stack(whole).reshape(groups, spec.oc, -1, each)


def kept_blocks(blocks: Array, unit: int) -> Array:
    """bool [group, unit of `unit` output channels, tap and step]: which blocks are not zero."""
    return np.asarray(np.logical_or.reduceat(blocks.any(3), range(0, blocks.shape[1], unit), axis=1))


def sparse_form(
    spec: LinearSpec, blocks: Array, choice: SparseChoice, target: Target
) -> tuple[SparseSpec, tuple[Array, Array, Array]]:
    """The sparse kernel in place of `spec`, and its weights, offsets and starts."""
    groups, channels, steps, step = blocks.shape
    unit, kept = choice.unit, kept_blocks(blocks, choice.unit)
    units = kept.shape[1]
    padded = np.pad(blocks, ((0, 0), (0, units * unit - channels), (0, 0), (0, 0)))
    entries = padded.reshape(groups, units, unit, steps, step).transpose(0, 1, 3, 2, 4)[kept]
    offsets = np.broadcast_to(_offsets(spec, step), kept.shape)[kept]
    starts = np.concatenate([[0], np.cumsum(kept.sum(2).reshape(-1))]).astype(np.int32)
    if not len(entries):  # nothing is read, but an array has a place
        entries, offsets = np.zeros((1, unit, step), blocks.dtype), np.zeros(1, np.int64)
    index = "uint16" if offsets.max() < _SHORT else "int32"
    tile = (choice.tile.rows, choice.tile.columns, choice.tile.vectors)
    room = 1 << (len(entries) - 1).bit_length()  # layers that differ only in what is zero share a kernel
    linear = replace(spec, tile=tile, order="rows", w_strides=(0, 0), block=0, w_size=room * unit * step)
    if fields_of(spec.w_dtype) > 1:
        linear = replace(linear, w_dtype="")
    made = SparseSpec(linear, unit, index, room, groups * units, columns_of(linear, target))
    return made, (entries, offsets.astype(index), starts)


def _offsets(spec: LinearSpec, step: int) -> Array:
    """Where the data of each tap and step lie, in elements of x from a place's first tap on."""
    _, _, sh, sw = spec.x_strides
    rows, columns, channels = np.ix_(
        np.arange(spec.kernel[0]) * spec.dilation[0] * sh,
        np.arange(spec.kernel[1]) * spec.dilation[1] * sw,
        np.arange(0, spec.ic, step),
    )
    return np.asarray((rows + columns + channels).reshape(-1))
