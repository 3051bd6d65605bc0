"""Convolutions of real numbers by Winograd's minimal filtering (`tvm/winograd.py`) for C source.

Four tiles at a time: their windows are transformed into a matrix [tiles, channels] for every point; then, for eight
output channels, the products of all points, which are those of `real.py`, are transformed back and get the expression.
What lies outside of the image are zeros in a window; of results outside of it none is written. Weights stand in blocks
of eight channels, [points, ic, 8] each.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from irc.backends.c.transforms import input_name, output_name
from irc.backends.tvm.plan.source_winograd import TILES, tile_of
from irc.backends.tvm.source.real import RealEpilogue, place_at
from irc.backends.tvm.source.window import Text
from irc.backends.tvm.specs import SmallConvSpec
from irc.backends.tvm.winograd import input_size
from irc.targets.target import Target

_CHANNELS = 8
_SUMS = TILES * _CHANNELS


class WinogradConv:
    """`symbol(x, w, operands..., y, scratch)`; scratch: transformed tiles, then a window or the sums of all points."""

    def __init__(self, symbol: str, spec: SmallConvSpec, target: Target) -> None:
        self.spec, self.symbol = spec, symbol
        self.tile = tile_of(spec.way)
        self.sizes = tuple(input_size(m, r) for m, r in zip(self.tile, spec.kernel, strict=True))
        self.epilogue = RealEpilogue(spec, target, symbol)
        self.t = Text()

    def build(self) -> str:
        spec, t = self.spec, self.t
        points = math.prod(self.sizes)
        parameters = ["const float *x", "const float *IRC_RESTRICT w", *self.epilogue.parameters()]
        t.put(f"static void {self.symbol}({', '.join([*parameters, 'float *y', 'float *scratch'])})", "{")
        t.put(f"float *const s = scratch + {points * TILES * spec.ic};")
        several = spec.batch > 1
        t.put(
            f"int32_t {f'bs[{TILES}], ' if several else ''}hs[{TILES}], vs[{TILES}];",
            f"const float *xp[{TILES}];",
            f"float *sp[{TILES}];",
        )
        high, wide = (-(-o // m) for o, m in zip(spec.out, self.tile, strict=True))
        tiles = spec.batch * high * wide
        t.put(f"for (int32_t tile = 0; tile < {tiles};) {{", "int32_t n = 0;")
        t.put(f"for (; n < {TILES} && tile < {tiles}; n++, tile++) {{")
        t.put(*[f"bs[n] = tile / {high * wide};"] * several, f"hs[n] = tile / {wide} % {high} * {self.tile[0]};")
        t.put(f"vs[n] = tile % {wide} * {self.tile[1]};")
        self._input()
        t.put("}", "const float *weights = w;")
        t.put(f"for (int32_t i = 0; i < {TILES}; i++) sp[i] = s + (i < n ? i : 0) * {_CHANNELS};")
        t.put(f"for (int32_t o = 0; o < {spec.oc}; o += {_CHANNELS}) {{")
        t.put(f"for (int32_t i = 0; i < {TILES}; i++) xp[i] = scratch + (i < n ? i : 0) * {spec.ic};")
        t.put(f"for (int32_t p = 0; p < {points}; p++) {{")
        t.put(
            f"irc_tiles{TILES}(xp, NULL, weights, {spec.ic}, 1, sp, p * {_SUMS}, p * {_SUMS} + {_CHANNELS});",
            f"weights += {_CHANNELS * spec.ic};",
        )
        t.put(f"for (int32_t i = 0; i < {TILES}; i++) xp[i] += {TILES * spec.ic};", "}")
        self._transform_back()
        self._results()
        t.put("}", "}", "}")
        return t.done([])

    def _input(self) -> None:
        """The window of a tile, transformed."""
        spec, t = self.spec, self.t
        rows, columns = self.sizes
        _, sh, sw = spec.x_strides
        image = f"x + bs[n] * {spec.x_strides[0]}" if spec.batch > 1 else "x"
        numbers = (rows, columns, 1, 1, *spec.image, sh, sw, spec.ic)
        corner = f"hs[n] - {spec.pads[0]}, vs[n] - {spec.pads[1]}"
        t.put("ptrdiff_t apart = 0;")
        t.put(f"const float *from = irc_window_f32(s, {image}, {corner}, {', '.join(map(str, numbers))}, &apart);")
        row = columns * spec.ic
        if rows > 1:
            t.put(f"{self._input_transform(0)}(from, apart, s, {row}, {row});", "from = s;")
        to = f"scratch + (i * {columns * TILES} + n) * {spec.ic}"
        t.put(f"for (int32_t i = 0; i < {rows}; i++) {{")
        if columns > 1:
            t.put(f"{self._input_transform(1)}(from + i * {row}, {spec.ic}, {to}, {TILES * spec.ic}, {spec.ic});")
        else:
            t.put(f"memcpy({to}, from + i * {row}, {spec.ic} * sizeof(*s));")
        t.put("}")

    def _transform_back(self) -> None:
        """The sums of eight channels."""
        t = self.t
        rows, columns = self.sizes
        row = columns * _SUMS
        if rows > 1:
            t.put(f"{self._output_transform(0)}(s, {row}, s, {row}, {row});")
        if columns > 1:
            at = f"s + i * {row}, {_SUMS}"
            t.put(f"for (int32_t i = 0; i < {self.tile[0]}; i++) {{")
            t.put(f"{self._output_transform(1)}({at}, {at}, {_SUMS});", "}")

    def _results(self) -> None:
        """Of eight channels: those that lie in the image."""
        spec, t = self.spec, self.t
        columns = self.sizes[1]
        t.put("for (int32_t p = 0; p < n; p++) {")
        t.put(f"for (int32_t i = 0; i < {self.tile[0]} && hs[p] + i < {spec.out[0]}; i++) {{")
        t.put(f"for (int32_t j = 0; j < {self.tile[1]} && vs[p] + j < {spec.out[1]}; j++) {{")
        t.put(f"const int32_t h = hs[p] + i, v = vs[p] + j{', b = bs[p]' if spec.batch > 1 else ''};")
        t.put(f"float *const tile_sums = s + ((i * {columns} + j) * {TILES} + p) * {_CHANNELS};")
        self.epilogue.put(t, "tile_sums", "y", _CHANNELS, "o")
        y = place_at(spec.y_strides, several=spec.batch > 1)
        t.put(f"memcpy(y + ({y}) + o, tile_sums, {_CHANNELS} * sizeof(*y));", "}", "}", "}")

    def _transform(self, axis: int, name: Callable[[int], str]) -> str:
        """The name of a transform along an axis. Where tiles are those of 3 x 3 kernels, both that there are: kernels
        of either tile are one function then."""
        if self.spec.kernel != (3, 3) or self.tile[0] != self.tile[1]:
            return name(self.tile[axis])
        return f"({int(self.tile[0] == 4)} ? {name(4)} : {name(2)})"

    def _input_transform(self, axis: int) -> str:
        return self._transform(axis, lambda m: input_name(input_size(m, self.spec.kernel[axis])))

    def _output_transform(self, axis: int) -> str:
        return self._transform(axis, lambda m: output_name(m, input_size(m, self.spec.kernel[axis])))
