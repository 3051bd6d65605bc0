"""LayerNormalization and Softmax written out in small steps."""

from __future__ import annotations

import numpy as np

from irc.ir import ops
from irc.ir.graph import Node, Value
from irc.rewrite import NOT_A_CANDIDATE, Editor, Match, Rule, const, op, uniform, var
from irc.rewrite.facts import ints, is_float, normalized, rank, same_type

_CENTERED = op("Sub", var("x"), op("ReduceMean", var("x"), const("axes"), name="mean"), name="centered")
_D = op("Sub", name="centered")


class LayerNorm(Rule):
    """d / sqrt(mean(d^2) + eps), d = x - mean(x) over the last axes = LayerNormalization(x, 1)"""

    name = "layer-norm"
    pattern = op(
        "Div",
        _CENTERED,
        op("Sqrt", op("Add", op("ReduceMean", op("Mul|Pow", name="square"), const("axes2"), name="var"), const("eps"))),
    )

    def check(self, m: Match) -> str | None:
        n = rank(m["x"])
        if n is None or not is_float(m["x"]) or not _is_square(m.node("square"), m.node("centered")):
            return NOT_A_CANDIDATE
        first, second = ints(m["axes"]) or (), ints(m["axes2"]) or ()
        axes = sorted(normalized(first, n))
        if axes != sorted(normalized(second, n)) or axes != list(range(n - len(axes), n)) or not axes:
            return "it does not normalize over the last axes"
        if not all(m.node(k).get_int("keepdims", 1) for k in ("mean", "var")):
            return "its means drop their axes"
        shape = m["x"].shape
        if shape is None or not all(isinstance(d, int) for d in shape.dims[axes[0] :]):
            return "the extents it normalizes over are not all known"
        if uniform(m["eps"]) is None or not float(uniform(m["eps"])) > 0:
            return "its epsilon is not one positive number"
        return m.shared()

    def rewrite(self, m: Match, edit: Editor) -> Value:
        x, n = m["x"], rank(m["x"])
        assert n is not None
        assert x.shape is not None
        axis = n - len(ints(m["axes"]) or ())
        ones = np.ones([d for d in x.shape.dims[axis:] if isinstance(d, int)], x.tensor.dtype.numpy)
        scale = edit.constant(ones, f"{m.root.name}_scale")
        return edit.value("LayerNormalization", [x, scale], {"axis": axis, "epsilon": float(uniform(m["eps"]))})


def _is_square(node: Node, centered: Node) -> bool:
    """d * d or d ** 2"""
    if node.need(0).producer is not centered:
        return False
    other = node.need(1)
    if node.op_type == "Mul":
        return other.producer is centered
    exponent = uniform(other)
    return exponent is not None and float(exponent) == 2.0


class LayerNormScale(Rule):
    """LayerNormalization(x, s) * t = LayerNormalization(x, s * t), and + b is its bias."""

    name = "layer-norm-affine"
    pattern = op("Mul|Add", op("LayerNormalization", name="norm"), const("c"))

    def check(self, m: Match) -> str | None:
        norm, c = m.node("norm"), m["c"].constant
        scale = norm.need(1)
        if not scale.is_constant or scale.constant is None or c is None:
            return "its scale is not constant"
        bias = norm.input(2)
        if bias is not None and not bias.is_constant:
            return "its bias is not constant"
        if len(norm.outputs) > 1 and any(v.uses or v.is_output for v in norm.outputs[1:]):
            return "its mean or deviation is used"
        if not _broadcasts(c.shape, scale.constant.shape) or not same_type(norm.output, m.root.output):
            return "its constant does not have the shape of the scale"
        return m.shared()

    def rewrite(self, m: Match, edit: Editor) -> Value:
        norm, c = m.node("norm"), m.array("c").astype(np.float64)
        scale, bias = norm.need(1), norm.input(2)
        kind, shape = scale.numpy().dtype, scale.numpy().shape
        c = np.broadcast_to(c.reshape(c.shape[max(0, c.ndim - len(shape)) :]), shape)
        old = np.zeros(shape) if bias is None else bias.numpy().astype(np.float64)
        new_bias: Value | None = bias
        if m.root.op_type == "Add":
            new_bias = edit.constant((old + c).astype(kind), f"{norm.name}_bias")
        else:
            scale = edit.constant((scale.numpy().astype(np.float64) * c).astype(kind), f"{norm.name}_scale")
            if bias is not None:
                new_bias = edit.constant((old * c).astype(kind), f"{norm.name}_bias")
        return edit.value("LayerNormalization", [norm.need(0), scale, new_bias], norm.attributes)


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether a constant of `shape` is one number per element of `target`, apart from leading extents of 1."""
    extra = len(shape) - len(target)
    if extra > 0:
        if any(d != 1 for d in shape[:extra]):
            return False
        shape = shape[extra:]
    return all(a in (1, b) for a, b in zip(shape[::-1], target[::-1], strict=False))


_E = op("Exp", op("Sub", var("x"), op("ReduceMax", var("x"), const("axes"), name="max")), name="e")


class DecomposedSoftmax(Rule):
    """e / sum(e), e = exp(x - max x) over one axis = Softmax(x)"""

    name = "softmax"
    pattern = op("Div", _E, op("ReduceSum", op("Exp", name="e"), const("axes2"), name="sum"))

    def check(self, m: Match) -> str | None:
        n, axes, axes2 = rank(m["x"]), ints(m["axes"]), ints(m["axes2"])
        if n is None or axes is None or axes2 is None or not is_float(m["x"]):
            return NOT_A_CANDIDATE
        if len(axes) != 1 or normalized(axes, n) != normalized(axes2, n):
            return "it does not go over one axis"
        if not all(ops.attribute(m.node(k), "keepdims") for k in ("max", "sum")):
            return "its maximum or sum drops its axis"
        return m.shared()

    def rewrite(self, m: Match, edit: Editor) -> Value:
        n, axes = rank(m["x"]), ints(m["axes"])
        assert n is not None
        assert axes is not None
        return edit.value("Softmax", [m["x"]], {"axis": normalized(axes, n)[0]})


RULES: tuple[Rule, ...] = (LayerNorm(), LayerNormScale(), DecomposedSoftmax())
