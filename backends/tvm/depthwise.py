"""Which way a depthwise convolution of bytes goes: known to the plan, which packs the weights, and to the kernels."""

from __future__ import annotations

from irc.backends.tvm.geometry import depthwise_rows, lanes_of
from irc.backends.tvm.specs import DepthwiseSpec
from irc.targets.target import Target

_SIMPLE = frozenset(
    "accumulator operand constant cast add sub mul scale relu clip min max dequantize requantize".split()  # noqa: SIM905 - one line, not one for each
)
"""What a tile computes after its sums: every result has code of its own, so functions of many steps would not fit."""


def packed_rows(spec: DepthwiseSpec, target: Target) -> int:
    """Kernel rows whose weights stand together: those that the kernel of `spec` sums by one dot product."""
    return 4 if is_wide(spec, target) else depthwise_rows(spec.x_dtype, spec.w_dtype, target)


def is_wide(spec: DepthwiseSpec, target: Target) -> bool:
    """Whether `kernels/depthwise_wide.py` has a kernel for `spec` that pays."""
    if any(i.op not in _SIMPLE for i in spec.expression):
        return False
    return _wide_on_arm(spec, target) if target.arch == "aarch64" else _wide_on_x86(spec, target)


def _wide_on_x86(spec: DepthwiseSpec, target: Target) -> bool:
    """Kernels wider than three leave no registers for their sums, and vectors of bytes that overlap do some channels
    twice (a vector of bytes takes about 2.5 times one of words)."""
    lanes, width = lanes_of(target), target.vector_bytes
    if target.dot != "vpdpbusd" or lanes < 8 or depthwise_rows(spec.x_dtype, spec.w_dtype, target) != 4:
        return False
    if spec.kernel[0] > 4 or spec.kernel[1] > 3:
        return False
    if spec.channels < width:
        return places_of(spec, width) > 0
    return 5 * -(-spec.channels // width) < 2 * -(-spec.channels // lanes)


def _wide_on_arm(spec: DepthwiseSpec, target: Target) -> bool:
    """Its weights need not stay in registers: loading them costs a quarter of what they are used for."""
    if target.dot not in ("sdot", "smmla") or spec.x_dtype != "int8" or spec.w_dtype not in ("int8", "int4"):
        return False
    if spec.kernel[0] > 8 or spec.kernel[1] > 5:
        return False
    return spec.channels >= target.vector_bytes or places_of(spec, target.vector_bytes) > 0


def places_of(spec: DepthwiseSpec, width: int) -> int:
    """Neighbouring places of the output that a vector of `width` bytes covers; 0 where that is not possible."""
    c = spec.channels
    if c < 8 or width % c or spec.stride[1] != 1 or spec.out[1] < width // c:
        return 0
    rows = (spec.x_strides[2], spec.y_strides[2])
    gapless = all(s == c for s in rows) and all(
        (o.strides[-2], o.strides[-1]) in ((0, 1), (0, 0)) for o in spec.operands
    )
    return width // c if gapless else 0
