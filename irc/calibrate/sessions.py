"""onnxruntime sessions for calibration, and how samples become batches for them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from irc.errors import ModelError
from irc.ir.graph import Model
from irc.ir.quantization import Ports
from irc.ir.types import Array
from irc.pipeline.contract import Samples

if TYPE_CHECKING:
    import onnx
    import onnxruntime

Feed = dict[str, Array]
T = TypeVar("T")

_NOT_EQUIVALENT = ["WeightBiasQuantization"]
"""Optimizers that change numbers: this one rounds real weights between quantized activations to 8 bits per tensor."""


def make_session(proto: onnx.ModelProto, where: str, threads: int = 1) -> onnxruntime.InferenceSession:
    """Raises ModelError where onnxruntime refuses the model. With one thread a session is deterministic."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    source: Any = proto.SerializeToString()
    try:
        return onnxruntime.InferenceSession(
            source, options, providers=["CPUExecutionProvider"], disabled_optimizers=_NOT_EQUIVALENT
        )
    except Exception as error:  # onnxruntime has no common base class for its errors
        raise ModelError(f"onnxruntime cannot load the model: {first_line(error)}", where=where) from error


def call(session: onnxruntime.InferenceSession, names: Sequence[str], feed: Feed, where: str) -> list[Array]:
    """The outputs `names`. Raises ModelError where onnxruntime fails on this feed."""
    try:
        outputs: list[Array] = session.run(names, feed)
    except Exception as error:  # as above
        raise ModelError(f"onnxruntime cannot run the model: {first_line(error)}", where=where) from error
    return outputs


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def symbolic_batch(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that may run with any first dimension: that of the inputs is a symbol, and a Reshape to [1, ...] keeps the
    first dimension instead. Whether the copy means the same for every batch has to be tried (`same_for_batches`)."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(proto)
    for value in (*made.graph.input, *made.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "irc_batch"
    free_reshapes(made)
    return made


def free_reshapes(proto: onnx.ModelProto) -> None:
    """Let every Reshape to a constant [1, ...] keep its first dimension, and forget the shapes of inner values."""
    import onnx
    from onnx import numpy_helper

    del proto.graph.value_info[:]
    targets = {n.input[1] for n in proto.graph.node if n.op_type == "Reshape" and n.domain == ""}
    for initializer in proto.graph.initializer:
        if initializer.name not in targets or initializer.data_location == onnx.TensorProto.EXTERNAL:
            continue
        shape = numpy_helper.to_array(initializer)
        if shape.size > 1 and shape[0] == 1:
            initializer.CopyFrom(numpy_helper.from_array(np.concatenate([[0], shape[1:]]), initializer.name))


def same_for_batches(
    single: onnxruntime.InferenceSession,
    batched: onnxruntime.InferenceSession,
    names: Sequence[str],
    feeds: Sequence[Feed],
) -> bool:
    """Whether `batched` gives for joined feeds what `single` gives for each.

    A model may use its batch size (a Reshape to [1, -1]), so this is decided by trying.
    """
    alone = [single.run(names, feed) for feed in feeds]
    try:
        together = batched.run(names, joined(feeds))
    except Exception:  # onnxruntime raises its own types; whatever fails, single feeds still work
        return False
    for i, found in enumerate(together):
        wanted = np.concatenate([a[i] for a in alone]) if alone[0][i].ndim else np.asarray(0.0)
        if found.shape != wanted.shape or not _same(found, wanted):
            return False
    return True


def _same(a: Array, b: Array) -> bool:
    """Equal up to the rounding of another blocking: batched kernels may add in another order."""
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    scale = float(np.abs(b).max()) if b.size else 0.0
    return bool(np.allclose(a, b, rtol=1e-3, atol=1e-4 * scale, equal_nan=True))


def joined(feeds: Sequence[Feed]) -> Feed:
    return {name: np.concatenate([f[name] for f in feeds]) for name in feeds[0]}


def feeds_for(model: Model, samples: Samples) -> Iterator[Feed]:
    """The feeds of `samples` as `model` takes them: a pass may have made its inputs integers since they were read."""
    ports = Ports.of(model.graph)
    return (ports.feed(feed) for feed in samples.feeds())


def batches(feeds: Iterator[Feed], size: int) -> Iterator[Feed]:
    """`size` feeds at a time, joined along the first axis."""
    while part := list(itertools.islice(feeds, size)):
        yield joined(part)


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made by another thread while the one before is worked on."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = pool.submit(next, items, None)
            yield item


def feed_samples(feed: Feed) -> int:
    """How many samples a feed holds."""
    first = next(iter(feed.values()))
    return int(first.shape[0]) if first.ndim else 1
