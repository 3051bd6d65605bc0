"""Where the bytes of a weight lie: in the model file, or in a file beside it (ONNX external data).

Files are memory-mapped when a weight is first read. A location must stay inside the model's folder: absolute paths,
`..` and symbolic links that lead out are refused, so that a model from somewhere else cannot read other files.
https://onnx.ai/onnx/repo-docs/ExternalData.html
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx

from irc.errors import ModelError
from irc.frontend.wire import INLINE_BYTES, SLOT_KEY, Slice


@dataclass
class WeightFile:
    """A file with weights, mapped at first use (or its contents, for a model in memory)."""

    path: Path
    mapped: mmap.mmap | bytes | None = None

    def view(self, offset: int, length: int) -> memoryview:
        """Bytes of the file, not copied. Raises ModelError when the file has gone or shrunk since."""
        if self.mapped is None:
            try:
                with self.path.open("rb") as file:
                    self.mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise ModelError(f"external data file cannot be read: {error}", where=str(self.path)) from None
        data = memoryview(self.mapped)[offset : offset + length]
        if len(data) != length:
            raise ModelError("external data file is too short", where=str(self.path), expected=f"{offset + length}")
        return data


@dataclass(frozen=True)
class Region:
    """`length` bytes from `offset` of a file: the raw data of one tensor."""

    file: WeightFile
    offset: int
    length: int

    def view(self) -> memoryview:
        return self.file.view(self.offset, self.length)


@dataclass
class WeightStore:
    """Finds the raw data of tensors that do not carry it themselves.

    `folder` is the model's folder (None for a model without a file); `own` and `slices` are the weights that were
    left in the model file.
    """

    folder: Path | None = None
    own: WeightFile | None = None
    slices: tuple[Slice, ...] = ()
    _files: dict[str, WeightFile] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of external data that were asked for until now."""
        return tuple(file.path for file in self._files.values())

    def region(self, tensor: onnx.TensorProto, where: str) -> Region | None:
        """Where the data of `tensor` lies; None when it is in the tensor itself. Raises ModelError."""
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return None
        entries = {entry.key: entry.value for entry in tensor.external_data}
        what = f"{where}: weight '{tensor.name}'"
        if SLOT_KEY in entries:
            index = _number(entries, SLOT_KEY, what)
            if self.own is None or index >= len(self.slices):
                raise ModelError("its data is in no file", where=what)
            piece = self.slices[index]
            return Region(self.own, piece.offset, piece.length)
        return self._external(entries, what)

    def _external(self, entries: dict[str, str], what: str) -> Region:
        location = entries.get("location", "")
        file = self._files.get(location)
        if file is None:
            file = self._files[location] = WeightFile(self._resolve(location, what))
        size = file.path.stat().st_size
        offset = _number(entries, "offset", what)
        length = _number(entries, "length", what) if "length" in entries else max(size - offset, 0)
        if offset + length > size:
            raise ModelError(
                f"its data lies beyond the end of '{location}'",
                where=what,
                expected=f"at least {offset + length} bytes",
                got=f"{size} bytes",
                hint="copying the data file again, it is cut off or belongs to another model",
            )
        return Region(file, offset, length)

    def _resolve(self, location: str, what: str) -> Path:
        """The data file. Confined to the folder of the model."""
        if self.folder is None:
            raise ModelError(
                "external data, but the model has no file", where=what, hint="loading the model from its file"
            )
        if not location:
            raise ModelError("external data without a location", where=what)
        posix, windows = PurePosixPath(location), PureWindowsPath(location)
        outside = posix.is_absolute() or bool(windows.drive or windows.root)
        folder = self.folder.resolve()
        try:
            path = (folder / posix).resolve()
        except (OSError, ValueError, RuntimeError):
            raise ModelError(f"external data location {location!r} is no path", where=what) from None
        if outside or ".." in posix.parts or ".." in windows.parts or not path.is_relative_to(folder):
            raise ModelError(
                f"external data location {location!r} leads outside the model's folder",
                where=what,
                hint="moving the data file beside the model",
            )
        if not path.is_file():
            raise ModelError(
                f"external data file '{location}' is missing",
                where=what,
                expected=f"it in {self.folder}",
                hint="copying it beside the model, under this name",
            )
        return path


def _number(entries: dict[str, str], key: str, what: str) -> int:
    text = entries.get(key, "0")
    if not (text.isascii() and text.isdecimal()):
        raise ModelError(f"external data has {key} {text!r}", where=what, expected="a number that is not negative")
    return int(text)


def inline_small(proto: onnx.ModelProto, store: WeightStore, where: str) -> None:
    """Put small external initializers into the proto, for shape inference; check that all the others are there."""
    for tensor in proto.graph.initializer:
        region = store.region(tensor, where)
        if region is None or region.length > INLINE_BYTES:
            continue
        tensor.raw_data = bytes(region.view()) if region.length else b""
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
