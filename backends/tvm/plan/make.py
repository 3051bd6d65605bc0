"""Graph -> list of kernel calls with placed memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from irc.backends.tvm.plan.dynamic import expand_integer_products
from irc.backends.tvm.plan.empty import fold_empty
from irc.backends.tvm.plan.lower_attention import find_attention, lower_attention
from irc.backends.tvm.plan.lower_conv import lower_conv
from irc.backends.tvm.plan.lower_library import lower_library
from irc.backends.tvm.plan.lower_others import lower_elementwise, lower_pool, lower_reduce, lower_rows
from irc.backends.tvm.plan.lower_product import lower_product
from irc.backends.tvm.plan.lower_recurrent import lower_recurrent
from irc.backends.tvm.plan.lower_resize import lower_resize
from irc.backends.tvm.plan.lower_sparse import skip_zeros
from irc.backends.tvm.plan.lower_transposed import lower_transposed
from irc.backends.tvm.plan.lower_winograd import lower_winograd, source_tile, winograd_choice
from irc.backends.tvm.plan.moves import lower_concat
from irc.backends.tvm.plan.normalize import normalize
from irc.backends.tvm.plan.palette import expand_palettes
from irc.backends.tvm.plan.palettes import keep_palettes
from irc.backends.tvm.plan.planner import Call, Planner
from irc.backends.tvm.plan.regions import Region, find_regions
from irc.backends.tvm.plan.regroup import regroup
from irc.backends.tvm.plan.small_channels import kept_channels
from irc.backends.tvm.plan.small_conv import lower_small, small_weights
from irc.backends.tvm.plan.source_real import is_real_source, lower_real
from irc.backends.tvm.plan.stored import keep_stored
from irc.backends.tvm.plan.translate import storage_dtype
from irc.backends.tvm.plan.views import View, row_major
from irc.ir.graph import Graph
from irc.ir.types import Array
from irc.targets.target import Target


@dataclass
class Plan:
    """Calls in order, and the storages and constants they use. Scratch of library kernels is added later."""

    planner: Planner
    calls: list[Call]
    constants: list[tuple[int, Array, str]]


def _lower_linear(p: Planner, region: Region) -> None:
    integer = small_weights(region.root, p.target)
    if integer is not None:
        lower_small(p, region, integer)
        return
    if is_real_source(region.root, p.target):
        lower_real(p, region, source_tile(region, p.target))
        return
    choice = winograd_choice(region, p.target)
    if choice is not None:
        lower_winograd(p, region, choice)
    elif region.root.op_type == "Conv":
        lower_conv(p, region)
    else:
        lower_product(p, region)


_LOWERINGS: dict[str, Callable[[Planner, Region], None]] = {
    "linear": _lower_linear,
    "depthwise": _lower_linear,
    "transposed": lower_transposed,
    "pool": lower_pool,
    "rows": lower_rows,
    "reduce": lower_reduce,
    "elementwise": lower_elementwise,
    "concat": lambda p, region: lower_concat(p, region.root),
    "resize": lower_resize,
    "recurrent": lambda p, region: lower_recurrent(p, region.root),
    "library": lambda p, region: lower_library(p, region.root),
}


def make_plan(graph: Graph, target: Target) -> Plan:
    """Plan `graph` (static shapes). The graph is rewritten on the way: hand in a copy."""
    fold_empty(graph)
    expand_palettes(graph)
    regroup(graph)
    expand_integer_products(graph)
    normalize(graph, target)
    planner = Planner(graph, target)
    regions = find_regions(graph)
    planner.kept = kept_channels(planner, regions)
    attention = {id(a.values): a for a in find_attention(regions, target)}
    inner = {id(r) for a in attention.values() for r in a.inner}
    for region in regions:
        if id(region) in inner or _is_empty(region):
            continue
        if id(region) in attention:
            planner.origin = attention[id(region)].origin
            lower_attention(planner, attention[id(region)])
            continue
        planner.origin = region.origin
        _LOWERINGS[region.kind](planner, region)
    _finish_outputs(planner)
    keep_stored(planner, graph)
    skip_zeros(planner)
    keep_palettes(planner)
    return Plan(planner, planner.calls, planner.constants)


def _is_empty(region: Region) -> bool:
    """Whether the region computes no element at all."""
    outputs = [v for v in region.root.outputs if v.uses or v.is_output] if len(region.nodes) == 1 else [region.output]
    return all(math.prod(v.static_shape()) == 0 for v in outputs)


def _finish_outputs(p: Planner) -> None:
    """Outputs that no kernel wrote in place are copied there."""
    p.origin = ()
    for port, value in enumerate(p.graph.outputs):
        view = p.view(value)
        storage = p.storages[view.storage]
        if storage.kind == "output" and storage.port == port and view.offset == 0 and view.is_contiguous:
            continue
        shape, dtype = value.static_shape(), storage_dtype(value.dtype)
        made = View(p.new_storage(dtype, math.prod(shape), "output", port), dtype, shape, row_major(shape))
        p.copy(view, made, "output")
