"""Models written by hand in a few lines, for tests and examples.

b = GraphBuilder()
x = b.input("x", "float32", [1, 3, 8, 8])
y = b.conv(x, weights, bias, pads=[1, 1, 1, 1])
b.output(b.op("Relu", y))
model = b.build()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from irc.ir.graph import AttributeValue, Graph, Model, Node, Value
from irc.ir.infer import infer
from irc.ir.types import Array, Constant, Dim, DType, Origin, Shape, TensorType, ValueType
from irc.ir.verify import verify

Operand = Value | Array | Constant | float | int | Sequence[int] | Sequence[float] | None
"""What an input may be: a value, data for a new constant (Python numbers: float32 or int64), or None: left out."""


class GraphBuilder:
    """Adds nodes to one graph; `build` infers types and verifies. Names are given only where they matter."""

    def __init__(self, name: str = "graph", *, _graph: Graph | None = None) -> None:
        self.graph = Graph(name) if _graph is None else _graph
        self._outputs: list[Value] = []

    def input(self, name: str, dtype: str | DType | ValueType, shape: Sequence[Dim] | None = None) -> Value:
        """A graph input; `dtype` a DType, its name, or a whole type (then without shape)."""
        if isinstance(dtype, str | DType):
            extents = None if shape is None else Shape(tuple(shape))
            dtype = TensorType(dtype if isinstance(dtype, DType) else DType(dtype), extents)
        return self.graph.add_input(name, dtype)

    def constant(self, data: Operand, name: str = "const") -> Value:
        if isinstance(data, Value):
            return data
        if isinstance(data, Constant):
            return self.graph.add_constant(data, name)
        array = np.asarray(data)
        if not isinstance(data, np.ndarray | np.generic):
            array = array.astype({"f": np.float32, "i": np.int64}.get(array.dtype.kind, array.dtype))
        return self.graph.add_constant(array, name)

    @overload
    def op(
        self,
        op_type: str,
        *inputs: Operand,
        outputs: Literal[1] = ...,
        name: str = ...,
        domain: str = ...,
        **attrs: Any,
    ) -> Value: ...

    @overload
    def op(
        self,
        op_type: str,
        *inputs: Operand,
        outputs: int | Sequence[str],
        name: str = ...,
        domain: str = ...,
        **attrs: Any,
    ) -> Any: ...

    def op(
        self,
        op_type: str,
        *inputs: Operand,
        outputs: int | Sequence[str] = 1,
        name: str = "",
        domain: str = "",
        **attrs: Any,
    ) -> Any:
        """Any operator. The output value, or a tuple of them when `outputs` is not 1.

        Lists become tuples, arrays become Constants, and attributes that are None are left out.
        """
        node = self.node(op_type, *inputs, outputs=outputs, name=name, domain=domain, **attrs)
        return node.output if outputs == 1 else node.outputs

    def node(
        self,
        op_type: str,
        *inputs: Operand,
        outputs: int | Sequence[str] = 1,
        name: str = "",
        domain: str = "",
        **attrs: Any,
    ) -> Node:
        """The same as `op`, but gives the node."""
        values = [None if v is None else self.constant(v) for v in inputs]
        attributes = {k: _attribute(v) for k, v in attrs.items() if v is not None}
        made = self.graph.add(op_type, values, outputs, attributes, name=name, domain=domain)
        made.origin = Origin((made.name,))
        return made

    def conv(self, x: Value, w: Operand, bias: Operand = None, **attrs: Any) -> Value:
        """Conv; `w` is [M, C/group, k...], `kernel_shape` follows from it."""
        return self.node("Conv", x, w, *([] if bias is None else [bias]), **attrs).output

    def gemm(self, x: Value, w: Operand, bias: Operand = None, **attrs: Any) -> Value:
        return self.node("Gemm", x, w, *([] if bias is None else [bias]), **attrs).output

    def matmul(self, a: Operand, b: Operand) -> Value:
        return self.node("MatMul", a, b).output

    def quantize(self, x: Value, scale: Operand, zero_point: Operand, **attrs: Any) -> Value:
        return self.node("QuantizeLinear", x, scale, zero_point, **attrs).output

    def dequantize(self, x: Operand, scale: Operand, zero_point: Operand = None, **attrs: Any) -> Value:
        return self.node("DequantizeLinear", x, scale, *([] if zero_point is None else [zero_point]), **attrs).output

    def subgraph(self, fill: Callable[[GraphBuilder], None], name: str = "body") -> Graph:
        """A body for If, Loop or Scan: `fill` is called with a builder for it, which may use outer values."""
        inner = GraphBuilder(_graph=self.graph.subgraph(name))
        fill(inner)
        inner.graph.set_outputs(inner._outputs)
        return inner.graph

    def output(self, *values: Value, name: str = "") -> None:
        """Mark results, in order. `name` renames a single one."""
        if name:
            self.graph.rename(values[0], name)
        self._outputs.extend(values)

    def build(self, *, check: bool = True) -> Model:
        """The model. `check`: verify and infer types (leave it out to build something wrong on purpose)."""
        self.graph.set_outputs(self._outputs)
        model = Model(self.graph)
        if check:
            verify(model)
            infer(model)
        return model


def weights(*shape: int, seed: int = 0, scale: float = 0.1, dtype: npt.DTypeLike = np.float32) -> Array:
    """Reproducible normal weights for tests."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


def _attribute(value: Any) -> AttributeValue:
    if isinstance(value, np.ndarray):
        return Constant.of(value)
    if isinstance(value, list | tuple):
        return tuple(_attribute(v) for v in value)  # type: ignore[return-value]  # elements of one kind, by contract
    if isinstance(value, bool):
        return int(value)
    result: AttributeValue = value
    return result
