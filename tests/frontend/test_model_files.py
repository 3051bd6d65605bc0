"""Files: weights left in them, external data, and everything that can be wrong with a file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from irc.errors import IrcError, ModelError
from irc.frontend import load_model
from irc.frontend.wire import INLINE_BYTES, WireError, strip

WEIGHT = np.arange(4096, dtype=np.float32).reshape(64, 64)


def linear(weight: np.ndarray = WEIGHT) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def write(path: Path, proto: onnx.ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    return str(caught.value)


# weights in the model file


def test_big_weights_are_mapped_not_parsed(tmp_path: Path) -> None:
    model = load_model(write(tmp_path / "m.onnx", linear()))
    weight = model.graph.constants["w"].numpy()
    np.testing.assert_array_equal(weight, WEIGHT)
    assert not weight.flags.owndata
    assert not weight.flags.writeable


def test_strip_takes_out_exactly_the_big_raw_data() -> None:
    proto = linear()
    proto.graph.initializer.append(numpy_helper.from_array(np.arange(4), "small"))
    proto.graph.node.append(helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(WEIGHT + 1, "v")))
    data = proto.SerializeToString()
    small, slices = strip(memoryview(data))
    assert [data[s.offset : s.offset + s.length] for s in slices] == [(WEIGHT + 1).tobytes(), WEIGHT.tobytes()]
    assert len(small) < INLINE_BYTES
    back = onnx.ModelProto.FromString(small)
    assert back.graph.initializer[1] == proto.graph.initializer[1]
    assert not back.graph.initializer[0].HasField("raw_data")


def test_weights_inside_subgraphs_are_mapped_too(tmp_path: Path) -> None:
    branches = {}
    for name, weight in (("then_branch", WEIGHT), ("else_branch", -WEIGHT)):
        made = numpy_helper.from_array(weight, f"{name}_w")
        branches[name] = helper.make_graph(
            [helper.make_node("Identity", [f"{name}_w"], [f"{name}_o"])],
            name,
            [],
            [onnx.ValueInfoProto(name=f"{name}_o")],
            [made],
        )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], **branches)],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model = load_model(write(tmp_path / "m.onnx", proto))
    (then, otherwise) = model.graph.nodes[0].subgraphs
    found = {g.name: next(iter(g.constants.values())).numpy() for g in (then, otherwise)}
    np.testing.assert_array_equal(found["then_branch"], WEIGHT)
    np.testing.assert_array_equal(found["else_branch"], -WEIGHT)


# files that are no models


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"import torch\nprint('hello')\n", "text file"),
        (b'{"irVersion": "8"}', "text file"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(40), "TensorFlow Lite"),
        (b"PK\x03\x04" + bytes(60), "torch.onnx.export"),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), "Keras"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9", "pickle"),
        (bytes(100), "not an ONNX model"),
        (onnx.TensorProto(name="t", data_type=1, dims=[2], raw_data=bytes(8)).SerializeToString(), "not an ONNX model"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    text = refusal(path)
    assert said in text
    assert "m.onnx" in text


def test_missing_file_suggests_a_similar_one(tmp_path: Path) -> None:
    write(tmp_path / "mobilenet.onnx", linear())
    assert "mobilenet.onnx" in refusal(tmp_path / "mobilnet.onnx")
    assert "no such file" in refusal(tmp_path / "nowhere" / "m.onnx")


def test_folder(tmp_path: Path) -> None:
    write(tmp_path / "inner.onnx", linear())
    assert "inner.onnx" in refusal(tmp_path)


def test_every_truncation_is_refused_clearly(tmp_path: Path) -> None:
    data = linear().SerializeToString()
    path = tmp_path / "m.onnx"
    for length in (*range(1, 120), len(data) // 2, len(data) - 60, len(data) - 1):
        path.write_bytes(data[:length])
        try:
            load_model(path)
        except IrcError as error:
            text = str(error)
        else:
            text = ""
        # a cut between two fields of the model leaves a message that is whole: only the opset is missing then
        assert text or onnx.ModelProto.FromString(data[:length]).HasField("graph"), length


def test_damaged_bytes_give_an_error_for_users_or_a_model(tmp_path: Path) -> None:
    """Never another exception. 400 files with one to four bytes changed, from a fixed seed."""
    rng = np.random.default_rng(5)
    good = linear().SerializeToString()
    head, path = 200, tmp_path / "m.onnx"
    refused = 0
    for _ in range(400):
        bad = bytearray(good)
        places = rng.integers(0, head, rng.integers(1, 5)) - head // 2  # both ends: between them lies the weight
        for place in places:
            bad[place] = rng.integers(0, 256)
        path.unlink(missing_ok=True)  # a mapped file must not change
        path.write_bytes(bad)
        try:
            load_model(path)
        except IrcError:
            refused += 1
    assert refused > 100


def test_strip_of_noise_stays_inside() -> None:
    rng = np.random.default_rng(6)
    for _ in range(200):
        noise = rng.bytes(rng.integers(INLINE_BYTES + 1, 3 * INLINE_BYTES))
        try:
            small, slices = strip(memoryview(noise))
        except WireError:
            continue
        assert all(s.offset + s.length <= len(noise) for s in slices)
        assert len(small) <= len(noise)


# external data


def external(folder: Path, *, location: str = "w.bin", **entries: object) -> Path:
    proto = linear()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return write(folder / "m.onnx", proto)


def test_external_data(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(100) + WEIGHT.tobytes() + bytes(5))
    model = load_model(external(tmp_path, offset=100, length=WEIGHT.nbytes))
    weight = model.graph.constants["w"].numpy()
    np.testing.assert_array_equal(weight, WEIGHT)
    assert not weight.flags.owndata


def test_external_data_without_length_goes_to_the_end(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(64) + WEIGHT.tobytes())
    model = load_model(external(tmp_path, offset=64))
    np.testing.assert_array_equal(model.graph.constants["w"].numpy(), WEIGHT)


def test_small_external_weights_are_known_to_shape_inference(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([2, -1]), "s")
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("Reshape", ["x", "s"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 3])],
            [onnx.ValueInfoProto(name="y")],
            [shape],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, size_threshold=0, location="d.bin")
    assert str(load_model(path).graph.outputs[0].type) == "float32[2,6]"


@pytest.mark.parametrize(
    ("location", "entries", "said"),
    [
        ("missing.bin", {}, "'missing.bin' is missing"),
        ("../w.bin", {}, "outside the model's folder"),
        ("/etc/passwd", {}, "outside the model's folder"),
        ("C:\\w.bin", {}, "outside the model's folder"),
        ("..\\w.bin", {}, "outside the model's folder"),
        ("", {}, "without a location"),
        ("sub", {}, "is missing"),
        ("w.bin", {"offset": 1}, "does not fit the shape"),
        ("w.bin", {"offset": 1, "length": WEIGHT.nbytes}, "beyond the end"),
        ("w.bin", {"offset": -4}, "not negative"),
        ("w.bin", {"offset": "abc"}, "not negative"),
        ("w.bin", {"length": 8}, "does not fit the shape"),
        ("link.bin", {}, "outside the model's folder"),
        ("linked/w.bin", {}, "outside the model's folder"),
    ],
)
def test_bad_external_data(tmp_path: Path, location: str, entries: dict[str, object], said: str) -> None:
    folder, other = tmp_path / "model", tmp_path / "other"
    (folder / "sub").mkdir(parents=True)
    other.mkdir()
    for place in (folder, other, tmp_path):
        (place / "w.bin").write_bytes(WEIGHT.tobytes())
    (folder / "link.bin").symlink_to(other / "w.bin")
    (folder / "linked").symlink_to(other)
    text = refusal(external(folder, location=location, **entries))
    assert said in text
    assert "weight 'w'" in text


def test_a_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "w.bin").symlink_to("real.bin")
    np.testing.assert_array_equal(load_model(external(tmp_path)).graph.constants["w"].numpy(), WEIGHT)


def test_weight_size_contradicts_shape(tmp_path: Path) -> None:
    proto = linear()
    proto.graph.initializer[0].dims[0] = 63
    assert "expected 16128 bytes" in refusal(write(tmp_path / "m.onnx", proto))


def test_unreadable_file(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", linear())
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser reads everything
        assert load_model(path).graph.inputs
    else:
        assert "cannot be read" in refusal(path)
