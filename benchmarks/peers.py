"""Other runtimes, each as a function without arguments that runs one inference on one thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from common import Array

Run = Callable[[], Mapping[str, Array]]
PEERS = ("onnxruntime", "openvino")


def onnxruntime_run(model: Path, feed: Mapping[str, Array]) -> Run:
    """All graph optimizations, one thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return lambda: dict(zip(names, session.run(names, dict(feed)), strict=True))


def openvino_run(model: Path, feed: Mapping[str, Array]) -> Run:
    """One stream of one thread; float layers stay in float32 (on some machines the default is bfloat16)."""
    import openvino as ov

    core = ov.Core()
    network = core.read_model(str(model))
    network.reshape({name: list(array.shape) for name, array in feed.items()})
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,  # the whole process is pinned already
    }
    request = core.compile_model(network, "CPU", settings).create_infer_request()
    names = [o.get_any_name() for o in network.outputs]

    def run() -> Mapping[str, Array]:
        results = request.infer(dict(feed), share_inputs=True, share_outputs=True)
        return dict(zip(names, results.to_tuple(), strict=True))

    return run


def peer_run(name: str, model: Path, feed: Mapping[str, Array]) -> Run:
    if name == "onnxruntime":
        return onnxruntime_run(model, feed)
    if name == "openvino":
        return openvino_run(model, feed)
    raise SystemExit(f"no peer {name!r}; there are {', '.join(PEERS)}")
