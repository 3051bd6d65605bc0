"""Convolutions and matrix products of real numbers for C source.

A tile is 4 places by 8 channels, in vectors where the compiler has them (`helpers.py`). Weights stand in tiles of 8
channels, [kh, kw, ic, 8], the last with as many as there are.
"""

from __future__ import annotations

from irc.backends.c.numbers import ctype
from irc.backends.tvm.source.window import ConvSource, Epilogue, Text, offset, vectors
from irc.backends.tvm.specs import SmallConvSpec, SmallDepthwiseSpec
from irc.targets.target import Target

TILE = 8
_PLACES = 4


class RealConv(ConvSource):
    """`symbol(x, w, operands..., y)`."""

    x_type = "float"

    def __init__(self, symbol: str, spec: SmallConvSpec, target: Target) -> None:
        super().__init__(symbol, spec, target)
        self.places = 1 if self.total == 1 else _PLACES
        self.padded = self.apart = self.reduction

    @property
    def x_dtype(self) -> str:
        return "float32"

    def _declare(self) -> None:
        t, n = self.t, self.places
        if not self._is_plain():
            t.put(f"float xs[N{n * self.reduction}];")
        t.put(f"const float *xp[{n}];", f"float acc[{n * TILE}];")

    def _window(self, target: str, at: str) -> None:
        n = "n" if self.total > 1 else "0"
        spec = self.spec
        if self._is_plain():
            b, h, w = spec.x_strides
            place = self._at((b, h * spec.stride[0], w * spec.stride[1]))
            self.t.put(f"xp[{n}] = x + ({place});")
            return
        super()._window(target, at)
        self.t.put(f"xp[{n}] = {target} + {at};")

    def _window_function(self) -> str:
        return "irc_window_f32"

    def _fill(self) -> str:
        return ""

    def _in_rows(self) -> bool:
        return False

    def _channels(self, count: str) -> None:
        spec, t = self.spec, self.t
        if self.total > 1:
            t.put(f"for (int32_t i = n; i < {self.places}; i++) xp[i] = xp[0];")
        t.put(f"for (int32_t o = 0; o < {spec.oc}; o += {TILE}) {{")
        t.put(f"const float *const v = w + (ptrdiff_t)o * {self.reduction};".replace("*const v ", "*const from "))
        rest = spec.oc % TILE
        t.put(f"const int32_t m = irc_least({spec.oc} - o, {TILE});" if rest else f"const int32_t m = {TILE};")
        tile = f"irc_tile{self.places}(xp, from, {self.reduction}, acc);"
        if rest:
            last = f"irc_rest(xp, {self.places}, from, {self.reduction}, m, acc);"
            t.put(f"if (m == {TILE}) {tile}", f"else {last}") if spec.oc > TILE else t.put(last)
        else:
            t.put(tile)
        self._write(count)
        t.put("}")

    def _write(self, count: str) -> None:
        spec, t = self.spec, self.t
        single = self.total == 1
        if not single:
            t.put(f"for (int32_t p = 0; p < {count}; p++) {{")
        t.put("float *const sums = acc" + ("" if single else f" + p * {TILE}") + ";")
        target = "sums" if spec.y_dtype == "float32" else "out"
        if target == "out":
            t.put(f"{ctype(spec.y_dtype)} out[{TILE}];")
        lines = self._expression(target)
        t.put("for (int32_t c = 0; c < m; c++) {")
        t.add(lines)
        t.put("}")
        t.put(f"memcpy({'y' if single else 'ys[p]'} + o, {target}, (size_t)m * sizeof(*{target}));")
        if not single:
            t.put("}")

    def _expression(self, target: str) -> list[str]:
        spec, t = self.spec, self.t
        single, moving = self.total == 1, self.epilogue.moving()
        for i in moving:
            source = f"e{i}" if single else f"fs{i}[p]"
            plus = " + o" if spec.operands[i].strides[-1] else ""
            t.put(f"const {ctype(spec.operands[i].dtype)} *const f{i} = {source}{plus};")
        lines = self.epilogue.lines(t.depth + 1, target, "c", "sums[c]")
        for i, o in enumerate(spec.operands):
            if o.strides[-1] and i not in moving:
                lines = [line.replace(f"e{i}[c]", f"e{i}[o + c]") for line in lines]
        return lines


class RealDepthwise:
    """`symbol(x, w, operands..., y)`; weights [kh, kw, channels]. Windows are clipped to the image."""

    def __init__(self, symbol: str, spec: SmallDepthwiseSpec, target: Target) -> None:
        self.spec, self.symbol = spec, symbol
        self.epilogue = Epilogue(spec, "float32", target, symbol)
        self.t = Text()

    def build(self) -> str:
        spec, t = self.spec, self.t
        y = ctype(spec.y_dtype)
        parameters = ["const float *x", "const float *IRC_RESTRICT w", *self.epilogue.parameters(), f"{y} *y"]
        t.put(f"static void {self.symbol}({', '.join(parameters)})", "{", f"float acc[N{spec.channels}];")
        target = "acc" if spec.y_dtype == "float32" else "out"
        if target == "out":
            t.put(f"{y} out[N{spec.channels}];")
        if spec.batch > 1:
            t.put(f"for (int32_t b = 0; b < {spec.batch}; b++) {{")
        t.put(f"for (int32_t h = 0; h < {spec.out[0]}; h++) {{", f"for (int32_t v = 0; v < {spec.out[1]}; v++) {{")
        image = offset([("b", spec.x_strides[0] if spec.batch > 1 else 0)])
        t.put(
            f"irc_depthwise(x + ({image}), w, h * {spec.stride[0]} - {spec.pads[0]}, "
            f"v * {spec.stride[1]} - {spec.pads[1]}, {spec.kernel[0]}, {spec.kernel[1]}, {spec.dilation[0]}, "
            f"{spec.dilation[1]}, {spec.image[0]}, {spec.image[1]}, {spec.x_strides[1]}, {spec.x_strides[2]}, "
            f"{spec.channels}, acc);"
        )
        for i in self.epilogue.moving():
            o = spec.operands[i]
            t.put(f"const {ctype(o.dtype)} *const f{i} = e{i} + ({self._at(o.strides)});")
        lines = self.epilogue.lines(t.depth + 1, target, "c", "acc[c]")
        vectors(t, spec.channels, lines, TILE)
        t.put(f"memcpy(y + ({self._at(spec.y_strides)}), {target}, {spec.channels} * sizeof(*{target}));")
        t.put("}", "}", *["}"] * (spec.batch > 1), "}")
        return t.done(self.epilogue.bounds)

    def _at(self, strides: tuple[int, ...]) -> str:
        return offset([("b", strides[0] if self.spec.batch > 1 else 0), ("h", strides[1]), ("v", strides[2])])
