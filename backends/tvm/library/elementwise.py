"""Operators that treat each element alone, and those that only move elements along a formula of their index."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx

from irc.backends.tvm.library import approximations
from irc.backends.tvm.library.op import Expr, Op, Refused, Tensor, cast, const, elementwise, limit, type_of

Definition = Callable[[Op], list[Any]]


def is_float(dtype: str) -> bool:
    return "float" in dtype


def in_float(formula: Callable[[Expr], Expr]) -> Callable[[Expr], Expr]:
    """`formula` computed in float32 for float16 operands (LLVM has no library functions for half)."""

    def wrapped(x: Expr) -> Expr:
        dtype = type_of(x)
        return cast(formula(cast(x, "float32")), dtype) if dtype == "float16" else formula(x)

    return wrapped


def like(value: float, x: Expr) -> Expr:
    return const(value, type_of(x))


def unary(formula: Callable[[Expr], Expr]) -> Definition:
    def definition(op: Op) -> list[Tensor]:
        return [elementwise(formula, op.tensor(0), name=op.kind)]

    return definition


def binary(formula: Callable[[Expr, Expr], Expr]) -> Definition:
    def definition(op: Op) -> list[Tensor]:
        return [elementwise(formula, op.tensor(0), op.tensor(1), name=op.kind)]

    return definition


def variadic(formula: Callable[[Expr, Expr], Expr]) -> Definition:
    """Any number of operands, combined from left to right."""

    def combine(*xs: Expr) -> Expr:
        total = xs[0]
        for x in xs[1:]:
            total = formula(total, x)
        return total

    def definition(op: Op) -> list[Tensor]:
        tensors = [op.tensor(i) for i in range(len(op.values))]
        if len(tensors) > 64:
            raise Refused("more than 64 operands")
        return [elementwise(combine, *tensors, name=op.kind)]

    return definition


def absolute(x: Expr) -> Expr:
    dtype = type_of(x)
    if is_float(dtype):
        return tirx.abs(x)
    return x if dtype.startswith("uint") else tirx.Select(x < 0, const(0, dtype) - x, x)


def sign(x: Expr) -> Expr:
    zero, one = like(0, x), like(1, x)
    if type_of(x).startswith("uint"):
        return tirx.Select(x > zero, one, zero)
    below = tirx.Select(x < zero, zero - one, zero)
    return tirx.Select(x > zero, one, below)


def exp(x: Expr) -> Expr:
    return approximations.exp(x) if type_of(x) == "float32" else tirx.exp(x)


def tanh(x: Expr) -> Expr:
    return approximations.tanh(x) if type_of(x) == "float32" else tirx.tanh(x)


def erf(x: Expr) -> Expr:
    return approximations.erf(x) if type_of(x) == "float32" else tirx.erf(x)


def sigmoid(x: Expr) -> Expr:
    return like(1, x) / (like(1, x) + exp(like(0, x) - x))


def softplus(x: Expr) -> Expr:
    """log(1 + exp(x)), written so that exp never overflows."""
    return tirx.max(x, like(0, x)) + tirx.call_intrin(type_of(x), "tirx.log1p", exp(like(0, x) - tirx.abs(x)))


def divide(a: Expr, b: Expr) -> Expr:
    if is_float(type_of(a)):
        return a / b
    quotient = tirx.truncdiv(a, divisor(b))
    return quotient if unsigned(b) else tirx.Select(b == like(-1, b), like(0, a) - a, quotient)


def divisor(b: Expr) -> Expr:
    """An integer to divide by. By 0, and the least number by -1, processors trap; there 1 takes the place of b."""
    traps = b == like(0, b) if unsigned(b) else tirx.any(b == like(0, b), b == like(-1, b))
    return tirx.Select(traps, like(1, b), b)


def unsigned(x: Expr) -> bool:
    return str(type_of(x)).startswith("uint")


def mean(op: Op) -> list[Tensor]:
    count = len(op.values)
    total = variadic(lambda a, b: a + b)(op)[0]
    return [elementwise(lambda x: x / like(count, x), total, name="Mean")]


def modulo(op: Op) -> list[Tensor]:
    """fmod=1: the sign of the dividend (C); fmod=0: the sign of the divisor (Python)."""
    c_style = bool(op.attr("fmod", 0))

    def formula(a: Expr, b: Expr) -> Expr:
        dtype = type_of(a)
        if is_float(dtype):
            rest = in_float2(remainder)(a, b)
            if c_style:
                return rest
            wrong = tirx.all(rest != like(0, rest), differ(rest < like(0, rest), b < like(0, b)))
            return tirx.Select(wrong, rest + b, rest)
        if c_style or dtype.startswith("uint"):
            return tirx.truncmod(a, divisor(b))
        rest = tirx.truncmod(a, divisor(b))
        wrong = tirx.all(rest != like(0, rest), differ(rest < like(0, rest), b < like(0, b)))
        return tirx.Select(wrong, rest + b, rest)

    return binary(formula)(op)


def differ(a: Expr, b: Expr) -> Expr:
    """Exclusive or of two truth values (LLVM has no `!=` for them here)."""
    return tirx.any(tirx.all(a, tirx.Not(b)), tirx.all(tirx.Not(a), b))


def negated(a: Expr) -> Expr:
    """Through an integer: TVM would turn `not a < b` into `a >= b`, which is wrong for NaN."""
    return cast(tirx.bitwise_xor(cast(a, "uint8"), const(1, "uint8")), "bool")


def remainder(a: Expr, b: Expr) -> Expr:
    """C's fmod."""
    dtype = type_of(a)
    return tirx.call_pure_extern(dtype, "fmodf" if dtype == "float32" else "fmod", a, b)


def same(a: Expr, b: Expr) -> Expr:
    return tirx.Not(differ(a, b)) if type_of(a) == "bool" else a == b


def in_float2(formula: Callable[[Expr, Expr], Expr]) -> Callable[[Expr, Expr], Expr]:
    def wrapped(a: Expr, b: Expr) -> Expr:
        dtype = type_of(a)
        if dtype == "float16":
            return cast(formula(cast(a, "float32"), cast(b, "float32")), dtype)
        return formula(a, b)

    return wrapped


def power(op: Op) -> list[Tensor]:
    """The base's type; integers go through float64 when the exponent is no small constant."""
    exponent = op.value(1).array
    if exponent is not None and exponent.size == 1:
        number = float(exponent.reshape(-1)[0])
        if number in (0.5, 1.0, 2.0, 3.0) and (number != 0.5 or is_float(op.value(0).dtype)):
            special: dict[float, Callable[[Expr], Expr]] = {
                0.5: in_float(tirx.sqrt),
                1.0: lambda x: x,
                2.0: lambda x: x * x,
                3.0: lambda x: x * x * x,
            }
            shape_carrier = op.tensor(1)
            return [elementwise(lambda x, _: special[number](x), op.tensor(0), shape_carrier, name="Pow")]

    def formula(a: Expr, b: Expr) -> Expr:
        dtype = type_of(a)
        wide = "float64" if dtype not in ("float16", "float32") else "float32"
        return cast(tirx.power(cast(a, wide), cast(b, wide)), dtype)

    return binary(formula)(op)


def shift(op: Op) -> list[Tensor]:
    """Amounts outside of the type's width shift everything out; to the right the sign fills the place."""
    left = op.attr("direction") == "LEFT"
    bits = int("".join(c for c in op.value(0).dtype if c.isdigit()))

    def formula(a: Expr, b: Expr) -> Expr:
        zero = like(0, a)
        inside = tirx.all(b >= zero, b < like(bits, b)) if op.value(0).dtype.startswith("int") else b < like(bits, b)
        amount = tirx.Select(inside, b, zero)
        moved = tirx.shift_left(a, amount) if left else tirx.shift_right(a, amount)
        gone = zero if left or op.value(0).dtype.startswith("uint") else tirx.Select(a < zero, like(-1, a), zero)
        return tirx.Select(inside, moved, gone)

    return binary(formula)(op)


def clip(op: Op) -> list[Tensor]:
    low, high = op.optional(1), op.optional(2)
    x = op.tensor(0)
    if low is not None:
        x = elementwise(tirx.max, x, low, name="Clip")
    if high is not None:
        x = elementwise(tirx.min, x, high, name="Clip")
    return [x if x is not op.tensor(0) else elementwise(lambda v: v, x)]


def is_infinite(op: Op) -> list[Tensor]:
    up, down = bool(op.attr("detect_positive", 1)), bool(op.attr("detect_negative", 1))

    def formula(x: Expr) -> Expr:
        found = tirx.const(False, "bool")
        if up:
            found = tirx.any(found, x == like(math.inf, x))
        if down:
            found = tirx.any(found, x == like(-math.inf, x))
        return found

    return unary(formula)(op)


def to_type(value: Expr, dtype: str) -> Expr:
    """A cast as ONNX defines it: any number but zero is True; floats are truncated; int8 goes over int32."""
    if type_of(value) == dtype:
        return value
    if dtype == "bool":
        differs = value != like(0, value)  # an ordered comparison: False for NaN
        return tirx.any(differs, tirx.isnan(value)) if is_float(type_of(value)) else differs
    if is_float(type_of(value)) and not is_float(dtype) and dtype not in ("int64", "uint64"):
        return cast(cast(value, "int64"), dtype)
    return cast(value, dtype)


def cast_to(op: Op) -> list[Tensor]:
    import onnx

    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(op.attr("to")))
    return _cast(op, dtype)


def cast_like(op: Op) -> list[Tensor]:
    return _cast(op, op.value(1).dtype)


def _cast(op: Op, dtype: str) -> list[Tensor]:
    from irc.backends.tvm.library.region import DTYPES

    dtype = "float32" if dtype == "bfloat16" else dtype  # rounded where the region ends
    if dtype not in DTYPES or op.value(0).dtype not in DTYPES:
        raise Refused(f"element types {op.value(0).dtype} to {dtype}")
    return unary(lambda x: to_type(x, dtype))(op)


def compare(formula: Callable[[Expr, Expr], Expr]) -> Definition:
    return binary(formula)


def alpha(formula: Callable[[Expr, Expr], Expr]) -> Definition:
    """An activation with the attribute `alpha`."""

    def definition(op: Op) -> list[Tensor]:
        return [elementwise(lambda x: formula(x, like(op.attr("alpha"), x)), op.tensor(0), name=op.kind)]

    return definition


def hard_sigmoid(op: Op) -> list[Tensor]:
    a, b = op.attr("alpha"), op.attr("beta")
    return unary(lambda x: limit(x * like(a, x) + like(b, x), like(0, x), like(1, x)))(op)


def shrink(op: Op) -> list[Tensor]:
    """Towards zero by `bias` outside of [-lambd, lambd], zero inside."""
    threshold, bias = op.attr("lambd", 0.5), op.attr("bias", 0.0)

    def formula(x: Expr) -> Expr:
        dtype = type_of(x)
        wide = x if is_float(dtype) else cast(x, "float32")
        above = tirx.Select(wide > like(threshold, wide), wide - like(bias, wide), like(0, wide))
        return cast(tirx.Select(wide < like(-threshold, wide), wide + like(bias, wide), above), dtype)

    return unary(formula)(op)


def gelu(op: Op) -> list[Tensor]:
    def exact(x: Expr) -> Expr:
        return like(0.5, x) * x * (like(1, x) + erf(x * like(1 / math.sqrt(2), x)))

    def approximate(x: Expr) -> Expr:
        inner = like(math.sqrt(2 / math.pi), x) * (x + like(0.044715, x) * x * x * x)
        return like(0.5, x) * x * (like(1, x) + tanh(inner))

    return unary(in_float(approximate if op.attr("approximate") == "tanh" else exact))(op)


def where(op: Op) -> list[Tensor]:
    return [elementwise(lambda c, a, b: tirx.Select(c, a, b), op.tensor(0), op.tensor(1), op.tensor(2), name="Where")]


def dropout(op: Op) -> list[Tensor]:
    """Outside of training: the identity, and a mask of ones."""
    if op.has(2) and bool(op.array(2, "training_mode").reshape(-1)[0]):
        raise Refused("training mode is random")
    x = op.tensor(0)
    mask = elementwise(lambda v: tirx.const(True, "bool"), x) if op.wants(1) else None
    return [elementwise(lambda v: v, x), mask][: op.arity]


def maximum(a: Expr, b: Expr) -> Expr:
    """NaN where either is NaN, as numpy.maximum."""
    if not is_float(type_of(a)):
        return tirx.max(a, b)
    return tirx.Select(tirx.isnan(a), a, tirx.Select(tirx.isnan(b), b, tirx.max(a, b)))


def minimum(a: Expr, b: Expr) -> Expr:
    if not is_float(type_of(a)):
        return tirx.min(a, b)
    return tirx.Select(tirx.isnan(a), a, tirx.Select(tirx.isnan(b), b, tirx.min(a, b)))


OPERATORS: dict[str, Definition] = {
    "Abs": unary(absolute),
    "Acos": unary(in_float(tirx.acos)),
    "Acosh": unary(in_float(tirx.acosh)),
    "Add": binary(lambda a, b: a + b),
    "And": binary(tirx.all),
    "Asin": unary(in_float(tirx.asin)),
    "Asinh": unary(in_float(tirx.asinh)),
    "Atan": unary(in_float(tirx.atan)),
    "Atanh": unary(in_float(tirx.atanh)),
    "BitShift": shift,
    "BitwiseAnd": binary(tirx.bitwise_and),
    "BitwiseNot": unary(tirx.bitwise_not),
    "BitwiseOr": binary(tirx.bitwise_or),
    "BitwiseXor": binary(tirx.bitwise_xor),
    "Cast": cast_to,
    "CastLike": cast_like,
    "Ceil": unary(tirx.ceil),
    "Clip": clip,
    "Cos": unary(in_float(tirx.cos)),
    "Cosh": unary(in_float(tirx.cosh)),
    "Div": binary(divide),
    "Dropout": dropout,
    "Elu": alpha(lambda x, a: tirx.Select(x < like(0, x), a * (exp(x) - like(1, x)), x)),
    "Equal": compare(same),
    "Erf": unary(in_float(erf)),
    "Exp": unary(in_float(exp)),
    "Floor": unary(tirx.floor),
    "Gelu": gelu,
    "Greater": compare(lambda a, b: a > b),
    "GreaterOrEqual": compare(lambda a, b: a >= b),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": unary(lambda x: x * limit(x * like(1 / 6, x) + like(0.5, x), like(0, x), like(1, x))),
    "Identity": unary(lambda x: x),
    "IsInf": is_infinite,
    "IsNaN": unary(tirx.isnan),
    "LeakyRelu": alpha(lambda x, a: tirx.Select(x < like(0, x), a * x, x)),
    "Less": compare(lambda a, b: a < b),
    "LessOrEqual": compare(lambda a, b: a <= b),
    "Log": unary(in_float(tirx.log)),
    "Max": variadic(maximum),
    "Mean": mean,
    "Min": variadic(minimum),
    "Mish": unary(in_float(lambda x: x * tanh(softplus(x)))),
    "Mod": modulo,
    "Mul": binary(lambda a, b: a * b),
    "Neg": unary(lambda x: like(0, x) - x if not is_float(type_of(x)) else x * like(-1, x)),
    "Not": unary(negated),
    "Or": binary(tirx.any),
    "PRelu": binary(lambda x, s: tirx.Select(x < like(0, x), s * x, x)),
    "Pow": power,
    "Reciprocal": unary(lambda x: like(1, x) / x),
    "Relu": unary(lambda x: tirx.max(x, like(0, x))),
    "Round": unary(tirx.nearbyint),
    "Shrink": shrink,
    "Sigmoid": unary(in_float(sigmoid)),
    "Sign": unary(sign),
    "Sin": unary(in_float(tirx.sin)),
    "Sinh": unary(in_float(tirx.sinh)),
    "Softplus": unary(in_float(softplus)),
    "Softsign": unary(lambda x: x / (like(1, x) + tirx.abs(x))),
    "Sqrt": unary(in_float(tirx.sqrt)),
    "Sub": binary(lambda a, b: a - b),
    "Sum": variadic(lambda a, b: a + b),
    "Tan": unary(in_float(tirx.tan)),
    "Tanh": unary(in_float(tanh)),
    "ThresholdedRelu": alpha(lambda x, a: tirx.Select(x > a, x, like(0, x))),
    "Where": where,
    "Xor": binary(differ),
}
