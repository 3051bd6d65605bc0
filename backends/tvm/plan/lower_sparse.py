"""Linear kernels whose constant weights are zero in whole blocks pass over them, where the model says that it pays.

The pattern is found in the packed weights of a finished plan, at the size that the machine multiplies at once: the
output channels of one or a few vectors by the input channels of a step, at one tap. Weights that only the dense kernel
read are dropped with it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from irc.backends.tvm.geometry import lanes_of, step_channels
from irc.backends.tvm.plan.pack import unpack_linear
from irc.backends.tvm.plan.planner import Call, Planner
from irc.backends.tvm.plan.sparse_model import SparseChoice, choose, columns_of, units_of
from irc.backends.tvm.specs import LinearSpec, SparseSpec
from irc.ir.types import Array
from irc.targets.target import Target

_LEAST_ZEROS = 0.25  # share of the weights: below, no kernel gains
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
        if np.count_nonzero(data) <= (1 - _LEAST_ZEROS) * data.size:
            planner.calls[i] = _skipping(planner, call, _in_one_row(call.spec), data, name)


def _in_one_row(spec: LinearSpec) -> LinearSpec:
    """The rows of 1x1 convolutions as one, where they follow each other in memory everywhere."""
    height, width = spec.out
    images = (spec.x_strides, spec.y_strides, *(o.strides for o in spec.operands))
    if spec.kernel != (1, 1) or spec.stride != (1, 1) or any(s[2] != width * s[3] for s in images):
        return spec
    return replace(spec, out=(1, height * width))


def _readable(spec: LinearSpec, data: Array) -> bool:
    """Whether these are packed weights with nothing special: one number each, the same for all images."""
    plain = data.dtype == (np.float32 if spec.x_dtype == "float32" else np.int8) and not spec.w_dtype
    each_group = spec.batch[1] == 1 or spec.w_strides[1] > 0
    return plain and each_group and not spec.w_rows and not spec.sum_x and not spec.w_strides[0]


def _skipping(planner: Planner, call: Call, spec: LinearSpec, data: Array, name: str) -> Call:
    target = planner.target
    blocks = _blocks(spec, data, target)
    found: SparseChoice | None = None
    for unit in units_of(target):
        kept = _kept(blocks, unit)
        choice = choose(spec, target, unit, kept.sum() / (kept.shape[0] * kept.shape[1]))
        if found is None or choice.tile.cycles < found.tile.cycles:
            found = choice
    assert found is not None
    kept = _kept(blocks, found.unit)
    if not found.pays:
        return call
    return _sparse_call(planner, call, spec, blocks, kept, found, name)


def _blocks(spec: LinearSpec, data: Array, target: Target) -> Array:
    """[group, output channel, tap and step, input channel of the step]"""
    step = step_channels(spec.x_dtype, target, spec.ic)
    lanes, vectors = (spec.block, 1) if spec.block else (lanes_of(target), spec.tile[2])
    groups = spec.batch[1] if spec.w_strides[1] else 1
    shape = (spec.oc, *spec.kernel, spec.ic)
    parts = [unpack_linear(part, shape, lanes, vectors, step) for part in data.reshape(groups, -1)]
    return np.stack(parts).reshape(groups, spec.oc, -1, step)


def _kept(blocks: Array, unit: int) -> Array:
    """bool [group, unit, tap and step]: blocks that are not zero."""
    return np.logical_or.reduceat(blocks.any(3), range(0, blocks.shape[1], unit), axis=1)


def _sparse_call(
    planner: Planner, call: Call, spec: LinearSpec, blocks: Array, kept: Array, choice: SparseChoice, name: str
) -> Call:
    groups, channels, steps, step = blocks.shape
    unit, units = choice.unit, kept.shape[1]
    padded = np.pad(blocks, ((0, 0), (0, units * unit - channels), (0, 0), (0, 0)))
    entries = padded.reshape(groups, units, unit, steps, step).transpose(0, 1, 3, 2, 4)[kept]
    offsets = np.broadcast_to(_offsets(spec, step), kept.shape)[kept]
    index = "uint16" if offsets.max(initial=0) < _SHORT else "int32"
    starts = np.concatenate([[0], np.cumsum(kept.sum(2).reshape(-1))]).astype(np.int32)
    entries = entries if entries.size else np.zeros((1, unit, step), blocks.dtype)
    tables = (entries, offsets.astype(index) if offsets.size else np.zeros(1, index), starts)
    views = [planner.constant(t, f"{name}{end}") for t, end in zip(tables, ("", "_offsets", "_starts"), strict=True)]
    tile = (choice.tile.rows, choice.tile.columns, choice.tile.vectors)
    room = 1 << (len(entries) - 1).bit_length()  # layers that differ only in what is zero share a kernel
    linear = replace(spec, tile=tile, order="rows", w_strides=(0, 0), block=0, w_size=room * unit * step)
    made = SparseSpec(linear, unit, index, room, groups * units, columns_of(linear, planner.target))
    args = (call.args[0], *(planner.pointer(v) for v in views), *call.args[2:])
    return replace(call, spec=made, args=args)


def _offsets(spec: LinearSpec, step: int) -> Array:
    """Where the data of each tap and step lie, in elements of x from a place's first tap on."""
    _, _, sh, sw = spec.x_strides
    rows, columns, channels = np.ix_(
        np.arange(spec.kernel[0]) * spec.dilation[0] * sh,
        np.arange(spec.kernel[1]) * spec.dilation[1] * sw,
        np.arange(0, spec.ic, step),
    )
    return np.asarray((rows + columns + channels).reshape(-1))
