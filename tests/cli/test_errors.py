"""Bad input ends in a few lines on stderr and exit code 2, and leaves nothing behind."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from irc.cli import main as cli

Run = Callable[..., str]


def proto(
    *, dims: tuple[object, ...] = (1, 4), nodes: list[onnx.NodeProto] | None = None, **opsets: int
) -> onnx.ModelProto:
    """x[dims] -> MatMul with a 4x3 weight -> y."""
    weight = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3), "w")
    graph = helper.make_graph(
        nodes or [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(dims))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight],
    )
    imports = [helper.make_opsetid("", 17), *(helper.make_opsetid(k, v) for k, v in opsets.items())]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.onnx"
    onnx.save(proto(), path)
    return path


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current and the temporary folder; what lies in them afterwards was left behind."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert sorted(p.name for p in folder.rglob("*")) == []


@pytest.fixture
def fails(scratch: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs irc in this process, checks the form of the failure, and gives its message."""

    def run(*arguments: object, code: int = 2) -> str:
        assert cli.main([str(a) for a in arguments]) == code
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("irc: error: ")
        assert len(err.splitlines()) <= 4, err
        assert "Traceback" not in err
        assert "internal" not in err
        return err

    return run


def test_no_such_file(fails: Run) -> None:
    assert "no such file" in fails("compile", "absent.onnx")


def test_misspelt_file_name_is_suggested(fails: Run, model: Path) -> None:
    assert "did you mean 'tiny.onnx'" in fails("compile", model.with_name("tinny.onnx"))


def test_a_folder_for_a_model(fails: Run, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "folder" in fails("compile", tmp_path / "folder")


def test_text_file(fails: Run, tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("This is a plain text and no model at all.\n" * 10)
    assert "text.onnx" in fails("compile", path)


def test_empty_file(fails: Run, tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    path.touch()
    assert "empty.onnx" in fails("compile", path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_file(fails: Run, model: Path, share: float) -> None:
    data = model.read_bytes()
    model.write_bytes(data[: int(len(data) * share)])
    assert "tiny.onnx" in fails("compile", model)


def test_cycle(fails: Run, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="second"),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="fc"),
    ]
    path = tmp_path / "cycle.onnx"
    path.write_bytes(proto(nodes=nodes).SerializeToString())
    message = fails("compile", path)
    assert "cycle" in message
    assert "first" in message or "second" in message


def test_unknown_dimension(fails: Run, tmp_path: Path) -> None:
    path = tmp_path / "open.onnx"
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")]
    onnx.save(proto(dims=(1, "length", 4), nodes=nodes), path)
    message = fails("compile", path)
    assert "length" in message
    assert "--dim" in message


def test_unknown_operator_domain(fails: Run, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Frobnicate", ["x"], ["z"], name="odd", domain="my.own"),
        helper.make_node("MatMul", ["z", "w"], ["y"], name="fc"),
    ]
    path = tmp_path / "custom.onnx"
    path.write_bytes(proto(nodes=nodes, **{"my.own": 1}).SerializeToString())
    message = fails("compile", path)
    assert "odd" in message
    assert "Frobnicate" in message


def test_operator_whose_result_depends_on_data(fails: Run, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["z"], name="places"),
        helper.make_node("Cast", ["z"], ["y"], name="last", to=TensorProto.FLOAT),
    ]
    path = tmp_path / "where.onnx"
    path.write_bytes(proto(nodes=nodes).SerializeToString())
    message = fails("compile", path)
    assert "node 'places' (NonZero): the shape of its result depends on data" in message
    assert "--shape" not in message


def test_unknown_operator_at_the_end(fails: Run, tmp_path: Path) -> None:
    """Its operator is what is wrong, not the shape that nobody can know."""
    nodes = [helper.make_node("Frobnicate", ["x"], ["y"], name="odd", domain="my.own")]
    path = tmp_path / "custom.onnx"
    path.write_bytes(proto(nodes=nodes, **{"my.own": 1}).SerializeToString())
    message = fails("compile", path)
    assert "unknown domain 'my.own'" in message
    assert "--shape" not in message


def test_shapes_that_contradict_each_other(fails: Run, tmp_path: Path) -> None:
    path = tmp_path / "wrong.onnx"
    path.write_bytes(proto(dims=(1, 5)).SerializeToString())
    assert fails("compile", path).startswith("irc: error: wrong.onnx: node 'fc' (MatMul): ")


def external(tmp_path: Path, location: str) -> Path:
    """A model whose weight lies in another file."""
    built = proto()
    tensor = built.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value="48")
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "tiny.onnx"
    path.write_bytes(built.SerializeToString())
    return path


def test_missing_external_data(fails: Run, tmp_path: Path) -> None:
    assert "weights.bin" in fails("compile", external(tmp_path, "weights.bin"))


@pytest.mark.parametrize("kind", ["up", "absolute", "link"])
def test_external_data_outside_the_folder(fails: Run, tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(48))
    location = {"up": "../secret.bin", "absolute": str(secret), "link": "link.bin"}[kind]
    path = external(tmp_path, location)
    if kind == "link":
        (path.parent / "link.bin").symlink_to(secret)
    assert Path(location).name in fails("compile", path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--target", "amr"], "did you mean 'arm'"),
        (["--traget", "arm"], "did you mean '--target'"),
        (["--preset", "siz"], "did you mean 'size'"),
        (["--passes", "qantize"], "did you mean 'quantize'"),
        (["--passes", "prune{sparsty=0.5}"], "did you mean 'sparsity'"),
        (["--passes", "prune{sparsity=0.5"], "pipeline"),
        (["--metric", "top2", "--evaluation", "E"], "did you mean 'top"),
        (["--stop-after", "pases"], "did you mean 'passes'"),
        (["--print-ir-after", "foldconstants"], "did you mean 'fold-constants'"),
        (["--emit", "archiv"], "did you mean 'archive'"),
        (["--name", "a-b"], "identifier"),
        (["--shape", "x=1xfour"], "INPUT=1x3x224x224"),
        (["--shape", "z=1x4"], "no input 'z'"),
        (["--shape", "x=1x5"], "fixed"),
        (["--dim", "batch=0"], "at least 1"),
        (["--dim", "batch=2"], "no dimension 'batch'"),
        (["--max-drop", "1"], "--evaluation"),
        (["--max-drop", "much"], "--max-drop"),
        (["--threads", "0"], "--threads"),
        (["--seed", "-1"], "--seed"),
        (["--evaluation", "E", "--max-drop", "nan"], "--max-drop"),
        (["--passes", "none", "--preset", "none"], "not allowed with"),
        (["other.onnx"], "unexpected argument 'other.onnx'"),
        (["--calibration", "absent.npz"], "absent.npz"),
        (["--passes", "quantize"], "--calibration"),
    ],
)
def test_wrong_options(fails: Run, model: Path, npz: Callable[..., Path], arguments: list[str], expected: str) -> None:
    data = npz(x=np.zeros((2, 4), np.float32), labels=np.zeros(2, np.int64))
    assert expected in fails("compile", model, *(str(data) if a == "E" else a for a in arguments))


def test_misspelt_command(fails: Run) -> None:
    assert "did you mean 'compile'" in fails("compil")


def test_missing_argument(fails: Run) -> None:
    assert "MODEL" in fails("compile")


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., Path]:
    def write(**arrays: np.ndarray) -> Path:
        path = tmp_path / "data.npz"
        np.savez(path, **arrays)
        return path

    return write


GOOD = np.zeros((3, 4), np.float32)


@pytest.mark.parametrize("use", ["--calibration", "--evaluation"])
@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"z": GOOD, "other": GOOD}, "'z'"),
        ({"x": np.zeros((3, 5), np.float32)}, "shape"),
        ({"x": np.zeros((3, 4), np.float64)}, "float64"),
        ({"x": GOOD, "labels": np.zeros(2, np.int64)}, "number of samples"),
        ({"x": np.zeros((0, 4), np.float32)}, "no samples"),
        ({"x": np.full((3, 4), np.nan, np.float32)}, "NaN"),
    ],
)
def test_data_that_does_not_fit(
    fails: Run, model: Path, npz: Callable[..., Path], use: str, arrays: dict[str, np.ndarray], expected: str
) -> None:
    message = fails("compile", model, "--metric", "mse", use, npz(**arrays))
    assert "data.npz" in message
    assert expected in message


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.array(["cat", "dog", "cat"]), "labels are no class numbers"),
        (np.array([0.5, 1, 2]), "labels are no class numbers"),
        (np.array([0, 1, 3]), "expected 0 to 2; got 3"),
        (np.array([-1, 1, 2]), "expected 0 to 2; got -1"),
    ],
)
def test_labels_that_do_not_fit(
    fails: Run, model: Path, npz: Callable[..., Path], labels: np.ndarray, expected: str
) -> None:
    assert expected in fails("evaluate", model, "--data", npz(x=GOOD, labels=labels))


@pytest.mark.parametrize("command", ["run", "verify"])
def test_a_model_where_an_artifact_is_wanted(fails: Run, model: Path, npz: Callable[..., Path], command: str) -> None:
    extra = ["--inputs", npz(x=GOOD)] if command == "run" else []
    assert "expected an artifact, as irc compile writes it" in fails(command, model, *extra)


def test_data_that_is_no_npz(fails: Run, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_text("1,2,3")
    assert "data.npz" in fails("compile", model, "--calibration", path)


def test_output_inside_a_file(fails: Run, model: Path) -> None:
    assert "tiny.onnx" in fails("compile", model, "-o", model / "out")


def test_output_is_a_file(fails: Run, model: Path) -> None:
    assert "not a folder" in fails("compile", model, "-o", model)


def test_output_folder_with_other_files(fails: Run, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")
    assert "mine" in fails("compile", model, "-o", folder)
    assert (folder / "thesis.tex").read_text() == "precious"


def test_output_without_permission(fails: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system tells a user; the tests may run as root, who may write anywhere."""
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK)
    assert "permission" in fails("compile", model, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["run", "verify", "evaluate", "inspect", "bench"])
def test_a_folder_that_is_no_artifact(fails: Run, tmp_path: Path, npz: Callable[..., Path], command: str) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    data = npz(x=GOOD, labels=np.zeros(3, np.int64))
    extra = {"run": ["--inputs", data], "evaluate": ["--data", data]}.get(command, [])
    assert "not an artifact" in fails(command, folder, *extra)


def test_unknown_peer(fails: Run, model: Path) -> None:
    assert "did you mean 'onnxruntime'" in fails("bench", model, "--against", "onxruntime")


def test_opt_output_name(fails: Run, model: Path, tmp_path: Path) -> None:
    assert ".onnx or .irc" in fails("opt", model, "-o", tmp_path / "out.txt")
    assert not (tmp_path / "out.txt").exists()


def test_defect_of_irc_is_one_line_and_a_file(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise KeyError("what irc did not think of")

    monkeypatch.setattr("irc.frontend.load_model", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cli.main(["inspect", str(model)]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    report = next(tmp_path.glob("irc-crash-*.txt")).read_text()
    assert "Traceback" in report
    assert f"irc inspect {model}" in report


def test_interrupt(model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("irc.frontend.load_model", interrupted)
    assert cli.main(["inspect", str(model)]) == 130
    assert capfd.readouterr().err == "irc: interrupted\n"


def test_message_on_a_terminal_that_knows_ascii_only(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", stream)
    assert cli.main(["compile", "größe.onnx"]) == 2
    stream.seek(0)
    assert "gr\\xf6\\xdfe.onnx" in stream.read()


def irc(*arguments: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "irc", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **kwargs)  # type: ignore[call-overload, no-any-return]  # kwargs are passed on as they are


def test_a_process_ends_with_the_code(tmp_path: Path) -> None:
    done = irc("compile", "absent.onnx", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "irc: error: absent.onnx: no such file\n"
    assert list(tmp_path.iterdir()) == []


def test_broken_pipe_is_silent() -> None:
    command = f"{sys.executable} -m irc targets --json | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 141)  # 0 where `true` was slower than irc
    assert done.stderr == ""
