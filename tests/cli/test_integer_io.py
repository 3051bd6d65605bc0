"""--io int8 from end to end: real numbers in, real numbers out, in every command; the caller sees integers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import irc
from irc.cli import main as cli
from irc.evaluation.oracle import Oracle
from irc.ir.quantization import Ports
from irc.ir.types import Array

Call = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def real(digits_dir: Path, kernel_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in 8 bits with float32 inputs and outputs."""
    return compiled(digits_dir, kernel_cache, tmp_path_factory.mktemp("real") / "digits", None)


@pytest.fixture(scope="module")
def integers(digits_dir: Path, kernel_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with int8 ones."""
    return compiled(digits_dir, kernel_cache, tmp_path_factory.mktemp("integers") / "digits", "int8")


def compiled(digits: Path, cache: Path, out: Path, io: Any, **options: Any) -> Path:
    given = {"calibration": digits / "digits_calibration.npz", "cache_dir": cache, "workers": 1, **options}
    return irc.compile(digits / "digits.onnx", output=out, name="digits", passes="speed", io=io, **given).directory


@pytest.fixture(scope="module")
def images(digits_dir: Path) -> Array:
    with np.load(digits_dir / "digits_eval.npz") as file:
        found: Array = file["image"][:100]
    return found


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], kernel_cache: Path) -> Call:
    def run(*arguments: object, code: int = 0) -> tuple[str, str]:
        found = cli.main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        assert found == code, err
        return out, err

    return run


def test_the_ports_say_what_they_stand_for(integers: Path, call: Call) -> None:
    facts = json.loads((integers / "manifest.json").read_text())["interface"]
    (image,), (scores,) = facts["inputs"], facts["outputs"]
    assert (image["dtype"], image["bytes"], scores["dtype"], scores["bytes"]) == ("int8", 64, "int8", 10)
    with irc.load(integers) as network:
        port = network.inputs[0]
        assert (port.dtype, port.scale, port.zero_point) == ("int8", image["scale"], image["zero_point"])
    header = (integers / "include" / "digits.h").read_text()
    assert f"#define DIGITS_INPUT_0_ZERO_POINT ({image['zero_point']})\n" in header
    assert f"#define DIGITS_OUTPUT_0_SCALE {scores['scale']:.9g}f\n" in header
    text, _ = call("inspect", integers)
    assert f"image: int8[1, 1, 8, 8], scale {image['scale']:.6g}, zero point {image['zero_point']}" in text


def test_inputs_that_are_quantized_before_give_the_same_bits(
    real: Path, digits_dir: Path, images: Array, kernel_cache: Path, tmp_path: Path
) -> None:
    out = compiled(digits_dir, kernel_cache, tmp_path / "o", {"inputs": "uint8"}, verify=False)
    with irc.load(real) as before, irc.load(out) as after:
        numbers = after.inputs[0].quantization
        assert numbers is not None
        assert (after.inputs[0].dtype, after.outputs[0].dtype) == ("uint8", "float32")
        for image in images[:, None]:
            q = numbers.quantize(image)
            # Numbers on the steps are quantized alike by a product with 1 / scale and by a division.
            np.testing.assert_array_equal(after(q), before(numbers.dequantize(q)))


def test_outputs_are_the_real_ones_rounded(real: Path, integers: Path, images: Array) -> None:
    with irc.load(real) as before, irc.load(integers) as after:
        ins, outs = after.inputs[0].quantization, after.outputs[0].quantization
        assert ins is not None
        assert outs is not None
        far = []
        for image in images[:, None]:
            q = ins.quantize(image)
            far.append(np.abs(outs.quantize(before(ins.dequantize(q))).astype(int) - after(q)))
        # One rounding instead of two may fall the other way.
        assert np.max(far) <= 1
        assert np.mean(far) < 0.01


def test_scores_are_those_of_real_numbers(integers: Path, digits_dir: Path, tmp_path: Path, call: Call) -> None:
    data, original = digits_dir / "digits_eval.npz", digits_dir / "digits.onnx"
    with np.load(data) as file:
        image, labels = file["image"], file["labels"]
    with irc.load(integers) as network:
        numbers = network.inputs[0].quantization
    assert numbers is not None
    np.savez(tmp_path / "q.npz", image=numbers.quantize(image), labels=labels)
    found = {}
    for name, file in (("real", data), ("integers", tmp_path / "q.npz")):
        out, _ = call("evaluate", integers, "--data", file, "--original", original, "--json")
        found[name] = json.loads(out)
    assert found["real"] == found["integers"]
    assert abs(found["real"]["drop"]) <= 1.0


def test_errors_are_those_of_real_numbers(integers: Path, digits_dir: Path, images: Array) -> None:
    """Labels are the original's outputs: the mean squared error is about the square of what rounding does."""
    original = irc.load_model(digits_dir / "digits.onnx")
    labels = Oracle(original).run({"image": images})["scores"]
    found = irc.evaluate(integers, {"image": images, "labels": labels}, "mse").score
    with irc.load(integers) as network:
        step = network.outputs[0].scale
    assert step is not None
    # The layers before round as well, each by about a step of its own.
    assert step**2 / 12 < found < 10 * step**2


def test_verification_takes_real_samples_and_the_original(integers: Path, digits_dir: Path, call: Call) -> None:
    arguments = ("--original", digits_dir / "digits.onnx", "--json")
    for data in ((), ("--data", digits_dir / "digits_calibration.npz")):
        against = json.loads(call("verify", integers, *arguments, *data)[0])["against"]
        assert against["the exported IR"][0]["within_one_step"] >= 0.99
        # Steps here are the 255th part of the first sample's range. Random images are far from the calibration's.
        assert against["the original"][0]["snr_db"] > 20


def test_the_report_compares_with_the_original(integers: Path) -> None:
    manifest = json.loads((integers / "manifest.json").read_text())
    found = manifest["verification"]["against"]["onnxruntime on the original"][0]
    assert found["snr_db"] > 30
    assert any("quantize-io: output 'scores' is rounded to 8 bits" in note for note in manifest["notes"])


def test_run_takes_both(integers: Path, images: Array, tmp_path: Path, call: Call) -> None:
    with irc.load(integers) as network:
        ports = Ports(*({p.name: p.quantization for p in ports} for ports in (network.inputs, network.outputs)))  # type: ignore[arg-type]  # both are quantized
    given = {"real": {"image": images}, "integers": ports.feed({"image": images}), "one": {"image": images[:1]}}
    found = {}
    for name, arrays in given.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        call("run", integers, "--inputs", tmp_path / f"{name}.npz", "--outputs", tmp_path / "out.npz")
        with np.load(tmp_path / "out.npz") as file:
            found[name] = file["scores"]
    assert (found["real"].dtype, found["integers"].dtype) == (np.float32, np.int8)
    np.testing.assert_array_equal(ports.real({"scores": found["integers"]})["scores"], found["real"])
    np.testing.assert_array_equal(found["one"], found["real"][:1])


def test_the_loader_says_how_to_quantize(integers: Path, images: Array) -> None:
    with irc.load(integers) as network, pytest.raises(irc.IrcError, match=r"port\.quantization\.quantize"):
        network(images[:1])


def test_compressed_models_have_integers_and_compile_again(
    digits_dir: Path, kernel_cache: Path, images: Array, integers: Path, tmp_path: Path, call: Call
) -> None:
    data = ("--calibration", digits_dir / "digits_calibration.npz", "--evaluation", digits_dir / "digits_eval.npz")
    path = tmp_path / "c.onnx"
    call("compress", digits_dir / "digits.onnx", *data, "--max-drop", 1, "--io", "int8", "-o", path)
    graph = onnx.load(path).graph
    ports = [v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)]
    assert ports == [onnx.TensorProto.INT8, onnx.TensorProto.INT8]
    text, _ = call("compile", path, *data, "--max-drop", 0, "-o", tmp_path / "again", "--cache-dir", kernel_cache)
    assert "agreement 100.00 %" in text


def test_passes_behind_it_learn_from_the_same_samples(digits_dir: Path, tmp_path: Path, call: Call) -> None:
    passes = "speed,quantize-io{float32=scores},cluster{bits=6},quantize-io"
    data = ("--calibration", digits_dir / "digits_calibration.npz", "--evaluation", digits_dir / "digits_eval.npz")
    out = tmp_path / "o.onnx"
    text, _ = call("compress", digits_dir / "digits.onnx", "--passes", passes, *data, "--max-drop", 1.5, "-o", out)
    assert "top1 9" in text


@pytest.mark.parametrize(
    ("io", "message"),
    [
        (("int7",), "--io int7: an input or output cannot be 'int7'; expected int8, uint8, float32, or PORT=TYPE"),
        (("int8", "uint8"), "two types are given for all inputs and outputs"),
        (("image=",), "--io wants a type"),
        (("imge=int8",), "the model has no input or output 'imge'"),
        (("int8",), "this one computes in float32"),
    ],
)
def test_wrong_uses(io: tuple[str, ...], message: str, digits_dir: Path, tmp_path: Path, call: Call) -> None:
    arguments = [word for text in io for word in ("--io", text)]
    _, error = call("compile", digits_dir / "digits.onnx", *arguments, "-o", tmp_path / "o", code=2)
    assert message in error
    assert not (tmp_path / "o").exists()
