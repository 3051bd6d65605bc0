"""Which activations are held in few bits, and with what parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from irc.calibrate.observers import Histogram
from irc.ir.graph import Node, Value
from irc.ir.types import DType
from irc.passes.quantize.affine import LARGEST16, Affine, asymmetric, bound16, symmetric, symmetric16
from irc.passes.quantize.ranges import Calibrator, Range, choose
from irc.passes.quantize.regions import Kernel

Scheme = Literal["symmetric", "asymmetric"]


@dataclass(frozen=True)
class Choice:
    """How ranges become parameters. `dtype`: of asymmetric 8-bit activations. `largest`: with 16-bit activations the
    largest number of a weight; 0 with 8-bit ones."""

    calibrator: Calibrator
    percentile: float
    scheme: Scheme
    dtype: Literal["uint8", "int8"]
    largest: int = 0


_TYPES: dict[DType | None, Literal["uint8", "int8", "int16"]] = {
    DType.UINT8: "uint8",
    DType.INT8: "int8",
    DType.INT16: "int16",
}


def held_values(kernels: Sequence[Kernel]) -> list[Value]:
    """The values that get a pair, each once: what kernels read, unless it is quantized numbers already."""
    read = {id(v): v for k in kernels for v in k.inputs}
    return [v for v in read.values() if fixed_parameters(v) is None]


def fixed_parameters(value: Value) -> Affine | None:
    """The parameters of a value that a per-tensor DequantizeLinear made."""
    node = value.producer
    if node is None or not node.is_op("DequantizeLinear"):
        return None
    scale, zero, source = node.need(1), node.input(2), node.need(0)
    if not scale.is_constant or scale.numpy().size != 1 or source.dtype not in _TYPES:
        return None
    point = int(zero.numpy().reshape(-1)[0]) if zero is not None and zero.is_constant else 0
    return Affine(float(scale.numpy().reshape(-1)[0]), point, _TYPES[source.dtype])


def readers(kernels: Sequence[Kernel], value: Value) -> list[Node]:
    """The nodes of the kernels that read `value`."""
    return [n for k in kernels if any(v is value for v in k.inputs) for n in k.nodes]


class Sharing:
    """Values that a kernel hands through unchanged share their parameters: sets of such values."""

    def __init__(self, kernels: Sequence[Kernel], held: Sequence[Value]) -> None:
        self._parent = {id(v): id(v) for v in held}
        for kernel in kernels:
            if kernel.kind == "same":
                keys = [id(v) for v in (*kernel.inputs, kernel.output) if id(v) in self._parent]
                for key in keys[1:]:
                    self._parent[self._root(key)] = self._root(keys[0])

    def __contains__(self, value: Value) -> bool:
        return id(value) in self._parent

    def of(self, value: Value) -> int:
        """A number that all values of a set have in common."""
        return self._root(id(value))

    def _root(self, key: int) -> int:
        while self._parent[key] != key:
            key = self._parent[key]
        return key


def choose_parameters(
    kernels: Sequence[Kernel], histograms: Mapping[int, Histogram], choice: Choice
) -> tuple[dict[int, Affine], list[str]]:
    """One Affine for each held value (by id), from the histograms of all of them (by id); and notes."""
    held, notes = held_values(kernels), []
    sharing = Sharing(kernels, held)
    ranges: dict[int, Range] = {}
    calibrator = "min-max" if choice.largest and choice.calibrator != "percentile" else choice.calibrator
    for value in held:
        histogram = histograms[id(value)]
        found, key = choose(histogram, calibrator, choice.percentile), sharing.of(value)
        notes.extend(_notes(value, histogram, found))
        ranges[key] = ranges[key].union(found) if key in ranges else found
    if choice.largest:  # clipping gains nothing where steps are so fine
        bounds = _bounds(kernels, held, sharing, choice.largest)
        return {id(v): _affine16(ranges[sharing.of(v)], bounds[sharing.of(v)]) for v in held}, notes
    # zero points cost a product of two computed matrices a sum of each factor; softmax results have none
    factors = (v for k in kernels if k.kind == "product" for v in k.inputs)
    centred = {sharing.of(v) for v in factors if v in sharing and ranges[sharing.of(v)].low < 0}
    return {id(v): _affine(ranges[sharing.of(v)], choice, sharing.of(v) in centred) for v in held}, notes


def _bounds(kernels: Sequence[Kernel], held: Sequence[Value], sharing: Sharing, largest: int) -> dict[int, int]:
    """Steps that each set of values may have, so that no layer that reads one of them overflows."""
    bounds = {sharing.of(v): LARGEST16 for v in held}
    for kernel in kernels:
        if kernel.linear is not None and kernel.inputs[0] in sharing:
            shape, axis = kernel.linear.weight.static_shape(), kernel.linear.axis
            terms = math.prod(n for i, n in enumerate(shape) if i != axis)
            key = sharing.of(kernel.inputs[0])
            bounds[key] = min(bounds[key], bound16(terms, largest))
    return bounds


def _affine16(found: Range, bound: int) -> Affine:
    return symmetric16(found.low, found.high, bound)


def _notes(value: Value, histogram: Histogram, found: Range) -> list[str]:
    notes = []
    if histogram.bad:
        notes.append(f"'{value.name}' held NaN or infinity in {histogram.bad} elements, which were left out")
    if found.low == found.high:
        notes.append(f"'{value.name}' was 0 in every calibration sample")
    elif histogram.low == histogram.high:
        notes.append(f"'{value.name}' was {histogram.low:g} in every calibration sample")
    return notes


def _affine(found: Range, choice: Choice, centred: bool) -> Affine:
    if choice.scheme == "symmetric" or centred:
        return symmetric(found.low, found.high)
    return asymmetric(found.low, found.high, choice.dtype)
