"""Weights that are stored in 16 bits stay so in the library: kernels widen them when they load them.

The plan is made with float32 weights. Here the packed constants of linear kernels become 16-bit ones where the model
holds them so, and only where nothing is lost by it; everything else reads float32 weights that are made now.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from irc.backends.tvm.plan.kinds import stored_half
from irc.backends.tvm.plan.planner import Call, Planner
from irc.backends.tvm.specs import LinearSpec
from irc.ir.graph import Graph
from irc.ir.types import Array


def keep_half(planner: Planner, graph: Graph) -> None:
    """Give linear kernels of `planner` the 16-bit weights of `graph`."""
    casts = [node.output for node in graph.nodes if node.is_op("Cast")]
    names = {value.name: kind for value in casts if (kind := stored_half(value)) is not None}
    if not names:
        return
    constants = {number: (data, name) for number, data, name in planner.constants}
    for i, call in enumerate(planner.calls):
        if not isinstance(call.spec, LinearSpec) or call.spec.x_dtype != "float32" or call.spec.w_rows:
            continue
        pointer = call.args[1]
        if pointer.offset or pointer.storage not in constants:
            continue
        data, name = constants[pointer.storage]
        bits = narrowed(data, names[name]) if name in names else None
        if bits is not None:
            planner.calls[i] = _with_weights(planner, call, bits, name, names[name])


def _with_weights(planner: Planner, call: Call, bits: Array, name: str, kind: str) -> Call:
    assert isinstance(call.spec, LinearSpec)
    made = planner.constant(bits, name)
    spec = replace(call.spec, w_dtype=kind)
    return replace(call, spec=spec, args=(call.args[0], planner.pointer(made), *call.args[2:]))


def narrowed(data: Array, kind: str) -> Array | None:
    """The bits (uint16) of float32 `data` as `kind`; None where that would change a number, or where one is not
    finite."""
    if data.dtype != np.float32 or not np.isfinite(data).all():
        return None
    if kind == "bfloat16":
        bits = np.ascontiguousarray(data).view(np.uint32)
        return None if (bits & 0xFFFF).any() else (bits >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        half = data.astype(np.float16)
    return half.view(np.uint16) if np.array_equal(half.astype(np.float32), data) else None
