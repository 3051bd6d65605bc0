"""Other runtimes, each as a function that runs one inference, set up as their documentation advises for latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from common import Array

Run = Callable[[], Mapping[str, Array]]
Session = Callable[[Mapping[str, Array]], Mapping[str, Array]]
PEERS = ("onnxruntime", "openvino")


def onnxruntime_session(model: Path, threads: int = 1) -> Session:
    """All graph optimizations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, feed), strict=True))


def openvino_request(model: Path, feed: Mapping[str, Array], threads: int = 1, hint: str | None = "f32") -> Session:
    """One stream, shapes of `feed`. The arrays of a feed are bound when it comes first, OpenVINO's fastest way, and
    shared. `hint`: precision of float layers; None leaves it to OpenVINO: bfloat16 where the machine has it."""
    import openvino as ov

    core = ov.Core()
    network = core.read_model(str(model))
    network.reshape({name: list(array.shape) for name, array in feed.items()})
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # the whole process is pinned already
    }
    if hint is not None:
        settings["INFERENCE_PRECISION_HINT"] = hint
    request = core.compile_model(network, "CPU", settings).create_infer_request()
    names = [o.get_any_name() if o.names else str(i) for i, o in enumerate(network.outputs)]
    bound: list[Mapping[str, Array]] = []

    def run(feed: Mapping[str, Array]) -> Mapping[str, Array]:
        if not bound or bound[0] is not feed:
            bound[:] = [feed]
            for name, array in feed.items():
                request.set_tensor(name, ov.Tensor(array, shared_memory=True))
        results = request.infer(None, share_outputs=True)
        return dict(zip(names, results.to_tuple(), strict=True))

    return run


def peer_run(name: str, model: Path, feed: Mapping[str, Array]) -> Run:
    """One inference of `feed` on one thread, float layers in float32."""
    if name not in PEERS:
        raise SystemExit(f"no peer {name!r}; there are {', '.join(PEERS)}")
    session = onnxruntime_session(model) if name == "onnxruntime" else openvino_request(model, feed)
    return lambda: session(feed)
