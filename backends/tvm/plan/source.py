"""What the plan chooses for kernels of C source (`backends/tvm/source`)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from irc.backends.tvm.small import CHUNKS, CHUNKS_WIDE, SOURCE, SOURCE_NARROW, SOURCE_WIDE
from irc.backends.tvm.specs import SmallConvSpec, SmallDepthwiseSpec
from irc.ir.types import Array

MOST = 8192
"""Numbers in the copied rows of an image."""
CHANNELS = 16
"""Output channels whose sums stand in an array before the expression is computed: a vector of bytes."""
STEP = 16
"""What dot products of bytes are padded to."""
_NARROW = 16
"""Sums of so many products are expressions, with 16-bit weights on the stack."""
_FEW_PLACES = 64
"""Fewer are not worth that weights are brought into another order first."""


def chunk_of(spec: SmallDepthwiseSpec) -> int:
    """Channels that are done at a time: all of them, or fewer where their rows would take much of the stack."""
    width = (spec.out[1] - 1) * spec.stride[1] + (spec.kernel[1] - 1) * spec.dilation[1] + 1
    each = spec.kernel[0] * width
    fitting = [c for c in range(1, spec.channels + 1) if spec.channels % c == 0 and c * each <= MOST]
    return max(fitting, default=1)


def source_conv(spec: SmallConvSpec, w: Array) -> tuple[SmallConvSpec, Array]:
    """`spec` with the way in which its C kernel computes, and the weights, [oc, kh, kw, ic], as it reads them: dot
    products read up to 15 bytes beyond the last one."""
    flat = np.concatenate([w.reshape(-1), np.zeros(STEP - 1, w.dtype)])
    places = spec.batch * spec.out[0] * spec.out[1]
    if places >= _FEW_PLACES and _is_narrow(spec) and not (w == -128).any():
        return replace(spec, way=SOURCE_NARROW), flat
    return spec, flat


def _is_narrow(spec: SmallConvSpec) -> bool:
    inside = all((o - 1) * s < i for o, s, i in zip(spec.out, spec.stride, spec.image, strict=True))
    alone = spec.kernel == (1, 1) and spec.pads == (0, 0) and inside
    return alone and spec.ic <= _NARROW and spec.oc % CHANNELS == 0 and spec.ic * spec.oc <= MOST


def real_weights(w: Array) -> Array:
    """Float weights [oc, kh, kw, ic] in tiles of 8 channels, [kh, kw, ic, 8], the last of as many as there are."""
    flat = w.reshape(w.shape[0], -1)
    return np.concatenate([np.ascontiguousarray(flat[i : i + 8].T).reshape(-1) for i in range(0, len(flat), 8)])


def source_depthwise(spec: SmallDepthwiseSpec, w: Array) -> SmallDepthwiseSpec:
    """`spec` with the way in which its C kernel goes through the image."""
    wide = spec.w_dtype == "int8" and bool((w == -128).any())
    if chunk_of(spec) == spec.channels:
        return replace(spec, way=SOURCE_WIDE if wide else SOURCE)
    return replace(spec, way=CHUNKS_WIDE if wide else CHUNKS)
