"""Something that can be run on data: an ONNX file in onnxruntime, or an artifact in this process or under emulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from irc.backends.program import Port
from irc.errors import OptionError
from irc.ir.graph import Graph, Model
from irc.ir.quantization import Ports
from irc.ir.types import Array, DType, Shape, TensorType

Run = Callable[[dict[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True)
class Subject:
    """`interface`: a model whose inputs are those of the subject (data sets are checked against it). `ports`: which of
    its inputs and outputs are quantized; `run` takes these as integers or as real numbers (`real_run`)."""

    name: str
    kind: Literal["model", "artifact"]
    run: Run
    interface: Model
    ports: Ports


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
        ports = network_ports(network.inputs, network.outputs)
        run = real_run(network.run, ports)
        return Subject(path.name, "artifact", run, ports_model(path.name, network.inputs), ports)
    if not path.exists():
        raise OptionError("no such file or folder", where=str(path))
    from irc.evaluation.oracle import Oracle
    from irc.frontend import load_model

    model = load_model(path, shapes=shapes, dims=dims)
    # onnxruntime reads the file itself, unless the user's shapes stand only in irc's copy.
    oracle = Oracle(model if shapes or dims else path, threads=threads or 1)
    ports = Ports.of(model.graph)
    return Subject(path.name, "model", real_run(oracle.run, ports), model, ports)


def network_ports(inputs: Sequence[Port], outputs: Sequence[Port]) -> Ports:
    """The quantized ones among the ports of a compiled network."""
    found = ({p.name: p.quantization for p in ports if p.quantization is not None} for ports in (inputs, outputs))
    return Ports(*found)


def real_run(run: Run, ports: Ports) -> Run:
    """`run` for real numbers: they are quantized as `ports` say, and outputs dequantized. Integers for a quantized
    input are taken as they are, and outputs are then left as they are, too."""

    def converted(feed: dict[str, Array]) -> Mapping[str, Array]:
        if ports.integers(feed):
            return run(ports.feed(feed))
        return ports.real(run(ports.feed(feed)))

    return converted if ports.inputs or ports.outputs else run


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
