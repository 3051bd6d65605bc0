"""Files: atomic, weights beside them where there are many, nothing left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from irc.errors import ModelError, OutputError
from irc.export import save, to_bytes
from irc.frontend import from_proto, load_model
from irc.ir.graph import Graph, Model
from irc.ir.infer import infer
from irc.ir.types import Constant, DType, Shape, TensorType

WEIGHT = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)


def sample() -> Model:
    graph = Graph("g")
    x = graph.add_input("x", TensorType(DType.FLOAT, Shape.of("n", 64)))
    w = graph.add_constant(WEIGHT, "w")
    bias = graph.add_constant(np.ones(64, np.float32), "bias")
    first = graph.add("MatMul", [x, w]).output
    second = graph.add("MatMul", [first, graph.add_constant(w.constant, "w_again")]).output  # type: ignore[arg-type]
    graph.set_outputs([graph.add("Add", [second, bias], ["y"]).output])
    model = Model(graph)
    infer(model)
    return model


def result(path: Path | bytes) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    loaded = ort.InferenceSession(str(path) if isinstance(path, Path) else path, options)
    return loaded.run(None, {"x": np.eye(2, 64, dtype=np.float32)})[0]


def test_one_file(tmp_path: Path) -> None:
    assert save(sample(), tmp_path / "m.onnx") == [tmp_path / "m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == to_bytes(sample())
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_weights_beside_the_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    assert [p.name for p in save(sample(), path, external=True)] == ["m.onnx", "m.onnx.data"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    onnx.checker.check_model(str(path), full_check=True)
    np.testing.assert_array_equal(result(path), result(to_bytes(sample())))
    assert (tmp_path / "m.onnx.data").stat().st_size == WEIGHT.nbytes, "a constant used twice is stored once"
    again = load_model(path)
    np.testing.assert_array_equal(again.graph.constants["w"].numpy(), WEIGHT)


def test_the_model_that_is_mapped_may_be_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(sample(), path)
    model = load_model(path)
    save(model, path, external=True)
    np.testing.assert_array_equal(load_model(path).graph.constants["w"].numpy(), WEIGHT)
    np.testing.assert_array_equal(model.graph.constants["w"].numpy(), WEIGHT)


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    old = tmp_path / "m.onnx"
    old.write_bytes(b"old")
    model = sample()

    def gone() -> np.ndarray:
        raise OSError(28, "No space left on device")

    model.graph.constants["bias"].constant = Constant(DType.FLOAT, (64, 64), gone)
    for external in (False, True):
        with pytest.raises((OutputError, OSError)):
            save(model, old, external=external)
        assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
        assert old.read_bytes() == b"old"


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        save(sample(), tmp_path / "no" / "m.onnx")
    assert "m.onnx" in str(caught.value)


def test_a_target_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").mkdir()
    with pytest.raises(OutputError):
        save(sample(), tmp_path / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_too_big_for_bytes() -> None:
    model = sample()
    huge = Constant(DType.FLOAT, (2**15, 2**15), lambda: np.zeros(0))  # 4 GB that nobody may load
    model.graph.add_constant(huge, "huge")
    with pytest.raises(ModelError, match=r"4\.3 GB"):
        to_bytes(model)


def test_bytes_are_the_same_every_time() -> None:
    assert to_bytes(sample()) == to_bytes(sample())


def test_packed_weights_survive_external_storage(tmp_path: Path) -> None:
    packed = numpy_helper.from_array(np.arange(8192).astype(np.uint8).view("uint8") % 16, "w")
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("Cast", ["w"], ["y"], to=TensorProto.FLOAT)],
            "g",
            [],
            [onnx.ValueInfoProto(name="y")],
            [helper.make_tensor("w", TensorProto.UINT4, [8192], numpy_helper.to_array(packed))],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    save(from_proto(proto), tmp_path / "m.onnx", external=True)
    assert (tmp_path / "m.onnx.data").stat().st_size == 4096
    weight = load_model(tmp_path / "m.onnx").graph.constants["w"].numpy()
    np.testing.assert_array_equal(weight.astype(np.uint8), np.arange(8192) % 16)
