"""A backend that compiles nothing: the "machine code" is onnxruntime on the model that was to be compiled.

It lets the driver's decisions be tested in milliseconds, and results be spoiled on purpose.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from irc.backends.program import Port, Program, Step
from irc.driver import compile as driver
from irc.driver import lower, runners
from irc.evaluation.oracle import Oracle
from irc.export import save, to_bytes
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.graph import Model, Value
from irc.targets import Target


class FakeBackend:
    """`spoil` names the node whose weights the "compiler" gets wrong; `built` the models it was given."""

    def __init__(self) -> None:
        self.spoil = ""
        self.built: list[Model] = []
        self._models: dict[int, tuple[Program, Model]] = {}

    def build(self, model: Model, target: Target, options: Any, progress: Any = None) -> Program:
        self.built.append(model)
        copy = clone(model)
        for node in copy.graph.nodes:
            if self.spoil and self.spoil in (node.name, *node.origin.nodes) and node.is_op("Conv", "Gemm"):
                wrong = node.need(1).numpy() * np.float32(1.01)
                copy.graph.set_input(node, 1, copy.graph.add_constant(wrong, "wrong"))
        inputs, outputs = (tuple(map(_port, vs)) for vs in (copy.graph.inputs, copy.graph.outputs))
        steps = tuple(
            Step(f"k{i}", (), nodes=(n.name,), label=n.op_type, macs=1) for i, n in enumerate(copy.graph.nodes)
        )
        program = Program(options.name, target, inputs, outputs, steps, {"k": to_bytes(copy)}, (), 0, 64)
        self._models[id(program)] = (program, copy)
        return program

    def in_process(self, program: Program, **options: Any) -> runners.Execution:
        return runners.Execution(Oracle(self._models[id(program)][1]).run, "target", "in process", lambda: None)


def _port(value: Value) -> Port:
    return Port(value.name, str(value.tensor.dtype.value), value.static_shape())


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeBackend:
    fake = FakeBackend()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(lower, "build_program", fake.build)
    monkeypatch.setattr(runners, "in_process", fake.in_process)
    monkeypatch.setattr(driver, "_write", _write_manifest_only)
    return fake


def _write_manifest_only(done: driver.Compilation) -> None:
    done.manifest = driver.make_manifest(done)
    done.directory = done.options.directory
    done.directory.mkdir(parents=True)


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """conv1, relu, conv2, relu, flatten, gemm: x [n,3,8,8] -> y [n,10]."""
    b = GraphBuilder("tiny")
    x = b.input("x", "float32", ["n", 3, 8, 8])
    y = b.op("Relu", b.conv(x, weights(8, 3, 3, 3), pads=[1, 1, 1, 1], name="conv1"))
    y = b.op("Relu", b.conv(y, weights(8, 8, 3, 3, seed=1), pads=[1, 1, 1, 1], name="conv2"))
    b.output(b.gemm(b.op("Flatten", y), weights(512, 10, seed=2), weights(10, seed=3), name="fc"), name="y")
    path = tmp_path / "tiny.onnx"
    save(b.build(), path)
    return path


@pytest.fixture
def labelled(tmp_path: Path) -> Callable[[int], Path]:
    """A file of that many samples, labelled with what the model of `model_file` says."""

    def make(count: int, source: Path | None = None) -> Path:
        x = np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)
        labels = Oracle(source or tmp_path / "tiny.onnx").run({"x": x})["y"].argmax(1)
        path = tmp_path / "data.npz"
        np.savez(path, x=x, labels=labels)
        return path

    return make
