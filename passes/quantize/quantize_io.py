"""Inputs and outputs of integers, as `inference_input_type` and `inference_output_type` of TensorFlow Lite make them.

Behind `quantize` a network still takes and gives float32: a QuantizeLinear stands behind its inputs, a DequantizeLinear
before its outputs. This pass takes both away, so that a port has the integers themselves:

    input (float32) -> QuantizeLinear -> DequantizeLinear -> ...    becomes    input (int8) -> DequantizeLinear -> ...
    ... -> QuantizeLinear -> DequantizeLinear -> output (float32)   becomes    ... -> QuantizeLinear -> output (int8)

Integers stay the same numbers: whoever calls the network does the quantization that stood there. That holds as well
with Reshape, Transpose and others between, which move numbers, and for the other 8-bit type: q and q - 128 with the
zero point moved alike are the same real number.

A port that is not quantized is rounded here, and a note says so: the results of Softmax, Sigmoid and Tanh with the
parameters that TensorFlow Lite fixes for them, others in the range that they have in the calibration samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from irc.calibrate.gather import calibrated, gather
from irc.calibrate.observers import Histogram
from irc.errors import DataError, OptionError, suggest
from irc.ir.graph import Graph, Model, Node, Value
from irc.ir.quantization import Quantization, before, behind, quantization_of
from irc.ir.types import DType, Origin, TensorType
from irc.passes.quantize.affine import asymmetric
from irc.pipeline.contract import Pass, PassContext, PassResult

NAME = "quantize-io"

_BOUNDED = {
    "Softmax": Quantization(DType.INT8, 1 / 256, -128),
    "Sigmoid": Quantization(DType.INT8, 1 / 256, -128),
    "HardSigmoid": Quantization(DType.INT8, 1 / 256, -128),
    "Tanh": Quantization(DType.INT8, 1 / 128, 0),
}
"""The parameters of these results in TensorFlow Lite's specification of 8-bit quantization."""

Type = Literal["int8", "uint8", "float32"]


@dataclass(frozen=True)
class QuantizeIO(Pass):
    """`type`: of all float32 inputs and outputs but those that `int8`, `uint8` and `float32` name; there `inputs` and
    `outputs` are all of them, where none has that name."""

    name: ClassVar[str] = NAME
    summary: ClassVar[str] = "8-bit integers as inputs and outputs of a quantized network"

    type: Type = "int8"
    int8: tuple[str, ...] = ()
    uint8: tuple[str, ...] = ()
    float32: tuple[str, ...] = ()

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises OptionError for networks that are not quantized, and for names that are no ports or cannot have the
        type; DataError where the range of a port is not known and there are no samples to learn it from."""
        asked = self._asked(model.graph)
        ports = [_Port(v, asked[v.name]) for v in model.graph.inputs if v.name in asked]
        ports += [_Port(v, asked[v.name], is_output=True) for v in model.graph.outputs if v.name in asked]
        if ports and not any(n.is_op("QuantizeLinear") for n in model.graph.nodes):
            raise OptionError(
                "integers are inputs and outputs of quantized networks, and this one computes in float32",
                where=NAME,
                hint="--preset speed --calibration samples.npz",
            )
        for port in ports:
            port.find()
        _calibrate([p for p in ports if p.numbers is None], model, ctx)
        lines = [p.line() for p in ports]
        for port in ports:
            (_change_output if port.is_output else _change_input)(model.graph, port)
        model.graph.sort()
        notes = [p.note for p in ports if p.note]
        statistics = {"ports": lines, **({"notes": notes} if notes else {})}
        return PassResult(bool(ports), statistics)

    def _asked(self, graph: Graph) -> dict[str, DType]:
        """The 8-bit type of each float32 port that is to have one."""
        groups = {"inputs": [v.name for v in graph.inputs], "outputs": [v.name for v in graph.outputs]}
        values = {v.name: v for v in (*graph.inputs, *graph.outputs)}
        alone: dict[str, Type] = {}
        together: dict[str, Type] = {}
        for kind, names in self._named:
            for name in names:
                _check_name(name, [*values, *groups], {**alone, **together}, kind)
                if name in values:
                    alone[name] = kind
                else:
                    together[name] = kind
        in_groups = {name: kind for group, kind in together.items() for name in groups[group]}
        found = {}
        for name, value in values.items():
            kind = alone.get(name, in_groups.get(name, self.type))
            if value.dtype is DType.FLOAT and kind != "float32" and not (value in graph.inputs and value.is_output):
                found[name] = DType(kind)
            elif name in alone and value.dtype is not DType(kind):
                raise OptionError(
                    f"port '{name}' cannot be {kind}",
                    where=NAME,
                    expected="a float32 input or output",
                    got="both" if value.dtype is DType.FLOAT else str(value.type),
                )
        return found

    @property
    def _named(self) -> tuple[tuple[Type, tuple[str, ...]], ...]:
        return ("int8", self.int8), ("uint8", self.uint8), ("float32", self.float32)


def _check_name(name: str, known: Sequence[str], seen: dict[str, Type], kind: Type) -> None:
    if name not in known:
        raise OptionError(f"the model has no input or output '{name}'", where=NAME, hint=suggest(name, known))
    if name in seen:
        raise OptionError(f"two types are given for '{name}'", where=NAME, got=f"{seen[name]} and {kind}")


@dataclass
class _Port:
    """A port that is to become integers. `numbers`: what they will stand for, once it is known."""

    value: Value
    dtype: DType
    is_output: bool = False
    numbers: Quantization | None = None
    note: str = ""
    source: str = "quantized"

    @property
    def what(self) -> str:
        return f"{'output' if self.is_output else 'input'} '{self.value.name}'"

    def find(self) -> None:
        """The numbers that the graph holds this port in. Raises OptionError where these are no bytes."""
        found = self._of_output() if self.is_output else self._of_input()
        if found is None:
            return
        self.numbers = found.as_type(self.dtype)
        if self.numbers is None:
            raise OptionError(
                f"{self.what} is held in {found.dtype.value}, which {self.dtype.value} cannot hold",
                where=NAME,
                hint=f"--io {self.value.name}=float32, or quantize{{activations=int8}}",
            )

    def _of_input(self) -> Quantization | None:
        """Of several the one of the widest range: nothing is cut off for any reader."""
        found = list(dict.fromkeys(behind(self.value, "QuantizeLinear")))
        if not found:
            return None
        widest = max(found, key=lambda q: q.range[1] - q.range[0])
        if not all(q.same_numbers(widest) for q in found):
            self.note = f"{self.what} is quantized in {len(found)} ways: the integers are those of the widest range"
        return widest

    def _of_output(self) -> Quantization | None:
        node = before(self.value)
        if node is not None and node.is_op("DequantizeLinear"):
            return quantization_of(node)
        if node is None or not node.is_op(*_BOUNDED):
            return None
        self.source = node.op_type
        self.note = f"{self.what} of {node.op_type} is rounded to 8 bits"
        return _BOUNDED[node.op_type]

    def line(self) -> dict[str, Any]:
        assert self.numbers is not None
        numbers = {"scale": self.numbers.scale, "zero_point": self.numbers.zero_point}
        return {"name": self.value.name, "type": self.dtype.value, **numbers, "parameters": self.source}


def _calibrate(ports: Sequence[_Port], model: Model, ctx: PassContext) -> None:
    """Ports that the graph holds in float32 get the range that the samples have there, nothing cut off."""
    if not ports:
        return
    if not calibrated(ctx):
        raise DataError(
            f"{ports[0].what} is not quantized, and its range is not known",
            where=NAME,
            expected="samples of real inputs",
            got="none",
            hint=f"--calibration samples.npz, or --io {ports[0].value.name}=float32",
        )
    statistics = gather(ctx, model, {p.value.name: [Histogram()] for p in ports})
    for port in ports:
        histogram = statistics.get(port.value.name, Histogram)
        low, high = (histogram.low, histogram.high) if histogram.exponent is not None else (0.0, 0.0)
        affine = asymmetric(low, high, "uint8" if port.dtype is DType.UINT8 else "int8")
        port.numbers, port.source = Quantization(port.dtype, affine.scale, affine.zero_point), "calibration"
        port.note = f"{port.what} is rounded to 8 bits, from {low:.4g} to {high:.4g} as in the calibration samples"


def _change_input(graph: Graph, port: _Port) -> None:
    """Integers at the port, dequantized for all readers; then pairs that quantize these again go."""
    value, numbers = port.value, _known(port)
    scale, zero = _parameters(graph, value.name, numbers)
    readers = value.uses
    real = graph.add(
        "DequantizeLinear",
        [value, scale, zero],
        types=[value.type],
        name=f"{value.name}_dequantize",
        origin=Origin().touched(NAME),
        before=graph.nodes[0] if len(graph) else None,
    )
    for use in readers:
        owner = use.node.graph
        assert owner is not None
        owner.set_input(use.node, use.index, real.output)
    value.type = TensorType(numbers.dtype, value.shape)
    for node in real.output.users:
        if _makes(node, numbers) and node.graph is graph and not node.output.is_output:
            _read_instead(graph, node, value, real)
    _drop_unread(graph, real)


def _read_instead(graph: Graph, again: Node, value: Value, real: Node) -> None:
    """Readers of what `again` makes of `real`, its own integers, read these or `real`."""
    numbers = quantization_of(real)
    assert numbers is not None
    for node in again.output.users:
        if node.graph is graph and _gives(node, numbers) and not node.output.is_output:
            graph.replace_uses(node.output, real.output)
            graph.remove(node)
    if again.output.dtype is value.dtype:
        graph.replace_uses(again.output, value)
    _drop_unread(graph, again)


def _change_output(graph: Graph, port: _Port) -> None:
    """The port's integers: those that it is dequantized from where there are such, else quantized from it."""
    value, numbers = port.value, _known(port)
    last = value.producer
    if last is not None and _gives(last, numbers):
        first = last.need(0).producer
        if first is not None and _makes(first, numbers) and not first.output.is_output:
            made = first if first.output.dtype is numbers.dtype else _in_other_type(graph, first, port)
            _make_output(graph, value, made.output)
            _drop_unread(graph, last)
            _drop_unread(graph, first)
            return
    made = _quantize(graph, value, port)
    _make_output(graph, value, made.output)


def _in_other_type(graph: Graph, first: Node, port: _Port) -> Node:
    """`first` with results in the port's 8-bit type, which others who dequantize them read as well."""
    made = _quantize(graph, first.need(0), port)
    scale, zero = made.need(1), made.need(2)
    for node in first.output.users:
        if node.graph is graph and _gives(node, _known(port)):
            for index, source in enumerate((made.output, scale, zero)):
                graph.set_input(node, index, source)
    return made


def _quantize(graph: Graph, value: Value, port: _Port) -> Node:
    numbers = _known(port)
    origin = value.producer.origin if value.producer is not None else Origin()
    return graph.add(
        "QuantizeLinear",
        [value, *_parameters(graph, port.value.name, numbers)],
        types=[TensorType(numbers.dtype, value.shape)],
        name=f"{port.value.name}_quantize",
        origin=origin.touched(NAME),
    )


def _make_output(graph: Graph, old: Value, new: Value) -> None:
    """`new` takes the place and the name of the output `old`, which its other readers go on reading."""
    graph.set_outputs([new if v is old else v for v in graph.outputs])
    name = old.name
    graph.rename(old, graph.unique_name(f"{name}_real"))
    graph.rename(new, name)


def _parameters(graph: Graph, name: str, numbers: Quantization) -> tuple[Value, Value]:
    scale = graph.add_constant(np.asarray(numbers.scale, np.float32), f"{name}_scale")
    zero = graph.add_constant(np.asarray(numbers.zero_point, numbers.dtype.numpy), f"{name}_zero_point")
    return scale, zero


def _makes(node: Node, numbers: Quantization) -> bool:
    """Whether `node` quantizes to these real numbers, in either type."""
    return node.is_op("QuantizeLinear") and _alike(node, numbers)


def _gives(node: Node, numbers: Quantization) -> bool:
    """Whether `node` dequantizes to these real numbers, from either type."""
    return node.is_op("DequantizeLinear") and _alike(node, numbers)


def _alike(node: Node, numbers: Quantization) -> bool:
    found = quantization_of(node)
    return found is not None and found.same_numbers(numbers)


def _drop_unread(graph: Graph, node: Node) -> None:
    if node.graph is graph and not node.output.uses and not node.output.is_output:
        graph.remove(node)


def _known(port: _Port) -> Quantization:
    assert port.numbers is not None, "find and calibrate have looked"
    return port.numbers
