"""Expression -> TIR values. Polynomials instead of libm, so that vectors stay vectors.

exp: Cody-Waite reduction by ln 2 and a degree-6 polynomial (as in Cephes expf). tanh, erf: odd rational polynomials on
a clamped argument. Largest errors stand in tests/backends/kernels/test_functions.py.

Integer semantics: an expression that converts between integers and reals is computed with every float operation rounded
on its own, polynomials too, so that its result has the same bits on machines with and without fused multiply-adds.
NaN passes through every float function; only a requantization makes a number of it (the lowest).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tvm import tirx

from irc.backends.tvm.expression import Expression, Instr, needs_scalar
from irc.backends.tvm.fixed import Chain, chain_of
from irc.backends.tvm.kernels import rounding
from irc.backends.tvm.kernels.builder import (
    Expr,
    KernelBuilder,
    broadcast,
    cast,
    const,
    intrinsic,
    reinterpret,
    vector_type,
)
from irc.backends.tvm.kernels.fixed import (
    float_of_word,
    has_fpu,
    representable,
    requantize_fixed,
    requantize_real,
    rounds_reals,
)
from irc.backends.tvm.magnitude import magnitudes

Operand = Callable[[int, int], Expr]
"""(operand number, lanes) -> its value at the current place."""

_MAGIC = 12582912.0  # 1.5 * 2**23: adding it rounds half to even into the low mantissa bits
_MAGIC_BITS = 0x4B400000


def fence(value: Expr, lanes: int) -> Expr:
    """Keeps a float product apart from the addition after it: LLVM must not contract the two to an FMA."""
    return intrinsic("llvm.arithmetic.fence", vector_type("float32", lanes), value)


def emit_expression(
    k: KernelBuilder,
    expression: Expression,
    lanes: int,
    operand: Operand,
    accumulator: Expr | None = None,
    table: Callable[[int, Expr], Expr] | None = None,
    limits: Sequence[float] | None = None,
) -> Expr:
    """The value of the last instruction for `lanes` neighbouring elements.

    The instruction `accumulator` gives `accumulator`, what the kernel summed. `table(n, index)` looks a value up in
    operand n. `limits` bound the magnitude of each instruction's value (`irc.backends.tvm.magnitude`).
    """
    if not expression:
        return accumulator
    return _values(k, expression, lanes, operand, accumulator, table, limits)[-1]


def emit_levels(
    k: KernelBuilder,
    expression: Expression,
    lanes: int,
    operand: Operand,
    accumulator: Expr,
    limits: Sequence[float],
) -> Expr:
    """For an expression that ends in a requantization: the rounded int32 before its zero point and its clamp, for
    `rounding.pack`."""
    last = expression[-1]
    values = _values(k, expression, lanes, operand, accumulator, None, limits, len(expression) - 1)
    source, limit = _requantize_source(expression, values, last, lanes, limits)
    return rounding.levels(k, source, last, lanes, limit)


def _values(
    k: KernelBuilder,
    expression: Expression,
    lanes: int,
    operand: Operand,
    accumulator: Expr | None,
    table: Callable[[int, Expr], Expr] | None,
    limits: Sequence[float] | None,
    count: int | None = None,
) -> list[Expr]:
    """The values of the first `count` instructions, or of all."""
    exact = any(i.op in _INTEGER_SEMANTICS for i in expression)
    if limits is None:
        limits = magnitudes(expression, math.inf, ())
    chains = {} if lanes > 1 or has_fpu(k.target) else _chains(expression, limits)
    unread = _read_by_chains_alone(expression, chains) if chains else frozenset()
    values: list[Expr] = []
    for at, instr in enumerate(expression[:count]):
        if at in chains:
            value = requantize_fixed(k, expression, at, chains[at], values)
        elif at in unread:
            value = None
        elif instr.op == "accumulator":
            value = accumulator
        elif instr.op == "operand":
            value = k.let(operand(int(instr.params[0]), lanes), "o")
        elif instr.op == "table":
            value = k.let(table(int(instr.params[0]), cast(values[instr.args[0]], "int32")))  # type: ignore[misc]  # only with a table
        elif instr.op == "requantize" and lanes == 1 and not has_fpu(k.target) and rounds_reals(instr):
            value = requantize_real(k, values[instr.args[0]], instr)
        elif instr.op == "requantize":
            source, limit = _requantize_source(expression, values, instr, lanes, limits)
            number = math.isfinite(limit) or _is_number(expression, instr.args[0])
            value = k.let(rounding.requantize(k, source, instr, lanes, limit, is_number=number))
        else:
            args, sources = [values[a] for a in instr.args], [expression[a] for a in instr.args]
            coarse = _COARSE.get(instr.op) if exact else None
            if coarse is not None and (step := requantized_step(expression, len(values))) >= coarse[-1].step:
                value = k.let(_gated(k, args[0], lanes, next(g for g in coarse if step >= g.step)))
            elif exact and instr.op == "sigmoid" and _sigmoid_step(expression, len(values)) >= _COARSE_SIGMOID_STEP:
                value = k.let(_coarse_sigmoid(k, args[0], lanes))
            else:
                value = k.let(_emit(k, instr, args, sources, lanes, exact))
        values.append(value)
    return values


def _chains(expression: Expression, limits: Sequence[float]) -> dict[int, Chain]:
    """The requantizations that integer arithmetic can do, by their number."""
    found = {}
    for at, instr in enumerate(expression):
        chain = chain_of(expression, at, limits) if instr.op == "requantize" else None
        if chain is not None and representable(chain):
            found[at] = chain
    return found


def _read_by_chains_alone(expression: Expression, chains: Mapping[int, Chain]) -> frozenset[int]:
    """Instructions for whose value nothing asks once `chains` are computed from integers."""
    read = {len(expression) - 1}
    for at in range(len(expression) - 1, -1, -1):
        if at not in read:
            continue
        if at in chains:
            for term in chains[at].terms:
                read |= {i for i in (term.value, term.other, term.word) if i >= 0}
        else:
            read |= set(expression[at].args)
    return frozenset(range(len(expression))) - read


def _is_number(expression: Expression, at: int) -> bool:
    """Whether a float32 comes from integers by arithmetic that makes no NaN of them. Factors of `scale` are finite."""
    instr = expression[at]
    if instr.op == "cast":
        return expression[instr.args[0]].dtype in _INTEGERS
    if instr.op in ("dequantize", "constant"):
        return True
    if instr.op == "scale":
        return _is_number(expression, instr.args[0])
    sums = instr.op in ("add", "sub", "sum", "mul", "relu", "clip") and instr.dtype == "float32"
    return sums and all(_is_number(expression, a) for a in instr.args)


_INTEGERS = frozenset(["int8", "uint8", "int16", "uint16", "int32"])
_INTEGER_SEMANTICS = frozenset({"requantize", "dequantize", "scale"})


def _emit(
    k: KernelBuilder, instr: Instr, args: list[Expr], sources: list[Instr], lanes: int, exact: bool = False
) -> Expr:
    op, dtype = instr.op, instr.dtype
    if op == "constant":
        return const(instr.params[0], dtype, lanes)
    if op == "cast":
        if dtype == "float32" and sources[0].dtype in _INTEGERS:
            return _real(k, args[0], lanes)
        return _cast(args[0], sources[0].dtype, dtype, lanes)
    if op == "cast_bool":
        return _truth(args[0] != const(0, sources[0].dtype, lanes), lanes)
    if op == "dequantize":
        return _dequantize(k, args[0], instr, lanes)
    if op == "unpack":
        return reinterpret(float_of_word(args[0], instr), "float32")
    if op == "scale":  # product rounded on its own: the first step of every requantization
        return fence(args[0] * args[1], lanes)
    if op == "sum":  # sum of fenced products
        return args[0] + args[1]
    if op == "flip":  # int8 <-> uint8, value + 128
        return reinterpret(args[0], vector_type(dtype, lanes)) ^ const(0x80 if dtype == "uint8" else -128, dtype, lanes)
    if op == "as_uint8":
        return reinterpret(args[0], vector_type("uint8", lanes))
    if op == "select":
        return tirx.Select(args[0] != const(0, sources[0].dtype, lanes), args[1], args[2])
    if op == "clip":
        return _clip(args[0], instr.params[0], instr.params[1], dtype, lanes, k)
    if op in _BINARY:
        value = _BINARY[op](args[0], args[1], dtype, sources[0].dtype, lanes)
        return fence(value, lanes) if exact and op == "mul" and dtype == "float32" else value
    return _unary(k, op, args[0], dtype, lanes, exact)


def _cast(value: Expr, source: str, dtype: str, lanes: int) -> Expr:
    if source == dtype:
        return value
    return cast(value, dtype, lanes)


def _truth(condition: Expr, lanes: int) -> Expr:
    return tirx.Select(condition, const(1, "int8", lanes), const(0, "int8", lanes))


def _dequantize(k: KernelBuilder, q: Expr, instr: Instr, lanes: int) -> Expr:
    scale, zero_point = instr.params
    wide = cast(q, "int32", lanes) - const(int(zero_point), "int32", lanes)
    return fence(_real(k, wide, lanes) * const(scale, "float32", lanes), lanes)


def _real(k: KernelBuilder, integer: Expr, lanes: int) -> Expr:
    """An integer as float32. On MVE a fence keeps it apart from products: of one with 2**-4, LLVM makes a conversion of
    fixed-point numbers with a register in the place of its 4."""
    value = cast(integer, "float32", lanes)
    is_mve = k.target is not None and k.target.dot == "mve" and lanes > 1
    return fence(value, lanes) if is_mve else value


def _requantize_source(
    expression: Expression, values: Sequence[Expr], instr: Instr, lanes: int, limits: Sequence[float]
) -> tuple[Expr, float]:
    """What a requantization rounds, times its factor, and a limit of that."""
    low, _, zero_point, scale = instr.params
    at = instr.args[0]
    if expression[at].op == "relu" and low == zero_point and scale > 0:  # the clamp does it
        at = expression[at].args[0]
    x, limit = values[at], limits[at]
    if scale != 1.0:
        x, limit = fence(x * const(scale, "float32", lanes), lanes), limit * abs(scale)
    return x, limit


def _keeps_nan(k: KernelBuilder | None, dtype: str) -> bool:
    """Whether one instruction gives the larger of two reals, or NaN if either is."""
    return dtype == "float32" and k is not None and k.target is not None and k.target.arch == "aarch64"


def _clip(x: Expr, low: float, high: float, dtype: str, lanes: int, k: KernelBuilder | None = None) -> Expr:
    """min(max(x, low), high). Max(a, b) is `a > b ? a : b`, so x stands second: NaN compares false and stays."""
    if _keeps_nan(k, dtype):
        kind = vector_type(dtype, lanes)
        x = intrinsic("llvm.maximum", kind, x, const(low, dtype, lanes)) if low > -math.inf else x
        return intrinsic("llvm.minimum", kind, x, const(high, dtype, lanes)) if high < math.inf else x
    if low > -math.inf:
        x = tirx.Max(const(low, dtype, lanes), x)
    if high < math.inf:
        x = tirx.Min(const(high, dtype, lanes), x)
    return x


def _compare(make: Callable[[Expr, Expr], Expr]) -> Callable[..., Expr]:
    def emit(a: Expr, b: Expr, dtype: str, source: str, lanes: int) -> Expr:
        return _truth(make(a, b), lanes)

    return emit


def _plain(make: Callable[[Expr, Expr], Expr]) -> Callable[..., Expr]:
    def emit(a: Expr, b: Expr, dtype: str, source: str, lanes: int) -> Expr:
        return make(a, b)

    return emit


def _extreme(make: Callable[[Expr, Expr], Expr]) -> Callable[..., Expr]:
    """Maximum or minimum of reals: NaN if either is."""

    def emit(a: Expr, b: Expr, dtype: str, source: str, lanes: int) -> Expr:
        if dtype != "float32" or _is_constant(a):
            return make(a, b)
        if _is_constant(b):
            return make(b, a)
        return tirx.Select(_is_nan(a, lanes), a, make(a, b))

    return emit


def _is_constant(x: Expr) -> bool:
    return isinstance(x.value if isinstance(x, tirx.Broadcast) else x, tirx.FloatImm)


def _div(a: Expr, b: Expr, dtype: str, source: str, lanes: int) -> Expr:
    return tirx.Div(a, b)


def _pow(a: Expr, b: Expr, dtype: str, source: str, lanes: int) -> Expr:
    return tirx.pow(a, b)


_BINARY: dict[str, Callable[..., Expr]] = {
    "add": _plain(lambda a, b: a + b),
    "sub": _plain(lambda a, b: a - b),
    "mul": _plain(lambda a, b: a * b),
    "div": _div,
    "min": _extreme(tirx.Min),
    "max": _extreme(tirx.Max),
    "pow": _pow,
    "equal": _compare(lambda a, b: tirx.EQ(a, b)),
    "less": _compare(lambda a, b: tirx.LT(a, b)),
    "less_equal": _compare(lambda a, b: tirx.LE(a, b)),
    "greater": _compare(lambda a, b: tirx.GT(a, b)),
    "greater_equal": _compare(lambda a, b: tirx.GE(a, b)),
    "and": _plain(lambda a, b: a & b),
    "or": _plain(lambda a, b: a | b),
    "xor": _plain(lambda a, b: a ^ b),
}


def _unary(k: KernelBuilder, op: str, x: Expr, dtype: str, lanes: int, exact: bool) -> Expr:
    def c(value: float) -> Expr:
        return const(value, dtype, lanes)

    if op == "neg":
        return c(0) - x if "int" in dtype else x * c(-1.0)
    if op == "abs":
        return tirx.Max(x, c(0) - x) if "int" in dtype else _bits_and(x, 0x7FFFFFFF, lanes)
    if op == "relu":
        return _clip(x, 0.0, math.inf, dtype, lanes, k)
    if op == "not":
        return x ^ c(1)
    if op == "sign":
        positive = tirx.Select(tirx.GT(x, c(0)), c(1), x)  # 0 and NaN stay
        return tirx.Select(tirx.LT(x, c(0)), c(-1), positive)
    if op == "isnan":
        return _truth(_is_nan(x, lanes), lanes)
    if op == "reciprocal":
        return c(1.0) / x
    if op == "sqrt":
        return intrinsic("llvm.sqrt", vector_type(dtype, lanes), x)
    if op in ("floor", "ceil", "round"):
        name = "llvm.roundeven" if op == "round" else f"llvm.{op}"
        return intrinsic(name, vector_type(dtype, lanes), x)
    if op in _POLYNOMIALS:
        return _POLYNOMIALS[op](k, x, lanes, exact)
    return _library(op, x, dtype, lanes)


def _library(op: str, x: Expr, dtype: str, lanes: int) -> Expr:
    """Functions that have no polynomial here: one libm call per element."""
    if lanes != 1:
        raise ValueError(f"{op} is scalar only")
    suffix = "f" if dtype == "float32" else ""
    if op == "softplus":  # max(x, 0) + log1p(exp(-|x|))
        decay = tirx.call_pure_extern(dtype, "exp" + suffix, tirx.Min(x, -x))
        return tirx.Max(x, tirx.const(0.0, dtype)) + tirx.call_pure_extern(dtype, "log1p" + suffix, decay)
    return tirx.call_pure_extern(dtype, op + suffix, x)


def _is_nan(x: Expr, lanes: int) -> Expr:
    """Of float32, by its bits: TVM's simplifier takes `x != x` for false."""
    bits = reinterpret(x, vector_type("int32", lanes)) & const(0x7FFFFFFF, "int32", lanes)
    return tirx.GT(bits, const(0x7F800000, "int32", lanes))


def _bits_and(x: Expr, mask: int, lanes: int) -> Expr:
    bits = reinterpret(x, vector_type("int32", lanes)) & const(mask, "int32", lanes)
    return reinterpret(bits, vector_type("float32", lanes))


class _Real:
    """float32 arithmetic of `lanes` elements. `exact`: products are rounded before they are added to something."""

    def __init__(self, k: KernelBuilder, lanes: int, exact: bool) -> None:
        self.k, self.lanes, self.exact = k, lanes, exact

    def c(self, value: float) -> Expr:
        return const(value, "float32", self.lanes)

    def mul(self, a: Expr, b: Expr) -> Expr:
        product = a * b
        return self.k.let(fence(product, self.lanes) if self.exact else product)

    def horner(self, s: Expr, coefficients: Sequence[float]) -> Expr:
        """The polynomial in `s`, highest coefficient first."""
        p = self.c(coefficients[0])
        for coefficient in coefficients[1:]:
            p = self.k.let(self.mul(p, s) + self.c(coefficient))
        return p


_EXP_LOW, _EXP_HIGH = -87.33654, 89.0
"""exp: below, the result is less than the smallest normal float32 and given as 0; above, it is infinite."""


def exp(k: KernelBuilder, x: Expr, lanes: int, exact: bool = False) -> Expr:
    """e**x, float32, rounding errors included below 2 ulp; no denormal results (they are 0), exp(-inf) = 0."""
    return tirx.Select(x < const(_EXP_LOW, "float32", lanes), const(0.0, "float32", lanes), _exp(k, x, lanes, exact))


def _exp(k: KernelBuilder, x: Expr, lanes: int, exact: bool) -> Expr:
    """e**x for x >= -87.3; not less than the smallest normal number for any x."""
    f = _Real(k, lanes, exact)
    x = k.let(_clip(x, _EXP_LOW, _EXP_HIGH, "float32", lanes))
    scaled = k.let(f.mul(x, f.c(1.44269504088896341)) + f.c(_MAGIC))  # round(x / ln 2) in the low bits
    exponent = k.let(reinterpret(scaled, vector_type("int32", lanes)) - const(_MAGIC_BITS, "int32", lanes))
    n = k.let(cast(exponent, "float32", lanes))  # not scaled - magic, which a simplifier may fold to x / ln 2
    r = k.let(x - f.mul(n, f.c(0.693359375)))
    r = k.let(r - f.mul(n, f.c(-2.12194440e-4)))
    p = f.horner(
        r, (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
    )
    y = k.let(f.mul(f.mul(p, r), r) + r + f.c(1.0))
    # 2**n in two halves: n may be 128, which has no exponent of its own
    half = k.let(exponent >> const(1, "int32", lanes))
    rest = k.let(exponent - half)
    return f.mul(y * _power_of_two(half, lanes), _power_of_two(rest, lanes))


def _power_of_two(n: Expr, lanes: int) -> Expr:
    return reinterpret((n + const(127, "int32", lanes)) << const(23, "int32", lanes), vector_type("float32", lanes))


_POWER = (1.32764715e-3, 9.67554134e-3, 5.55071328e-2, 2.40221197e-1, 6.93146967e-1, 1.00000007)
"""2**r for |r| <= 1/2, relative error 7.5e-8 (minimax), highest coefficient first."""
_BIASED = _MAGIC + 127.0  # its low bits hold the exponent field of 2**n


def decay(k: KernelBuilder, x: Expr, lanes: int) -> Expr:
    """e**x for x <= 0 in softmax: half the operations of `exp`. Relative error below 1e-7 * (1 + |x|); 0 below -87.7.

    NaN stays NaN; a positive x of up to 80 (from rounding) is right too.
    """
    f = _Real(k, lanes, exact=False)
    x = k.let(_clip(x, -88.0, math.inf, "float32", lanes))
    scaled = k.let(fence(x * f.c(1.44269504) + f.c(_BIASED), lanes))
    factor = reinterpret(reinterpret(scaled, vector_type("int32", lanes)) << const(23, "int32", lanes), scaled.ty.dtype)
    n = k.let(scaled - f.c(_BIASED))
    return f.horner(k.let(x * f.c(1.44269504) - n), _POWER) * k.let(factor)


def sigmoid(k: KernelBuilder, x: Expr, lanes: int, exact: bool = False) -> Expr:
    one = const(1.0, "float32", lanes)
    return one / (one + _exp(k, const(0.0, "float32", lanes) - x, lanes, exact))


def tanh(k: KernelBuilder, x: Expr, lanes: int, exact: bool = False) -> Expr:
    """Odd rational approximation (the coefficients used by Eigen), clamped where float32 tanh is 1 to the last bit."""
    f = _Real(k, lanes, exact)
    x = k.let(_clip(x, -7.90531110763549805, 7.90531110763549805, "float32", lanes))
    s = f.mul(x, x)
    p = f.horner(
        s,
        (
            -2.76076847742355e-16,
            2.00018790482477e-13,
            -8.60467152213735e-11,
            5.12229709037114e-08,
            1.48572235717979e-05,
            6.37261928875436e-04,
            4.89352455891786e-03,
        ),
    )
    q = f.horner(s, (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03))
    return f.mul(x, p) / q


def erf(k: KernelBuilder, x: Expr, lanes: int, exact: bool = False) -> Expr:
    """Odd rational approximation on [-4, 4] (the coefficients used by Eigen); beyond, erf is +-1 in float32."""
    f = _Real(k, lanes, exact)
    x = k.let(_clip(x, -4.0, 4.0, "float32", lanes))
    s = f.mul(x, x)
    p = f.horner(
        s,
        (
            -2.72614225801306e-10,
            2.77068142495902e-08,
            -2.10102402082508e-06,
            -5.69250639462346e-05,
            -7.34990630326855e-04,
            -2.95459980854025e-03,
            -1.60960333262415e-02,
        ),
    )
    q = f.horner(
        s,
        (
            -1.45660718464996e-05,
            -2.13374055278905e-04,
            -1.68282697438203e-03,
            -7.37332916720468e-03,
            -1.42647390514189e-02,
        ),
    )
    return f.mul(x, p) / q


def gelu(k: KernelBuilder, x: Expr, lanes: int, exact: bool = False) -> Expr:
    f = _Real(k, lanes, exact)
    return f.mul(x, f.c(0.5)) * (f.c(1.0) + erf(k, f.mul(x, f.c(math.sqrt(0.5))), lanes, exact))


def gelu_tanh(k: KernelBuilder, x: Expr, lanes: int, exact: bool = False) -> Expr:
    f = _Real(k, lanes, exact)
    cube = f.mul(f.mul(f.mul(x, x), x), f.c(0.044715))
    inner = f.mul(k.let(x + cube), f.c(math.sqrt(2 / math.pi)))
    return f.mul(x, f.c(0.5)) * (f.c(1.0) + tanh(k, inner, lanes, exact))


@dataclass(frozen=True)
class Gate:
    """x * (0.5 + c * P(c * c)) with c = x clamped to +-`bound`: gelu and its like, where a requantization follows.

    `step`: the finest step of 8 bits that it serves; its error is at most 1/32 of a step for every x that 8 bits of
    that step can hold. Minimax in the error of the product, the ends included (below -bound the function counts as 0).
    """

    step: float
    bound: float
    coefficients: tuple[float, ...]


_COARSE: dict[str, tuple[Gate, ...]] = {
    "gelu": (
        Gate(
            6.3e-3,
            4.0,
            (
                2.2781518894e-08,
                -1.5986063318e-06,
                4.7955600167e-05,
                -8.1401620991e-04,
                8.7723918259e-03,
                -6.4573116601e-02,
                3.9788335562e-01,
            ),
        ),
        Gate(
            1.0e-3,
            4.25,
            (
                4.6686036981e-11,
                -4.5852126540e-09,
                1.9981891342e-07,
                -5.1441611504e-06,
                8.8135806436e-05,
                -1.0746049229e-03,
                9.6948174760e-03,
                -6.6136993468e-02,
                3.9878347516e-01,
            ),
        ),
    ),
    "gelu_tanh": (
        Gate(
            6.9e-3,
            4.0,
            (
                2.3943394823e-08,
                -1.6647350094e-06,
                4.9405196478e-05,
                -8.2896195818e-04,
                8.8400368786e-03,
                -6.4642459154e-02,
                3.9774546027e-01,
            ),
        ),
        Gate(
            1.0e-3,
            4.25,
            (
                5.3766900654e-11,
                -5.2554192109e-09,
                2.2651840936e-07,
                -5.7229963204e-06,
                9.5479947049e-05,
                -1.1286917143e-03,
                9.9049573764e-03,
                -6.6453173757e-02,
                3.9878785610e-01,
            ),
        ),
    ),
}


def requantized_step(expression: Expression, index: int) -> float:
    """The finest 8-bit step that instruction `index` is rounded to; 0 where something else reads it too."""
    readers = [i for i in expression if index in i.args]
    if not readers or any(i.op != "requantize" or i.params[3] <= 0 for i in readers):
        return 0.0
    return min(1.0 / i.params[3] for i in readers)


def _gated(k: KernelBuilder, x: Expr, lanes: int, gate: Gate) -> Expr:
    f = _Real(k, lanes, exact=True)
    clamped = k.let(_clip(x, -gate.bound, gate.bound, "float32", lanes))
    share = k.let(f.mul(clamped, f.horner(f.mul(clamped, clamped), gate.coefficients)) + f.c(0.5))
    return f.mul(k.let(_clip(x, -gate.bound, math.inf, "float32", lanes)), share)


_COARSE_POWER = (5.5171654e-2, 2.4261113e-1, 6.9326097e-1, 9.9992806e-1)
"""2**r for |r| <= 1/2, relative error 7.5e-5 (minimax), highest coefficient first."""
_COARSE_SIGMOID_STEP = 1e-3
"""The finest 8-bit step that `_coarse_sigmoid` serves: its error, and that of x times it, is 2e-5, 1/50 of a step."""


def _sigmoid_step(expression: Expression, index: int) -> float:
    """The finest 8-bit step that sigmoid(x), instruction `index`, or x * sigmoid(x) is rounded to; 0 for other uses."""
    steps = []
    for i, reader in enumerate(expression):
        if index not in reader.args:
            continue
        if reader.op == "mul" and set(reader.args) == {index, expression[index].args[0]}:
            steps.append(requantized_step(expression, i))
        elif reader.op == "requantize" and reader.params[3] > 0:
            steps.append(1.0 / reader.params[3])
        else:
            steps.append(0.0)
    return min(steps, default=0.0)


def _coarse_sigmoid(k: KernelBuilder, x: Expr, lanes: int) -> Expr:
    """1 / (1 + 2**t) with t = -x * log2(e): the fraction of t by a polynomial, its whole part as an exponent."""
    f = _Real(k, lanes, exact=True)
    t = k.let(_clip(f.mul(x, f.c(-1.44269504)), -60.0, 60.0, "float32", lanes))  # far from denormal numbers
    scaled = k.let(fence(t + f.c(_BIASED), lanes))
    factor = reinterpret(reinterpret(scaled, vector_type("int32", lanes)) << const(23, "int32", lanes), scaled.ty.dtype)
    power = f.mul(f.horner(k.let(t - (scaled - f.c(_BIASED))), _COARSE_POWER), k.let(factor))
    return f.c(1.0) / (f.c(1.0) + power)


_POLYNOMIALS: dict[str, Callable[[KernelBuilder, Expr, int, bool], Expr]] = {
    "exp": exp,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "erf": erf,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
}


__all__ = [
    "broadcast",
    "decay",
    "emit_expression",
    "emit_levels",
    "erf",
    "exp",
    "fence",
    "needs_scalar",
    "sigmoid",
    "tanh",
]
