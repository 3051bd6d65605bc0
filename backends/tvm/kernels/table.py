"""Specification class -> the function that builds its kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from irc.backends.tvm.depthwise import is_wide
from irc.backends.tvm.geometry import depthwise_rows
from irc.backends.tvm.kernels import (
    attention,
    channels,
    depthwise,
    depthwise_wide,
    elementwise,
    interleave,
    linear,
    peak,
    recurrent,
    resize,
    rows,
    small_held,
    small_mve,
    small_pairs,
    small_plain,
    small_planes,
    small_quantize,
    small_rows,
    small_tiles,
    sparse,
    transpose,
    winograd,
)
from irc.backends.tvm.small import PAIRS, ROWS
from irc.backends.tvm.small_mve import HELD, MVE, PLANES, TILES
from irc.backends.tvm.specs import (
    AttentionSpec,
    DepthwiseSpec,
    ElementwiseSpec,
    FillSpec,
    LinearSpec,
    PeakSpec,
    PoolSpec,
    RecurrentSpec,
    ReduceSpec,
    ResizeSpec,
    RowsSpec,
    SmallConvSpec,
    SmallDepthwiseSpec,
    SparseSpec,
    Spec,
    WinogradInputSpec,
    WinogradSpec,
)
from irc.targets.target import Target


def _depthwise(symbol: str, spec: DepthwiseSpec, target: Target) -> Any:
    if is_wide(spec, target):
        return depthwise_wide.build(symbol, spec, target)
    by_rows = depthwise_rows(spec.x_dtype, spec.w_dtype, target) > 1
    return (depthwise.build if by_rows else channels.build_depthwise)(symbol, spec, target)


def _elementwise(symbol: str, spec: ElementwiseSpec, target: Target) -> Any:
    if interleave.fits(spec, target):
        return interleave.build(symbol, spec, target)
    return (transpose.build if transpose.fits(spec, target) else elementwise.build_elementwise)(symbol, spec, target)


def _small_conv(symbol: str, spec: SmallConvSpec, target: Target) -> Any:
    return (small_mve if spec.way == MVE else small_plain).build_conv(symbol, spec, target)


def _small_depthwise(symbol: str, spec: SmallDepthwiseSpec, target: Target) -> Any:
    return (small_mve if spec.way == MVE else small_plain).build_depthwise(symbol, spec, target)


_BUILDERS: dict[type, Callable[..., Any]] = {
    LinearSpec: linear.build,
    SparseSpec: sparse.build,
    WinogradInputSpec: winograd.build_input,
    WinogradSpec: winograd.build,
    DepthwiseSpec: _depthwise,
    PoolSpec: channels.build_pool,
    ElementwiseSpec: _elementwise,
    AttentionSpec: attention.build,
    RecurrentSpec: recurrent.build,
    ResizeSpec: resize.build,
    SmallConvSpec: _small_conv,
    SmallDepthwiseSpec: _small_depthwise,
    FillSpec: elementwise.build_fill,
    RowsSpec: rows.build_rows,
    ReduceSpec: rows.build_reduce,
    PeakSpec: peak.build,
}


def build(symbol: str, spec: Spec, target: Target) -> Any:
    """The TIR function of a specification."""
    return _BUILDERS[type(spec)](symbol, spec, target)


def instructions(symbol: str, spec: Spec, target: Target) -> str | None:
    """LLVM IR text around the instructions of a hand-written kernel; None where there is no such kernel."""
    if isinstance(spec, SmallConvSpec) and spec.way.startswith(PAIRS):
        return small_pairs.build(symbol, spec, target)
    if isinstance(spec, SmallConvSpec) and spec.way == TILES:
        return small_tiles.build(symbol, spec, target)
    if isinstance(spec, SmallConvSpec) and spec.way == HELD:
        return small_held.build(symbol, spec, target)
    if isinstance(spec, SmallDepthwiseSpec) and spec.way.startswith(ROWS):
        return small_rows.build(symbol, spec, target)
    if isinstance(spec, SmallDepthwiseSpec) and spec.way == PLANES:
        return small_planes.build(symbol, spec, target)
    if isinstance(spec, ElementwiseSpec) and small_quantize.fits(spec, target):
        return small_quantize.build(symbol, spec, target)
    return None
