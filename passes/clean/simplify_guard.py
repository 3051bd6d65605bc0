"""The guard that PyTorch puts after attention's Softmax: Where(IsNaN(s), 0, s).

Softmax gives NaN for a row that is all -inf (a query that may attend to nothing), that holds +inf or NaN. So the
guard may only go where no such row can be. This rule proves it by walking up from the input of Softmax: every
operator on the way must make finite numbers of finite numbers, overflow apart, and every constant must be finite.
A mask that adds -inf stops the walk, and the guard stays.
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
    seen: set[Value] = set()
    stack = [start]
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        if value.constant is not None:
            if is_float(value) and not bool(np.isfinite(value.numpy().astype(np.float64)).all()):
                return f"constant '{value.name}' holds an infinity or NaN"
            continue
        if isinstance(value.type, TensorType) and not value.type.dtype.is_float:
            continue  # integers and booleans are finite, however they came about
        node = value.producer
        if node is None:
            if value.graph is not None and value.graph.parent is not None:
                return f"nothing is known of '{value.name}', which a loop carries"
            continue  # an input of the model
        if not node.is_op(*_FINITE) and not _finite_division(node) and not _harmless(node):
            return f"{node.label} may make an infinity or NaN"
        stack.extend(v for v in node.inputs if v is not None)
    return None


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
