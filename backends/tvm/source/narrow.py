"""Convolutions of C source that sum over few channels of one place: matrix products with a short inner dimension.

The sum over lanes that ends each dot product would take longer than the products. Instead, all products of
neighbouring output channels are one expression, as in depthwise convolutions, of contiguous weights and of numbers that
are the same for all of them. A product of bytes fits 16 bits, and two do: no weight is -128.
"""

from __future__ import annotations

from irc.backends.c.numbers import ctype
from irc.backends.tvm.source.window import Epilogue, Text, offset, vectors
from irc.backends.tvm.specs import SmallConvSpec
from irc.targets.target import Target


class NarrowSource:
    """`symbol(x, w, operands..., y)`; weights [oc, ic]."""

    def __init__(self, symbol: str, spec: SmallConvSpec, target: Target) -> None:
        self.spec, self.symbol = spec, symbol
        self.epilogue = Epilogue(spec, "int8", target, symbol)
        self.t = Text()

    def build(self) -> str:
        spec, t = self.spec, self.t
        y = ctype(spec.y_dtype)
        parameters = ["const int8_t *x", "const int8_t *IRC_RESTRICT w", *self.epilogue.parameters(), f"{y} *y"]
        t.put(f"static void {self.symbol}({', '.join(parameters)})", "{")
        t.put(f"IRC_ALIGNED int16_t ws[N{spec.ic * spec.oc}];", f"{y} out[N{spec.oc}];")
        t.put(f"for (int32_t c = 0; c < {spec.oc}; c++) {{")
        t.put(f"for (int32_t i = 0; i < {spec.ic}; i++) ws[i * {spec.oc} + c] = *w++;", "}")
        if spec.batch > 1:
            t.put(f"for (int32_t b = 0; b < {spec.batch}; b++) {{")
        t.put(f"for (int32_t h = 0; h < {spec.out[0]}; h++) {{", f"for (int32_t v = 0; v < {spec.out[1]}; v++) {{")
        self._place()
        t.put("}", "}", *["}"] * (spec.batch > 1), "}")
        return t.done(self.epilogue.bounds)

    def _at(self, strides: tuple[int, ...]) -> str:
        return offset([("b", strides[0] if self.spec.batch > 1 else 0), ("h", strides[1]), ("v", strides[2])])

    def _place(self) -> None:
        spec, t = self.spec, self.t
        b, h, v = spec.x_strides
        t.put(f"const int8_t *const p = x + ({self._at((b, h * spec.stride[0], v * spec.stride[1]))});")
        t.put("const int16_t " + ", ".join(f"x{i} = p[{i}L]" for i in range(spec.ic)) + ";")
        for i in self.epilogue.moving():
            o = spec.operands[i]
            t.put(f"const {ctype(o.dtype)} *const f{i} = e{i} + ({self._at(o.strides)});")
        products = [f"x{i} * ws[{f'{i * spec.oc}L + ' if i else ''}c]" for i in range(spec.ic)]
        pairs = [f"(int16_t)({' + '.join(products[i : i + 2])})" for i in range(0, spec.ic, 2)]
        lines = self.epilogue.lines(t.depth + 1, "out", "c", "s")
        lines.insert(0, "    " * (t.depth + 1) + f"const int32_t s = {' + '.join(pairs)};")
        vectors(t, spec.oc, lines)
        t.put(f"memcpy(y + ({self._at(spec.y_strides)}), out, {spec.oc} * sizeof(*out));")
