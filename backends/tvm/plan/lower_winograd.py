"""Convolutions by Winograd's minimal filtering: for each strip of the image a transform, and products with the
transform back. `winograd_model.py` says where."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from irc.backends.tvm.geometry import BLOCK, block_of
from irc.backends.tvm.plan import lower_conv as conv
from irc.backends.tvm.plan.integer import float_weights, integer_weights
from irc.backends.tvm.plan.kinds import kind_of
from irc.backends.tvm.plan.lower_sparse import sparse_cycles
from irc.backends.tvm.plan.pack import pack_for
from irc.backends.tvm.plan.planner import Planner, Pointer
from irc.backends.tvm.plan.regions import Region
from irc.backends.tvm.plan.translate import storage_dtype
from irc.backends.tvm.plan.views import View
from irc.backends.tvm.plan.window import two
from irc.backends.tvm.plan.winograd_model import Choice, Shape, choose, product_block, with_weights
from irc.backends.tvm.specs import Operand, WinogradInputSpec, WinogradSpec
from irc.backends.tvm.winograd import transform_weights
from irc.targets.target import Target


def winograd_choice(region: Region, target: Target) -> Choice | None:
    """How to compute this region's convolution by Winograd, or None where that is impossible or does not pay."""
    node = region.root
    if not node.is_op("Conv") or kind_of(node) != "linear" or node.get_int("group", 1) != 1:
        return None
    g = conv._geometry(node)
    if g.stride != (1, 1) or g.dilation != (1, 1):
        return None
    if integer_weights(node) is not None or storage_dtype(region.output.dtype) != "float32":
        return None
    if not node.need(1).is_constant:
        return None  # transformed weights need float32: many times the bytes of those that were made small
    if target.l2_bytes < 256 * 1024 or target.vector_registers < 16:
        return None  # small machines, where the size of weights counts more
    shape = region.output.static_shape()
    out = two(shape[2:])
    choice = choose(Shape(shape[0], out, g.kernel, node.need(0).static_shape()[1], shape[1]), target)
    if choice is None:
        return None
    work, read = sparse_cycles(node.need(1).numpy(), out, target)
    if with_weights(shape[0] * work, read, target) < choice.cycles:
        return None  # transformed weights have no zeros
    return choice


def source_tile(region: Region, target: Target) -> tuple[int, int] | None:
    """The tile of a convolution of C source; None where it is computed directly. Compilers have vectors of four numbers
    for the source, which want whole ones of channels."""
    choice = winograd_choice(region, replace(target, arch="x86-64", vector_bytes=16))
    if choice is None:
        return None
    oc, ic = region.root.need(1).static_shape()[:2]
    return choice.tile if oc % 8 == 0 and ic % 4 == 0 else None


def retiled(spec: WinogradSpec, target: Target) -> WinogradSpec:
    """`spec` with the block that suits `target`; its weights are packed in blocks of channels."""
    shape = Shape(spec.images, spec.out, spec.kernel, spec.ic, spec.oc)
    block, _ = product_block(target, shape.tiles(spec.tile), shape.points(spec.tile), spec.ic, spec.oc)
    return replace(spec, block=block)


def lower_winograd(p: Planner, region: Region, choice: Choice) -> None:
    """Two calls per strip: transform of the input, and products with the transform back."""
    node = region.root
    g = conv._geometry(node)
    x = conv._first_tap(conv._source(p, node, None), g)
    out_shape = region.output.static_shape()
    rank, images, oc, out_hw = len(out_shape), out_shape[0], out_shape[1], two(out_shape[2:])
    out = p.output_view(region.output, (0, 2, 1) if rank == 3 else (0, 2, 3, 1), innermost=1)
    w = float_weights(node.need(1)).astype(np.float32)
    w = w.reshape(w.shape[0], w.shape[1], *g.kernel).transpose(0, 2, 3, 1)  # oc, kh, kw, ic
    ic, tile = w.shape[3], choice.tile
    b, operands, result = conv._expression(p, region, None, conv._bias(node), None)
    expression = b.finish(result)
    views = [p.operand_view(conv._broadcast(v, rank), out_shape) for v in operands.values]
    views = [conv._channel_ready(p, v) for v in views]
    packed = pack_for(p.target, transform_weights(w, tile), choice.block[2], 1)
    weights = p.constant(packed, node.need(1).name)
    shape = Shape(images, out_hw, g.kernel, ic, oc)
    row = _row_stride(ic)
    strips = list(_strips(p.target, shape, tile, row, packed.nbytes))
    most = max(replace(shape, images=n, out=(rows, out_hw[1])).tiles(tile) for _, n, _, rows in strips)
    point = _apart(most * row)
    size = shape.points(tile) * point
    transformed = p.new_storage("float32", size)
    reach = sum((k - 1) * s for k, s in zip(g.kernel, conv._nhw(x)[1:], strict=True))
    name = f"F({tile[0]}x{tile[1]},{g.kernel[0]}x{g.kernel[1]})"
    for first, n, top, rows in strips:
        x_i, out_i, *views_i = (_strip(_image(v), first, n, top, rows) for v in (x, out, *views))
        common = (n, (rows, out_hw[1]), tile, g.kernel, ic)
        before = WinogradInputSpec(*common, conv._nhw(x_i), (point, row), x_i.extent + reach, size)
        p.call(before, [p.pointer(x_i), Pointer(transformed, 0)], (transformed,), f"{name} input")
        product = WinogradSpec(
            *common,
            oc,
            (point, row),
            conv._nhw(out_i),
            expression,
            tuple(Operand(e.dtype, (*conv._nhw(e), e.strides[1]), e.extent) for e in views_i),
            choice.block,
            size,
            out_i.extent,
            weights.extent,
            block_of(p.target),
        )
        macs = n * oc * rows * out_hw[1] * math.prod(g.kernel) * ic
        args = [Pointer(transformed, 0), *(p.pointer(v) for v in (weights, *views_i, out_i))]
        p.call(product, args, (out.storage,), f"{region.label} {name}", macs=macs)
    p.views[id(region.output)] = out


def _row_stride(channels: int) -> int:
    """Elements from one tile to the next: whole vectors of any machine, and no multiple of a large power of two, so
    that the tiles of a register tile do not fall into the same cache sets."""
    return _apart(-(-channels // BLOCK) * BLOCK)


def _apart(stride: int) -> int:
    return stride + BLOCK if stride % 256 == 0 else stride


def _strips(
    target: Target, shape: Shape, tile: tuple[int, int], row: int, weight_bytes: int
) -> Iterator[tuple[int, int, int, int]]:
    """(first image, images, first row, rows): parts whose transformed input is small beside caches or weights."""
    limit = max(2 * target.l2_bytes, weight_bytes // 2)
    height = shape.out[0]
    tile_rows = -(-height // tile[0])
    per_row = shape.points(tile) * replace(shape, images=1, out=(tile[0], shape.out[1])).tiles(tile) * row * 4
    together = max(1, limit // (per_row * tile_rows))
    parts = -(-tile_rows // max(1, limit // per_row))
    step = -(-tile_rows // parts) * tile[0]
    tops = [t for t in range(0, height, step) if t == 0 or height - t >= tile[0]]  # a strip has a whole tile at least
    for image in range(0, shape.images, together):
        for top, end in itertools.pairwise([*tops, height]):
            yield image, min(together, shape.images - image), top, end - top


def _image(view: View) -> View:
    """[n, c, w] as [n, c, 1, w]."""
    if len(view.shape) == 4:
        return view
    n, c, w = view.shape
    sn, sc, sw = view.strides
    return replace(view, shape=(n, c, 1, w), strides=(sn, sc, 0, sw), halo=None)


def _strip(view: View, first: int, images: int, top: int, rows: int) -> View:
    """Some images and rows of [n, c, h, w]."""
    _, channels, _, width = view.shape
    return view.sliced((first, 0, top, 0), (images, channels, rows, width), (1, 1, 1, 1))
