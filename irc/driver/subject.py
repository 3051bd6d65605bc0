"""Something that can be run on data: an ONNX file in onnxruntime, or an artifact in this process or under emulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from irc.backends.program import Port
from irc.errors import OptionError
from irc.ir.graph import Graph, Model
from irc.ir.types import Array, DType, Shape, TensorType


@dataclass(frozen=True)
class Subject:
    """`interface`: a model whose inputs and outputs are those of the subject (data sets are checked against it)."""

    name: str
    kind: Literal["model", "artifact"]
    run: Callable[[dict[str, Array]], Mapping[str, Array]]
    interface: Model


def open_subject(
    path: Path, *, shapes: Mapping[str, Sequence[int]], dims: Mapping[str, int], threads: int | None = None
) -> Subject:
    """A folder is an artifact, a file an ONNX model. `threads`: default is what an artifact was compiled
    with. Raises IrcError where it is neither."""
    if path.is_dir():
        if shapes or dims:
            raise OptionError("an artifact has its shapes already", where=str(path), hint="no --shape and no --dim")
        from irc.backends.artifact.qemu import open_artifact

        network = open_artifact(path, threads=threads)
        return Subject(path.name, "artifact", network.run, ports_model(path.name, network.inputs))
    if not path.exists():
        raise OptionError("no such file or folder", where=str(path))
    from irc.evaluation.oracle import Oracle
    from irc.frontend import load_model

    model = load_model(path, shapes=shapes, dims=dims)
    # onnxruntime reads the file itself, unless the user's shapes stand only in irc's copy.
    oracle = Oracle(model if shapes or dims else path, threads=threads or 1)
    return Subject(path.name, "model", oracle.run, model)


def ports_model(name: str, inputs: Sequence[Port]) -> Model:
    """A model without nodes that has these inputs."""
    graph = Graph(name)
    for port in inputs:
        graph.add_input(port.name, TensorType(DType(port.dtype), Shape(tuple(port.shape))))
    return Model(graph)


def artifact_model(path: Path) -> Model:
    """The ONNX model inside an artifact. Raises OptionError where it was left out."""
    from irc.backends.artifact.manifest import read_manifest
    from irc.frontend import load_model

    file = path / f"{read_manifest(path)['name']}.onnx"
    if not file.is_file():
        raise OptionError("the artifact holds no ONNX model", where=str(path), expected=file.name)
    return load_model(file)
