"""What changed in ONNX operators from opset to opset, one function per change.

Each function rewrites one node in place to the next meaning. `ADAPTERS` says below which opset it applies; the
functions of an operator run in order. Source: https://github.com/onnx/onnx/blob/main/docs/Changelog.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from irc.ir.graph import Node, Value
from irc.ir.types import Array, Constant, DType


class AdaptError(ValueError):
    """The node has no equivalent at the newer opset, or too little is known of its inputs."""


Adapter = Callable[[Node], None]


def _words(text: str) -> list[str]:
    return text.split()


def _constant(node: Node, what: str, data: Array) -> Value:
    assert node.graph is not None
    return node.graph.add_constant(Constant.of(data), f"{node.name}_{what}")


def _add(node: Node, op_type: str, inputs: list[Value | None], what: str, **attributes: int) -> Value:
    """A new node in front of `node`; returns its output."""
    assert node.graph is not None
    return node.graph.add(
        op_type,
        inputs,
        attributes=attributes,
        name=f"{node.name}_{what}",
        origin=node.origin,
        before=node,
    ).output


def _set(node: Node, index: int, value: Value | None) -> None:
    assert node.graph is not None
    node.graph.set_input(node, index, value)


def _rank(value: Value | None, what: str) -> int:
    shape = value.shape if value is not None else None
    if shape is None:
        raise AdaptError(f"the rank of {what} is not known")
    return shape.rank


def _float_dtype(node: Node) -> np.dtype[np.generic]:
    """Element type of the first input: constants that were float attributes take it."""
    return (node.need(0).dtype or DType.FLOAT).numpy


def _ints_to_input(name: str, index: int, *, required: bool = False) -> Adapter:
    """Attribute `name` (integers) becomes input `index`."""

    def adapt(node: Node) -> None:
        value = node.attributes.pop(name, None)
        if value is None:
            if required:
                raise AdaptError(f"attribute '{name}' is missing")
            return
        numbers = [value] if isinstance(value, int) else list(value)  # type: ignore[arg-type]  # ints, by its schema
        _set(node, index, _constant(node, name, np.array(numbers, np.int64)))

    return adapt


def _drop(*names: str) -> Adapter:
    def adapt(node: Node) -> None:
        for name in names:
            node.attributes.pop(name, None)

    return adapt


def _default(name: str, value: int | float) -> Adapter:
    """The older default, where the newer one is another."""

    def adapt(node: Node) -> None:
        node.attributes.setdefault(name, value)

    return adapt


def _legacy_broadcast(node: Node) -> None:
    """Below 7 the second input was broadcast from `axis` on, and only with `broadcast=1`."""
    broadcast = node.attributes.pop("broadcast", 0)
    axis = node.attributes.pop("axis", None)
    if not broadcast or axis is None:
        return
    rank, small = _rank(node.input(0), "the first input"), _rank(node.input(1), "the second input")
    start = axis if isinstance(axis, int) else 0
    after = rank - (start + rank if start < 0 else start) - small
    if after > 0:
        axes = _constant(node, "axes", np.arange(small, small + after))
        _set(node, 1, _add(node, "Unsqueeze", [node.input(1), axes], "unsqueeze"))


def _batch_normalization_9(node: Node) -> None:
    if node.attributes.pop("spatial", 1) != 1:
        raise AdaptError("spatial=0 (statistics per element) was taken out")


def _batch_normalization_14(node: Node) -> None:
    """Below 14, outputs 2 to 5 meant training."""
    if any(v.uses or v.is_output for v in node.outputs[1:]):
        raise AdaptError("it is in training mode")
    _keep_outputs(node, 1)


def _keep_outputs(node: Node, count: int) -> None:
    """Leave out unused outputs at the end."""
    assert node.graph is not None
    for value in node.outputs[count:]:
        node.graph.root._names.discard(value.name)
    node.outputs = node.outputs[:count]


def _cast_6(node: Node) -> None:
    to = node.attributes.get("to")
    if isinstance(to, str):
        try:
            node.attributes["to"] = DType[to.upper()].onnx
        except KeyError:
            raise AdaptError(f"it casts to unknown type '{to}'") from None


def _clip_11(node: Node) -> None:
    dtype = _float_dtype(node)
    for index, name in ((1, "min"), (2, "max")):
        bound = node.attributes.pop(name, None)
        if isinstance(bound, int | float):
            with np.errstate(over="ignore"):
                _set(node, index, _constant(node, name, np.array(bound, np.float32).astype(dtype)))


def _dft_20(node: Node) -> None:
    axis = node.get_int("axis", 1)
    node.attributes.pop("axis", None)
    _set(node, 2, _constant(node, "axis", np.array(axis, np.int64)))


def _dropout_12(node: Node) -> None:
    """At inference the ratio does not matter. What the mask then holds was left open (onnxruntime: false)."""
    _drop("ratio", "is_test")(node)
    if any(v.uses or v.is_output for v in node.outputs[1:]):
        raise AdaptError("its mask is read, which below opset 12 has no defined contents at inference")
    _keep_outputs(node, 1)


def _float_to_int(name: str, default: int) -> Adapter:
    def adapt(node: Node) -> None:
        node.attributes[name] = int(node.get_float(name, default))

    return adapt


def _grid_sample_20(node: Node) -> None:
    renamed = {"bilinear": "linear", "bicubic": "cubic"}
    mode = node.get_str("mode", "bilinear")
    node.attributes["mode"] = renamed.get(mode, mode)


def _group_normalization_21(node: Node) -> None:
    """Below 21 scale and bias were per group, now per channel: repeat each."""
    shape, groups = node.need(0).shape, node.get_int("num_groups")
    channels = shape[1] if shape is not None and shape.rank > 1 else None
    if not isinstance(channels, int) or groups < 1:
        raise AdaptError("the number of channels is not known")
    column = _constant(node, "column", np.array([groups, 1], np.int64))
    spread = _constant(node, "spread", np.array([groups, channels // groups], np.int64))
    flat = _constant(node, "flat", np.array([-1], np.int64))
    for index, what in ((1, "scale"), (2, "bias")):
        per_group = _add(node, "Reshape", [node.input(index), column], f"{what}_column")
        repeated = _add(node, "Expand", [per_group, spread], f"{what}_repeat")
        _set(node, index, _add(node, "Reshape", [repeated, flat], f"{what}_channels"))


def _mask_outputs_rnn(node: Node) -> None:
    """Below 7 `output_sequence=0` left the first output out; the file then does not name it."""
    node.attributes.pop("output_sequence", None)


def _pad_2(node: Node) -> None:
    paddings = node.attributes.pop("paddings", None)
    if paddings is not None:
        node.attributes["pads"] = paddings


def _pad_11(node: Node) -> None:
    value = node.get_float("value", 0.0)
    node.attributes.pop("value", None)
    _ints_to_input("pads", 1, required=True)(node)
    if value != 0.0:
        _set(node, 2, _constant(node, "value", np.array(value).astype(_float_dtype(node))))


def _prelu_7(node: Node) -> None:
    """Below 7 a slope of rank 1 ran over the channels (axis 1)."""
    slope = node.need(1).shape
    if slope is not None and (slope.rank == 0 or slope.dims == (1,)):
        return
    extra = _rank(node.input(0), "the input") - 2
    if _rank(node.input(1), "the slope") == 1 and extra > 0:
        axes = _constant(node, "axes", np.arange(1, 1 + extra))
        _set(node, 1, _add(node, "Unsqueeze", [node.input(1), axes], "slope"))


def _resize_11(node: Node) -> None:
    """Resize 10 took coordinates as out / scale; nearest rounded down when growing and up when shrinking."""
    scales = node.input(1)
    _set(node, 1, None)
    _set(node, 2, scales)
    node.attributes["coordinate_transformation_mode"] = "asymmetric"
    if node.get_str("mode", "nearest") != "nearest":
        return
    if scales is None or scales.constant is None:
        raise AdaptError("its scales are not constant, and they decide how it rounds")
    factors = scales.numpy()
    if (factors > 1).any() and (factors < 1).any():
        raise AdaptError("it grows one axis and shrinks another")
    node.attributes["nearest_mode"] = "ceil" if (factors < 1).any() else "floor"


def _resize_13(node: Node) -> None:
    """`tf_half_pixel_for_nn` was taken out: floor((x + 0.5) / s) is half_pixel with ties rounded up."""
    if node.get_str("coordinate_transformation_mode", "half_pixel") != "tf_half_pixel_for_nn":
        return
    if node.get_str("mode", "nearest") != "nearest" or node.get_str("nearest_mode", "round_prefer_floor") != "floor":
        raise AdaptError("coordinate_transformation_mode=tf_half_pixel_for_nn was taken out")
    node.attributes["coordinate_transformation_mode"] = "half_pixel"
    node.attributes["nearest_mode"] = "round_prefer_ceil"


def _roi_align_16(node: Node) -> None:
    node.attributes.setdefault("coordinate_transformation_mode", "output_half_pixel")


def _scan_9(node: Node) -> None:
    raise AdaptError("Scan 8 runs over a batch, which was taken out")


def _scatter_11(node: Node) -> None:
    node.op_type = "ScatterElements"


def _slice_10(node: Node) -> None:
    for index, name in ((1, "starts"), (2, "ends")):
        _ints_to_input(name, index, required=True)(node)
    _ints_to_input("axes", 3)(node)


def _softmax_13(node: Node) -> None:
    """Below 13 the input was seen as a matrix, rows up to `axis` (default 1), columns from there on."""
    shape, axis = node.need(0).shape, node.get_int("axis", 1)
    if shape is not None:
        axis += shape.rank if axis < 0 else 0
        if all(d == 1 for d in shape.dims[axis + 1 :]):
            node.attributes["axis"] = axis if axis < shape.rank - 1 else -1
            return
    assert node.graph is not None
    source, result = node.need(0), node.output
    extents = _add(node, "Shape", [source], "shape")
    _set(node, 0, _add(node, "Flatten", [source], "flatten", axis=axis))
    node.attributes["axis"] = -1
    after = node.graph.nodes
    position = next(i for i, n in enumerate(after) if n is node) + 1
    inner = node.graph.unique_name(f"{result.name}_flat")
    name = result.name
    kept = node.graph.add(
        "Reshape",
        [result, extents],
        [inner],
        name=f"{node.name}_reshape",
        types=[result.type],
        origin=node.origin,
        before=after[position] if position < len(after) else None,
    )
    result.type = None
    _hand_over(node, kept, name, inner)


def _hand_over(node: Node, follower: Node, name: str, spare: str) -> None:
    """`follower` (which reads `node`) takes over the name, the readers and the place as graph output."""
    graph, old, new = node.graph, node.output, follower.output
    assert graph is not None
    for use in old.uses:
        if use.node is not follower and use.node.graph is not None:
            use.node.graph.set_input(use.node, use.index, new)
    graph.rename(new, graph.unique_name(f"{spare}_"))
    graph.rename(old, spare)
    graph.rename(new, name)
    graph.set_outputs([new if v is old else v for v in graph.outputs])


def _split_2(node: Node) -> None:
    node.attributes.setdefault("axis", 0)
    if node.input(1) is not None:
        raise AdaptError("its lengths are an input of the first kind")


def _split_18(node: Node) -> None:
    if node.input(1) is None:
        node.attributes["num_outputs"] = len(node.outputs)


def _tile_6(node: Node) -> None:
    tiles, axis, rank = node.need(1), node.need(2), _rank(node.input(0), "the input")
    if tiles.constant is None or axis.constant is None:
        raise AdaptError("its repeats are not constant")
    repeats = np.ones(rank, np.int64)
    repeats[int(axis.numpy().reshape(-1)[0])] = int(tiles.numpy().reshape(-1)[0])
    _set(node, 2, None)
    _set(node, 1, _constant(node, "repeats", repeats))


def _upsample_7(node: Node) -> None:
    factors = (1.0, 1.0, node.get_float("height_scale", 1.0), node.get_float("width_scale", 1.0))
    _drop("height_scale", "width_scale")(node)
    node.attributes["scales"] = factors


def _upsample_9(node: Node) -> None:
    scales = node.attributes.pop("scales", None)
    if not isinstance(scales, tuple):
        raise AdaptError("attribute 'scales' is missing")
    _set(node, 1, _constant(node, "scales", np.array(scales, np.float32)))


def _upsample_10(node: Node) -> None:
    """Upsample became Resize: the same coordinates as Resize 10, always rounded down."""
    node.op_type = "Resize"
    scales = node.input(1)
    _set(node, 1, None)
    _set(node, 2, scales)
    node.attributes["coordinate_transformation_mode"] = "asymmetric"
    mode = node.get_str("mode", "nearest")
    node.attributes["mode"] = "linear" if mode == "bilinear" else mode
    if mode == "nearest":
        node.attributes["nearest_mode"] = "floor"


_BROADCASTING = ((7, _legacy_broadcast),)
_REDUCE = ((18, _ints_to_input("axes", 1)),)
_RECURRENT = ((7, _mask_outputs_rnn),)
_SOFTMAX = ((13, _softmax_13),)

ADAPTERS: dict[str, tuple[tuple[int, Adapter], ...]] = {
    **dict.fromkeys(_words("Add And Div Equal Greater Less Mul Or Pow Sub Xor"), _BROADCASTING),
    **{f"Reduce{kind}": _REDUCE for kind in _words("L1 L2 LogSum LogSumExp Max Mean Min Prod SumSquare")},
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _RECURRENT),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _SOFTMAX),
    "BatchNormalization": ((7, _drop("is_test")), (9, _batch_normalization_9), (14, _batch_normalization_14)),
    "Cast": ((6, _cast_6),),
    "Clip": ((11, _clip_11),),
    "Concat": ((4, _default("axis", 1)),),
    "DFT": ((20, _dft_20),),
    "Dropout": ((12, _dropout_12),),
    "Gemm": ((7, _drop("broadcast")),),
    "GlobalLpPool": ((2, _float_to_int("p", 2)),),
    "GridSample": ((20, _grid_sample_20),),
    "GroupNormalization": ((21, _group_normalization_21),),
    "LpPool": ((2, _float_to_int("p", 2)),),
    "PRelu": ((7, _prelu_7),),
    "Pad": ((2, _pad_2), (11, _pad_11)),
    "ReduceSum": ((13, _ints_to_input("axes", 1)),),
    "Reshape": ((5, _ints_to_input("shape", 1, required=True)),),
    "Resize": ((11, _resize_11), (13, _resize_13)),
    "RoiAlign": ((16, _roi_align_16),),
    "Scan": ((9, _scan_9),),
    "Scatter": ((11, _scatter_11),),
    "Selu": ((6, _default("alpha", 1.6732)), (6, _default("gamma", 1.0507))),
    "Slice": ((10, _slice_10),),
    "Split": ((2, _split_2), (13, _ints_to_input("split", 1)), (18, _split_18)),
    "Squeeze": ((13, _ints_to_input("axes", 1)),),
    "Tile": ((6, _tile_6),),
    "TopK": ((10, _ints_to_input("k", 1, required=True)),),
    "Unsqueeze": ((13, _ints_to_input("axes", 1, required=True)),),
    "Upsample": ((7, _upsample_7), (9, _upsample_9), (10, _upsample_10)),
}
"""Operator -> (opset, change): the change applies to nodes of older opsets. All others mean the same since opset 1."""

REMOVED = frozenset({"Scatter", "Upsample"})
"""Operators that later opsets lack, and that adapters replace."""

NEEDS_TYPES = {
    **dict.fromkeys(_words("Add And Div Equal Greater Less Mul Or Pow Sub Xor PRelu"), 7),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), 13),
    "Clip": 11,
    "GroupNormalization": 21,
    "Pad": 11,
    "Tile": 6,
}
"""Operator -> opset below which its adapter looks at types."""
