"""Records in a plan: calls get the measured choice, and their weights the packing that goes with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from irc.backends.tvm.geometry import fields_of, lanes_of, step_channels, stored_counts
from irc.backends.tvm.plan.make import Plan
from irc.backends.tvm.plan.pack import pack_linear
from irc.backends.tvm.plan.planner import Call, Pointer
from irc.backends.tvm.specs import LinearSpec, Spec, WinogradSpec
from irc.backends.tvm.tune.classes import with_choice
from irc.backends.tvm.tune.records import Records
from irc.backends.tvm.winograd import input_size
from irc.ir.types import Array
from irc.targets.catalogue import levels_of
from irc.targets.target import Target


def apply_records(plan: Plan, target: Target, records: Records) -> int:
    """Replace the choices of `plan` by those in `records`. Returns how many calls have a record.

    Of a library with kernels for several levels the plan stays: `tuned_versions` changes its kernels.
    """
    if target.upgrades:
        best = levels_of(target)[-1]
        return sum(records.find(call.spec, best) is not None for call in plan.calls)
    found = 0
    for i, call in enumerate(plan.calls):
        record = records.find(call.spec, target)
        spec = None if record is None else with_choice(call.spec, record.choice)
        if spec is None:
            continue
        found += 1
        plan.calls[i] = with_spec(plan, target, call, spec)
    return found


def tuned_versions(versions: Sequence[tuple[Spec, Target]], records: Records) -> tuple[tuple[Spec, Target], ...]:
    """Kernels of several levels that share their weights, with the choices in `records` that leave weights alone."""

    def tuned(spec: Spec, level: Target) -> Spec:
        record = records.find(spec, level)
        found = None if record is None else with_choice(spec, record.choice)
        return spec if found is None or needs_packing(spec, found) else found

    return tuple((tuned(spec, level), level) for spec, level in versions)


def with_spec(plan: Plan, target: Target, call: Call, spec: Spec) -> Call:
    """`call` with `spec`, which differs in tuned fields only. Unchanged where its weights cannot follow."""
    if spec == call.spec:
        return call
    if not needs_packing(call.spec, spec):
        return replace(call, spec=spec)
    packed = constant_of(plan, call.args[1])
    if packed is None:
        return call
    name = next(name for number, _, name in plan.constants if number == call.args[1].storage)
    made = plan.planner.constant(repack(packed, call.spec, spec, target), name)
    return replace(call, spec=spec, args=(call.args[0], plan.planner.pointer(made), *call.args[2:]))


def needs_packing(old: Spec, new: Spec) -> bool:
    """Whether the weights lie in another order for `new`."""
    return packed_vectors(old) != packed_vectors(new)


def packed_vectors(spec: Spec) -> int:
    """Vectors of channels in a tile of packed weights; 0 where the packing does not depend on the tile."""
    if isinstance(spec, LinearSpec):
        return 0 if spec.w_rows or spec.block else spec.tile[2]
    return spec.block[2] if isinstance(spec, WinogradSpec) else 0


def constant_of(plan: Plan, pointer: Pointer) -> Array | None:
    """The whole constant that `pointer` is the start of."""
    if pointer.offset:
        return None
    return next((data for number, data, _ in plan.constants if number == pointer.storage), None)


def repack(packed: Array, old: Spec, new: Spec, target: Target) -> Array:
    """Weights packed for the tile of `old`, as `new` reads them."""
    strides = old.w_strides if isinstance(old, LinearSpec) else (0, 0)
    count = strides[1] or strides[0] or packed.size  # elements of a group
    sources = packed.reshape(-1, count)
    where = _order(old, target, count)
    there = _order(new, target, count)
    result = np.zeros_like(sources)
    dense = np.zeros((len(sources), count), packed.dtype)
    dense[:, where[where >= 0]] = sources[:, where >= 0]
    result[:, there >= 0] = dense[:, there[there >= 0]]
    return result.reshape(packed.shape)


def _order(spec: Spec, target: Target, count: int) -> Array:
    """For each packed element the number of the weight that stands there; -1 for padding."""
    assert isinstance(spec, LinearSpec | WinogradSpec)
    taps, step = spec.kernel, 1
    if isinstance(spec, WinogradSpec):
        taps = (input_size(spec.tile[0], spec.kernel[0]), input_size(spec.tile[1], spec.kernel[1]))
        rows, columns, steps = *taps, spec.ic
    else:
        step = step_channels(spec.x_dtype, target, spec.ic)
        rows, columns, steps = stored_counts((*taps, spec.ic // step), fields_of(spec.w_dtype))
    shape = (spec.oc, rows, columns, steps * step)
    numbers = np.arange(1, np.prod(shape) + 1, dtype=np.int64).reshape(shape)
    order = pack_linear(numbers, lanes_of(target), packed_vectors(spec), step) - 1
    if order.size != count:
        raise ValueError(f"{order.size} packed weights, the constant has {count}")
    return order
