"""Activations written out in small steps. Constants are compared with the tolerance of float32 literals."""

from __future__ import annotations

import math
from typing import ClassVar

from irc.ir.graph import AttributeValue, Value
from irc.rewrite import NOT_A_CANDIDATE, Editor, Match, Rule, op, scalar, var
from irc.rewrite.facts import cannot_widen, is_float, same_type
from irc.rewrite.pattern import Op, Pattern

_CLOSE = 1e-3  # exporters write 1.4142, 0.7979, 0.16667
X = var("x")


class _Activation(Rule):
    """root(x) = op_type(x), where the steps between are read by nothing else and no constant widens the shape."""

    op_type: ClassVar[str]
    attributes: ClassVar[dict[str, AttributeValue]] = {}

    def check(self, m: Match) -> str | None:
        if not is_float(m["x"]) or m["x"].is_constant:
            return NOT_A_CANDIDATE
        constants = [v for node in m.nodes for v in node.inputs if v is not None and v.is_constant]
        if not same_type(m["x"], m.root.output) and not all(cannot_widen(c, m["x"]) for c in constants):
            return "a constant in it may widen the shape"
        return m.shared()

    def rewrite(self, m: Match, edit: Editor) -> Value:
        return edit.value(self.op_type, [m["x"]], self.attributes)


def _times(a: Pattern, factor: float) -> tuple[Op, Op]:
    """a * factor, or a / (1 / factor)."""
    return op("Mul", a, scalar(factor, _CLOSE)), op("Div", a, scalar(1 / factor, _CLOSE))


def _half_product(gate: Op) -> tuple[Op, ...]:
    """x * gate / 2 in the orders in which it is written."""
    inner = [op("Mul", half, gate) for half in _times(X, 0.5)]
    outer = [op("Mul", X, half) for half in _times(gate, 0.5)]
    return (*inner, *outer, *_times(op("Mul", X, gate), 0.5))


def _rules(base: type[_Activation], patterns: tuple[Op, ...]) -> list[Rule]:
    """One rule of class `base` per pattern."""
    return [type(base.__name__, (base,), {"pattern": p, "__doc__": base.__doc__})() for p in patterns]


class GeluErf(_Activation):
    """x/2 * (1 + erf(x / sqrt 2)) = Gelu(x)"""

    name = "gelu"
    op_type = "Gelu"


class GeluTanh(_Activation):
    """x/2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) = Gelu(x, approximate=tanh)"""

    name = "gelu-tanh"
    op_type = "Gelu"
    attributes: ClassVar[dict[str, AttributeValue]] = {"approximate": "tanh"}


class HardSigmoid(_Activation):
    """clip(x + 3, 0, 6) / 6 = HardSigmoid(x, 1/6, 1/2)"""

    name = "hard-sigmoid"
    op_type = "HardSigmoid"
    attributes: ClassVar[dict[str, AttributeValue]] = {"alpha": 1 / 6, "beta": 0.5}


class HardSwish(_Activation):
    """x * clip(x + 3, 0, 6) / 6 = HardSwish(x)"""

    name = "hard-swish"
    op_type = "HardSwish"


class HardSwishOfHardSigmoid(_Activation):
    """x * HardSigmoid(x, 1/6, 1/2) = HardSwish(x)"""

    name = "hard-swish"
    op_type = "HardSwish"
    pattern = op("Mul", X, op("HardSigmoid", X, name="gate"))

    def check(self, m: Match) -> str | None:
        gate = m.node("gate")
        alpha, beta = gate.get_float("alpha", 0.2), gate.get_float("beta", 0.5)
        if not (math.isclose(alpha, 1 / 6, rel_tol=1e-4) and beta == 0.5):
            return NOT_A_CANDIDATE
        return super().check(m)


class Mish(_Activation):
    """x * tanh(softplus(x)) = Mish(x)"""

    name = "mish"
    op_type = "Mish"
    pattern = op("Mul", X, op("Tanh", op("Softplus", X)))


def _gelu_gates() -> list[Op]:
    return [op("Add", op("Erf", scaled), scalar(1)) for scaled in _times(X, math.sqrt(0.5))]


def _tanh_gates() -> list[Op]:
    square = op("Mul", X, X)
    cubes = (op("Pow", X, scalar(3)), op("Mul", square, X))
    terms = [op("Mul", cube, scalar(0.044715, _CLOSE)) for cube in cubes]
    terms.append(op("Mul", op("Mul", op("Mul", X, scalar(0.044715, _CLOSE)), X), X))
    inner = [op("Add", X, term) for term in terms]
    factor = op("Add", op("Mul", square, scalar(0.044715, _CLOSE)), scalar(1))
    inner.append(op("Mul", X, factor))
    return [op("Add", op("Tanh", op("Mul", i, scalar(math.sqrt(2 / math.pi), _CLOSE))), scalar(1)) for i in inner]


_CLIP = op("Clip", op("Add", X, scalar(3)), scalar(0), scalar(6))

RULES: tuple[Rule, ...] = (
    *(rule for gate in _gelu_gates() for rule in _rules(GeluErf, _half_product(gate))),
    *(rule for gate in _tanh_gates() for rule in _rules(GeluTanh, _half_product(gate))),
    *_rules(HardSwish, (*_times(op("Mul", X, _CLIP), 1 / 6), *(op("Mul", X, s) for s in _times(_CLIP, 1 / 6)))),
    HardSwishOfHardSigmoid(),
    *_rules(HardSigmoid, _times(_CLIP, 1 / 6)),
    Mish(),
)
