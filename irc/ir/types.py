"""Immutable types: element types, shapes with symbolic dimensions, constants.

Specification: ONNX `TypeProto` and `TensorProto` (https://onnx.ai/onnx/repo-docs/IR.html).
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class DType(enum.Enum):
    """An ONNX tensor element type. `value` is the name used in IR text; `onnx` the TensorProto number."""

    FLOAT = "float32"
    UINT8 = "uint8"
    INT8 = "int8"
    UINT16 = "uint16"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    STRING = "string"
    BOOL = "bool"
    FLOAT16 = "float16"
    DOUBLE = "float64"
    UINT32 = "uint32"
    UINT64 = "uint64"
    COMPLEX64 = "complex64"
    COMPLEX128 = "complex128"
    BFLOAT16 = "bfloat16"
    FLOAT8E4M3FN = "float8_e4m3fn"
    FLOAT8E4M3FNUZ = "float8_e4m3fnuz"
    FLOAT8E5M2 = "float8_e5m2"
    FLOAT8E5M2FNUZ = "float8_e5m2fnuz"
    UINT4 = "uint4"
    INT4 = "int4"
    FLOAT4E2M1 = "float4_e2m1fn"
    FLOAT8E8M0 = "float8_e8m0fnu"
    UINT2 = "uint2"
    INT2 = "int2"
    FLOAT6E2M3 = "float6_e2m3fn"
    FLOAT6E3M2 = "float6_e3m2fn"

    @property
    def onnx(self) -> int:
        """The number of this type in `onnx.TensorProto.DataType`."""
        return _ONNX_NUMBER[self]

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype that holds one element (4-bit types take a byte each, as ml_dtypes does)."""
        if self is DType.STRING:
            return np.dtype(object)
        extra: npt.DTypeLike = getattr(ml_dtypes, self.value, self.value)
        return np.dtype(extra)

    @property
    def bits(self) -> int:
        """Bits per element in ONNX raw data (0 for strings)."""
        if self is DType.STRING:
            return 0
        if self in (DType.UINT4, DType.INT4, DType.FLOAT4E2M1):
            return 4
        if self in (DType.UINT2, DType.INT2):
            return 2
        if self in (DType.FLOAT6E2M3, DType.FLOAT6E3M2):
            return 6
        return self.numpy.itemsize * 8

    @property
    def is_float(self) -> bool:
        return "float" in self.value

    @property
    def is_integer(self) -> bool:
        return "int" in self.value

    @staticmethod
    def from_onnx(number: int) -> DType:
        """Raises KeyError for UNDEFINED or a number this version does not know."""
        return _FROM_ONNX[number]

    @staticmethod
    def from_numpy(dtype: npt.DTypeLike) -> DType:
        dt = np.dtype(dtype)
        if dt.kind in "OUS":
            return DType.STRING
        return DType(dt.name)


# TensorProto.DataType, 1 onwards; a test compares this with the installed onnx.
_ORDER = """
FLOAT UINT8 INT8 UINT16 INT16 INT32 INT64 STRING BOOL FLOAT16 DOUBLE UINT32 UINT64 COMPLEX64 COMPLEX128 BFLOAT16
FLOAT8E4M3FN FLOAT8E4M3FNUZ FLOAT8E5M2 FLOAT8E5M2FNUZ UINT4 INT4 FLOAT4E2M1 FLOAT8E8M0 UINT2 INT2
FLOAT6E2M3 FLOAT6E3M2
"""
_ONNX_NUMBER: dict[DType, int] = {DType[name]: number for number, name in enumerate(_ORDER.split(), 1)}
_FROM_ONNX: dict[int, DType] = {number: dtype for dtype, number in _ONNX_NUMBER.items()}

Dim = int | str | None
"""An extent: a number, a named symbol, or None where nothing is known."""


@dataclass(frozen=True)
class Shape:
    """The extents of a tensor, outermost first."""

    dims: tuple[Dim, ...]

    @staticmethod
    def of(*dims: Dim) -> Shape:
        return Shape(tuple(dims))

    @property
    def rank(self) -> int:
        return len(self.dims)

    @property
    def is_static(self) -> bool:
        return all(isinstance(d, int) for d in self.dims)

    def static(self) -> tuple[int, ...]:
        """The extents as numbers. Raises ValueError when one is symbolic."""
        out = []
        for d in self.dims:
            if not isinstance(d, int):
                raise ValueError(f"shape {self} is not static")
            out.append(d)
        return tuple(out)

    def numel(self) -> int:
        """Number of elements of a static shape."""
        n = 1
        for d in self.static():
            n *= d
        return n

    def __iter__(self) -> Iterator[Dim]:
        return iter(self.dims)

    def __len__(self) -> int:
        return len(self.dims)

    def __getitem__(self, i: int) -> Dim:
        return self.dims[i]

    def __str__(self) -> str:
        return "[" + ",".join("?" if d is None else str(d) for d in self.dims) + "]"


@dataclass(frozen=True)
class TensorType:
    """A dense tensor. `shape` None: not even the rank is known."""

    dtype: DType
    shape: Shape | None = None

    def __str__(self) -> str:
        return self.dtype.value + ("[*]" if self.shape is None else str(self.shape))


@dataclass(frozen=True)
class SequenceType:
    elem: ValueType

    def __str__(self) -> str:
        return f"seq<{self.elem}>"


@dataclass(frozen=True)
class OptionalType:
    elem: ValueType

    def __str__(self) -> str:
        return f"optional<{self.elem}>"


@dataclass(frozen=True)
class MapType:
    key: DType
    elem: ValueType

    def __str__(self) -> str:
        return f"map<{self.key.value},{self.elem}>"


@dataclass(frozen=True)
class SparseType:
    dtype: DType
    shape: Shape | None = None

    def __str__(self) -> str:
        return f"sparse<{TensorType(self.dtype, self.shape)}>"


ValueType = TensorType | SequenceType | OptionalType | MapType | SparseType


@dataclass(frozen=True, eq=False)
class Constant:
    """Data of a weight. Loaded when first asked for, and never copied by irc.

    `load` gives the array (often a view of a memory-mapped file); the array handed out is read-only.
    Two constants compare by identity; `digest()` compares contents.
    """

    dtype: DType
    shape: tuple[int, ...]
    load: Callable[[], Array]
    _cache: dict[str, Any] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(array: npt.ArrayLike, dtype: DType | None = None) -> Constant:
        """A constant that holds `array` (not copied when it already is an ndarray of the right type)."""
        data = np.asarray(array)
        kind = dtype or DType.from_numpy(data.dtype)
        data = data.astype(kind.numpy, copy=False)
        return Constant(kind, tuple(data.shape), lambda: data)

    def numpy(self) -> Array:
        """The data, read-only, of shape `self.shape`."""
        data: Array | None = self._cache.get("data")
        if data is None:
            data = np.asarray(self.load()).view()  # arithmetic on arrays without dimensions gives numpy scalars
            if tuple(data.shape) != self.shape:
                data = data.reshape(self.shape)
            data.flags.writeable = False
            self._cache["data"] = data
        return data

    @property
    def type(self) -> TensorType:
        return TensorType(self.dtype, Shape(self.shape))

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes as ONNX stores them (sub-byte types packed)."""
        return (self.size * self.dtype.bits + 7) // 8

    def digest(self) -> str:
        """SHA-256 over type, shape and contents, hexadecimal."""
        known: str | None = self._cache.get("digest")
        if known is None:
            h = hashlib.sha256(f"{self.dtype.value}{self.shape}".encode())
            data = self.numpy()
            if self.dtype is DType.STRING:
                for item in data.reshape(-1):
                    raw = item if isinstance(item, bytes) else str(item).encode()
                    h.update(len(raw).to_bytes(8, "little") + raw)
            else:
                h.update(np.ascontiguousarray(data).view(np.uint8).data if data.size else b"")
            known = self._cache["digest"] = h.hexdigest()
        return known


@dataclass(frozen=True)
class Origin:
    """Where a node comes from: ONNX node names of the original model, and the passes that touched it since."""

    nodes: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()

    def touched(self, pass_name: str) -> Origin:
        if self.passes and self.passes[-1] == pass_name:
            return self
        return Origin(self.nodes, (*self.passes, pass_name))

    @staticmethod
    def merge(*origins: Origin) -> Origin:
        """Union that keeps the first occurrence order (a fused node comes from all its parts)."""
        nodes = dict.fromkeys(n for o in origins for n in o.nodes)
        passes = dict.fromkeys(p for o in origins for p in o.passes)
        return Origin(tuple(nodes), tuple(passes))

    def __str__(self) -> str:
        shown = ", ".join(self.nodes[:3]) + (", ..." if len(self.nodes) > 3 else "")
        return shown or "made by " + (self.passes[0] if self.passes else "irc")
