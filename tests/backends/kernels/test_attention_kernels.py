"""Attention kernels against numpy: remainders of every tile, masks, strides, zero points, NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import spec_reference
from kernel_harness import Case, check, native_targets, run

from irc.backends.tvm.expression import Expression, ExpressionBuilder
from irc.backends.tvm.kernels.attention import stack_bytes
from irc.backends.tvm.specs import AttentionSpec, Operand
from irc.targets.target import Target

pytestmark = pytest.mark.skipif(not native_targets(), reason="no built-in target runs on this machine")
every_target = pytest.mark.parametrize("target", native_targets(), ids=lambda t: t.name)


def _scores(dtype: str, scale: float, mask: bool) -> Expression:
    b = ExpressionBuilder()
    value = b.add("accumulator", dtype)
    if dtype == "int32":
        value = b.add("cast", "float32", value)
    value = b.add("mul", "float32", value, b.constant(scale, "float32"))
    return b.finish(b.add("add", "float32", value, b.operand(0, "float32")) if mask else value)


def _result(dtype: str, scale: float, y_dtype: str) -> Expression:
    b = ExpressionBuilder()
    value = b.add("accumulator", dtype)
    if dtype == "int32":
        value = b.add("scale", "float32", b.add("cast", "float32", value), b.constant(scale, "float32"))
    if y_dtype != "float32":
        low = 0 if y_dtype == "uint8" else -128
        value = b.requantize(value, y_dtype, low, low + 255, 7, 8)
    return b.finish(value)


def _rounded(dtype: str, step: float, zero: int) -> Expression:
    b = ExpressionBuilder()
    low = 0 if dtype == "uint8" else -128
    return b.finish(b.requantize(b.add("accumulator", "float32"), dtype, low, low + 255, zero, 1 / step))


def _data(rng: np.random.Generator, dtype: str, size: int) -> np.ndarray:
    if dtype == "float32":
        return rng.standard_normal(size).astype(np.float32)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, size).astype(dtype)


def _mask(rng: np.random.Generator, kind: str, spec_batch: tuple[int, int], rows: int, keys: int):
    """(data, strides): `rows` has a number for each place, rows padded to whole vectors; `keys` one for each key."""
    padded = -(-rows // 16) * 16
    if kind == "keys":
        return np.where(rng.random((spec_batch[0], keys)) < 0.3, -np.inf, 0).astype(np.float32), (keys, 0, 0, 1)
    mask = rng.standard_normal((spec_batch[1], keys, padded)).astype(np.float32)
    mask[:, np.arange(keys)[:, None] > np.arange(padded)] = -np.inf  # causal
    return mask, (0, keys * padded, 1, padded)


def attention_case(
    batch: tuple[int, int],
    rows: int,
    keys: int,
    width: int,
    columns: int,
    *,
    qk: tuple[str, str] = ("float32", "float32"),
    pv: tuple[str, str] = ("float32", "float32"),
    y: str = "float32",
    zeros: tuple[int, int, int, int] = (0, 0, 0, 0),
    mask: str = "",
    tiles: tuple[tuple[int, int], tuple[int, int]] = ((5, 2), (3, 2)),
    width_stride: int = 1,
) -> Case:
    """Heads lie side by side in a row, as a projection leaves them."""
    a, h = batch
    rng = np.random.default_rng(rows * 1000 + keys * 10 + width)
    masks = [_mask(rng, mask, batch, rows, keys)] if mask else []
    first, second = ("float32" if t == "float32" else "int32" for t in (qk[1], pv[0]))
    step = 1 / 40 / keys if pv[0] != "float32" else 1.0
    probabilities = _rounded(pv[0], step, zeros[2]) if pv[0] != "float32" else ()

    def lies(n: int, m: int) -> tuple[int, ...]:
        if width_stride > 1:
            return (h * m * n, m * n, 1, n)
        return (n * h * m + 3, m, h * m, 1)  # 3: a gap

    q_strides, k_strides = lies(rows, width), lies(keys, width)
    v_strides, y_strides = (keys * h * columns, columns, h * columns, 1), (rows * h * columns, columns, h * columns, 1)

    def size(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
        return 1 + sum((d - 1) * s for d, s in zip(shape, strides, strict=True))

    spec = AttentionSpec(
        *(qk[0], qk[1], pv[1], pv[0], y, batch, rows, keys, width, columns),
        *(q_strides, k_strides, v_strides, y_strides),
        _scores(first, 0.3 if first == "float32" else 3e-5, bool(mask)),
        tuple(Operand("float32", s, m.size) for m, s in masks),
        probabilities,
        _result(second, 2e-4, y),
        (),
        zeros,
        *tiles,
        size((a, h, rows, width), q_strides),
        size((a, h, keys, width), k_strides),
        size((a, h, keys, columns), v_strides),
        size((a, h, rows, columns), y_strides),
    )
    sizes = ((qk[0], spec.q_size), (qk[1], spec.k_size), (pv[1], spec.v_size))
    arrays = (*(_data(rng, t, n) for t, n in sizes), *(m.reshape(-1) for m, _ in masks))
    out = np.zeros(spec.y_size, y)
    spec_reference.strided(out, (a, h, rows, columns), y_strides)[...] = spec_reference.attention(spec, *arrays)
    return Case("attention", spec, arrays, out)


REAL = {
    "one query": ((1, 2), 1, 9, 8, 16, {}),
    "one key": ((1, 1), 5, 1, 4, 8, {}),
    "odd": ((2, 3), 7, 13, 20, 20, {"mask": "keys"}),
    "vit": ((1, 2), 37, 37, 16, 32, {}),
    "causal": ((1, 2), 33, 33, 12, 24, {"mask": "rows"}),
    "wide blocks": ((1, 1), 65, 10, 8, 48, {"tiles": ((4, 3), (5, 3))}),
    "width not contiguous": ((1, 2), 19, 21, 8, 5, {"width_stride": 2}),
}


@every_target
@pytest.mark.parametrize("name", REAL)
def test_real_attention(name: str, target: Target) -> None:
    """3e-6: exponentials to 1e-7 * (1 + |x|) with |x| up to 20, sums of up to 65 terms."""
    batch, rows, keys, width, columns, options = REAL[name]
    check(attention_case(batch, rows, keys, width, columns, **options), target, rtol=3e-6, atol=3e-6)


def _integer_options(target: Target) -> dict[str, dict]:
    data = target.activations
    zero = 0 if data == "uint8" else -128
    other = "int8" if data == "uint8" else "uint8"
    return {
        "symmetric": {"qk": (data, data), "pv": (data, "int8"), "zeros": (128 + zero, 128 + zero, zero, 0)},
        "zero points": {"qk": ("int8", data), "pv": (data, "uint8"), "zeros": (-9, 31 + zero, 5 + zero, 120)},
        "other types": {"qk": ("uint8", data), "pv": (data, "int8"), "zeros": (3, 131 + zero, zero, -7), "y": other},
        "masked": {"qk": ("int8", data), "pv": (data, "int8"), "zeros": (0, 128 + zero, zero, 0), "mask": "keys"},
        "only scores": {"qk": ("int8", data), "zeros": (4, 9 + zero, 0, 0)},
        "only values": {"pv": (data, "int8"), "zeros": (0, 0, zero, 3), "y": data},
    }


SIZES = {
    "one query": ((1, 2), 1, 9, 8, 16),
    "odd": ((2, 2), 7, 13, 20, 20),
    "vit": ((1, 2), 37, 37, 64, 32),
}


@every_target
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", _integer_options(native_targets()[0]) if native_targets() else ())
def test_integer_attention(options: str, size: str, target: Target) -> None:
    """Both products are exact; a probability next to a tie may be rounded either way: one step of v at most then."""
    case = attention_case(*SIZES[size], **_integer_options(target)[options])
    got = run(case, target).astype(np.float64)
    difference = np.abs(got - case.expected.astype(np.float64))
    if case.expected.dtype == np.float32:
        step = 2e-4 * 256 if case.spec.p_dtype != "float32" else 1e-4
        assert difference.max() <= step
        assert np.median(difference) <= 1e-6 * max(1.0, np.abs(case.expected).max())
    else:
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.02
    exact = Case(case.name, case.spec, case.arrays, run(case, target))
    check(exact, target)  # all splits alike, nothing read or written outside


@every_target
def test_masked_keys_do_not_count(target: Target) -> None:
    """Values under a mask are multiplied by 0; a row of masks alone is NaN, as Softmax gives it."""
    case = attention_case((1, 1), 17, 6, 4, 16, mask="keys")
    mask = case.arrays[3]
    mask[:] = [0, -math.inf, 0, -math.inf, -1e9, 0]
    v = case.arrays[2].reshape(6, 16)
    v[[1, 3, 4]] = 1e30
    assert np.abs(run(case, target)).max() < 100
    mask[:] = -math.inf
    assert np.isnan(run(case, target)).all()


def test_stack_of_a_long_sequence() -> None:
    """The plan compares it with what it allows: scores of 32 queries, 1000 keys, four bytes each."""
    spec = attention_case((1, 1), 64, 1000, 8, 8).spec
    target = next(t for t in native_targets())
    rows = 2 * target.vector_bytes // 4
    assert stack_bytes(spec, target) == rows * (1000 + 8) * 4
