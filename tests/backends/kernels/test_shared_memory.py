"""Kernels whose parameters may point to the same memory."""

from __future__ import annotations

import ctypes
import re
from dataclasses import replace

import numpy as np
import pytest
import spec_reference
from kernel_harness import open_kernel, optimized

from irc.backends.tvm.expression import ExpressionBuilder
from irc.backends.tvm.overlap import distances, elementwise_distances, safe_distance, window_distance
from irc.backends.tvm.specs import ElementwiseSpec, Operand
from irc.ir.types import Array
from irc.targets import get_target
from irc.targets.target import Target


def _text(shared: bool) -> str:
    from irc.backends.tvm.codegen import compile_ll
    from irc.backends.tvm.kernels.builder import KernelBuilder
    from irc.backends.tvm.slim import slim_ll

    target = get_target("aarch64")
    k = KernelBuilder("f", target)
    x = k.pointer("x", "int32", 8, shared=shared)
    w = k.pointer("w", "int32", 8)
    y = k.pointer("y", "int32", 8, shared=shared)
    for i in range(2):  # x[1] is read twice, once before and once after a store
        k.store(y, i, k.load(x, i) * k.load(w, 0))
        k.store(y, i + 4, k.load(x, 1) * k.load(w, 0))
    return slim_ll(compile_ll(k.finish(), target))


def test_loads_of_shared_memory_stay_between_stores() -> None:
    pattern = [
        line.split("=")[-1].split()[0] for line in _text(True).splitlines() if re.search(r"\b(load|store)\b", line)
    ]
    assert pattern.count("store") == 4
    assert pattern.count("load") == 5  # x before every store, w once: its memory is its own


def test_loads_of_own_memory_are_shared() -> None:
    assert len(re.findall(r"\bload i", _text(False))) == 3


def _works(x: Array, distance: int, reads: list[list[int]], writes: list[list[int]]) -> bool:
    """Whether steps that read `reads` and then write `writes` see the input's bytes when it lies `distance` behind."""
    size = max(max(map(max, writes)) + 1, distance + x.size) + 64
    base = 64
    memory = np.zeros(size + base, np.int64)
    memory[base + distance : base + distance + x.size] = x
    for read, write in zip(reads, writes, strict=True):
        if any(memory[base + distance + i] != x[i] for i in read):
            return False
        memory[base + np.array(write)] = -1
    return True


@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "columns"), [(3, 1, 1, 1), (3, 2, 1, 2), (3, 2, 0, 1), (1, 1, 0, 2), (5, 1, 2, 3)]
)
@pytest.mark.parametrize(("ic", "oc"), [(4, 4), (2, 5), (5, 2)])
def test_window_distance_is_the_smallest(kernel: int, stride: int, pads: int, columns: int, ic: int, oc: int) -> None:
    h, w = 7, 6
    oh, ow = (h + 2 * pads - kernel) // stride + 1, (w + 2 * pads - kernel) // stride + 1
    reads, writes = [], []
    for i in range(oh):
        for start in range(0, ow, columns):
            places = range(start, min(start + columns, ow))
            taps = [
                (i * stride - pads + a, j * stride - pads + b)
                for j in places
                for a in range(kernel)
                for b in range(kernel)
            ]
            reads.append([(r * w + q) * ic + c for r, q in taps if 0 <= r < h and 0 <= q < w for c in range(ic)])
            writes.append([(i * ow + j) * oc + c for j in places for c in range(oc)])
    found = window_distance(
        (h, w), (oh, ow), (kernel, kernel), (w * ic, ic), (ow * oc, oc), oc,
        stride=(stride, stride), pads=(pads, pads), columns=columns, atomic=True,
    )  # fmt: skip
    x = np.arange(1, h * w * ic + 1)
    assert _works(x, found, reads, writes)
    assert not _works(x, found - 1, reads, writes)


def test_distance_of_steps_that_read_while_they_write() -> None:
    written, read = np.array([4, 8, 12]), np.array([0, 4, 8])
    assert safe_distance(written, read, atomic=True) == 0
    assert safe_distance(written, read, atomic=False) == 4


def test_elementwise_kernels_work_in_place() -> None:
    b = ExpressionBuilder()
    expression = b.finish(b.operand(0, "int8"))
    whole = ElementwiseSpec("int8", (4, 6), (6, 1), expression, (Operand("int8", (6, 1), 24),), 24)
    assert elementwise_distances(whole) == {0: 0}
    wider = ElementwiseSpec("int32", (24,), (1,), expression, (Operand("int8", (1,), 24),), 96)
    assert elementwise_distances(wider) == {0: 23 * 4 - 23}
    turned = ElementwiseSpec("int8", (4, 6), (6, 1), expression, (Operand("int8", (1, 4), 24),), 24)
    assert elementwise_distances(turned)[0] > 0
    per_channel = ElementwiseSpec("int8", (4, 6), (6, 1), expression, (Operand("int8", (0, 0), 1),), 24)
    assert elementwise_distances(per_channel) == {}


@pytest.mark.parametrize("target", ["cortex-m3", "cortex-m4", "cortex-m55", "riscv32"])
@pytest.mark.parametrize("shape", [(7, 9), (24, 2), (12, 7)])
def test_no_elementwise_kernel_of_a_small_target_takes_its_memory_for_its_own(
    target: str, shape: tuple[int, int]
) -> None:
    expression = ExpressionBuilder()
    whole = expression.finish(expression.operand(0, "int8"))
    size = shape[0] * shape[1]
    for strides in ((shape[1], 1), (1, shape[0])):
        spec = ElementwiseSpec("int8", shape, (shape[1], 1), whole, (Operand("int8", strides, size),), size)
        assert "noalias" not in optimized(spec, get_target(target))


def _small(vector_bytes: int) -> Target:
    """This machine as a target whose results may lie in their operands, with and without vectors."""
    return replace(get_target("native"), small=True, threads=False, vector_bytes=vector_bytes, upgrades=())


@pytest.mark.parametrize("vector_bytes", [4, 16])
@pytest.mark.parametrize(
    ("shape", "x_strides"),
    [((7, 9), (9, 1)), ((24, 2), (1, 24)), ((11, 3), (1, 11)), ((9, 4), (1, 9)), ((2, 9, 3), (27, 1, 9)),
     ((12, 7), (1, 12)), ((3, 5, 18), (90, 1, 5)), ((13, 4), (1, 13))],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_elementwise_kernels_grow_over_their_operands(
    vector_bytes: int, shape: tuple[int, ...], x_strides: tuple[int, ...], dtype: str
) -> None:
    """Every kernel that a spec may get, in order or turned: in the memory of what it reads, as far as is allowed."""
    b = ExpressionBuilder()
    x = b.operand(0, dtype)
    expression = b.finish(x if dtype == "int8" else b.requantize(x, "int8", -128, 127, 3))
    size = int(np.prod(shape))
    y_strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    spec = ElementwiseSpec("int8", shape, y_strides, expression, (Operand(dtype, x_strides, size),), size)
    rng = np.random.default_rng(size)
    data = rng.integers(-128, 128, size).astype(np.int8) if dtype == "int8" else rng.normal(0, 40, size).astype("f")
    expected = spec_reference.expected(spec, data)
    distance = -(-elementwise_distances(spec)[0] // data.itemsize) * data.itemsize
    before = max(0, -distance)  # the operand may begin before the result
    memory = np.zeros(before + max(distance, 0) + data.nbytes + size, np.int8)
    at = before + distance
    memory[at : at + data.nbytes] = data.view(np.int8)
    start = memory.ctypes.data
    open_kernel(spec, _small(vector_bytes))(ctypes.c_void_p(start + at), ctypes.c_void_p(start + before))
    np.testing.assert_array_equal(memory[before : before + size], expected)


def test_specs_that_do_not_say_have_no_distances() -> None:
    assert distances(object()) == {}
