"""Convolutions and matrix products of real numbers for C source.

A tile is 4 places by 8 channels, in vectors where the compiler has them (`helpers.py`). Weights stand in tiles of 8
channels, [kh, kw, ic, 8], the last with as many as there are. Sums are written to where the results shall be; the
expression of a place is computed on them there, by a function for what most layers have (`Common`), otherwise printed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from irc.backends.c.numbers import ctype, real
from irc.backends.c.small import either
from irc.backends.tvm.source.window import Epilogue, Text, even_step, vectors
from irc.backends.tvm.specs import SmallConvSpec, SmallDepthwiseSpec
from irc.targets.target import Target

TILE = 8
_PLACES = 4
_FEW = 4096  # products that are over before it matters how they are computed


@dataclass(frozen=True)
class Common:
    """The expression sum + bias (operand 0), + operand 1 where there is one, clamped; None: not that one."""

    added: bool
    low: float
    high: float

    @staticmethod
    def of(spec: SmallConvSpec | SmallDepthwiseSpec, moving: list[int]) -> Common | None:
        code = spec.expression
        if spec.y_dtype != "float32" or not code or code[0].op != "accumulator":
            return None
        if not spec.operands or 0 in moving or spec.operands[0].strides[-1] != 1:
            return None
        if any(o.dtype != "float32" for o in spec.operands):
            return None
        at, added, low, high = 0, 0, -math.inf, math.inf
        for i, instr in enumerate(code[1:], 1):
            if instr.op == "operand":
                if instr.params != (added,) or added == 2:
                    return None
                continue
            if instr.op == "add" and sorted(instr.args) == [at, i - 1] and code[i - 1].op == "operand" and low < high:
                added += 1
            elif instr.op == "relu" and instr.args == (at,) and added and math.isinf(low):
                low = 0.0
            else:
                return None
            at = i
        if added != len(spec.operands) or at != len(code) - 1 or (added == 2 and spec.operands[1].strides[-1] != 1):
            return None
        return Common(added == 2, low, high)


def _small(common: Common | None, spec: SmallConvSpec | SmallDepthwiseSpec) -> list[str]:
    """The small form (`irc_conv_f32`) of a kernel as lines of C; empty where it has none."""
    deep = isinstance(spec, SmallDepthwiseSpec)
    ic, oc = (spec.channels, spec.channels) if isinstance(spec, SmallDepthwiseSpec) else (spec.ic, spec.oc)
    if common is None or spec.batch > 1 or oc % 4 or spec.dilation != (1, 1):
        return []
    whole = _is_whole(spec.x_strides, spec.image, ic) and _is_whole(spec.y_strides, spec.out, oc)
    if not whole or (common.added and not _is_whole(spec.operands[1].strides, spec.out, oc)):
        return []
    walk = (spec.stride[0], spec.pads[0], spec.stride[1], spec.pads[1])
    numbers = (*spec.out, *spec.kernel, *walk, *spec.image, ic, oc, int(deep), int(common.low == 0.0))
    if not all(0 <= n < 2**16 for n in numbers) or not math.isinf(common.high):
        return []
    table = f"    static const uint16_t numbers[{len(numbers)}] = {{{', '.join(map(str, numbers))}}};"
    return [table, "    irc_conv_f32(x, w, e0, e1, y, numbers);"]


def _is_whole(strides: tuple[int, ...], places: tuple[int, int], channels: int) -> bool:
    """Whether an image with these strides (n, h, w, ...) has no gaps."""
    height, width = places
    return (width == 1 or strides[2] == channels) and (height == 1 or strides[1] == width * channels)


class RealEpilogue:
    """The expression of a place, on its sums."""

    def __init__(self, spec: SmallConvSpec | SmallDepthwiseSpec, target: Target, symbol: str) -> None:
        self.spec = spec
        self.printed = Epilogue(spec, "float32", target, symbol)
        self.common = Common.of(spec, self.printed.moving())
        self.in_place = spec.y_dtype == "float32"

    def parameters(self) -> list[str]:
        """Operands. Of common expressions there are always two; nobody reads the second where it is NULL."""
        found = [f"const {ctype(o.dtype)} *IRC_RESTRICT e{i}" for i, o in enumerate(self.spec.operands)]
        if self.common is not None and not self.common.added:
            found.append("const float *IRC_RESTRICT e1 /* NULL */")
        return found

    def kernel(self, head: str, fast: Text) -> str:
        """The function with the body `fast`, and with its small form where it has one."""
        small = _small(self.common, self.spec)
        body = either(small, fast.lines) if small else fast.lines
        return "\n".join([head, "{", *body, "}", ""])

    def other(self) -> str:
        """Where the second operand of a common expression has the channels of the place (b, h, v)."""
        assert self.common is not None
        strides = self.spec.operands[1].strides if self.common.added else (0, 0, 0, 0)
        return f"{int(self.common.added)} ? e1 + ({place_at(strides, several=self.spec.batch > 1)}) : NULL"

    def finish(self, t: Text, sums: str, bias: str, other: str, count: int) -> None:
        """A common expression."""
        assert self.common is not None
        bounds = ", ".join(_bound(v) for v in (self.common.low, self.common.high))
        t.put(f"irc_finish({sums}, {bias}, {other}, {bounds}, {count});")

    def put(self, t: Text, sums: str, y: str, count: int, first: str = "") -> None:
        """Statements for `count` channels, from `first` on, of the place (b, h, v). Its sums begin at `sums`, results
        at `y`."""
        several, plus = self.spec.batch > 1, f" + {first}" if first else ""
        if self.common is not None:
            other = self.other()
            self.finish(t, sums, f"e0{plus}", f"{other.replace(' :', f'{plus} :')}", count)
            return
        moving, result = self.printed.moving(), "sums" if self.in_place else "results"
        lines = self.printed.lines(t.depth + 2, result, "c", "sums[c]")
        t.put("{")
        for i, o in enumerate(self.spec.operands):
            here = plus if o.strides[-1] else ""
            if i in moving:
                at = place_at(o.strides, several=several)
                t.put(f"const {ctype(o.dtype)} *const f{i} = e{i} + ({at}){here};")
            elif here:
                lines = [line.replace(f"e{i}[c]", f"e{i}[{first} + c]") for line in lines]
        t.put(f"{'' if self.in_place else 'const '}float *const sums = {sums};")
        if not self.in_place:
            t.put(f"{ctype(self.spec.y_dtype)} *const results = {y};")
        vectors(t, count, lines, TILE)
        if not moving:
            t.put("(void)h;", "(void)v;", *["(void)b;"] * several)
        t.put("}")


def place_at(strides: tuple[int, ...], *, several: bool) -> str:
    """Where the place (b, h, v) lies. All terms are there, whatever their strides, so that kernels look alike."""
    return f"h * {strides[1]} + v * {strides[2]}" + (f" + b * {strides[0]}" if several else "")


def _bound(value: float) -> str:
    """A literal that `merge.py` may make a parameter of."""
    if math.isinf(value):
        return "(-INFINITY)" if value < 0 else "(+INFINITY)"
    return real(value, "float32")


class RealConv:
    """`symbol(x, w, operands..., y)`."""

    def __init__(self, symbol: str, spec: SmallConvSpec, target: Target) -> None:
        self.spec, self.symbol = spec, symbol
        self.reduction = spec.kernel[0] * spec.kernel[1] * spec.ic
        self.total = spec.batch * spec.out[0] * spec.out[1]
        self.epilogue = RealEpilogue(spec, target, symbol)
        self.t = Text()

    def build(self) -> str:
        spec, t = self.spec, self.t
        y = ctype(spec.y_dtype)
        parameters = ["const float *x", "const float *IRC_RESTRICT w", *self.epilogue.parameters(), f"{y} *y"]
        head = f"static void {self.symbol}({', '.join(parameters)})"
        t.depth = 1
        if self.total > 1:
            self._places()
        else:
            self._single()
        return self.epilogue.kernel(head, t)

    def _is_in_place(self) -> bool:
        """Whether every window lies in the image, so that none is copied."""
        spec = self.spec
        rows = spec.kernel[1] == 1 or (spec.dilation[1] == 1 and spec.x_strides[2] == spec.ic)
        return (
            rows
            and spec.pads == (0, 0)
            and all(
                (o - 1) * s + (k - 1) * d < i
                for o, s, k, d, i in zip(spec.out, spec.stride, spec.kernel, spec.dilation, spec.image, strict=True)
            )
        )

    def _window(self, number: str, image: str) -> str:
        """Where the window of the place (h, v) is, and how far its rows are apart."""
        spec = self.spec
        corner = [f"{i} * {s} - {p}" for i, s, p in zip("hv", spec.stride, spec.pads, strict=True)]
        numbers = (*spec.kernel, *spec.dilation, *spec.image, *spec.x_strides[1:], spec.ic)
        to = f"xs + {number} * {self.reduction}"
        return f"irc_window_f32({to}, {image}, {', '.join((*corner, *map(str, numbers)))}, apart + {number})"

    def _array(self, places: int) -> str:
        """Windows that are copied."""
        return f"float xs[N{1 if self._is_in_place() else places * self.reduction}];"

    def _single(self) -> None:
        """One place: a row of a matrix mostly."""
        spec, t = self.spec, self.t
        target = "y" if self.epilogue.in_place else "acc"
        if target == "acc":
            t.put(f"float acc[{spec.oc}];")
        t.put("const int32_t b = 0, h = 0, v = 0;", f"float *const ys[1] = {{{target}}};")
        if self.reduction == spec.ic and self._is_in_place():
            t.put("const float *const xp[1] = {x};")
            self._tiles("1", 1, "NULL")
        else:
            t.put(self._array(1), "ptrdiff_t apart[1];", f"const float *const xp[1] = {{{self._window('0', 'x')}}};")
            self._tiles("1", 1)
        t.put("(void)b;", "(void)h;", "(void)v;")
        self.epilogue.put(t, target, "y", spec.oc)

    def _places(self) -> None:
        """Four places at a time, at the end the last one again; their windows are read where they are, or copied at the
        edge of the image."""
        spec, t = self.spec, self.t
        several, whole, common = spec.batch > 1, self.epilogue.in_place, self.epilogue.common
        steps = self._steps() if common is not None and not common.added else None
        plain = spec.kernel == (1, 1) and self._is_in_place()
        if steps is None:
            t.put(self._array(_PLACES), f"ptrdiff_t apart[{_PLACES}];")
        others = f", *others[{_PLACES}]" if common is not None and steps is None else ""
        t.put("" if whole else f"float acc[{_PLACES * spec.oc}];")
        t.put(f"const float *xp[{_PLACES}]{others};", f"float *ys[{_PLACES}];")
        t.put(f"for (int32_t place = 0; place < {self.total}; place += {_PLACES}) {{")
        t.put(f"for (int32_t i = 0; i < {_PLACES}; i++) {{")
        t.put(f"const int32_t p = irc_least(place + i, {self.total - 1});")
        if steps is not None:
            t.put(f"xp[i] = x + p * {steps[0]};", f"ys[i] = y + p * {steps[1]};")
        else:
            self._coordinates("p")
            t.put("apart[i] = 0;")
            image = f"x + b * {spec.x_strides[0]}" if several else "x"
            at = f"h * {spec.stride[0] * spec.x_strides[1]} + v * {spec.stride[1] * spec.x_strides[2]}"
            t.put(f"xp[i] = {int(plain)} ? {image} + ({at}) : {self._window('i', image)};")
            there = f"y + ({place_at(spec.y_strides, several=several)})"
            t.put(f"ys[i] = {there if whole else f'acc + i * {spec.oc}'};")
            t.put(f"others[i] = {self.epilogue.other()};" if others else "")
        t.put("}")
        self._tiles(f"{_PLACES}", _PLACES, "NULL" if steps is not None else "apart")
        t.put(f"for (int32_t i = 0; i < {_PLACES} && place + i < {self.total}; i++) {{")
        if common is not None:
            self.epilogue.finish(t, "ys[i]", "e0", "others[i]" if others else "e1", spec.oc)
        else:
            self._coordinates("(place + i)")
            self.epilogue.put(t, "ys[i]", f"y + ({place_at(spec.y_strides, several=several)})", spec.oc)
        t.put("}", "}")

    def _steps(self) -> tuple[int, int] | None:
        """How far single places of the image, and results, are from each other, where that is the same for all."""
        spec = self.spec
        n, h, v = spec.x_strides
        inputs = (n, h * spec.stride[0], v * spec.stride[1])
        if spec.kernel != (1, 1) or not self._is_in_place():
            return None
        found = [even_step(strides, spec.batch, spec.out) for strides in (inputs, spec.y_strides)]
        return None if found[0] is None or found[1] is None else (found[0], found[1])

    def _coordinates(self, place: str) -> None:
        """b, h and v of a place of the output."""
        spec, t = self.spec, self.t
        if spec.batch == 1:
            t.put(f"const int32_t h = {place} / {spec.out[1]}, v = {place} % {spec.out[1]};")
            return
        t.put(f"const int32_t b = {place} / {math.prod(spec.out)}, v = {place} % {spec.out[1]};")
        t.put(f"const int32_t h = {place} / {spec.out[1]} % {spec.out[0]};")

    def _tiles(self, count: str, places: int, apart: str = "apart") -> None:
        """Sums of all channels."""
        spec, t = self.spec, self.t
        window = f"{spec.kernel[1] * spec.ic}, {spec.kernel[0]}, ys"
        rest = spec.oc % TILE
        if rest % 4 == 0:
            name = f"irc_fours{places}" if rest else f"irc_tiles{places}"
            t.put(f"{name}(xp, {apart}, w, {window}, 0, {spec.oc});")
            return
        if self.total == 1 and self.reduction * spec.oc <= _FEW:
            t.put(f"for (int32_t o = 0; o < {spec.oc}; o += {TILE}) {{")
            weights = f"w + (ptrdiff_t)o * {self.reduction}"
            t.put(f"irc_rest(xp, {apart}, {weights}, {window}, o, 1, irc_least({spec.oc} - o, {TILE}));", "}")
            return
        whole = spec.oc - rest
        if whole:
            t.put(f"irc_tiles{places}(xp, {apart}, w, {window}, 0, {whole});")
        t.put(f"irc_rest(xp, {apart}, w + {whole * self.reduction}, {window}, {whole}, {count}, {rest});")


class RealDepthwise:
    """`symbol(x, w, operands..., y)`; weights [kh, kw, channels]. Windows are clipped to the image."""

    def __init__(self, symbol: str, spec: SmallDepthwiseSpec, target: Target) -> None:
        self.spec, self.symbol = spec, symbol
        self.epilogue = RealEpilogue(spec, target, symbol)
        self.t = Text()

    def build(self) -> str:
        spec, t = self.spec, self.t
        y, several, whole = ctype(spec.y_dtype), spec.batch > 1, self.epilogue.in_place
        parameters = ["const float *x", "const float *IRC_RESTRICT w", *self.epilogue.parameters(), f"{y} *y"]
        head = f"static void {self.symbol}({', '.join(parameters)})"
        t.depth = 1
        if not whole:
            t.put(f"float acc[{spec.channels}];")
        if several:
            t.put(f"for (int32_t b = 0; b < {spec.batch}; b++) {{")
        t.put(f"for (int32_t h = 0; h < {spec.out[0]}; h++) {{")
        image = f"x + b * {spec.x_strides[0]}" if several else "x"
        row = place_at(spec.y_strides, several=several)
        if whole:
            t.put("int32_t v = 0;")
            self._sums(image, f"y + ({row})", spec.out[1])
            t.put(f"for (; v < {spec.out[1]}; v++) {{")
        else:
            t.put(f"for (int32_t v = 0; v < {spec.out[1]}; v++) {{")
            self._sums(image, "acc", 1)
        self.epilogue.put(t, f"y + ({row})" if whole else "acc", f"y + ({row})", spec.channels)
        t.put("}", "}", *["}"] * several)
        return self.epilogue.kernel(head, t)

    def _sums(self, x: str, y: str, places: int) -> None:
        """Of places of a row from v on."""
        spec = self.spec
        self.t.put(
            f"irc_depthwise({x}, w, h * {spec.stride[0]} - {spec.pads[0]}, v * {spec.stride[1]} - {spec.pads[1]}, "
            f"{spec.stride[1]}, {places}, {spec.kernel[0]}, {spec.kernel[1]}, {spec.dilation[0]}, {spec.dilation[1]}, "
            f"{spec.image[0]}, {spec.image[1]}, {spec.x_strides[1]}, {spec.x_strides[2]}, {spec.channels}, {y}, "
            f"{spec.y_strides[2]});"
        )
