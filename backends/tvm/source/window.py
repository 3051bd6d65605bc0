"""Convolutions and matrix products of C source: written in C, with the expression of the specification printed.

Windows of a few places are copied side by side first, bytes as 16-bit numbers, with the fill in the place of what lies
outside of the image. What remains are dot products of contiguous arrays, which C compilers turn into the vector
instructions that there are (`helpers.py`), and an expression over neighbouring channels.
"""

from __future__ import annotations

import math
import re
from typing import Any

import tvm
from tvm import tirx

from irc.backends.c.helpers import DISTANCES
from irc.backends.c.numbers import ctype
from irc.backends.tvm.kernels.builder import KernelBuilder
from irc.backends.tvm.kernels.emit import emit_expression
from irc.backends.tvm.magnitude import magnitudes, sum_limit
from irc.backends.tvm.plan.source import CHANNELS, MOST, STEP
from irc.backends.tvm.source.printer import Printer
from irc.backends.tvm.specs import SmallConvSpec, SmallDepthwiseSpec
from irc.targets.target import Target

_MAGIC = 0x4B400000
"""Bits of 1.5 * 2**23: a number that is added to it stands in its low bits, rounded."""
_AFTER = re.compile(
    r"irc_min_int32\(irc_max_int32\(\(int32_t\)irc_bits_of_float32\((.*) \+ 12582912\.0f\), (\d+)\), (\d+)\)"
)
_BEFORE = re.compile(r"irc_min_float32\(irc_max_float32\((.*), (\(?-?[\d.]+f\)?)\), (\(?-?[\d.]+f\)?)\)")


def places_at_once(places: int, reduction: int) -> int:
    """How many windows are copied side by side: enough to use each weight often, few on small images and where they
    would take much of the stack."""
    if places == 1:
        return 1
    costs = {4: 8.0, 8: 7.0, 9: 6.9} if reduction <= 1024 else {4: 8.0}  # instructions for 16 products with SSE2
    return min(costs, key=lambda p: -(-places // p) * p * costs[p])


class Epilogue:
    """The expression of a kernel over neighbouring channels, printed."""

    def __init__(self, spec: SmallConvSpec | SmallDepthwiseSpec, x_dtype: str, target: Target, symbol: str) -> None:
        self.spec, self.target, self.symbol = spec, target, symbol
        self.real = x_dtype == "float32"
        reduction = spec.kernel[0] * spec.kernel[1] * (spec.ic if isinstance(spec, SmallConvSpec) else 1)
        limit = math.inf if self.real else sum_limit(x_dtype, reduction)
        self.bounds: list[str] = []
        """Declarations that the lines need."""
        self.limits = magnitudes(spec.expression, limit, [o.limit for o in spec.operands])

    def parameters(self) -> list[str]:
        """Declarations of the operands. What differs from place to place may lie where the output does."""
        moving = self.moving()
        return [
            f"const {ctype(o.dtype)} *{'' if i in moving else 'IRC_RESTRICT '}e{i}"
            for i, o in enumerate(self.spec.operands)
        ]

    def moving(self) -> list[int]:
        """Operands that differ from place to place."""
        several = [n > 1 for n in (self.spec.batch, *self.spec.out)]
        strides = [o.strides[:-1] for o in self.spec.operands]
        return [i for i, s in enumerate(strides) if any(a and b for a, b in zip(s, several, strict=True))]

    def lines(self, depth: int, target: str, index: str, acc: str) -> list[str]:
        """`target` = expression of `acc` for channel `c`; operand i begins at f{i} (see `moving`), others at e{i}."""
        k = KernelBuilder(self.symbol, self.target)
        spec = self.spec
        moving = self.moving()
        channel = tirx.Var("c", "int32")
        buffers = []
        for i, o in enumerate(spec.operands):
            buffers.append(k.pointer(f"f{i}" if i in moving else f"e{i}", o.dtype, o.size))
        out = k.pointer("OUT", spec.y_dtype, max(spec.y_size, 1))
        value = tirx.Var("ACC", "float32" if self.real else "int32")

        def read(n: int, lanes: int) -> Any:
            return k.load(buffers[n], channel if spec.operands[n].strides[-1] else 0)

        result = emit_expression(k, spec.expression, 1, read, value, limits=self.limits)
        k.store(out, channel, result)
        body = tirx.SeqStmt([*k._declared, *k._blocks[0]])
        function = tirx.PrimFunc([*k._params, channel, value], body).with_attr("global_symbol", self.symbol)
        function = function.with_attr("tirx.noalias", True)
        made = tvm.target.Target("c")
        made = made.with_host(made)
        passes = [tirx.transform.BindTarget(made), tirx.transform.LowerIntrin()]
        module = tvm.ir.transform.Sequential(passes)(tvm.IRModule({self.symbol: function}))
        lines = Printer(self.symbol).fragment(module[self.symbol], depth)
        if not self.real:
            self.bounds = []
            lines = [self._clamp(line) for line in lines]
        return [line.replace("OUT[c]", f"{target}[{index}]").replace("ACC", acc) for line in lines]

    def _clamp(self, line: str) -> str:
        """Clamps as real numbers, before these are rounded: the bounds are whole, so that the result is the same, and
        SSE2 has minima of real numbers only."""

        def first(m: re.Match[str]) -> str:
            low, high = (f"({v}.0f)" if v < 0 else f"{v}.0f" for v in (int(m[2]) - _MAGIC, int(m[3]) - _MAGIC))
            clamped = f"irc_min_float32(irc_max_float32({m[1]}, {low}), {high})"
            return f"(int32_t)irc_bits_of_float32({clamped} + 12582912.0f)"

        def bounds(m: re.Match[str]) -> str:
            n = len(self.bounds)
            self.bounds.append(f"const float low{n} = irc_hidden({m[2]}), high{n} = irc_hidden({m[3]});")
            return f"irc_min_float32(irc_max_float32({m[1]}, low{n}), high{n})"

        return _BEFORE.sub(bounds, _AFTER.sub(first, line), count=1)


class Text:
    """Lines of a function, indented by their braces. Empty ones are left out."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.depth = 0

    def put(self, *lines: str) -> None:
        for line in filter(None, lines):
            self.depth -= line.startswith("}")
            self.lines.append("    " * self.depth + line)
            self.depth += line.endswith("{")

    def add(self, lines: list[str]) -> None:
        """Lines that are indented already."""
        self.lines += lines

    def done(self, declarations: list[str]) -> str:
        """The function, with `declarations` at its beginning."""
        at = self.lines.index("{") + 1
        return "\n".join([*self.lines[:at], *("    " + d for d in declarations), *self.lines[at:], ""])


def vectors(text: Text, count: int, lines: list[str], step: int = CHANNELS) -> None:
    """`lines` for c = 0 to count - 1; `step` at a time, a number of steps that compilers can see, where the count
    allows it."""
    if count % step or count == step:
        text.put(f"for (ptrdiff_t c = 0; c < {count}; c++) {{")
        text.add(lines)
        text.put("}")
        return
    text.put(f"for (ptrdiff_t k = 0; k < {count}; k += {step}) {{")
    text.put(f"for (ptrdiff_t l = 0; l < {step}; l++) {{", "const ptrdiff_t c = k + l;")
    text.add(["    " + line for line in lines])
    text.put("}", "}")


def offset(terms: list[tuple[str, int]]) -> str:
    """Sum of name * stride without what is zero."""
    parts = [name if stride == 1 else f"{name} * {stride}" for name, stride in terms if stride]
    return " + ".join(parts) or "0"


def even_step(strides: tuple[int, ...], batch: int, out: tuple[int, int]) -> int | None:
    """How far places of `out` are from each other in memory with these strides (n, h, w); None where that differs."""
    height, width = out
    n, h, v = strides[:3]
    step = v if width > 1 else h if height > 1 else n
    even = (height == 1 or h == step * width) and (batch == 1 or n == step * width * height)
    return step if even else None


class ConvSource:
    """`symbol(x, w, operands..., y)`. Weights [oc, kh, kw, ic] and STEP zeros."""

    def __init__(self, symbol: str, spec: SmallConvSpec, target: Target) -> None:
        self.spec, self.symbol = spec, symbol
        self.epilogue = Epilogue(spec, "int8", target, symbol)
        self.reduction = spec.kernel[0] * spec.kernel[1] * spec.ic
        self.total = spec.batch * spec.out[0] * spec.out[1]
        self.places = places_at_once(self.total, self.reduction)
        self.padded = -(-self.reduction // STEP) * STEP
        self.apart = next(d for d in DISTANCES if d >= self.padded) if self.places > 1 else self.padded
        self.width = (spec.out[1] - 1) * spec.stride[1] + spec.kernel[1]
        results = [spec.y_strides, *(spec.operands[i].strides for i in self.epilogue.moving())]
        self.even = all(self._step_of(strides) is not None for strides in results)
        self.t = Text()

    def build(self) -> str:
        spec, t = self.spec, self.t
        y = ctype(spec.y_dtype)
        parameters = [
            "const int8_t *x",
            "const int8_t *IRC_RESTRICT w",
            *self.epilogue.parameters(),
            f"{y} *y",
        ]
        t.put(f"static void {self.symbol}({', '.join(parameters)})", "{")
        self._declare()
        self._walk()
        t.put("}")
        return t.done(self.epilogue.bounds)

    def _declare(self) -> None:
        t, n = self.t, self.places
        t.put(f"IRC_ALIGNED int16_t xs[N{n * self.apart}];")
        t.put(f"int32_t acc[N{n * CHANNELS}];")
        t.put(f"{ctype(self.spec.y_dtype)} out[{CHANNELS}];")
        if self._in_rows():
            t.put(f"int16_t rows[N{self._row_numbers()}];")
        if self.padded != self.reduction:
            t.put("memset(xs, 0, sizeof xs);")

    def _walk(self) -> None:
        """Places in groups: their windows, then their channels."""
        spec, t, n = self.spec, self.t, self.places
        if self.total == 1:
            self._place_one()
            self._channels("1")
            return
        if self._row_of_places() is not None and self.even:
            t.put(f"for (int32_t place = 0; place < {self.total}; place += {n}) {{")
            t.put(f"const int32_t n = irc_least({self.total} - place, {n});" if self.total % n else "")
            self._plain_windows()
            self._channels("n" if self.total % n else str(n))
            t.put("}")
            return
        if not self.even:
            t.put(f"{ctype(spec.y_dtype)} *ys[{n}];")
            for i in self.epilogue.moving():
                t.put(f"const {ctype(spec.operands[i].dtype)} *fs{i}[{n}];")
        t.put(f"int32_t {'b = 0, ' * (spec.batch > 1)}h = 0, v = 0;")
        t.put(f"for (int32_t next = 0; next < {self.total};) {{")
        t.put("const int32_t place = next;" if self.even else "", "int32_t n = 0;")
        t.put(f"for (; n < {n} && next < {self.total}; n++, next++) {{")
        self._window("xs", f"n * {self.apart}")
        if not self.even:
            t.put(f"ys[n] = y + ({self._at(spec.y_strides)});")
            for i in self.epilogue.moving():
                t.put(f"fs{i}[n] = e{i} + ({self._at(spec.operands[i].strides)});")
        t.put(f"if (++v == {spec.out[1]}) {{", "v = 0;", "h++;")
        if spec.batch > 1:
            t.put(f"if (h == {spec.out[0]}) {{", "h = 0;", "b++;", "}")
        t.put("}", "}")
        self._channels("n")
        t.put("}")

    def _plain_windows(self) -> None:
        """Windows of a group of places that lie in a row."""
        spec, t, step = self.spec, self.t, self._row_of_places()
        count = "n" if self.total % self.places else str(self.places)
        if step == self.apart:
            t.put(f"irc_widen_s8(xs, x + place * {step}, {count} * {step});")
            return
        t.put(f"for (int32_t i = 0; i < {count}; i++) {{")
        t.put(f"irc_widen_s8(xs + i * {self.apart}, x + (place + i) * {step}, {spec.ic});", "}")

    def _row_of_places(self) -> int | None:
        """How far single places of the image are from another, where this is the same for all."""
        n, h, w = self.spec.x_strides
        sh, sw = self.spec.stride
        return self._step_of((n, h * sh, w * sw)) if self._is_plain() else None

    def _step_of(self, strides: tuple[int, ...]) -> int | None:
        return even_step(strides, self.spec.batch, self.spec.out)

    def _there(self, name: str, strides: tuple[int, ...]) -> str:
        """Where place p of the group is, in the output or an operand."""
        if self.total == 1:
            return name
        if self.even:
            return f"{name} + (place + p) * {self._step_of(strides)}"
        return f"{'ys' if name == 'y' else name.replace('e', 'fs')}[p]"

    def _place_one(self) -> None:
        if not self._is_plain():
            self.t.put("const int32_t h = 0, v = 0;")
        self._window("xs", "0")

    def _at(self, strides: tuple[int, ...]) -> str:
        if self.total == 1:
            return "0"
        return offset([("b", strides[0] if self.spec.batch > 1 else 0), ("h", strides[1]), ("v", strides[2])])

    def _is_plain(self) -> bool:
        """Whether windows are single places of the image."""
        spec = self.spec
        inside = all((o - 1) * s < i for o, s, i in zip(spec.out, spec.stride, spec.image, strict=True))
        return spec.kernel == (1, 1) and spec.pads == (0, 0) and inside

    def _row_numbers(self) -> int:
        return self.spec.kernel[0] * self.width * self.spec.ic

    def _in_rows(self) -> bool:
        """Whether the rows of the image under a row of places are widened first, and windows are parts of these."""
        spec = self.spec
        return spec.out[1] > 1 and spec.kernel[1] > 1 and spec.dilation[1] == 1 and self._row_numbers() <= MOST

    def _window_in_rows(self, target: str, at: str) -> None:
        spec, t = self.spec, self.t
        kh, kw = spec.kernel
        t.put("if (v == 0) {")
        self._copy("rows", "0", self.width)
        t.put("}")
        row, source = kw * spec.ic, f"rows + (i * {self.width * spec.ic} + v * {spec.stride[1] * spec.ic})"
        t.put(f"for (int32_t i = 0; i < {kh}; i++) {{")
        t.put(f"memcpy({target} + {at} + i * {row}, {source}, {row} * sizeof(*{target}));", "}")

    def _window(self, target: str, at: str) -> None:
        spec = self.spec
        if self._is_plain():
            n, h, w = spec.x_strides
            place = "0" if self.total == 1 else self._at((n, h * spec.stride[0], w * spec.stride[1]))
            self.t.put(f"irc_widen_s8({target} + {at}, x + ({place}), {spec.ic});")
            return
        if self._in_rows():
            self._window_in_rows(target, at)
        else:
            self._copy(f"{target} + {at}", f"v * {spec.stride[1]}", spec.kernel[1])

    def _copy(self, target: str, column: str, count: int) -> None:
        """`count` columns of the image from `column`, less the border, on, in all rows of the window."""
        spec = self.spec
        image = offset([("b", spec.x_strides[0] if spec.batch > 1 else 0)])
        row, column = f"h * {spec.stride[0]} - {spec.pads[0]}", f"{column} - {spec.pads[1]}"
        sh, sw = spec.x_strides[1:]
        self.t.put(
            f"irc_window_s8({target}, x + ({image}), {row}, {column}, {spec.kernel[0]}, {count}, "
            f"{spec.dilation[0]}, {spec.dilation[1]}, {spec.image[0]}, {spec.image[1]}, {sh}, {sw}, {spec.ic}"
            f", {self.spec.fill if self.spec.fill >= 0 else f'({self.spec.fill})'});"
        )

    def _channels(self, count: str) -> None:
        spec, t = self.spec, self.t
        t.put(f"for (int32_t o = 0; o < {spec.oc}; o += {CHANNELS}) {{")
        whole = spec.oc % CHANNELS == 0
        t.put(f"const int32_t m = {CHANNELS};" if whole else f"const int32_t m = irc_least({spec.oc} - o, {CHANNELS});")
        self._dots()
        self._write(count)
        t.put("}")

    def _dots(self) -> None:
        """Sums of the channels from o on, for all places."""
        t = self.t
        if self.places > 1:
            row = f"w + (ptrdiff_t)o * {self.reduction}"
            name = f"irc_dot{self.places}_{self.apart}"
            t.put(f"{name}(xs, {self.padded // STEP}, {row}, {self.reduction}, m, acc);")
            return
        row = f"w + (ptrdiff_t)(o + c) * {self.reduction}"
        t.put("int32_t c = 0;")
        t.put(f"for (; c + 4 <= m; c += 4) irc_rows4(xs, {self.padded // STEP}, {row}, {self.reduction}, acc + c);")
        if self.spec.oc % 4:
            t.put(f"irc_dot{self.places}(xs, {self.padded // STEP}, {row}, {self.reduction}, m - c, acc + c);")

    def _write(self, count: str) -> None:
        """Results of the sums in acc[place * CHANNELS + channel], channels o to o + m - 1."""
        spec, t = self.spec, self.t
        single = self.total == 1
        if not single:
            t.put(f"for (int32_t p = 0; p < {count}; p++) {{")
        moving = self.epilogue.moving()
        size = ctype(spec.y_dtype)
        for i, o in enumerate(spec.operands):
            if o.strides[-1]:
                source = self._there(f"e{i}", o.strides) if i in moving else f"e{i}"
                kind = "f" if i in moving else "g"
                t.put(f"const {ctype(o.dtype)} *const {kind}{i} = {source} + o;")
            elif i in moving:
                t.put(f"const {ctype(o.dtype)} *const f{i} = {self._there(f'e{i}', o.strides)};")
        base = "acc[c]" if single else f"acc[p * {CHANNELS} + c]"
        lines = self.epilogue.lines(t.depth + 1, "out", "c", base)
        per_channel = {i for i, o in enumerate(spec.operands) if o.strides[-1] and i not in moving}
        for i in per_channel:
            lines = [line.replace(f"e{i}[c]", f"g{i}[c]") for line in lines]
        if spec.oc >= CHANNELS and spec.oc % CHANNELS:
            t.put(f"if (m == {CHANNELS}) {{")
            self._loop(f"c < {CHANNELS}", lines, 1)
            t.put("} else {")
            self._loop("c < m", lines, 1)
            t.put("}")
        else:
            self._loop(f"c < {CHANNELS}" if spec.oc % CHANNELS == 0 else "c < m", lines, 0)
        t.put(f"memcpy({self._there('y', spec.y_strides)} + o, out, (size_t)m * sizeof({size}));")
        if not single:
            t.put("}")

    def _loop(self, condition: str, lines: list[str], deeper: int) -> None:
        self.t.put(f"for (ptrdiff_t c = 0; {condition}; c++) {{")
        self.t.add(["    " * deeper + line for line in lines])
        self.t.put("}")


def conv_source(symbol: str, spec: SmallConvSpec, target: Target) -> str:
    return ConvSource(symbol, spec, target).build()
