"""Depthwise convolutions of C source.

The rows of the image under a row of results are copied first, as 16-bit numbers with the border around them. They stand
in a ring, so that each byte is widened once. All taps of neighbouring channels are then one expression of contiguous
arrays. A product of bytes fits 16 bits, and two do where no weight is -128.
"""

from __future__ import annotations

from irc.backends.c.numbers import ctype
from irc.backends.tvm.plan.source import chunk_of
from irc.backends.tvm.small import CHUNKS_WIDE, SOURCE, SOURCE_WIDE
from irc.backends.tvm.source.window import Epilogue, Text, offset, vectors
from irc.backends.tvm.specs import SmallDepthwiseSpec
from irc.targets.target import Target

_UNROLLED = 9
"""Taps whose products are one expression."""
_TWICE = 8
"""Channels of which two places fill a vector."""


class DepthwiseSource:
    """`symbol(x, w, operands..., y)`; weights [kh, kw, channels]."""

    def __init__(self, symbol: str, spec: SmallDepthwiseSpec, target: Target) -> None:
        self.spec, self.symbol = spec, symbol
        self.epilogue = Epilogue(spec, "int8", target, symbol)
        self.kh, self.kw = spec.kernel
        self.taps = self.kh * self.kw
        self.chunk = spec.channels if spec.way in (SOURCE, SOURCE_WIDE) else chunk_of(spec)
        self.width = (spec.out[1] - 1) * spec.stride[1] + (self.kw - 1) * spec.dilation[1] + 1
        self.row = self.width * self.chunk
        self.ring = spec.dilation[0] == 1 and spec.stride[0] < self.kh
        together = spec.stride[1] == 1 and spec.out[1] % 2 == 0 and spec.y_strides[2] == _TWICE
        self.twice = spec.channels == _TWICE and together and not self.epilogue.moving() and self.taps <= _UNROLLED
        self.lanes = self.chunk * (2 if self.twice else 1)
        self.t = Text()

    def build(self) -> str:
        spec, t = self.spec, self.t
        y = ctype(spec.y_dtype)
        parameters = [
            "const int8_t *x",
            f"const {ctype(spec.w_dtype)} *IRC_RESTRICT w",
            *self.epilogue.parameters(),
            f"{y} *y",
        ]
        t.put(f"static void {self.symbol}({', '.join(parameters)})", "{")
        t.put(f"IRC_ALIGNED int16_t xs[N{self.kh * self.row}];")
        t.put(f"IRC_ALIGNED int16_t ws[N{self.taps * self.lanes}];", f"{y} out[N{self.lanes}];")
        if self.taps > _UNROLLED:
            t.put(f"int32_t acc[N{self.lanes}];")
        chunks = self.chunk < spec.channels
        if chunks:
            t.put(f"for (int32_t o = 0; o < {spec.channels}; o += {self.chunk}) {{")
        self._weights("o" if chunks else "0")
        self._operands()
        if spec.batch > 1:
            t.put(f"for (int32_t b = 0; b < {spec.batch}; b++) {{")
        if self.ring:
            t.put("int32_t row = 0;")
        t.put(f"for (int32_t h = 0; h < {spec.out[0]}; h++) {{")
        self._rows(chunks)
        if self.taps <= _UNROLLED:
            t.put(*(f"const int16_t *const line{i} = xs + {self._row(i)};" for i in range(self.kh)))
        self._places(chunks)
        t.put("}", *["}"] * (spec.batch > 1), *["}"] * chunks, "}")
        return t.done(self.epilogue.bounds)

    def _weights(self, first: str) -> None:
        """As 16-bit numbers; for two places at a time twice."""
        spec, t = self.spec, self.t
        plus = "" if first == "0" else f" + {first}"
        t.put(f"for (int32_t i = 0; i < {self.taps}; i++) {{", f"for (int32_t c = 0; c < {self.lanes}; c++) {{")
        channel = f"c % {self.chunk}" if self.twice else "c"
        t.put(f"ws[i * {self.lanes} + c] = w[i * {spec.channels}{plus} + {channel}];", "}", "}")

    def _operands(self) -> None:
        if not self.twice:
            return
        for i, o in enumerate(self.spec.operands):
            if o.strides[-1]:
                self.t.put(f"{ctype(o.dtype)} g{i}[{self.lanes}];")
                self.t.put(f"for (int32_t c = 0; c < {self.lanes}; c++) g{i}[c] = e{i}[c % {self.chunk}];")

    def _rows(self, chunks: bool) -> None:
        """The rows of the window, as wide as all places of a row of results need. Those that windows above have are
        there already, unless there are none."""
        spec, t = self.spec, self.t
        if not self.ring:
            self._copy("xs", f"h * {spec.stride[0]} - {spec.pads[0]}", self.kh, chunks)
            return
        t.put(f"for (; row < h * {spec.stride[0]} + {self.kh}; row++) {{")
        self._copy(f"xs + row % {self.kh} * {self.row}", f"row - {spec.pads[0]}", 1, chunks)
        t.put("}")

    def _row(self, i: int | str) -> str:
        """Where row `i` of the window stands."""
        return f"(h * {self.spec.stride[0]} + {i}) % {self.kh} * {self.row}" if self.ring else f"{i} * {self.row}"

    def _copy(self, target: str, first: str, count: int, chunks: bool) -> None:
        """`count` rows of the image from `first` on."""
        spec = self.spec
        image = offset([("b", spec.x_strides[0] if spec.batch > 1 else 0), ("o", int(chunks))])
        fill = str(spec.fill) if spec.fill >= 0 else f"({spec.fill})"
        self.t.put(
            f"irc_window_s8({target}, x + ({image}), {first}, 0 - {spec.pads[1]}, {count}, {self.width}, "
            f"{spec.dilation[0]}, 1, {spec.image[0]}, {spec.image[1]}, {spec.x_strides[1]}, {spec.x_strides[2]}, "
            f"{self.chunk}, {fill});"
        )

    def _at(self, strides: tuple[int, ...], chunks: bool) -> str:
        terms = [("b", strides[0] if self.spec.batch > 1 else 0), ("h", strides[1]), ("v", strides[2])]
        return offset([*terms, ("o", strides[3] if chunks and len(strides) > 3 else int(chunks and len(strides) == 3))])

    def _places(self, chunks: bool) -> None:
        spec, t = self.spec, self.t
        moving = self.epilogue.moving()
        step = "v += 2" if self.twice else "v++"
        t.put(f"for (int32_t v = 0; v < {spec.out[1]}; {step}) {{")
        if self.taps <= _UNROLLED:
            for i in range(self.kh):
                t.put(f"const int16_t *const p{i} = line{i} + v * {spec.stride[1] * self.chunk};")
        rename = {}
        for i, o in enumerate(spec.operands):
            if i in moving:
                t.put(f"const {ctype(o.dtype)} *const f{i} = e{i} + ({self._at(o.strides, chunks)});")
            elif self.twice and o.strides[-1]:
                rename[i] = f"g{i}[c]"
            elif chunks and o.strides[-1]:
                rename[i] = f"e{i}[o + c]"
        total = "s" if self.taps <= _UNROLLED else "acc[c]"
        lines = self.epilogue.lines(t.depth + 1, "out", "c", total)
        for i, name in rename.items():
            lines = [line.replace(f"e{i}[c]", name) for line in lines]
        if self.taps <= _UNROLLED:
            lines.insert(0, "    " * (t.depth + 1) + f"const int32_t s = {self._sum()};")
        else:
            self._accumulate()
        vectors(t, self.lanes, lines)
        t.put(f"memcpy(y + ({self._at(spec.y_strides, chunks)}), out, {self.lanes} * sizeof(*out));", "}")

    def _tap(self, i: int) -> str:
        """Its offsets are long, which keeps kernels of other offsets apart (`merge`): known ones cost no registers."""
        row, column = divmod(i, self.kw)
        at = column * self.spec.dilation[1] * self.chunk
        return f"p{row}[{f'{at}L + ' if at else ''}c] * ws[{f'{i * self.lanes}L + ' if i else ''}c]"

    def _sum(self) -> str:
        if self.spec.w_dtype != "int8":
            return " + ".join(self._tap(i) for i in range(self.taps))
        size = 1 if self.spec.way in (SOURCE_WIDE, CHUNKS_WIDE) else 2
        groups = [range(i, min(i + size, self.taps)) for i in range(0, self.taps, size)]
        return " + ".join(f"(int16_t)({' + '.join(self._tap(i) for i in group)})" for group in groups)

    def _accumulate(self) -> None:
        t, spec = self.t, self.spec
        t.put("memset(acc, 0, sizeof acc);", f"for (int32_t i = 0; i < {self.taps}; i++) {{")
        place = f"v * {spec.stride[1] * self.chunk} + i % {self.kw} * {spec.dilation[1] * self.chunk}"
        t.put(f"const int16_t *const from = xs + ({self._row(f'i / {self.kw}')} + {place});")
        t.put(f"const int16_t *const by = ws + i * {self.lanes};")
        vectors(t, self.lanes, ["    " * (t.depth + 1) + "acc[c] += from[c] * by[c];"])
        t.put("}")


def depthwise_source(symbol: str, spec: SmallDepthwiseSpec, target: Target) -> str:
    return DepthwiseSource(symbol, spec, target).build()
