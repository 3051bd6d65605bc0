"""Open a model file: what it is, whether it is whole, and its small proto with the weights left in the file."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf has no stubs

from irc.errors import ModelError
from irc.frontend.external import WeightFile, WeightStore
from irc.frontend.wire import WireError, strip

_CONVERT = "converting it to ONNX first"
_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (4, b"TFL3", "a TensorFlow Lite model", f"{_CONVERT}: python -m tf2onnx.convert --tflite FILE --output model.onnx"),
    (0, b"\x89HDF\r\n", "a Keras / HDF5 file", f"{_CONVERT}: keras model.export('model.onnx', format='onnx')"),
    (0, b"PK\x03\x04", "a zip file (PyTorch, Keras or NumPy archive)", f"{_CONVERT}: torch.onnx.export(model, ...)"),
    (0, b"\x80\x02", "a pickle (PyTorch checkpoint)", f"{_CONVERT}: torch.onnx.export(model, ...)"),
    (0, b"\x80\x04", "a pickle", f"{_CONVERT}: torch.onnx.export(model, ...)"),
    (4, b"ORTM", "an ONNX Runtime (.ort) model", "the .onnx file it was made from"),
    (0, b"GGUF", "a GGUF file", "the ONNX export of that model"),
    (0, b"\x1f\x8b", "a gzip file", "unpacking it first"),
    (0, b"BZh", "a bzip2 file", "unpacking it first"),
    (0, b"\xfd7zXZ", "an xz file", "unpacking it first"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file", "unpacking it first"),
    (0, b"\x7fELF", "an ELF binary", "the ONNX model it was compiled from"),
    (0, b"\x93NUMPY", "a NumPy array", "the ONNX model; arrays go into --data"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the model itself", "git lfs pull"),
)


def read_model(path: Path) -> tuple[onnx.ModelProto, WeightStore]:
    """Map the file and parse all of it but the big weights.

    Raises ModelError for a missing, empty, truncated or foreign file, saying which it is and what to try.
    """
    mapped = _map(path)
    _refuse_foreign(mapped[:64], path.name)
    return parse_model(WeightFile(path, mapped), path.parent, path.name)


def parse_model(file: WeightFile, folder: Path | None, where: str) -> tuple[onnx.ModelProto, WeightStore]:
    """The small proto of a file's contents, and where its weights are. `folder`: where external data lies."""
    assert file.mapped is not None
    view = memoryview(file.mapped)
    try:
        small, slices = strip(view)
        proto = onnx.ModelProto.FromString(small)
    except WireError as error:
        raise ModelError(
            "the file is damaged or cut off, or is no ONNX model",
            where=where,
            got=f"{error} (byte {error.offset} of {len(view)})",
            hint="downloading or exporting it again",
        ) from None
    except DecodeError:
        raise ModelError("not an ONNX model", where=where, hint="exporting it again as ONNX (.onnx)") from None
    if not proto.HasField("graph") or not (proto.ir_version or proto.opset_import):
        raise ModelError(
            "not an ONNX model: it has no graph", where=where, hint="the .onnx file that the exporter wrote"
        )
    return proto, WeightStore(folder=folder, own=file, slices=tuple(slices))


def refuse_bad_text(proto: onnx.ModelProto, where: str) -> None:
    """ONNX names are UTF-8. protobuf hands out bytes where one is not: refuse those here, once."""
    found = _bad_text(proto)
    if found is not None:
        raise ModelError("a name in the file is no UTF-8 text", where=where, got=repr(found[:40]))


def _bad_text(message: Any) -> bytes | None:
    for descriptor, value in message.ListFields():
        if descriptor.type == descriptor.TYPE_MESSAGE:
            parts = (value,) if hasattr(value, "ListFields") else value
            for part in parts:
                found = _bad_text(part)
                if found is not None:
                    return found
        elif descriptor.type == descriptor.TYPE_STRING:
            texts = (value,) if isinstance(value, str | bytes) else value
            for text in texts:
                if isinstance(text, bytes):
                    return text
    return None


def _map(path: Path) -> mmap.mmap:
    where = str(path)
    if path.is_dir():
        raise ModelError(
            "this is a folder, not a model file", where=where, hint=f"the .onnx file inside, such as {_inside(path)}"
        )
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelError("the file is empty", where=where, hint="downloading or exporting it again")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        near = _similar(path)
        raise ModelError("no such file", where=where, hint=f"'{near}'" if near else "checking the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"the file cannot be read: {reason}", where=where) from None


def _inside(folder: Path) -> str:
    found = sorted(folder.glob("*.onnx"))
    return str(found[0]) if found else "model.onnx"


def _similar(path: Path) -> str:
    import difflib

    names = [p.name for p in path.parent.glob("*.onnx")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return str(path.parent / near[0]) if near else ""


def _refuse_foreign(head: bytes, where: str) -> None:
    for offset, magic, what, hint in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            raise ModelError(f"this is {what}, not ONNX", where=where, hint=hint)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    printable = all(32 <= b < 127 or b in b"\t\r\n" for b in head)
    if printable and len(text) > 1:
        raise ModelError(
            "this is a text file, not ONNX",
            where=where,
            got=repr(text[:24].decode("ascii", "replace")),
            hint="the binary .onnx file (onnx.save converts .textproto, .json and .onnxtxt files)",
        )
