"""onnxruntime as the reference: what a model gives, computed by somebody else.

Deterministic by construction: one thread, and no graph optimizations unless asked for, so that quantized models are
computed operator by operator exactly as ONNX defines them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irc.errors import DataError, ModelError
from irc.ir.graph import Model
from irc.ir.types import Array

if TYPE_CHECKING:
    import onnx

_PROTO_LIMIT = 1 << 30
"""Above this many bytes of weights a model goes to onnxruntime as a file (a protobuf message ends at 2 GiB)."""


class Oracle:
    """A session of onnxruntime on the CPU.

    `extra` names intermediate values that become outputs as well (not for a Path). `optimize` lets onnxruntime
    rewrite the graph: faster, but quantized models may differ in the last step.
    Raises ModelError where onnxruntime cannot take the model.
    """

    def __init__(
        self,
        model: Model | bytes | Path,
        *,
        extra: Iterable[str] = (),
        optimize: bool = False,
        threads: int = 1,
    ) -> None:
        import onnxruntime

        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # failures come as exceptions; its warnings are about its own optimizer
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        self.name = model.name if isinstance(model, Model) else str(model) if isinstance(model, Path) else "model"
        try:
            with tempfile.TemporaryDirectory(prefix="irc-oracle-") as scratch:
                source = _source(model, tuple(extra), Path(scratch))
                self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises a dozen classes of its own, all plain Exceptions
            if isinstance(error, ModelError | OSError | MemoryError):
                raise
            raise ModelError("onnxruntime cannot load this model", where=self.name, got=_first_line(error)) from error
        self.inputs: tuple[str, ...] = tuple(i.name for i in self._session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Any]:
        """All outputs by name. Raises DataError where the feeds do not fit."""
        try:
            results = self._session.run(None, {n: feeds[n] for n in self.inputs if n in feeds})
        except Exception as error:
            raise DataError("onnxruntime cannot run this input", where=self.name, got=_first_line(error)) from error
        return dict(zip(self.outputs, results, strict=True))


def _source(model: Model | bytes | Path, extra: tuple[str, ...], scratch: Path) -> str | bytes:
    """What InferenceSession takes: serialized bytes, or a path for large models and files."""
    if isinstance(model, Path):
        return str(model)
    if isinstance(model, bytes):
        return _with_outputs(model, extra) if extra else model
    if _weight_bytes(model) > _PROTO_LIMIT:
        return _saved(model, extra, scratch)
    from irc.export import to_proto

    return bytes(_add_outputs(to_proto(model), extra).SerializeToString())


def _saved(model: Model, extra: tuple[str, ...], scratch: Path) -> str:
    from irc.export import save

    path = scratch / "model.onnx"
    if extra:
        from irc.ir.clone import clone

        model = clone(model)
        known = {o.name for o in model.graph.outputs}
        wanted = [model.graph.find(n) for n in extra if n not in known]
        model.graph.set_outputs([*model.graph.outputs, *wanted])
    save(model, path)
    return str(path)


def _with_outputs(data: bytes, extra: tuple[str, ...]) -> bytes:
    import onnx

    return bytes(_add_outputs(onnx.load_model_from_string(data), extra).SerializeToString())


def _add_outputs(proto: onnx.ModelProto, extra: tuple[str, ...]) -> onnx.ModelProto:
    """onnxruntime infers the types of outputs that have none."""
    import onnx

    known = {o.name for o in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in dict.fromkeys(extra) if n not in known)
    return proto


def _weight_bytes(model: Model) -> int:
    return sum(v.constant.nbytes for v in model.graph.constants.values() if v.constant is not None)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:300] if text else type(error).__name__
