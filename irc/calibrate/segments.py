"""A model run piece by piece over the same samples, each piece from where the one before stopped.

Between pieces the weights behind the cut may change. What crosses the cut is kept batch by batch, in memory up to a
bound and in a temporary file beyond it, so that walking through a network of any depth costs one run of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import numpy as np

from irc.calibrate.sessions import Feed, call, free_reshapes, make_session
from irc.errors import OutputError
from irc.ir import ops
from irc.ir.analysis import in_order, reads
from irc.ir.graph import Graph, Model, Node, Value
from irc.ir.types import Array

if TYPE_CHECKING:
    import onnx


class Kept:
    """Batches of named arrays in the order in which they were added: in memory up to `memory` bytes, then on disk."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.used = 0
        self.entries: list[dict[str, Array | _Stored]] = []
        self.file: IO[bytes] | None = None

    def add(self, feed: Feed) -> None:
        self.entries.append({name: self._keep(array) for name, array in feed.items()})

    def _keep(self, array: Array) -> Array | _Stored:
        if self.used + array.nbytes <= self.memory:
            self.used += array.nbytes
            return array
        if self.file is None:
            self.file = tempfile.TemporaryFile(prefix="irc-activations-")  # noqa: SIM115 - open until close()
        stored = _Stored(self.file.seek(0, 2), array.dtype, array.shape)
        try:
            self.file.write(np.ascontiguousarray(array).data)
        except OSError as error:
            raise OutputError(
                f"cannot keep activations: {error.strerror}",
                where=tempfile.gettempdir(),
                hint="fewer calibration samples, or TMPDIR on a larger disk",
            ) from error
        return stored

    def take(self) -> Iterator[Feed]:
        """Every batch, front to back; memory is given back as it goes. Only once."""
        for i in range(len(self.entries)):
            entry, self.entries[i] = self.entries[i], {}
            self.used -= sum(a.nbytes for a in entry.values() if isinstance(a, np.ndarray))
            yield {name: self._load(a) if isinstance(a, _Stored) else a for name, a in entry.items()}
        self.close()

    def _load(self, stored: _Stored) -> Array:
        assert self.file is not None
        self.file.seek(stored.start)
        raw = self.file.read(int(np.prod(stored.shape, dtype=np.int64)) * stored.dtype.itemsize)
        return np.frombuffer(raw, stored.dtype).reshape(stored.shape)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


@dataclass(frozen=True)
class _Stored:
    """Where an array stands in the file."""

    start: int
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]


class Segments:
    """One model on its way through its samples. `feeds`: the batches to start from; `joined`: they hold several
    samples of a model whose batch is 1."""

    def __init__(self, model: Model, feeds: Iterable[Feed], memory: int, *, joined: bool) -> None:
        self.model, self.joined, self.memory = model, joined, memory
        self.source: Iterator[Feed] = iter(feeds)
        self.at = {v.name for v in model.graph.inputs}  # names of the values that `source` gives
        self.kept: Kept | None = None

    def advance(self, wanted: Sequence[str], later: Sequence[str]) -> Iterator[Feed]:
        """The values `wanted` of each batch. When all are taken, the way goes on from just before the readers of
        the values `later` (wanted ones may be among them)."""
        keep = cut(self.model.graph, later)
        names = list(dict.fromkeys((*wanted, *keep)))
        made = [n for n in names if n not in self.at]
        piece = _Piece(self.model, made, self.at, joined=self.joined) if made else None
        kept = Kept(self.memory)
        for feed in self.source:
            found = {name: feed[name] for name in names if name in feed}
            if piece is not None:
                found.update(piece(feed))
            kept.add({name: found[name] for name in keep})
            yield {name: found[name] for name in wanted}
        self.kept, self.source, self.at = kept, kept.take(), set(keep)

    def close(self) -> None:
        if self.kept is not None:
            self.kept.close()


def cut(graph: Graph, names: Sequence[str]) -> list[str]:
    """The values that must be known to compute everything from the readers of the values `names` on.

    Only what leads to one of these values counts, and nothing that is made of constants. Empty without names.
    """
    wanted = set(names)
    needed = _ancestors(graph, wanted)
    behind: set[Value] = set()  # made by a reader of a wanted value, or after one
    fixed: set[Value] = set()  # made of constants alone, such as dequantized weights: these may still change
    kept: dict[str, None] = {}
    for node in in_order(graph):
        inputs = [v for v in reads(node) if v.constant is None and v not in fixed]
        if not inputs and ops.is_deterministic(node):
            fixed.update(node.outputs)
        if not any(v in behind or v.name in wanted for v in inputs):
            continue
        if node in needed:
            kept.update(dict.fromkeys(v.name for v in inputs if v not in behind))
        behind.update(node.outputs)
    outside = [v.name for v in graph.values() if v.name in wanted and v not in behind]
    return list(dict.fromkeys((*outside, *kept)))


def _ancestors(graph: Graph, names: set[str]) -> set[Node]:
    """The nodes that compute these values, and all before them."""
    found: set[Node] = set()
    stack = [v.producer for v in graph.values() if v.name in names and v.producer is not None]
    while stack:
        node = stack.pop()
        if node in found:
            continue
        found.add(node)
        stack.extend(v.producer for v in reads(node) if v.producer is not None)
    return found


class _Piece:
    """The nodes between the values `given` and the values `wanted`, in onnxruntime."""

    def __init__(self, model: Model, wanted: Sequence[str], given: set[str], *, joined: bool) -> None:
        self.model, self.wanted, self.joined = model, list(wanted), joined
        self.proto, self.inputs = piece_proto(model, wanted, given)
        self.session = None if joined else make_session(self.proto, model.name)

    def __call__(self, feed: Feed) -> Feed:
        own = {name: feed[name] for name in self.inputs}
        if self.session is None:
            _loosen(self.proto, own)
            self.session = make_session(self.proto, self.model.name)
        return dict(zip(self.wanted, call(self.session, self.wanted, own, self.model.name), strict=True))


def piece_proto(model: Model, wanted: Sequence[str], given: set[str]) -> tuple[onnx.ModelProto, list[str]]:
    """What computes the values `wanted` from the values `given` as a model, and the names of its inputs."""
    import onnx

    from irc.export import compatible_opset
    from irc.export.writer import region_proto

    graph = model.graph
    names = set(wanted)
    outputs = {v.name: v for v in graph.values() if v.name in names}
    stack = [v.producer for v in outputs.values() if v.producer is not None]
    nodes: set[Node] = set()
    read: dict[Value, None] = {}
    while stack:
        node = stack.pop()
        if node in nodes:
            continue
        nodes.add(node)
        for value in reads(node):
            read[value] = None
            if value.producer is not None and value.name not in given:
                stack.append(value.producer)
    made = {v for n in nodes for v in n.outputs}  # a given one among them, if another output of its node is needed
    inputs = [v for v in read if v.constant is None and v not in made]
    constants = [v for v in read if v.constant is not None]
    opsets = {n.domain: model.opsets.get(n.domain, 1) for n in graph.walk()} | {"": compatible_opset(model)}
    ordered = [n for n in in_order(graph) if n in nodes]
    proto = region_proto(ordered, inputs, constants, [outputs[n] for n in wanted], opsets)
    for function in model.functions.values():
        proto.functions.append(onnx.FunctionProto.FromString(function.proto))
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")  # that of one sample, where several are joined
    return proto, [v.name for v in inputs]


def _loosen(proto: onnx.ModelProto, feed: Feed) -> None:
    """Let `proto` take joined samples: what differs from the declared extents in `feed` may have any extent."""
    free_reshapes(proto)
    for value in proto.graph.input:
        for i, (dim, extent) in enumerate(zip(value.type.tensor_type.shape.dim, feed[value.name].shape, strict=False)):
            if i == 0 or dim.dim_value != extent:
                dim.dim_param = f"{value.name}.{i}"
