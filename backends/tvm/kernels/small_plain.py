"""Integer convolutions of microcontrollers in plain scalar code: right on every target, fast on none.

A window that leaves the image is summed tap by tap, with the zero point in the place of what is not there: no border
is stored, and no place is read that does not exist. Other windows are summed by rows of contiguous bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from tvm import tirx

from irc.backends.tvm.geometry import spans
from irc.backends.tvm.kernels.builder import Expr, KernelBuilder, cast, const
from irc.backends.tvm.kernels.channels import operand_reader
from irc.backends.tvm.kernels.emit import emit_expression
from irc.backends.tvm.specs import SmallConvSpec, SmallDepthwiseSpec
from irc.targets.target import Target


def build_conv(symbol: str, spec: SmallConvSpec, target: Target) -> Any:
    """`symbol(x, w, operands..., y)`; w is [oc, kh, kw, ic]."""
    k = KernelBuilder(symbol, target)
    taps = spec.kernel[0] * spec.kernel[1]
    x = k.pointer("x", "int8", spec.x_size, shared=True)
    w = k.pointer("w", "int8", spec.oc * taps * spec.ic)
    operands = [k.pointer(f"e{i}", o.dtype, o.size, shared=o.strides[1] != 0) for i, o in enumerate(spec.operands)]
    y = k.pointer("y", spec.y_dtype, spec.y_size, shared=True)
    together = _channels_together(spec.oc)
    acc = k.local(together, "int32")
    each = taps * spec.ic  # weights of a channel
    _, sh, sw = spec.x_strides
    row = spec.kernel[1] * spec.ic if spec.dilation[1] == 1 and sw == spec.ic else 0  # bytes of a row of the window

    def add(value: Expr, weight: Expr) -> None:
        wide = k.let(cast(value, "int32"))
        for c in range(together):
            k.store(acc, c, k.load(acc, c) + wide * cast(k.load(w, weight + c * each), "int32"))

    def dot(at: Expr, weights: Expr, count: int) -> None:
        for first, turns, size in spans(count, min(_STEPS, count)):
            with k.loop(turns, "i") as turn:
                start = k.let(turn * size + first, "i")
                for i in range(size):
                    add(k.load(x, at + start + i), weights + start + i)

    def inside(at: Expr, weights: Expr) -> None:
        with k.loop(spec.kernel[0], "kh") as kh:
            line = k.let(at + kh * (spec.dilation[0] * sh), "xr")
            first = k.let(weights + kh * (spec.kernel[1] * spec.ic), "wr")
            if row:
                dot(line, first, row)
                return
            with k.loop(spec.kernel[1], "kw") as kw:
                dot(line + kw * (spec.dilation[1] * sw), first + kw * spec.ic, spec.ic)

    def crossing(at: Expr, weights: Expr, top: Expr, left: Expr) -> None:
        with k.loop(spec.kernel[0], "kh") as kh, k.loop(spec.kernel[1], "kw") as kw:
            r, c = k.let(top + kh * spec.dilation[0], "r"), k.let(left + kw * spec.dilation[1], "c")
            tap = k.let(at + kh * (spec.dilation[0] * sh) + kw * (spec.dilation[1] * sw), "xt")
            first = k.let(weights + (kh * spec.kernel[1] + kw) * spec.ic, "wt")
            here = _exists(r, c, spec.image)
            with k.when(here):
                dot(tap, first, spec.ic)
            with k.when(tirx.Not(here)), k.loop(spec.ic, "i") as i:
                add(const(spec.fill, "int8"), first + i)

    with _places(k, spec) as (n, h, col, at, top, left, whole), k.loop(spec.oc // together, "c") as t:
        c = k.let(t * together, "c")
        for i in range(together):
            k.store(acc, i, const(0, "int32"))
        weights = k.let(c * each, "wb")
        with k.when(whole):
            inside(at, weights)
        if whole is not None:
            with k.when(tirx.Not(whole)):
                crossing(at, weights, top, left)
        for i in range(together):
            _write(k, spec, operands, y, [n, h, col], c + i, k.load(acc, i))
    return k.finish()


_STEPS = 4  # of a sum in one turn of the loop


def _channels_together(channels: int) -> int:
    """Channels that are summed side by side: what is loaded of the data serves all of them."""
    return next(n for n in (4, 3, 2, 1) if channels % n == 0)


def build_depthwise(symbol: str, spec: SmallDepthwiseSpec, target: Target) -> Any:
    """`symbol(x, w, operands..., y)`; w is [kh, kw, channels]."""
    k = KernelBuilder(symbol, target)
    taps = spec.kernel[0] * spec.kernel[1]
    x = k.pointer("x", "int8", spec.x_size, shared=True)
    w = k.pointer("w", spec.w_dtype, taps * spec.channels)
    operands = [k.pointer(f"e{i}", o.dtype, o.size, shared=o.strides[1] != 0) for i, o in enumerate(spec.operands)]
    y = k.pointer("y", spec.y_dtype, spec.y_size, shared=True)
    acc = k.local(1, "int32")
    _, sh, sw = spec.x_strides

    def window(at: Expr, c: Expr, here: Callable[[Expr, Expr], Expr | None]) -> None:
        with k.loop(spec.kernel[0], "kh") as kh, k.loop(spec.kernel[1], "kw") as kw:
            tap = k.let(at + kh * (spec.dilation[0] * sh) + kw * (spec.dilation[1] * sw) + c, "xt")
            weight = k.let(cast(k.load(w, (kh * spec.kernel[1] + kw) * spec.channels + c), "int32"), "wt")
            exists = here(kh, kw)
            with k.when(exists):
                k.store(acc, 0, k.load(acc, 0) + cast(k.load(x, tap), "int32") * weight)
            if exists is not None:
                with k.when(tirx.Not(exists)):
                    k.store(acc, 0, k.load(acc, 0) + const(spec.fill, "int32") * weight)

    with _places(k, spec) as (n, h, col, at, top, left, whole), k.loop(spec.channels, "c") as c:

        def exists(kh: Expr, kw: Expr, top: Expr = top, left: Expr = left) -> Expr:
            return _exists(top + kh * spec.dilation[0], left + kw * spec.dilation[1], spec.image)

        k.store(acc, 0, const(0, "int32"))
        with k.when(whole):
            for kh, kw in itertools.product(*map(range, spec.kernel)):
                tap = k.load(x, at + (kh * (spec.dilation[0] * sh) + kw * (spec.dilation[1] * sw)) + c)
                weight = k.load(w, (kh * spec.kernel[1] + kw) * spec.channels + c)
                k.store(acc, 0, k.load(acc, 0) + cast(tap, "int32") * cast(weight, "int32"))
        if whole is not None:
            with k.when(tirx.Not(whole)):
                window(at, c, exists)
        _write(k, spec, operands, y, [n, h, col], c, k.load(acc, 0))
    return k.finish()


def _exists(row: Expr, column: Expr, image: tuple[int, int]) -> Expr:
    height, width = image
    return tirx.all(row >= 0, row < height, column >= 0, column < width)


def conditions_inside(spec: SmallConvSpec | SmallDepthwiseSpec, top: Expr, left: Expr) -> list[Expr]:
    """What has to hold for the window at row `top` and column `left` to lie in the image: nothing where all do."""
    found = []
    for axis, first in enumerate((top, left)):
        reach = (spec.kernel[axis] - 1) * spec.dilation[axis]
        last = (spec.out[axis] - 1) * spec.stride[axis] - spec.pads[axis] + reach
        if spec.pads[axis] > 0:
            found.append(first >= 0)
        if last >= spec.image[axis]:
            found.append(first < spec.image[axis] - reach)
    return found


class _places:
    """The loops over places: (image, row, column, first element of the window, its row and column, condition that the
    window lies in the image). The condition is None where every window does."""

    def __init__(self, k: KernelBuilder, spec: SmallConvSpec | SmallDepthwiseSpec) -> None:
        self.k, self.spec = k, spec
        self.loops: list[Any] = []

    def __enter__(self) -> tuple[Expr, Expr, Expr, Expr, Expr, Expr, Expr | None]:
        k, spec = self.k, self.spec
        sn, sh, sw = spec.x_strides
        self.loops = [k.loop(spec.batch, "n"), k.loop(spec.out[0], "h"), k.loop(spec.out[1], "w")]
        n, h, col = (loop.__enter__() for loop in self.loops)
        top = k.let(h * spec.stride[0] - spec.pads[0], "top")
        left = k.let(col * spec.stride[1] - spec.pads[1], "left")
        at = k.let(n * sn + top * sh + left * sw, "at")
        conditions = conditions_inside(spec, top, left)
        return n, h, col, at, top, left, tirx.all(*conditions) if conditions else None

    def __exit__(self, *problem: Any) -> None:
        for loop in reversed(self.loops):
            loop.__exit__(*problem)


def _write(
    k: KernelBuilder,
    spec: SmallConvSpec | SmallDepthwiseSpec,
    operands: list[Any],
    y: Any,
    place: list[Expr],
    channel: Expr,
    total: Expr,
) -> None:
    read = operand_reader(k, operands, spec.operands, place, channel)
    value = emit_expression(k, spec.expression, 1, read, k.let(total, "sum"))
    yn, yh, yw = spec.y_strides
    k.store(y, place[0] * yn + place[1] * yh + place[2] * yw + channel, value)
