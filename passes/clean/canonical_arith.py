"""Normal forms of arithmetic and activations. Every rule here is exact."""

from __future__ import annotations

import math

import numpy as np

from irc.ir.graph import Node, Value
from irc.ir.types import Constant
from irc.rewrite import NOT_A_CANDIDATE, Editor, Match, Rule, const, is_uniform, op, uniform, var
from irc.rewrite.facts import ints, is_float, rank


class ConstantNode(Rule):
    """Constant{value} -> a constant of the graph."""

    name = "constant-node"
    pattern = op("Constant")

    def check(self, m: Match) -> str | None:
        return None if _node_data(m.root) is not None else "its value is sparse"

    def rewrite(self, m: Match, edit: Editor) -> Value:
        data = _node_data(m.root)
        assert data is not None
        return edit.constant(data, m.root.name)


def _node_data(node: Node) -> Constant | None:
    (name, value), *_ = node.attributes.items()
    if isinstance(value, Constant):
        return value
    kinds = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    if name in kinds:
        return Constant.of(np.array(value, kinds[name]))
    if name in ("value_string", "value_strings"):
        return Constant.of(np.array(value, object))
    return None


class SingleInput(Rule):
    """Sum(x) = Max(x) = Min(x) = Mean(x) = Concat(x) = x"""

    name = "single-input"
    pattern = op("Sum|Max|Min|Mean|Concat")

    def check(self, m: Match) -> str | None:
        return None if len(m.root.inputs) == 1 else NOT_A_CANDIDATE

    def rewrite(self, m: Match, edit: Editor) -> Value:
        return m.root.need(0)


class SumToAdd(Rule):
    """Sum(a, b, c) = Add(Add(a, b), c): the order in which onnxruntime sums."""

    name = "sum-to-add"
    pattern = op("Sum")

    def check(self, m: Match) -> str | None:
        return None if len(m.root.inputs) >= 2 else NOT_A_CANDIDATE

    def rewrite(self, m: Match, edit: Editor) -> Value:
        total = m.root.need(0)
        for i in range(1, len(m.root.inputs)):
            total = edit.value("Add", [total, m.root.need(i)])
        return total


class Dropout(Rule):
    """Dropout(x) = x outside training."""

    name = "dropout"
    pattern = op("Dropout")

    def check(self, m: Match) -> str | None:
        training = m.root.input(2)
        if training is not None and not is_uniform(training, 0):
            return "it may run in training mode"
        if len(m.root.outputs) > 1 and (m.root.outputs[1].uses or m.root.outputs[1].is_output):
            return "its mask is used"
        return None

    def rewrite(self, m: Match, edit: Editor) -> Value:
        return m.root.need(0)


class ConstantRight(Rule):
    """c + x = x + c, and so for every commutative operator: the constant stands right."""

    name = "constant-right"
    pattern = op("Add|Mul|Max|Min|And|Or|Xor|Equal|BitwiseAnd|BitwiseOr|BitwiseXor")

    def check(self, m: Match) -> str | None:
        if len(m.root.inputs) != 2:
            return NOT_A_CANDIDATE
        left, right = m.root.need(0), m.root.need(1)
        return None if left.is_constant and not right.is_constant else NOT_A_CANDIDATE

    def rewrite(self, m: Match, edit: Editor) -> Value:
        return edit.like_root([m.root.need(1), m.root.need(0)])


class SubToAdd(Rule):
    """x - c = x + (-c), exact for floating point."""

    name = "sub-to-add"
    pattern = op("Sub", var("x"), const("c"))

    def check(self, m: Match) -> str | None:
        return None if is_float(m["c"]) and not m["x"].is_constant else NOT_A_CANDIDATE

    def rewrite(self, m: Match, edit: Editor) -> Value:
        return edit.value("Add", [m["x"], edit.constant(-m.array("c"), f"{m.root.name}_negative")])


class DivToMul(Rule):
    """x / c = x * (1 / c), exact where every element of c is a power of two whose inverse is a normal number."""

    name = "div-to-mul"
    pattern = op("Div", var("x"), const("c"))

    def check(self, m: Match) -> str | None:
        if not is_float(m["c"]) or m["x"].is_constant:
            return NOT_A_CANDIDATE
        with np.errstate(all="ignore"):
            mantissa, exponent = np.frexp(m.array("c").astype(np.float64))
        exact = np.all(np.abs(mantissa) == 0.5) and np.all(np.abs(exponent) < 14)  # 14: float16 stays normal
        return None if exact else NOT_A_CANDIDATE

    def rewrite(self, m: Match, edit: Editor) -> Value:
        c = m.array("c")
        return edit.value("Mul", [m["x"], edit.constant((1 / c).astype(c.dtype), f"{m.root.name}_inverse")])


class ClipBounds(Rule):
    """Clip(x) = x; Clip(x, 0) = Relu(x); a bound that cuts nothing off is left out."""

    name = "clip-bounds"
    pattern = op("Clip")

    def check(self, m: Match) -> str | None:
        x, low, high = (m.root.input(i) for i in range(3))
        if low is None and high is None:
            return None
        if not is_float(x):
            return NOT_A_CANDIDATE
        if (low is not None and not _cuts(low, -1)) or (high is not None and not _cuts(high, 1)):
            return None
        return None if high is None and is_uniform(low, 0) else NOT_A_CANDIDATE

    def rewrite(self, m: Match, edit: Editor) -> Value:
        x, low, high = (m.root.input(i) for i in range(3))
        low = low if low is not None and _cuts(low, -1) else None
        high = high if high is not None and _cuts(high, 1) else None
        if low is None and high is None:
            return m.root.need(0)
        if high is None and is_uniform(low, 0):
            return edit.value("Relu", [x])
        return edit.value("Clip", [x, low, high])


def _cuts(bound: Value, sign: int) -> bool:
    """Whether a bound can change a finite value: not when it is infinite or the largest number of its type."""
    number = uniform(bound)
    if number is None:
        return True
    value = float(number) * sign
    return not (value == math.inf or (value > 0 and value >= _largest(bound)))


def _largest(value: Value) -> float:
    import ml_dtypes

    return float(ml_dtypes.finfo(value.tensor.dtype.numpy).max)  # type: ignore[no-untyped-call]  # no stubs


class ScalarMaxMin(Rule):
    """Max(x, c) = Clip(x, c, none) and Min(x, c) = Clip(x, none, c) for one number c."""

    name = "scalar-max-min"
    pattern = op("Max|Min", var("x"), const("c"))

    def check(self, m: Match) -> str | None:
        n, c = rank(m["x"]), m["c"].constant
        if m["x"].is_constant or not is_float(m["x"]) or c is None or c.size != 1:
            return NOT_A_CANDIDATE
        if n is None or len(c.shape) > n:
            return "the rank of the result is unknown or larger than the operand's"
        return None if math.isfinite(float(m.array("c").reshape(-1)[0])) else NOT_A_CANDIDATE

    def rewrite(self, m: Match, edit: Editor) -> Value:
        bound = edit.constant(m.array("c").reshape(()), f"{m.root.name}_bound")
        return edit.value("Clip", [m["x"], bound] if m.root.op_type == "Max" else [m["x"], None, bound])


class GemmConstants(Rule):
    """Gemm: alpha into B, beta into C, transB into B, where they are constants of their own.

    alpha * (A B) = A (alpha B): exact for a power of two, otherwise one rounding per weight.
    """

    name = "gemm-constants"
    pattern = op("Gemm")

    def check(self, m: Match) -> str | None:
        node = m.root
        alpha, beta, c = node.get_float("alpha", 1.0), node.get_float("beta", 1.0), node.input(2)
        if alpha == 1.0 and (beta == 1.0 or c is None) and not node.get_int("transB"):
            return NOT_A_CANDIDATE
        weight = node.need(1)
        if not weight.is_constant:
            return "its weight is no constant"
        if len(weight.uses) > 1 and node.get_int("transB"):
            return f"the weight '{weight.name}' is shared, and a transposed copy would double it"
        if c is not None and beta != 1.0 and not c.is_constant:
            return "beta scales what is no constant"
        return None if is_float(weight) else "the weight is not floating point"

    def rewrite(self, m: Match, edit: Editor) -> Value:
        node, weight, bias = m.root, m.root.need(1), m.root.input(2)
        alpha, beta = node.get_float("alpha", 1.0), node.get_float("beta", 1.0)
        if alpha != 1.0 or node.get_int("transB"):
            weight = edit.constant(_transformed(weight, alpha, bool(node.get_int("transB"))), weight.name)
        if bias is not None and beta != 1.0:
            bias = None if beta == 0.0 else edit.constant(_transformed(bias, beta, False), bias.name)
        return edit.like_root([node.need(0), weight, bias], alpha=None, beta=None, transB=None)


def _transformed(value: Value, factor: float, transpose: bool) -> Constant:
    """factor * value, transposed if asked: computed only when somebody reads it, and a view where possible."""
    assert value.constant is not None
    old = value.constant

    def load() -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        data = old.numpy().T if transpose else old.numpy()
        return data if factor == 1.0 else (data.astype(np.float64) * factor).astype(data.dtype)

    return Constant(old.dtype, old.shape[::-1] if transpose else old.shape, load)


class IntegerPow(Rule):
    """x ** 1 = x; x ** 2 = x * x (one correctly rounded product either way)."""

    name = "integer-pow"
    pattern = op("Pow", var("x"), const("c"))

    def check(self, m: Match) -> str | None:
        c = m["c"].constant
        if c is None or not is_float(m["x"]) or m["x"].is_constant or (rank(m["x"]) or 0) < len(c.shape):
            return NOT_A_CANDIDATE
        fits = c.size == 1 and (is_uniform(m["c"], 1) or is_uniform(m["c"], 2))
        return None if fits else NOT_A_CANDIDATE

    def rewrite(self, m: Match, edit: Editor) -> Value:
        x = m["x"]
        if is_uniform(m["c"], 1):
            return x
        return edit.value("Mul", [x, x])


class SwishToSigmoid(Rule):
    """Swish(x, alpha) = x * sigmoid(alpha * x): onnxruntime, which checks every result, has no kernel for Swish."""

    name = "swish-to-sigmoid"
    pattern = op("Swish", var("x"))

    def rewrite(self, m: Match, edit: Editor) -> Value:
        x, alpha = m["x"], m.root.get_float("alpha", 1.0)
        scaled = x
        if alpha != 1.0:
            factor = edit.constant(np.array(alpha, x.tensor.dtype.numpy), f"{m.root.name}_alpha")
            scaled = edit.value("Mul", [x, factor])
        return edit.value("Mul", [x, edit.value("Sigmoid", [scaled])])


class ReduceNothing(Rule):
    """A reduction over no axes, with noop_with_empty_axes, is its input."""

    name = "reduce-nothing"
    pattern = op("ReduceMean|ReduceSum|ReduceMax|ReduceMin|ReduceProd")

    def check(self, m: Match) -> str | None:
        axes = m.root.input(1)
        nothing = axes is None or ints(axes) == ()
        return None if nothing and m.root.get_int("noop_with_empty_axes") else NOT_A_CANDIDATE

    def rewrite(self, m: Match, edit: Editor) -> Value:
        return m.root.need(0)


RULES: tuple[Rule, ...] = (
    ConstantNode(),
    SingleInput(),
    SumToAdd(),
    Dropout(),
    ConstantRight(),
    SubToAdd(),
    DivToMul(),
    ClipBounds(),
    ScalarMaxMin(),
    GemmConstants(),
    IntegerPow(),
    SwishToSigmoid(),
    ReduceNothing(),
)
