"""Convolutions of real numbers by Winograd's minimal filtering (`tvm/winograd.py`) for C source.

Four tiles at a time: their windows are transformed into a matrix [tiles, channels] for every point; then, for eight
output channels, the products of all points, which are those of `real.py`, are transformed back and get the expression.
What lies outside of the image are zeros in a window; of results outside of it none is written. Weights stand in blocks
of eight channels, [points, ic, 8] each.
"""

from __future__ import annotations

import math

from irc.backends.c.transforms import input_name, output_name
from irc.backends.tvm.plan.source_winograd import TILES, tile_of
from irc.backends.tvm.source.window import Epilogue, Text, offset
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
        self.epilogue = Epilogue(spec, "float32", target, symbol)
        self.t = Text()

    def build(self) -> str:
        spec, t = self.spec, self.t
        points = math.prod(self.sizes)
        parameters = ["const float *x", "const float *IRC_RESTRICT w", *self.epilogue.parameters()]
        t.put(f"static void {self.symbol}({', '.join([*parameters, 'float *y', 'float *scratch'])})", "{")
        t.put(f"float *const s = scratch + {points * TILES * spec.ic};")
        t.put(f"int32_t bs[{TILES}], hs[{TILES}], vs[{TILES}], b = 0, h = 0, v = 0;", f"const float *xp[{TILES}];")
        tiles = spec.batch * math.prod(-(-o // m) for o, m in zip(spec.out, self.tile, strict=True))
        t.put(f"for (int32_t tile = 0; tile < {tiles};) {{", "int32_t n = 0;")
        t.put(f"for (; n < {TILES} && tile < {tiles}; n++, tile++) {{")
        self._input()
        t.put("}", f"for (int32_t o = 0; o < {spec.oc}; o += {_CHANNELS}) {{")
        t.put(f"for (int32_t p = 0; p < {points}; p++) {{")
        t.put(f"for (int32_t i = 0; i < {TILES}; i++) xp[i] = scratch + (p * {TILES} + (i < n ? i : 0)) * {spec.ic};")
        weights = f"w + (ptrdiff_t)(o * {points} + p * {_CHANNELS}) * {spec.ic}"
        t.put(f"irc_tile{TILES}(xp, {weights}, {spec.ic}, s + p * {_SUMS});", "}")
        self._output()
        t.put("}", "}", "}")
        return t.done(self.epilogue.bounds)

    def _input(self) -> None:
        """The window of a tile, transformed."""
        spec, t = self.spec, self.t
        rows, columns = self.sizes
        _, sh, sw = spec.x_strides
        image = offset([("b", spec.x_strides[0] if spec.batch > 1 else 0)])
        t.put(
            f"irc_window_f32(s, x + ({image}), h - {spec.pads[0]}, v - {spec.pads[1]}, {rows}, {columns}, 1, 1, "
            f"{spec.image[0]}, {spec.image[1]}, {sh}, {sw}, {spec.ic});"
        )
        row = columns * spec.ic
        if rows > 1:
            t.put(f"{input_name(rows)}(s, {row}, s, {row}, {row});")
        to = f"scratch + (i * {columns * TILES} + n) * {spec.ic}"
        t.put(f"for (int32_t i = 0; i < {rows}; i++) {{")
        if columns > 1:
            t.put(f"{input_name(columns)}(s + i * {row}, {spec.ic}, {to}, {TILES * spec.ic}, {spec.ic});")
        else:
            t.put(f"memcpy({to}, s + i * {row}, {spec.ic} * sizeof(*s));")
        t.put("}", "bs[n] = b;", "hs[n] = h;", "vs[n] = v;")
        t.put(f"if ((v += {self.tile[1]}) >= {spec.out[1]}) {{", "v = 0;")
        t.put(f"if ((h += {self.tile[0]}) >= {spec.out[0]}) {{", "h = 0;", "b++;", "}", "}")

    def _output(self) -> None:
        """The sums of eight channels transformed back, and the results that lie in the image."""
        spec, t = self.spec, self.t
        rows, columns = self.sizes
        row = columns * _SUMS
        if rows > 1:
            t.put(f"{output_name(self.tile[0], rows)}(s, {row}, s, {row}, {row});")
        if columns > 1:
            t.put(f"for (int32_t i = 0; i < {self.tile[0]}; i++) {{")
            at = f"s + i * {row}, {_SUMS}"
            t.put(f"{output_name(self.tile[1], columns)}({at}, {at}, {_SUMS});", "}")
        t.put("for (int32_t p = 0; p < n; p++) {", "const int32_t b1 = bs[p], h1 = hs[p], v1 = vs[p];")
        t.put(f"const int32_t high = irc_least({self.tile[0]}, {spec.out[0]} - h1);")
        t.put(f"const int32_t wide = irc_least({self.tile[1]}, {spec.out[1]} - v1);", "(void)b1;")
        t.put("for (int32_t i = 0; i < high; i++) {", "for (int32_t j = 0; j < wide; j++) {")
        t.put(f"float *const sums = s + ((i * {columns} + j) * {TILES} + p) * {_CHANNELS};")
        moving = self.epilogue.moving()
        for i in moving:
            plus = " + o" if spec.operands[i].strides[-1] else ""
            t.put(f"const float *const f{i} = e{i} + ({self._at(spec.operands[i].strides)}){plus};")
        lines = self.epilogue.lines(t.depth + 1, "sums", "c", "sums[c]")
        for i, operand in enumerate(spec.operands):
            if operand.strides[-1] and i not in moving:
                lines = [line.replace(f"e{i}[c]", f"e{i}[o + c]") for line in lines]
        t.put(f"for (int32_t c = 0; c < {_CHANNELS}; c++) {{")
        t.add(lines)
        t.put("}", f"memcpy(y + ({self._at(spec.y_strides)}) + o, sums, {_CHANNELS} * sizeof(*sums));", "}", "}", "}")

    def _at(self, strides: tuple[int, ...]) -> str:
        batch = strides[0] if self.spec.batch > 1 else 0
        return offset([("b1", batch), ("(h1 + i)", strides[1]), ("(v1 + j)", strides[2])])
