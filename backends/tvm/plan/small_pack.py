"""What hand-written kernels of microcontrollers can compute, and their constants in the order of use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from irc.backends.tvm.plan.small_fixed import FixedPoint, fixed_point
from irc.backends.tvm.plan.small_mve import mve_conv, mve_depthwise
from irc.backends.tvm.reference import requantize
from irc.backends.tvm.small import (
    FIXED,
    PAIRS,
    ROWS,
    leaves_image,
    pair_order,
    ring_columns,
    row_steps,
    scratch_bytes,
    tile_channels,
    window_rows,
)
from irc.backends.tvm.small_epilogue import (
    FREE_REGISTERS,
    Epilogue,
    Round,
    canonical,
    channel_values,
    epilogue_of,
    rounded_magnitudes,
    streamed_operands,
)
from irc.backends.tvm.small_mve import MVE
from irc.backends.tvm.specs import Operand, SmallConvSpec, SmallDepthwiseSpec
from irc.ir.types import Array
from irc.targets.target import Target

_TILE = 4  # channels
_WEIGHTS = 9  # taps of a depthwise kernel
_SUM_BITS = 23
_CONVERTIBLE = 2.0**30
_CONSTANT = 1 << 16
_WORTHWHILE = 0.25  # of the tiles: a factor saves three times what looking for one costs the others
_HALF = 32000.0  # below, a sum of a result and its zero point fits 16 bits


S = TypeVar("S", SmallConvSpec, SmallDepthwiseSpec)


@dataclass(frozen=True)
class Packed(Generic[S]):
    """A specification, the weights as its kernel reads them, and which of the operands it reads beside these, by their
    numbers before (None: the last ones)."""

    spec: S
    weights: Array
    elements: tuple[int, ...] | None = None


def pack_conv(
    spec: SmallConvSpec, w: Array, constants: Sequence[Array | None], target: Target
) -> Packed[SmallConvSpec]:
    """The fastest way for `spec`. w int8 [oc, kh, kw, ic]; `constants`: operands in the expression's order, None for
    those that are not one number of each channel."""
    if target.dot == MVE:
        return Packed(*mve_conv(spec, w, constants))
    return pack_pairs(spec, w, constants, target) or Packed(spec, w)


def pack_depthwise(
    spec: SmallDepthwiseSpec, w: Array, constants: Sequence[Array | None], target: Target
) -> Packed[SmallDepthwiseSpec]:
    """The same of a depthwise convolution. w int8 or int16 [kh, kw, channels]."""
    if target.dot == MVE:
        return Packed(*(mve_depthwise(spec, w, constants) or (spec, w)))
    return pack_rows(spec, w, constants, target) or Packed(spec, w)


def has_pairs(target: Target) -> bool:
    """Whether two 16-bit products are one instruction, and results are rounded by an FPU."""
    return target.dot == "smlad" and target.fpu != "none"


def pack_pairs(
    spec: SmallConvSpec, w: Array, operands: Sequence[Array | None], target: Target
) -> Packed[SmallConvSpec] | None:
    """`spec` in the way "pairs", or None where that kernel is not made for it.

    w int8 [oc, kh, kw, ic]; `operands` in the expression's order, None for those that are not constants of channels.
    """
    if not has_pairs(target) or not _fits(spec):
        return None
    epilogue = epilogue_of(spec.expression, {i for i, o in enumerate(operands) if o is not None})
    if epilogue is None or epilogue.registers > FREE_REGISTERS or not _streams(spec, epilogue, operands):
        return None
    known = [np.zeros(1) if o is None else o for o in operands]
    bias, scale, others = channel_values(spec.expression, epilogue, known, spec.oc)
    bias, scale = _constant_channels(epilogue, w, bias, scale)
    low, high = _sums(w, bias)
    largest, last = rounded_magnitudes(epilogue, np.maximum(np.abs(low), np.abs(high)), scale, others)
    if largest >= _CONVERTIBLE:
        return None
    expression, streamed = canonical(epilogue)
    elements = tuple(e.operand for e in epilogue.elements)
    made = replace(
        _collapsed(spec),
        expression=expression,
        operands=(*_channel_operands(spec.oc, streamed), *(spec.operands[i] for i in elements)),
        streamed=streamed,
    )
    if not leaves_image(made):
        made = replace(made, fill=0)  # nobody asks: layers that differ in it alone share a kernel
    wide = not (_shares_words(w, low, high) and _divides(scale))
    fixed = None
    if epilogue.simple and epilogue.addend < 0 and tile_channels(made) == _TILE and spec.oc % _TILE == 0:
        unit = np.where(np.arange(spec.oc) % 2, 1 if wide else 256, 1)
        fixed = _useful(fixed_point(epilogue.requantize, scale.astype(np.float32), low, high, unit))
    saturate = ["saturate"] if last >= _HALF else []
    way = "/".join([PAIRS, *(["wide"] if wide else []), *saturate, *_fixed_way(fixed)])
    stream = _stream(made, w, bias, scale, others, wide, fixed)
    made = replace(made, way=way, w_size=stream.size)
    return Packed(replace(made, scratch=scratch_bytes(made)), stream, elements)


def pack_rows(
    spec: SmallDepthwiseSpec, w: Array, operands: Sequence[Array | None], target: Target
) -> Packed[SmallDepthwiseSpec] | None:
    """`spec` in the way "rows", or None where that kernel is not made for it. w [kh, kw, channels]."""
    if not has_pairs(target) or not _fits_rows(spec):
        return None
    epilogue = epilogue_of(spec.expression, {i for i, o in enumerate(operands) if o is not None})
    if epilogue is None or epilogue.last is None or epilogue.registers > FREE_REGISTERS:
        return None
    if not _streams(spec, epilogue, operands):
        return None
    known = [np.zeros(1) if o is None else o for o in operands]
    bias, scale, others = channel_values(spec.expression, epilogue, known, spec.channels)
    low, high = _sums(np.moveaxis(w, -1, 0), bias)
    largest, last = rounded_magnitudes(epilogue, np.maximum(np.abs(low), np.abs(high)), scale, others)
    if largest >= _CONVERTIBLE:
        return None
    blocks = spec.channels // _TILE
    order = w.reshape(-1, blocks, _TILE)[..., [0, 2, 1, 3]].astype(np.int16).transpose(1, 0, 2)
    fixed = None
    if epilogue.bare:
        fixed = _useful(fixed_point(epilogue.requantize, scale.astype(np.float32), low, high, np.ones_like(low)))
    parts = [
        _factors(scale.astype(np.float32).reshape(blocks, _TILE), fixed),
        _words(bias.reshape(blocks, _TILE)),
        np.ascontiguousarray(order).reshape(blocks, -1).view(np.int32),
    ]
    if not epilogue.bare:
        parts += [n.astype(np.float32).reshape(blocks, _TILE).view(np.int32) for n in (scale, *others)]
    stream = np.ascontiguousarray(np.concatenate(parts, 1)).reshape(-1)
    way = "/".join([ROWS, *(["saturate"] if last >= _HALF else []), *_fixed_way(fixed)])
    scratch = spec.kernel[0] * ring_columns(spec) * spec.channels
    expression, count = canonical(epilogue)
    elements = tuple(e.operand for e in epilogue.elements)
    made = replace(
        spec,
        expression=expression,
        operands=(*_channel_operands(spec.channels, count), *(spec.operands[i] for i in elements)),
        way=way,
        streamed=count,
        scratch=scratch,
        w_size=stream.size,
    )
    return Packed(made, stream, elements)


def _useful(fixed: FixedPoint | None) -> FixedPoint | None:
    """`fixed` where enough tiles of channels have factors: the others cost more than real numbers alone."""
    if fixed is None:
        return None
    whole = (fixed.factor.reshape(-1, _TILE) >= 0).all(1)
    return fixed if whole.mean() > _WORTHWHILE else None


def _fixed_way(fixed: FixedPoint | None) -> list[str]:
    return [] if fixed is None else [f"{FIXED}{fixed.shift}"]


def _factors(scale: Array, fixed: FixedPoint | None) -> Array:
    """What sums are multiplied with, [tiles, 4] words: scales, or with `fixed` the factors of tiles that have them and
    the negated scales of others: the sign tells which."""
    if fixed is None:
        return scale.view(np.int32)
    factor = fixed.factor.reshape(scale.shape)
    whole = (factor >= 0).all(1, keepdims=True)
    return np.where(whole, factor.astype(np.int32), (-scale).view(np.int32))


def _channel_operands(channels: int, count: int) -> tuple[Operand, ...]:
    return tuple(Operand("float32" if i else "int32", (0, 0, 0, 1), channels) for i in range(count))


_OFFSETS = 4096  # that a load has room for


def _fits_rows(spec: SmallDepthwiseSpec) -> bool:
    """A kernel whose weights fit the float registers, and rows of the image that loads reach from one address."""
    (height, width), channels = spec.kernel, spec.channels
    reach = (height - 1) * ring_columns(spec) * channels + (spec.stride[1] + width) * channels
    strides = spec.stride[0] <= height and spec.stride[1] <= width and spec.dilation == (1, 1)
    places = spec.x_strides[2] == spec.y_strides[2] == channels and spec.out[1] > 1 and spec.batch == 1
    fits = height * width <= _WEIGHTS and channels % _TILE == 0 and reach < _OFFSETS
    return strides and places and fits and spec.y_dtype in ("int8", "uint8")


def _fits(spec: SmallConvSpec) -> bool:
    """Rows of windows and all places of the result lie without gaps."""
    _, _, xw = spec.x_strides
    _, yh, yw = spec.y_strides
    rows = spec.kernel[1] == 1 or (spec.dilation[1] == 1 and xw == spec.ic)
    gapless = (yw == spec.oc or spec.out[1] == 1) and (spec.out[0] == 1 or yh == spec.out[1] * spec.oc)
    return spec.batch == 1 and rows and gapless and spec.y_dtype in ("int8", "uint8", "float32")


def _streams(spec: SmallConvSpec | SmallDepthwiseSpec, epilogue: Epilogue, operands: Sequence[Array | None]) -> bool:
    """Whether all that is read are constants of channels, and elements that lie as the result does."""
    channels = spec.oc if isinstance(spec, SmallConvSpec) else spec.channels
    streamed = streamed_operands(spec.expression, epilogue)
    if any(operands[i] is None for i in streamed):
        return False
    elements = [spec.operands[e.operand] for e in epilogue.elements]
    if len(elements) + len(streamed) != len(spec.operands):
        return False
    if elements and channels % _TILE:
        return False
    if epilogue.last is not None and any(e.dtype == "float32" for e in epilogue.elements):
        return False  # a NaN among them would have to become the lowest byte
    return all(_lies_alike(spec, o) for o in elements)


def _lies_alike(spec: SmallConvSpec | SmallDepthwiseSpec, operand: Operand) -> bool:
    """Whether an operand has an element for each result, in its order and with the same gaps."""
    _, h, w, c = operand.strides
    _, yh, yw = spec.y_strides
    return c == 1 and (w == yw or spec.out[1] == 1) and (h == yh or spec.out[0] == 1)


def _constant_channels(epilogue: Epilogue, w: Array, bias: Array, scale: Array) -> tuple[Array, Array]:
    """Bias and scale with other numbers for channels without weights, whose biases may be so large that all sums of
    the layer would need more bits: a power of two and what makes it the result that the channel has everywhere."""
    first = epilogue.steps[0] if epilogue.steps else None
    instr = first.requantize if isinstance(first, Round) else epilogue.last if first is None else None
    dead = ~w.reshape(w.shape[0], -1).any(1)
    if instr is None or instr.params[3] != 1.0 or not dead.any():
        return bias, scale
    result = requantize(bias.astype(np.int32).astype(np.float32) * scale, instr).astype(np.float32)
    level = result - np.float32(instr.params[2])
    start = np.where(level < 0, -_CONSTANT, _CONSTANT)
    return np.where(dead, start, bias), np.where(dead, np.abs(level) / np.float32(_CONSTANT), scale)


def _sums(w: Array, bias: Array) -> tuple[Array, Array]:
    """Bounds of each channel's sum, and of all its partial sums."""
    flat = w.reshape(w.shape[0], -1).astype(np.int64)
    low = np.minimum(flat * -128, flat * 127).sum(1) + bias
    high = np.maximum(flat * -128, flat * 127).sum(1) + bias
    return low, high


def _shares_words(w: Array, low: Array, high: Array) -> bool:
    """Whether 256 * b + a fits 16 bits for all pairs of channels, and all sums of b fit 24."""
    limit = 1 << _SUM_BITS
    fits = low[1::2].min(initial=0) >= -limit and high[1::2].max(initial=0) < limit
    flat = w.reshape(w.shape[0], -1)
    borrows = (flat[1::2] == -128) & (flat[: len(flat) // 2 * 2 : 2] < 0)
    return bool(fits) and not borrows.any()


def _divides(scale: Array) -> bool:
    """Whether 1/256 of each scale is as exact."""
    return bool(((scale == 0) | (np.abs(scale) > 2.0**-110)).all())


def _collapsed(spec: SmallConvSpec) -> SmallConvSpec:
    """A 1 x 1 convolution whose places follow each other in memory as one row of places."""
    _, xh, xw = spec.x_strides
    plain = spec.kernel == (1, 1) and spec.stride == (1, 1) and spec.image == spec.out and spec.pads == (0, 0)
    if not plain or spec.out[0] == 1 or xh != spec.out[1] * xw:
        return spec
    row = (1, spec.out[0] * spec.out[1])
    return replace(spec, image=row, out=row, x_strides=(0, 0, xw), y_strides=(0, 0, spec.y_strides[2]))


def _stream(
    spec: SmallConvSpec,
    w: Array,
    bias: Array,
    scale: Array,
    others: Sequence[Array],
    wide: bool,
    fixed: FixedPoint | None,
) -> Array:
    """int32 words: for each tile the first values of the sums, the steps, the scales, `others`."""
    rows, run = window_rows(spec)
    tile = tile_channels(spec)
    tiles = -(-spec.oc // tile)
    missing = tiles * tile - spec.oc
    flat = np.pad(w.reshape(spec.oc, rows, run), ((0, missing), (0, 0), (0, 0))).astype(np.int32)
    bias = np.pad(bias, (0, missing))
    scale = np.pad(scale.astype(np.float32), (0, missing))
    steps = np.zeros((tiles * tile, rows, row_steps(run), 2), np.int32)
    for number, (first, second) in enumerate(pair_order(run)):
        steps[:, :, number, 0] = flat[:, :, first]
        if second >= 0:
            steps[:, :, number, 1] = flat[:, :, second]
    pairs = steps.reshape(tiles, tile // 2, 2, -1, 2)  # tile, pair of channels, a or b, step, half
    a, b = pairs[:, :, 0], pairs[:, :, 1]
    half = (a & 0xFF) | (b & 0xFF) << 8 if wide else (256 * b + a) & 0xFFFF
    words = (half[..., 0] | half[..., 1] << 16).transpose(0, 2, 1).reshape(tiles, -1)  # step by step, pair by pair
    starts = bias.reshape(tiles, tile // 2, 2).astype(np.int64)
    factors = scale.reshape(tiles, tile // 2, 2).copy()
    if not wide:
        starts = np.stack([starts[..., 0], 256 * starts[..., 1] + starts[..., 0]], -1)
        factors[..., 1] *= np.float32(1 / 256)
    parts = [_words(starts.reshape(tiles, -1)), _words(words), _factors(factors.reshape(tiles, -1), fixed)]
    for numbers in others:
        parts.append(np.pad(numbers, (0, missing)).reshape(tiles, -1).view(np.int32))
    return np.ascontiguousarray(np.concatenate(parts, 1)).reshape(-1)


def _words(values: Array) -> Array:
    """The low 32 bits."""
    return np.asarray(values).astype(np.int64).astype(np.uint64).astype(np.uint32).view(np.int32)
