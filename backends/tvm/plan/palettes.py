"""Constant weights of at most 16 distinct numbers are stored as indices of 4 bits where the kernel can look them up.

Found in the packed weights of a finished plan, whatever made them so: bytes with 8-bit data, float32 with float32 data.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from irc.backends.tvm.geometry import PALETTE, PALETTE_BYTES, dot_of, lanes_of, stored_counts
from irc.backends.tvm.plan.lower_sparse import blocks_of
from irc.backends.tvm.plan.pack import pack_linear, share_bytes
from irc.backends.tvm.plan.planner import Call, Planner
from irc.backends.tvm.plan.tiles import retiled
from irc.backends.tvm.specs import LinearSpec
from irc.ir.types import Array
from irc.targets.target import Target

_ENTRIES = 16
_WORTH = 0.75  # of the bytes: above, gaps between indices eat up what is saved


def keep_palettes(planner: Planner) -> None:
    """Let linear kernels of `planner` read palettes."""
    constants = {number: (data, name) for number, data, name in planner.constants}
    for i, call in enumerate(planner.calls):
        if not isinstance(call.spec, LinearSpec) or call.args[1].offset or not _can_look_up(call.spec, planner.target):
            continue
        data, name = constants.get(call.args[1].storage, (None, ""))
        if data is None or data.dtype != (np.float32 if call.spec.x_dtype == "float32" else np.int8):
            continue
        if _maybe_few(data):
            planner.calls[i] = _with_palette(planner, call, call.spec, data, name)


def _can_look_up(spec: LinearSpec, target: Target) -> bool:
    if spec.w_dtype or spec.w_rows or spec.block or spec.w_strides[0]:
        return False
    if spec.batch[1] > 1 and not spec.w_strides[1]:
        return False
    if spec.x_dtype == "float32":
        return target.arch == "x86-64" and target.vector_bytes >= 32
    wide = target.arch == "aarch64" or target.vector_bytes >= 32
    return wide and dot_of(spec.x_dtype, target, spec.ic) in ("vpdpbusd", "sdot", "pmaddwd4")


def _maybe_few(data: Array) -> bool:
    """Whether packed weights may have few distinct numbers, the zeros of unused lanes aside, and are many more."""
    if data.size < 8 * PALETTE_BYTES or len(np.unique(data[:1024])) > _ENTRIES + 1:
        return False
    return len(np.unique(data)) <= _ENTRIES + 1


def _with_palette(planner: Planner, call: Call, spec: LinearSpec, data: Array, name: str) -> Call:
    target = planner.target
    blocks = blocks_of(spec, data, target)
    groups, channels, _, step = blocks.shape
    weights = blocks.reshape(groups, channels, *spec.kernel, spec.ic)
    counts = (*spec.kernel, spec.ic // step)
    values = np.unique(weights)
    if len(values) > _ENTRIES or np.prod(stored_counts(counts, 2)) > _WORTH * np.prod(counts):
        return call
    indices = np.searchsorted(values, weights).astype(np.uint8)
    changed = retiled(replace(spec, w_dtype=PALETTE), target)
    assert isinstance(changed, LinearSpec)
    vectors = changed.tile[2]
    packed = [pack_linear(share_bytes(g, step, PALETTE), lanes_of(target), vectors, step) for g in indices]
    whole = np.concatenate([_codebook(values), *packed])
    made = planner.pointer(planner.constant(whole, name))
    strides = (0, packed[0].size if spec.w_strides[1] else 0)
    changed = replace(changed, w_strides=strides, w_size=whole.size)
    return replace(call, spec=changed, args=(call.args[0], made, *call.args[2:]))


def _codebook(values: Array) -> Array:
    """int8 [PALETTE_BYTES]: `values` and zeros, as a register wants them."""
    book = np.zeros(_ENTRIES, values.dtype)
    book[: len(values)] = values
    return np.tile(book.view(np.int8), PALETTE_BYTES // book.nbytes)
