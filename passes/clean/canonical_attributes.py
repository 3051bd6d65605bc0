"""Attributes in normal form: changes nodes in place, never what they compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from irc.ir import ops
from irc.ir.graph import Model, Node
from irc.rewrite.facts import ints, normalized, rank, static

_AXIS_ELSEWHERE = ("Flatten", "OneHot", "ConcatFromSequence")  # their axis counts over another rank than input 0's
_SPATIAL = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "AveragePool", "MaxPool", "LpPool")
_AXES_INPUT = {"Squeeze": 1, "Unsqueeze": 1, "Slice": 3, "Pad": 3}


def normalize(model: Model) -> dict[str, int]:
    """Normalize every node; gives how often each kind of change was made."""
    made: Counter[str] = Counter()
    for node in model.graph.walk():
        if node.domain:
            continue
        for step in _STEPS:
            if step(node):
                made[step.__name__.strip("_")] += 1
    return dict(sorted(made.items()))


def _explicit_axis(node: Node) -> bool:
    """axis=-1 -> axis=rank-1, written out."""
    axis = ops.attribute(node, "axis")
    if not isinstance(axis, int) or node.op_type in _AXIS_ELSEWHERE:
        return False
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and rank(node.input(1)) == 0:
        return node.attributes.pop("axis", None) is not None  # per tensor: the axis means nothing
    n = rank(node.input(0))
    if n is None or node.get_int("axis", -100) == (axis + n if axis < 0 else axis):
        return False
    node.attributes["axis"] = axis + n if axis < 0 else axis
    return True


def _explicit_axes_input(node: Node) -> bool:
    """Constant negative axes as an input -> a new constant with positive ones."""
    index = _AXES_INPUT.get(node.op_type, 1 if node.op_type.startswith("Reduce") else -1)
    value = node.input(index) if index > 0 else None
    axes = ints(value)
    n = rank(node.output) if node.op_type == "Unsqueeze" else rank(node.input(0))
    if value is None or axes is None or n is None or all(a >= 0 for a in axes) or node.graph is None:
        return False
    new = node.graph.add_constant(np.array(normalized(axes, n), value.numpy().dtype), f"{node.name}_axes")
    node.graph.set_input(node, index, new)
    return True


def _explicit_perm(node: Node) -> bool:
    n = rank(node.input(0))
    if not node.is_op("Transpose") or "perm" in node.attributes or n is None:
        return False
    node.attributes["perm"] = tuple(range(n))[::-1]
    return True


def _kernel_shape(node: Node) -> tuple[int, ...] | None:
    if "kernel_shape" in node.attributes:
        return node.get_ints("kernel_shape")
    weight = static(node.input(3 if node.op_type == "QLinearConv" else 1))
    return None if weight is None or node.op_type.endswith("Pool") else weight[2:]


def _explicit_window(node: Node) -> bool:
    """kernel_shape, strides, dilations and pads written out; auto_pad resolved where the extents are known."""
    kernel = _kernel_shape(node) if node.op_type in _SPATIAL else None
    if kernel is None:
        return False
    n = len(kernel)
    new = {
        "kernel_shape": kernel,
        "strides": node.get_ints("strides", (1,) * n),
        "dilations": node.get_ints("dilations", (1,) * n),
    }
    find_pads = _transposed_pads if node.op_type == "ConvTranspose" else _pads
    pads = find_pads(node, kernel, new["strides"], new["dilations"])
    old = dict(node.attributes)
    node.attributes.update(new)
    if pads is not None:
        node.attributes["pads"] = pads
        node.attributes.pop("auto_pad", None)
        node.attributes.pop("output_shape", None)
    return node.attributes != old


def _pads(
    node: Node, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> tuple[int, ...] | None:
    """The pads that auto_pad stands for, or None where the extents they depend on are unknown."""
    n, mode = len(kernel), node.get_str("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return node.get_ints("pads", (0,) * (2 * n))
    if mode == "VALID":
        return (0,) * (2 * n)
    shape = node.need(0).shape
    extents = shape.dims[2:] if shape is not None else ()
    if node.get_int("ceil_mode") or not extents or not all(isinstance(e, int) for e in extents):
        return None
    heads, tails = [], []
    for extent, k, s, d in zip(extents, kernel, strides, dilations, strict=True):
        assert isinstance(extent, int)
        total = max((-(-extent // s) - 1) * s + (k - 1) * d + 1 - extent, 0)
        small = total // 2
        heads.append(small if mode == "SAME_UPPER" else total - small)
        tails.append(total - heads[-1])
    return (*heads, *tails)


def _transposed_pads(
    node: Node, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> tuple[int, ...] | None:
    """The pads of a ConvTranspose, whose output_shape or auto_pad fixes the output's extents instead.

    onnxruntime (and the operator's specification) crop the surplus; where the output asked for is larger than what the
    kernel reaches, engines differ, so that stays as it is (None).
    """
    n, mode = len(kernel), node.get_str("auto_pad", "NOTSET")
    wanted = node.get_ints("output_shape")
    if mode in ("NOTSET", "VALID") and not wanted:
        return node.get_ints("pads", (0,) * (2 * n)) if mode == "NOTSET" else (0,) * (2 * n)
    shape = node.need(0).shape
    extra = node.get_ints("output_padding", (0,) * n)
    heads, tails = [], []
    for i, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
        total = extra[i] + (k - 1) * d + 1 - s  # auto_pad: the output has `stride` times the input's extent
        if wanted:
            extent = None if shape is None else shape[2 + i]
            if not isinstance(extent, int):
                return None
            total += extent * s - wanted[i]
        if total < 0:
            return None
        heads.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
        tails.append(total - heads[-1])
    return (*heads, *tails)


def _drop_defaults(node: Node) -> bool:
    """Scalar attributes that equal the default (but axis, which is always written out)."""
    gone = [
        name
        for name, value in node.attributes.items()
        if name != "axis" and isinstance(value, int | float | str | bytes) and _is_default(node, name, value)
    ]
    for name in gone:
        del node.attributes[name]
    return bool(gone)


def _is_default(node: Node, name: str, value: int | float | str | bytes) -> bool:
    default = ops.default_attribute(node, name)
    found = value.decode() if isinstance(value, bytes) else value
    if isinstance(default, float) and isinstance(found, float):
        return bool(np.float32(default) == np.float32(found))  # ONNX keeps attributes in float32
    return default is not None and type(default) is type(found) and default == found


_STEPS: tuple[Callable[[Node], bool], ...] = (
    _explicit_axis,
    _explicit_axes_input,
    _explicit_perm,
    _explicit_window,
    _drop_defaults,
)
