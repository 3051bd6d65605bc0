"""The integers of a quantized network are the same on every target, bit for bit.

One table: networks down, targets across. Networks are cut behind their last quantization, so that what they give are
the bytes of integer kernels; the float functions behind (a Softmax) differ in their last bits between machines. All
targets are compared with this machine's; that it is right is tested elsewhere.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from irc.backends.artifact.machines import missing_tools
from irc.driver.compile import compile_model
from irc.driver.options import CompileOptions
from irc.driver.runners import execution
from irc.pipeline.presets import with_io
from irc.targets import get_target, runs_here

Array = np.ndarray[Any, Any]

TARGETS = (
    "x86-64-v3",
    "x86-64-v4-vnni",
    "cortex-a53",
    "cortex-a76",
    "neoverse-v1",
    "armv7",
    "riscv64",
    "riscv64-v",
    "riscv32",
    "wasm32",
    "c",
    "cortex-m0plus",
    "cortex-m3",
    "cortex-m4",
    "cortex-m7",
    "cortex-m33",
    "cortex-m55",
)
OWN = {
    "ic_resnet8_fp32": "ic",
    "vww_mobilenet_v1_025_fp32": "vww",
    "kws_dscnn_fp32": "kws",
    "ad01_fp32": "ad",
}
"""Float models of the evaluation data, quantized here, and the tasks whose samples calibrate them."""
DIGITS = {"digits": ("float32",), "digits_integers": ("inputs=int8", "outputs=uint8")}
"""The example, quantized here, and the types of its inputs and outputs."""
GIVEN = (
    "pretrainedResnet_quant_qdq",
    "vww_96_int8_qdq",
    "kws_ref_model_qdq",
    "ad01_int8_qdq",
    "mobilenet_v2_1.0_224_quant_qdq",
)
SAMPLES = 2


def cut(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` up to its last quantizations: those that no other one follows."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    followed: dict[str, bool] = {}
    for node in reversed(model.graph.node):
        behind = [r for name in node.output for r in readers.get(name, [])]
        quantizes = any(r.op_type == "QuantizeLinear" or followed[r.output[0]] for r in behind)
        followed[node.output[0]] = quantizes
    last = [n for n in model.graph.node if n.op_type == "QuantizeLinear" and not followed[n.output[0]]]
    assert last, "no quantized network"
    known = {i.name: i for i in model.graph.initializer}
    types = {n.output[0]: known[n.input[2]].data_type for n in last}
    extractor = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(model))
    part = extractor.extract_model([i.name for i in model.graph.input], list(types))
    for value in part.graph.output:
        assert value.type.tensor_type.elem_type == types[value.name]
    return part


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("same-bits")


def quantized(name: str, folder: Path, data: Path | None, digits: Path, cache: Path) -> Path:
    """The network as ONNX, cut."""
    path = folder / f"{name}.onnx"
    if path.is_file():
        return path
    if name in GIVEN:
        assert data is not None
        source = onnx.load(data / "models" / f"{name}.onnx")
    else:
        model = digits / "digits.onnx" if name in DIGITS else Path(str(data)) / "models" / f"{name}.onnx"
        samples: Any = digits / "digits_calibration.npz" if name in DIGITS else _calibration(OWN[name], data, model)
        passes = with_io("speed", DIGITS.get(name, ()))
        options = CompileOptions(model, get_target("native"), passes=passes, calibration=samples, stop_after="passes")
        from irc.export import to_bytes

        source = onnx.load_from_string(to_bytes(compile_model(options).model))
    onnx.save(cut(source), path)
    return path


def _calibration(task: str, data: Path | None, model: Path) -> dict[str, Array]:
    import importlib.util

    assert data is not None
    spec = importlib.util.spec_from_file_location("same_bits_load", data / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    x, _ = module.load(task, "calibration")
    return {onnx.load(model).graph.input[0].name: x[:32]}


def feeds(path: Path) -> list[dict[str, Array]]:
    rng = np.random.default_rng(1)
    found = []
    for _ in range(SAMPLES):
        feed = {}
        for value in onnx.load(path).graph.input:
            tensor = value.type.tensor_type
            shape = [d.dim_value or 1 for d in tensor.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            if dtype.kind == "f":
                feed[value.name] = rng.normal(0, 40, shape).astype(dtype)  # beyond what is representable, too
            else:
                limits = np.iinfo(dtype)
                feed[value.name] = rng.integers(limits.min, limits.max + 1, shape).astype(dtype)
        found.append(feed)
    return found


def outputs(path: Path, target: str, cache: Path) -> list[Array]:
    """All outputs for all samples, from the code of `target` itself."""
    dims = {d.dim_param: 1 for v in onnx.load(path).graph.input for d in v.type.tensor_type.shape.dim if d.dim_param}
    options = CompileOptions(path, get_target(target), name="net", dims=dims, stop_after="kernels", cache_dir=cache)
    program = compile_model(replace(options, workers=1)).program  # tests run side by side already
    assert program is not None

    def no_twin(target: object) -> Any:
        raise AssertionError("compiled for another machine")

    run = execution(program, no_twin, cache_dir=cache)
    try:
        assert run.where == "target"
        return [np.asarray(v).copy() for feed in feeds(path) for v in run.run(feed).values()]
    finally:
        run.close()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [*DIGITS, *OWN, *GIVEN])
def test_same_bits(
    name: str, target: str, models: Path, digits_dir: Path, kernel_cache: Path, request: pytest.FixtureRequest
) -> None:
    chosen = get_target(target)
    if chosen.arch == "x86-64" and not runs_here(chosen):
        pytest.skip(f"this CPU does not run {target}")
    if not runs_here(chosen) and missing_tools(chosen):
        pytest.skip(f"needs tools for {target}: {missing_tools(chosen)}")
    data = None if name in DIGITS else request.getfixturevalue("data_dir")
    path = quantized(name, models, data, digits_dir, kernel_cache)
    remembered = models / f"{name}.npz"
    if not remembered.is_file():
        np.savez(remembered, *outputs(path, "native", kernel_cache))
    with np.load(remembered) as file:
        expected = [file[key] for key in file.files]
    found = outputs(path, target, kernel_cache)
    assert [v.dtype.name for v in found] in (["int8"] * len(found), ["uint8"] * len(found))
    # Constant outputs would be the same everywhere, whatever the kernels do.
    assert all(len(np.unique(v)) > 1 for v in expected)
    for wanted, got in zip(expected, found, strict=True):
        np.testing.assert_array_equal(got, wanted)
