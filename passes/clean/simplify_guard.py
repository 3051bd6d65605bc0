"""The guard that PyTorch puts after attention's Softmax: Where(IsNaN(s), 0, s).

Softmax gives NaN for a row that is all -inf (a query that may attend to nothing), that holds +inf or NaN. So the
guard may only go where no such row can be. This rule proves it by walking up from the input of Softmax: every
operator on the way must make finite numbers of finite numbers, overflow apart, and every constant must be finite.
A mask that adds -inf stops the walk, and the guard stays. A mask that adds the lowest finite number is harmless once,
but two of them add up to -inf: the walk counts huge constants up to the next operator with a bounded result.
"""

from __future__ import annotations

import numpy as np

from irc.ir.graph import Node, Value
from irc.ir.types import TensorType
from irc.rewrite import NOT_A_CANDIDATE, Editor, Match, Rule, op, scalar, uniform, var
from irc.rewrite.facts import is_float

_FINITE_WORDS = """
    Abs Add And ArgMax ArgMin Atan AveragePool Cast Ceil Clip Concat Conv ConvTranspose Cos CumSum DepthToSpace
    DequantizeLinear Elu Equal Erf Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool
    GlobalMaxPool Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LayerNormalization LeakyRelu Less
    LessOrEqual MatMul Max MaxPool Min Mish Mul Neg Not Or Pad QuantizeLinear Range ReduceMax ReduceMean ReduceMin
    ReduceSum Relu Reshape Round Selu Shape Sigmoid Sign Sin Size Slice Softplus Softsign SpaceToDepth Split Squeeze
    Sub Sum Swish Tanh Tile Transpose Unsqueeze Where Xor
    """
_FINITE = frozenset(_FINITE_WORDS.split())
"""Finite in, finite out, but for overflow. (Exp, Pow and ReduceProd overflow too easily; Div, Log, Sqrt have poles.)"""

_BOUNDED = frozenset({"Softmax", "Sigmoid", "Tanh", "HardSigmoid", "Erf", "LayerNormalization", "Sin", "Cos"})
_HUGE = 1e30


class SoftmaxGuard(Rule):
    """Where(IsNaN(s), 0, s) = s, s = Softmax(x), where x is finite if the model's inputs are (and none overflows)."""

    name = "softmax-guard"
    pattern = op("Where", op("IsNaN", var("s")), scalar(0.0), var("s"))

    def check(self, m: Match) -> str | None:
        softmax = m["s"].producer
        if softmax is None or not softmax.is_op("Softmax"):
            return NOT_A_CANDIDATE
        source = _not_finite(softmax.need(0))
        return None if source is None else f"{source}, so a row of Softmax may have no finite maximum"

    def rewrite(self, m: Match, edit: Editor) -> Value:
        return m["s"]


def _not_finite(start: Value) -> str | None:
    """Why `start` may hold an infinity or NaN although all inputs are finite; None when it cannot."""
    seen: set[tuple[Value, bool]] = set()
    huge: set[Value] = set()
    stack = [(start, False)]  # (value, whether a bounded operator stands between it and the start)
    while stack:
        value, bounded = stack.pop()
        if (value, bounded) in seen or _is_discrete(value):
            continue
        seen.add((value, bounded))
        reason = _source(value, huge, bounded)
        if reason is not None:
            return reason
        node = value.producer
        if node is not None:
            behind = bounded or node.is_op(*_BOUNDED)
            stack.extend((v, behind) for v in node.inputs if v is not None)
    return None


def _is_discrete(value: Value) -> bool:
    """Integers and booleans are finite, however they came about."""
    return isinstance(value.type, TensorType) and not value.type.dtype.is_float


def _source(value: Value, huge: set[Value], bounded: bool) -> str | None:
    """Why this value, or the node that makes it, brings in an infinity; None when it only passes on what it gets."""
    node = value.producer
    if value.constant is not None:
        return _constant_source(value, huge, bounded)
    if node is None:
        inner = value.graph is not None and value.graph.parent is not None
        return f"nothing is known of '{value.name}', which a loop carries" if inner else None
    if node.is_op(*_FINITE) or _finite_division(node) or _harmless(node):
        return None
    return f"{node.label} may make an infinity or NaN"


def _constant_source(value: Value, huge: set[Value], bounded: bool) -> str | None:
    if not is_float(value) or value.numpy().size == 0:
        return None
    largest = float(np.abs(value.numpy()).max())  # NaN where one is in it
    if not np.isfinite(largest):
        return f"constant '{value.name}' holds an infinity or NaN"
    if largest > _HUGE and not bounded:
        huge.add(value)
    return "several huge constants may add up to an infinity" if len(huge) > 1 else None


def _finite_division(node: Node) -> bool:
    """Div by a constant without zeros."""
    divisor = node.input(1)
    return node.is_op("Div") and divisor is not None and divisor.is_constant and bool((divisor.numpy() != 0).all())


def _harmless(node: Node) -> bool:
    """Softmax of finite rows is finite; x * x as Pow; BatchNormalization has a positive denominator."""
    if node.is_op("Pow"):
        exponent = uniform(node.need(1))
        return exponent is not None and float(exponent) in (1.0, 2.0)
    return node.is_op("Softmax", "BatchNormalization")


RULES: tuple[Rule, ...] = (SoftmaxGuard(),)
