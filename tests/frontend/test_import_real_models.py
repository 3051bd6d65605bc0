"""Real models: the exported model computes what the file computes, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from irc.export import to_bytes, to_proto
from irc.frontend import default_batch, load_model, require_static

SHAPES = {  # extents of inputs whose symbols are not free
    "silero_vad_16k_op15": {"input": (1, 512)},
    "ch_ppocr_mobile_v2.0_cls_infer": {"x": (1, 3, 48, 192)},
}
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int64)": np.int64,
}


def session(model: bytes | str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def feeds(loaded: ort.InferenceSession, name: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {}
    for i in loaded.get_inputs():
        shape = SHAPES.get(name, {}).get(i.name) or [d if isinstance(d, int) and d > 0 else 1 for d in i.shape]
        values = rng.standard_normal(shape) if i.type == "tensor(float)" else rng.integers(0, 100, shape)
        made[i.name] = values.astype(DTYPES[i.type])
    return made


def check(path: Path) -> None:
    original, name = session(str(path)), path.stem
    inputs = feeds(original, name)
    model = load_model(path, shapes=SHAPES.get(name, {}))
    default_batch(model)
    require_static(model)
    onnx.checker.check_model(to_proto(model), full_check=True)
    exported = session(to_bytes(model))
    assert [i.name for i in exported.get_inputs()] == [i.name for i in original.get_inputs()]
    assert [o.name for o in exported.get_outputs()] == [o.name for o in original.get_outputs()]
    for before, after in zip(original.run(None, inputs), exported.run(None, inputs), strict=True):
        np.testing.assert_array_equal(after, before)


def models(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("*.onnx"))


def test_models_of_the_evaluation_data(data_dir: Path) -> None:
    found = list(models(data_dir / "models"))
    assert len(found) >= 10
    for path in found:
        check(path)


def test_larger_models(zoo_dir: Path) -> None:
    for path in models(zoo_dir):
        check(path)


def recorded() -> Iterator[Path]:
    """Models of opsets 6 to 12 with recorded inputs and outputs, which come with onnx."""
    data = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for kind in ("pytorch-converted", "pytorch-operator", "simple"):
        yield from sorted(p for p in (data / kind).iterdir() if (p / "model.onnx").is_file())


def arrays(folder: Path, kind: str) -> list[np.ndarray]:
    paths = sorted(folder.glob(f"{kind}_*.pb"), key=lambda p: int(p.stem.split("_")[-1]))
    return [onnx.numpy_helper.to_array(onnx.load_tensor(str(p))) for p in paths]


NOT_RUN = ("test_gradient_", "test_strnorm_model_monday")
"""Training operators that onnxruntime lacks; string models that need the locale en_US.UTF-8."""


def test_old_models_with_recorded_results() -> None:
    """Recorded by PyTorch and others: tolerance of the ONNX backend tests (rtol 1e-3)."""
    ran = 0
    for folder in recorded():
        model = load_model(folder / "model.onnx")
        exported = to_bytes(model)
        if folder.name.startswith(NOT_RUN):
            continue
        loaded = session(exported)
        for sample in sorted(folder.glob("test_data_set_*")):
            inputs = arrays(sample, "input")
            results = loaded.run(None, {i.name: a for i, a in zip(loaded.get_inputs(), inputs, strict=True)})
            for expected, got in zip(arrays(sample, "output"), results, strict=True):
                if expected.dtype == object:
                    assert (expected == got).all(), folder.name
                else:
                    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5, err_msg=folder.name)
            ran += 1
    assert ran > 120
