"""Attention of many makes: one kernel each, and the numbers of onnxruntime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import pytest
from in_process import open_program, program_of

from irc.backends.tvm.plan.lower_attention import find_attention
from irc.backends.tvm.plan.make import make_plan
from irc.backends.tvm.plan.normalize import normalize
from irc.backends.tvm.plan.regions import find_regions
from irc.backends.tvm.specs import AttentionSpec, ElementwiseSpec
from irc.calibrate.dataset import Dataset
from irc.export import to_bytes
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.graph import Model, Value
from irc.passes.quantize.quantize import Quantize
from irc.pipeline.contract import PassContext
from irc.targets.catalogue import TARGETS, get_target, runs_here

F32 = np.float32


def project(b: GraphBuilder, x: Value, width: int, out: int, seed: int) -> Value:
    y = b.matmul(x, weights(width, out, seed=seed, scale=0.4))
    return b.op("Add", y, weights(out, seed=seed + 50))


def heads(b: GraphBuilder, x: Value, length: int, count: int, width: int, *, keys: bool = False) -> Value:
    y = b.op("Reshape", x, np.array([-1, length, count, width], np.int64))
    return b.op("Transpose", y, perm=[0, 2, 3, 1] if keys else [0, 2, 1, 3])


def merge(b: GraphBuilder, x: Value, length: int, width: int) -> Value:
    y = b.op("Transpose", x, perm=[0, 2, 1, 3])
    return b.op("Reshape", y, np.array([-1, length, width], np.int64))


def encoder(length: int = 11, count: int = 3, width: int = 8, *, mask: bool = True, batch: int = 1) -> Model:
    """BERT: heads split, scores divided, a mask of the keys from an input."""
    b = GraphBuilder()
    full = count * width
    x = b.input("x", "float32", [batch, length, full])
    q, k, v = (project(b, x, full, full, i) for i in range(3))
    s = b.op("MatMul", heads(b, q, length, count, width), heads(b, k, length, count, width, keys=True))
    s = b.op("Div", s, F32(np.sqrt(width)))
    if mask:
        m = b.op("Cast", b.input("mask", "int64", [batch, length]), to=1)
        m = b.op("Mul", b.op("Sub", F32(1), b.op("Unsqueeze", m, np.array([1, 2]))), F32(-1e9))
        s = b.op("Add", s, m)
    y = b.op("MatMul", b.op("Softmax", s, axis=-1), heads(b, v, length, count, width))
    b.output(project(b, merge(b, y, length, full), full, full, 7), name="y")
    return b.build()


def decoder() -> Model:
    """GPT: one projection for all three, split; a causal mask by Where, from a constant."""
    b = GraphBuilder()
    length, count, width = 19, 2, 4
    x = b.input("x", "float32", [2, length, count * width])
    parts = b.node("Split", project(b, x, 8, 24, 1), np.array([8, 8, 8], np.int64), outputs=3, axis=-1).outputs
    q, k, v = (heads(b, p, length, count, width) for p in parts)
    s = b.op("Mul", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2])), F32(0.5))
    causal = np.tril(np.ones((1, 1, length, length), bool))
    s = b.op("Where", causal, s, F32(-3.4e38))
    y = b.op("MatMul", b.op("Softmax", s, axis=-1), v)
    b.output(merge(b, y, length, 8), name="y")
    return b.build()


def windows() -> Model:
    """Swin: windows in the batch, a bias of its own for every head, queries scaled first."""
    b = GraphBuilder()
    x = b.input("x", "float32", [4, 9, 12])
    qkv = b.op("Reshape", project(b, x, 12, 36, 3), np.array([4, 9, 3, 3, 4], np.int64))
    qkv = b.op("Transpose", qkv, perm=[2, 0, 3, 1, 4])
    q, k, v = (b.op("Gather", qkv, np.int64(i), axis=0) for i in range(3))
    s = b.op("MatMul", b.op("Mul", q, F32(0.5)), b.op("Transpose", k, perm=[0, 1, 3, 2]))
    s = b.op("Add", s, weights(1, 3, 9, 9, scale=1.0))
    b.output(merge(b, b.op("MatMul", b.op("Softmax", s, axis=3), v), 9, 12), name="y")
    return b.build()


def cross() -> Model:
    """No heads; queries and keys of different lengths, a computed mask over both."""
    b = GraphBuilder()
    x, z = b.input("x", "float32", [2, 5, 6]), b.input("z", "float32", [2, 33, 6])
    q, k, v = project(b, x, 6, 12, 1), project(b, z, 6, 12, 2), project(b, z, 6, 20, 3)
    s = b.op("Add", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 1])), b.input("bias", "float32", [2, 5, 33]))
    b.output(b.op("Relu", b.op("MatMul", b.op("Softmax", s, axis=-1), v)), name="y")
    return b.build()


def nan_guarded() -> Model:
    """As torch.export writes it: rows of nothing but masks are 0."""
    b = GraphBuilder()
    q, k, v = (b.input(n, "float32", [1, 2, 7, 4]) for n in "qkv")
    mask = np.zeros((1, 1, 7, 7), F32)
    mask[..., 3, :] = -np.inf
    p = b.op("Softmax", b.op("Add", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2])), mask), axis=-1)
    b.output(b.op("MatMul", b.op("Where", b.op("IsNaN", p), F32(0), p), v), name="y")
    return b.build()


def learned() -> Model:
    """Queries that are weights, of fewer dimensions than the keys."""
    b = GraphBuilder()
    x = b.input("x", "float32", [2, 21, 8])
    k = b.op("Transpose", project(b, x, 8, 8, 1), perm=[0, 2, 1])
    s = b.op("MatMul", weights(3, 8, scale=1.0), k)
    b.output(b.op("MatMul", b.op("Softmax", s, axis=-1), x), name="y")
    return b.build()


MODELS: dict[str, Callable[[], Model]] = {
    "encoder": encoder,
    "encoder, several images": lambda: encoder(6, 2, 5, batch=3),
    "encoder, length 1": lambda: encoder(1, 2, 4),
    "encoder, length 197": lambda: encoder(197, 1, 16, mask=False),
    "decoder": decoder,
    "windows": windows,
    "cross": cross,
    "nan guarded": nan_guarded,
    "learned queries": learned,
}


def feeds_of(model: Model, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray] = {}
    for value in model.graph.inputs:
        shape = value.static_shape()
        feeds[value.name] = rng.standard_normal(shape).astype(F32)
        if value.name == "mask":
            feeds[value.name] = (np.arange(shape[1]) < max(1, shape[1] - 4)).astype(np.int64) + np.zeros(
                shape, np.int64
            )
    return feeds


def onnxruntime_gives(model: Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def native() -> list[str]:
    return [t.name for t in TARGETS.values() if runs_here(t)]


pytestmark = pytest.mark.skipif(not native(), reason="no built-in target runs on this machine")
both = pytest.mark.parametrize("target", [native()[0], native()[-1]] if native() else ())


@both
@pytest.mark.parametrize("name", MODELS)
def test_real_attention_is_one_kernel(name: str, target: str) -> None:
    """1e-5 of the largest output: chains of three products of up to 200 terms in another order."""
    model = MODELS[name]()
    calls = make_plan(clone(model).graph, get_target(target)).calls
    assert sum(isinstance(c.spec, AttentionSpec) for c in calls) == 1
    feeds = feeds_of(model)
    got = next(iter(open_program(program_of(model, get_target(target))).run(feeds).values()))
    wanted = onnxruntime_gives(model, feeds)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@both
@pytest.mark.parametrize("name", ["encoder", "encoder, length 197", "decoder", "windows", "cross"])
def test_quantized_attention_is_one_kernel(name: str, target: str) -> None:
    """Against onnxruntime on the same QDQ model: a probability or a projection next to a tie moves by one step, which
    the last projection sums up: 2 % of the largest output, and a tenth of that on average."""
    model = MODELS[name]()
    data = {k: np.concatenate([v[None] for v in vs]) for k, vs in _samples(model).items()}
    ctx = PassContext(calibration=Dataset.of(data, model), target=get_target(target))
    Quantize(equalize=False).run(model, ctx)
    calls = make_plan(clone(model).graph, get_target(target)).calls
    found = [c.spec for c in calls if isinstance(c.spec, AttentionSpec)]
    assert len(found) == 1
    assert {found[0].q_dtype, found[0].k_dtype, found[0].v_dtype, found[0].p_dtype} <= {"uint8", "int8"}
    feeds = feeds_of(model, 1)
    got = next(iter(open_program(program_of(model, get_target(target))).run(feeds).values()))
    wanted = onnxruntime_gives(model, feeds)
    difference = np.abs(got - wanted) / np.abs(wanted).max()
    assert difference.max() < 0.02
    assert difference.mean() < 0.002


def _samples(model: Model) -> dict[str, list[np.ndarray]]:
    runs = [feeds_of(model, seed) for seed in range(4)]
    return {name: [r[name][i] for r in runs for i in range(len(r[name]))] for name in runs[0]}


def test_transposes_and_quantizations_cost_no_kernel() -> None:
    """Quantized: the input and the mask, three projections, attention, a projection."""
    model = encoder(16, 2, 16)
    ctx = PassContext(calibration=Dataset.of({k: np.stack(v) for k, v in _samples(model).items()}, model))
    Quantize(equalize=False).run(model, ctx)
    calls = make_plan(clone(model).graph, get_target(native()[-1])).calls
    assert len(calls) == 7
    assert sum(isinstance(c.spec, ElementwiseSpec) for c in calls) == 2


def test_a_mask_is_turned_once() -> None:
    b = GraphBuilder()
    mask = b.op("Relu", b.input("mask", "float32", [1, 1, 20, 20]))
    y = b.input("x", "float32", [1, 2, 20, 4])
    for _ in range(3):
        s = b.op("Add", b.op("MatMul", y, b.op("Transpose", y, perm=[0, 1, 3, 2])), mask)
        y = b.op("MatMul", b.op("Softmax", s, axis=-1), y)
    b.output(y)
    calls = make_plan(b.build().graph, get_target(native()[-1])).calls
    assert [type(c.spec).__name__ for c in calls].count("AttentionSpec") == 3
    assert [c.label for c in calls].count("reorder") == 1


def other_reader(b: GraphBuilder, p: Value, y: Value) -> list[Value]:
    return [y, b.op("ReduceMax", p)]


def none(b: GraphBuilder, p: Value, y: Value) -> list[Value]:
    return [y]


@pytest.mark.parametrize(
    ("axis", "length", "outputs", "found"),
    [(-1, 9, none, 1), (-1, 9, other_reader, 0), (-2, 9, none, 0), (-1, 5000, none, 0)],
    ids=["attention", "probabilities have another reader", "softmax over queries", "too long for the stack"],
)
def test_what_is_fused(axis: int, length: int, outputs: Callable[..., list[Value]], found: int) -> None:
    b = GraphBuilder()
    q, k, v = (b.input(n, "float32", [1, 2, length, 4]) for n in "qkv")
    p = b.op("Softmax", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2])), axis=axis)
    b.output(*outputs(b, p, b.op("MatMul", p, v)))
    target = get_target(native()[-1])
    graph = b.build().graph
    normalize(graph, target)
    assert len(find_attention(find_regions(graph), target)) == found
