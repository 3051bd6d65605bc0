"""Write a model file: whole or not at all, weights beside it where they are too many for one protobuf message."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import onnx

from irc.errors import ModelError, OutputError
from irc.export.tensors import raw_size, raw_view, tensor_header, tensor_proto
from irc.export.writer import build, to_proto
from irc.ir.graph import Graph, Model
from irc.ir.types import Constant, DType

EXTERNAL_ABOVE = 1_500_000_000
"""Bytes of weights from which on they go into a file of their own (protobuf ends at 2^31)."""

_INLINE = 1024  # smaller weights stay in the model: shape inference of other tools wants to see them
_PAGE = 4096  # offsets at page borders, so that readers can map single weights


def weight_bytes(model: Model) -> int:
    """Bytes of all weights, subgraphs included, as ONNX stores them."""

    def count(graph: Graph) -> int:
        own = sum(raw_size(v.constant) for v in graph.constants.values() if v.constant is not None)
        return own + sum(count(sub) for node in graph.nodes for sub in node.subgraphs)

    return count(model.graph)


def to_bytes(model: Model, *, opset: int | None = None) -> bytes:
    """The model file's contents. Raises ModelError when it would not fit into one file (2 GB)."""
    size = weight_bytes(model)
    if size >= 2**31 - 2**20:
        raise ModelError(
            f"its weights take {size / 1e9:.1f} GB, and one ONNX file holds 2 GB", where=model.name, hint="saving it"
        )
    encoded: bytes = to_proto(model, opset=opset).SerializeToString(deterministic=True)
    return encoded


def save(model: Model, path: Path | str, *, opset: int | None = None, external: bool | None = None) -> list[Path]:
    """Write `path`, and `path.data` with the weights when these exceed `EXTERNAL_ABOVE` (or `external` says so).

    Files appear under their names when they are complete. Raises OutputError and leaves nothing behind when writing
    fails. Returns the files written.
    """
    path = Path(path)
    if external is None:
        external = weight_bytes(model) > EXTERNAL_ABOVE
    if not external:
        data = to_bytes(model, opset=opset)
        with replacing(path) as file:
            file.write(data)
        return [path]
    beside = path.with_name(path.name + ".data")
    with replacing(path) as file, replacing(beside) as weights:
        writer = _External(weights, beside.name)
        file.write(build(model, writer.tensor, opset=opset).SerializeToString(deterministic=True))
    return [path, beside]


class _External:
    """Streams weights into a file, one after the other, and makes the TensorProtos that point there.

    A constant that occurs twice is stored once.
    """

    def __init__(self, file: BinaryIO, location: str) -> None:
        self._file, self._location = file, location
        self._known: dict[int, tuple[int, int]] = {}

    def tensor(self, constant: Constant, name: str) -> onnx.TensorProto:
        size = raw_size(constant)
        if constant.dtype is DType.STRING or size < _INLINE:
            return tensor_proto(constant, name)
        if id(constant) not in self._known:
            offset = -(-self._file.tell() // _PAGE) * _PAGE
            self._file.seek(offset)
            self._file.write(raw_view(constant))
            self._known[id(constant)] = (offset, size)
        offset, size = self._known[id(constant)]
        tensor = tensor_header(constant, name)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entries = (("location", self._location), ("offset", str(offset)), ("length", str(size)))
        for key, value in entries:
            tensor.external_data.add(key=key, value=value)
        return tensor


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A temporary file that takes the place of `path` when the block ends well, and goes when it does not.

    Raises OutputError. A link stays and what it points to is replaced; devices and pipes are written to.
    """
    final = Path(os.path.realpath(path))
    temporary: Path | None = None
    try:
        if final.exists() and not final.is_file():
            with final.open("wb") as file:
                yield file
            return
        handle, name = tempfile.mkstemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            yield file
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, final)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot be written: {reason}", where=str(path), hint="another output path") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
