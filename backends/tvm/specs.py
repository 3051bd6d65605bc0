"""Kernel specifications: everything that determines the code of a kernel, as plain frozen data.

A specification and a target give one object file; equal specifications are compiled once (see `cache.py`).
Strides count elements. Layout "rows": the innermost dimension (channels, or columns of a matrix) is contiguous.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, Literal

from irc import __version__
from irc.backends.tvm.expression import Expression, Instr
from irc.targets.target import Target

Strides = tuple[int, ...]
Order = Literal["rows", "channels"]
RowKind = Literal["softmax", "log_softmax", "layer_norm", "rms_norm"]
ReduceKind = Literal["sum", "max", "min", "prod"]
RecurrentKind = Literal["lstm", "gru"]


@dataclass(frozen=True)
class Operand:
    """An extra input of an expression. `strides` over the kernel's output dimensions (0: broadcast).

    In kernels with channels the last stride is 0 (one value per place) or 1. `limit` bounds the magnitude of what is
    known at compile time (`magnitude.py`).
    """

    dtype: str
    strides: Strides
    size: int  # elements that may be addressed
    limit: float = math.inf


@dataclass(frozen=True)
class LinearSpec:
    """Convolution, matrix multiplication and grouped forms of them, with an expression on the sums.

    y[a,b,h,w,c] = expression(sum over kh, kw, i of x[a, b, h*sh + kh*dh, w*sw + kw*dw, i] * w[a,b,c,kh,kw,i])

    `x_strides`, `y_strides`: (a, b, h, w); channels have stride 1. Two batch dimensions a, b: of a batched matrix
    product, or (images, groups). Weights are packed by `pack.py`, with element strides `w_strides` (a, b): in blocks of
    `block` channels whatever the tile and the vectors of the machine, or with `block` 0 in tiles of the kernel's.
    `w_rows` > 0 instead reads them unpacked, row i at i * w_rows. `w_dtype`: weights of float32 data that are stored
    as "float16", "bfloat16" or "int8" and widened when loaded, and weights of any data as "int4" or "int2", several
    steps to a byte (`geometry.shared_axis`); "" otherwise. `ahead` > 0: another pointer, before y's,
    to so many bytes that are to be brought near while the kernel computes; they need not exist. `scaled` > 0: the last
    operand, which the expression does not read, holds a factor for so many input channels of float32 data at a time:
    [kh, kw, ic / scaled, channels in whole blocks of 16].
    """

    x_dtype: str
    y_dtype: str
    batch: tuple[int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    ic: int
    oc: int
    x_strides: Strides
    y_strides: Strides
    w_strides: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    expression: Expression = ()
    operands: tuple[Operand, ...] = ()
    w_rows: int = 0
    sum_x: bool = False
    tile: tuple[int, int, int] = (1, 4, 2)  # rows, columns, vectors of channels
    order: Order = "rows"
    x_size: int = 0
    y_size: int = 0
    w_size: int = 0
    block: int = 0
    w_dtype: str = ""
    ahead: int = 0
    scaled: int = 0


@dataclass(frozen=True)
class SparseSpec:
    """The kernel `linear`, of whose weights only the blocks that are not zero are stored.

    A block is `unit` output channels by the input channels of one step, at one tap. Weights: [entry, channel of the
    unit, input channel]. The entries of unit u are starts[u] .. starts[u + 1] - 1 (int32; units of all groups), and
    offsets[entry] (of type `index`) is where the block's data lie from a place's first tap on, in elements of x.
    `entries` counts the addressable ones. Arguments: x, weights, offsets, starts, operands..., y; `ahead` as in
    LinearSpec.
    """

    linear: LinearSpec
    unit: int
    index: str
    entries: int
    lists: int  # units of all groups
    columns: int  # places of a row whose data stay near while all weights pass

    @property
    def x_dtype(self) -> str:
        return self.linear.x_dtype

    @property
    def y_dtype(self) -> str:
        return self.linear.y_dtype

    @property
    def operands(self) -> tuple[Operand, ...]:
        return self.linear.operands


@dataclass(frozen=True)
class WinogradInputSpec:
    """Winograd's transform of an image's tiles (`winograd.py`): v[p, t, i], point p, tile t, channel i.

    Tiles of `tile` outputs cover `out`; the last of a row or column ends where the image ends, so it may overlap the
    one before. Point p is (row, column) of the transformed tile, row-major; `v_strides` are (p, t).
    """

    images: int
    out: tuple[int, int]
    tile: tuple[int, int]
    kernel: tuple[int, int]
    ic: int
    x_strides: Strides  # (n, h, w)
    v_strides: tuple[int, int]
    x_size: int = 0
    v_size: int = 0


@dataclass(frozen=True)
class WinogradSpec:
    """Convolution of transformed tiles: for every point a matrix product, then the transform back, then `expression`.

    Weights are packed by `pack.py` with the points in the place of taps. `block`: tiles whose products are kept on
    the stack at a time, columns of them in a register tile, vectors of output channels. `w_block` > 0: weights are
    packed in blocks of that many channels, whatever the vectors (as in LinearSpec).
    """

    images: int
    out: tuple[int, int]
    tile: tuple[int, int]
    kernel: tuple[int, int]
    ic: int
    oc: int
    v_strides: tuple[int, int]
    y_strides: Strides  # (n, h, w)
    expression: Expression = ()
    operands: tuple[Operand, ...] = ()  # strides (n, h, w, c)
    block: tuple[int, int, int] = (8, 4, 2)
    v_size: int = 0
    y_size: int = 0
    w_size: int = 0
    w_block: int = 0


@dataclass(frozen=True)
class DepthwiseSpec:
    """Depthwise convolution, channel multiplier 1. Weights [kh, kw, padded channels] (`pack.py`).

    `w_dtype` "int4": neighbouring columns of the kernel share bytes.
    """

    x_dtype: str
    w_dtype: str
    y_dtype: str
    batch: int
    out: tuple[int, int]
    kernel: tuple[int, int]
    channels: int
    x_strides: Strides  # (n, h, w)
    y_strides: Strides
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    expression: Expression = ()
    operands: tuple[Operand, ...] = ()
    tile: tuple[int, int] = (1, 4)  # columns, vectors of channels
    x_size: int = 0
    y_size: int = 0


@dataclass(frozen=True)
class PoolSpec:
    """Max or sum over windows; the sum is of float32 or int32. `count` True: operand 0 of the expression is followed by
    the number of window places inside the image (average pooling without padding in the count)."""

    kind: Literal["max", "sum"]
    x_dtype: str
    y_dtype: str
    batch: int
    image: tuple[int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    channels: int
    x_strides: Strides
    y_strides: Strides
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)  # top, left
    expression: Expression = ()
    operands: tuple[Operand, ...] = ()
    x_size: int = 0
    y_size: int = 0


@dataclass(frozen=True)
class ElementwiseSpec:
    """y = expression(operands) over `shape`; operand strides and `y_strides` over the same dimensions.

    `gap`: elements after each run of the innermost dimension that hold `fill` already and may be written with it again.
    """

    y_dtype: str
    shape: tuple[int, ...]
    y_strides: Strides
    expression: Expression
    operands: tuple[Operand, ...]
    y_size: int = 0
    gap: int = 0
    fill: float = 0.0


@dataclass(frozen=True)
class RowsSpec:
    """Kernels over rows of `width` contiguous elements: softmax, layer normalization, rms normalization.

    `shape` are the row dimensions; strides over them. `expression` is applied to the normalized value.
    """

    kind: RowKind
    x_dtype: str
    y_dtype: str
    shape: tuple[int, ...]
    width: int
    x_strides: Strides
    y_strides: Strides
    epsilon: float = 0.0
    prologue: Expression = ()
    expression: Expression = ()
    operands: tuple[Operand, ...] = ()
    x_size: int = 0
    y_size: int = 0


@dataclass(frozen=True)
class ReduceSpec:
    """Reduction of `reduced` dimensions of x, for every element of `shape`. The innermost kept or reduced dimension is
    vectorized when contiguous. `prologue` maps each element first (its operand 0), `expression` the result."""

    kind: ReduceKind
    x_dtype: str
    y_dtype: str
    shape: tuple[int, ...]
    reduced: tuple[int, ...]
    x_strides: Strides  # over shape
    r_strides: Strides  # over reduced
    y_strides: Strides
    prologue: Expression = ()
    expression: Expression = ()
    operands: tuple[Operand, ...] = ()
    x_size: int = 0
    y_size: int = 0


@dataclass(frozen=True)
class AttentionSpec:
    """y = expression(probabilities(softmax over keys of scores(q k^T)) v) for every batch (a, b), the scores in cache.

    q [rows, width], k [keys, width], v [keys, columns], y [rows, columns]; strides are (a, b, row or key, column), the
    last 1 in v and y. float32, or 8 bits in both factors of a product (the softmax result then is 8 bits as well);
    `zeros` are the zero points of (q, k, probabilities, v), taken out before an expression sees the sum.

    `scores` maps the first sum to the softmax's input; its `score_operands` have strides (a, b, row, key), row stride 0
    or 1 with whole vectors of rows. `probabilities` maps a normalized result; empty: the rows are normalized after the
    second product. Tiles: (keys, vectors of rows) of the first product, (rows, vectors of columns) of the second.
    """

    q_dtype: str
    k_dtype: str
    v_dtype: str
    p_dtype: str
    y_dtype: str
    batch: tuple[int, int]
    rows: int
    keys: int
    width: int
    columns: int
    q_strides: Strides
    k_strides: Strides
    v_strides: Strides
    y_strides: Strides
    scores: Expression
    score_operands: tuple[Operand, ...]
    probabilities: Expression
    expression: Expression
    operands: tuple[Operand, ...]
    zeros: tuple[int, int, int, int]
    score_tile: tuple[int, int]
    value_tile: tuple[int, int]
    q_size: int = 0
    k_size: int = 0
    v_size: int = 0
    y_size: int = 0


@dataclass(frozen=True)
class FillSpec:
    """Writes `value` to the border of an image [n, h, w, c]: all of it but the inner box."""

    dtype: str
    shape: tuple[int, int, int, int]
    strides: tuple[int, int, int]
    inner: tuple[int, int, int, int, int]  # top, left, inner height, inner width, inner channels
    value: float
    size: int = 0


@dataclass(frozen=True)
class ResizeSpec:
    """An image sampled at places known when compiling (`kernels/resize.py`): `taps` rows by columns for each output.

    Arguments: x; offsets of the rows, int32 [out height, taps], in elements; their weights, float32, where there is
    more than one; the same for the columns; operands; y.
    """

    x_dtype: str
    y_dtype: str
    batch: int
    out: tuple[int, int]
    taps: tuple[int, int]
    channels: int
    x_stride: int  # from image to image
    y_strides: Strides  # (n, h, w)
    expression: Expression = ()
    operands: tuple[Operand, ...] = ()
    x_size: int = 0
    y_size: int = 0


@dataclass(frozen=True)
class RecurrentSpec:
    """The steps of an LSTM or GRU in one direction (`kernels/recurrent.py`), what the inputs contribute being known.

    Arguments: z [step, batch, gate, padded unit]; weights [block, k, gate, 16 units]; of a GRU the bias of the reset
    product; `given` first states [batch, hidden] (h, c); y; the last h and c; scratch of 3 * batch * padded units.
    Units are padded to whole blocks of 16. `w_dtype`: "float16" or "bfloat16" where the weights are stored so.
    """

    kind: RecurrentKind
    steps: int
    batch: int
    hidden: int
    reverse: bool = False
    given: int = 0
    y_strides: tuple[int, int] = (0, 0)  # step, batch
    y_size: int = 0
    w_dtype: str = ""

    @property
    def gates(self) -> int:
        return 4 if self.kind == "lstm" else 3


@dataclass(frozen=True)
class SmallConvSpec:
    """Convolution of bytes (int8) on microcontrollers: channels innermost, and no border around images in memory.

    y[n,h,w,c] = expression(sum over kh, kw, i of x[n, h*sh - top + kh*dh, w*sw - left + kw*dw, i] * w[c,kh,kw,i]),
    where places outside of the image count as `fill`. A product of matrices is a 1 x 1 convolution of an image of one
    row. Channels have stride 1.

    `way` says how the kernel works (`small.py`): "plain" reads weights [oc, kh, kw, ic], other ways
    weights packed for them. Of the operands, the first `streamed` stand among the packed weights and are no arguments.
    `scratch`: bytes of memory that the kernel needs while it runs; with 0 there is no such argument.
    Arguments: x, weights, operands..., y, scratch.
    """

    y_dtype: str
    batch: int
    image: tuple[int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    ic: int
    oc: int
    x_strides: Strides  # (n, h, w)
    y_strides: Strides
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)  # top, left
    fill: int = 0
    expression: Expression = ()
    operands: tuple[Operand, ...] = ()  # strides (n, h, w, c)
    way: str = "plain"
    streamed: int = 0
    scratch: int = 0
    x_size: int = 0
    y_size: int = 0
    w_size: int = 0

    def overlap(self) -> dict[int, int]:
        from irc.backends.tvm.small import conv_distances

        return conv_distances(self)


@dataclass(frozen=True)
class SmallDepthwiseSpec:
    """Depthwise convolution of bytes (int8) on microcontrollers, channel multiplier 1; as SmallConvSpec otherwise.

    The way "plain" reads weights [kh, kw, channels], of `w_dtype` int8 or int16.
    """

    y_dtype: str
    batch: int
    image: tuple[int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    channels: int
    x_strides: Strides  # (n, h, w)
    y_strides: Strides
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)  # top, left
    fill: int = 0
    w_dtype: str = "int8"
    expression: Expression = ()
    operands: tuple[Operand, ...] = ()  # strides (n, h, w, c)
    way: str = "plain"
    streamed: int = 0
    scratch: int = 0
    x_size: int = 0
    y_size: int = 0
    w_size: int = 0

    def overlap(self) -> dict[int, int]:
        from irc.backends.tvm.small import depthwise_distances

        return depthwise_distances(self)


@dataclass(frozen=True)
class PeakSpec:
    """Nothing but multiply-adds in registers, `rounds` times over: measures the machine (`kernels/peak.py`)."""

    x_dtype: str
    rounds: int


@dataclass(frozen=True)
class LibrarySpec:
    """A region of ONNX (one-node model, serialized) lowered by `irc.backends.tvm.library`."""

    model: bytes


Spec = (
    LinearSpec
    | SparseSpec
    | WinogradInputSpec
    | WinogradSpec
    | DepthwiseSpec
    | PoolSpec
    | ElementwiseSpec
    | RowsSpec
    | ReduceSpec
    | FillSpec
    | AttentionSpec
    | RecurrentSpec
    | ResizeSpec
    | SmallConvSpec
    | SmallDepthwiseSpec
    | PeakSpec
    | LibrarySpec
)

_CLASSES = {
    c.__name__: c
    for c in (
        LinearSpec,
        SparseSpec,
        WinogradInputSpec,
        WinogradSpec,
        DepthwiseSpec,
        PoolSpec,
        ElementwiseSpec,
        RowsSpec,
        ReduceSpec,
        FillSpec,
        AttentionSpec,
        RecurrentSpec,
        ResizeSpec,
        SmallConvSpec,
        SmallDepthwiseSpec,
        PeakSpec,
        LibrarySpec,
        Operand,
        Instr,
    )
}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {"$": type(value).__name__, **{f.name: _plain(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, bytes):
        return {"$": "bytes", "hex": value.hex()}
    if isinstance(value, float):
        return {"$": "float", "hex": value.hex()}
    return value


def _rich(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_rich(v) for v in value)
    if not isinstance(value, dict):
        return value
    kind = value["$"]
    if kind == "bytes":
        return bytes.fromhex(value["hex"])
    if kind == "float":
        return float.fromhex(value["hex"])
    return _CLASSES[kind](**{k: _rich(v) for k, v in value.items() if k != "$"})


def to_json(spec: Spec) -> str:
    """Canonical text: the same for equal specifications, exact for floats."""
    return json.dumps(_plain(spec), sort_keys=True, separators=(",", ":"))


def from_json(text: str) -> Spec:
    spec: Spec = _rich(json.loads(text))
    return spec


def target_json(target: Target) -> str:
    return json.dumps(asdict(target), sort_keys=True)


def key(spec: Spec, target: Target, code: str) -> str:
    """Content address of the object: specification, target, irc version and a hash of the code generator (`code`)."""
    text = "\n".join((to_json(spec), target.key, __version__, code))
    return hashlib.sha256(text.encode()).hexdigest()
