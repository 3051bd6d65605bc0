"""File or proto -> Model at the canonical opset, with its shapes inferred. The phases, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]  # protobuf has no stubs

from irc.errors import ModelError
from irc.frontend.bind import bind, infer_afresh, name_unknown_dims
from irc.frontend.external import WeightFile, WeightStore, inline_small
from irc.frontend.functions import inline_functions
from irc.frontend.importer import import_proto
from irc.frontend.source import parse_model, read_model, refuse_bad_text
from irc.frontend.upgrade import check_types, upgrade, with_types
from irc.ir.graph import Model


def load_model(
    path: Path | str,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    dims: Mapping[str, int] | None = None,
) -> Model:
    """Read an ONNX file: upgraded to `CANONICAL_OPSET`, functions inlined, shapes inferred.

    `shapes` sets the whole shape of inputs, `dims` the value of symbolic dimensions wherever they occur; all other
    symbols stay. Weights stay in the file, memory-mapped, until they are asked for.
    Raises ModelError for a file that is not a valid model, OptionError for a binding that does not fit.
    """
    path = Path(path)
    proto, store = read_model(path)
    model = _import(proto, store, path.name)
    model.source, model.files = path, (path, *store.files)
    try:
        bind(model, shapes or {}, dims or {})
    except ModelError as error:
        raise error.within(path.name) from None
    return model


def from_proto(proto: onnx.ModelProto, source: Path | None = None) -> Model:
    """The same for a model in memory. `source`: the file it comes from, beside which external data lies.

    The proto is neither changed nor kept. Raises ModelError for one beyond 2 GB: `load_model` reads those.
    """
    where = source.name if source is not None else proto.graph.name or "model"
    try:
        data = proto.SerializeToString()
    except (ValueError, EncodeError):
        raise ModelError("too big for one protobuf message", where=where, hint="loading it from its file") from None
    folder = source.parent if source is not None else None
    small, store = parse_model(WeightFile(source or Path(where), data), folder, where)
    model = _import(small, store, where)
    model.source = source
    return model


def _import(proto: onnx.ModelProto, store: WeightStore, where: str) -> Model:
    refuse_bad_text(proto, where)
    inline_small(proto, store, where)
    proto = inline_functions(proto, where)
    model = import_proto(with_types(proto), store, where)
    opset = upgrade(model, where)
    name_unknown_dims(model)
    try:
        infer_afresh(model)
    except ModelError as error:
        raise error.within(where) from None
    check_types(model, opset, where)
    return model
