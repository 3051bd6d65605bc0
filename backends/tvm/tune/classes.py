"""What of a kernel is tuned, and what makes two kernels the same layer.

Tuned fields change neither a value nor the memory layout of data; only the packing of weights follows `tile`. The class
of a kernel is its specification without them, without the constants of its expression and without the sizes of its
arrays: the same layer in another model, or with other scales, is the same class.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from irc.backends.tvm.expression import Expression
from irc.backends.tvm.plan.levels import plain_level
from irc.backends.tvm.specs import AttentionSpec, DepthwiseSpec, LinearSpec, SparseSpec, Spec, WinogradSpec, to_json
from irc.targets.target import Target

Choice = Mapping[str, Any]
"""Values of the tuned fields as JSON has them: {"tile": [1, 14, 2], "order": "rows"}."""

TUNED: Mapping[type, tuple[str, ...]] = {
    LinearSpec: ("tile", "order"),
    DepthwiseSpec: ("tile",),
    WinogradSpec: ("block",),
    AttentionSpec: ("score_tile", "value_tile"),
}

_ORDERS = ("rows", "channels")
_LARGEST = 512  # of a tile's extents
_EXPRESSIONS = ("expression", "prologue", "scores", "probabilities")


def tuned_fields(spec: Spec) -> tuple[str, ...]:
    """Empty for kernels that have nothing to choose."""
    return TUNED.get(type(spec), ())


def choice_of(spec: Spec) -> dict[str, Any]:
    """The choice that `spec` holds."""
    return {
        name: list(value) if isinstance(value := getattr(spec, name), tuple) else value for name in tuned_fields(spec)
    }


def with_choice(spec: Spec, choice: Choice) -> Spec | None:
    """`spec` with `choice`; None where that is no choice for a kernel like this."""
    names = tuned_fields(spec)
    if not names or set(choice) != set(names):
        return None
    if not all(_fits(getattr(spec, name), choice[name]) for name in names):
        return None
    return replace(spec, **{n: tuple(v) if isinstance(v := choice[n], list) else v for n in names})  # type: ignore[arg-type]  # the names are this class's


def _fits(now: Any, value: Any) -> bool:
    """Whether `value` can stand in a field that holds `now`."""
    if not isinstance(now, tuple):
        return value in _ORDERS
    whole = isinstance(value, list | tuple) and len(value) == len(now)
    return whole and all(type(n) is int and 0 < n <= _LARGEST for n in value)


def measured_on(spec: Spec, target: Target) -> str:
    """The key of the machine that decides how fast the kernel is: targets share kernels that use no dot product."""
    return plain_level(spec, target).key


def class_key(spec: Spec, target: Target) -> str:
    """Hexadecimal name of the kernel's class on `target`; equal for what is the same layer."""
    neutral: dict[str, Any] = dict.fromkeys(tuned_fields(spec))
    if isinstance(spec, LinearSpec):
        neutral |= {"block": 0, "ahead": 0}  # how weights are packed, and what is asked for meanwhile
    for f in fields(spec):
        value = getattr(spec, f.name)
        if f.name.endswith("_size"):
            neutral[f.name] = 0
        elif f.name in _EXPRESSIONS:
            neutral[f.name] = _structure(value)
        elif f.name.endswith("operands"):
            neutral[f.name] = tuple(replace(o, size=0) for o in value)
    text = to_json(replace(spec, **neutral))
    return hashlib.sha256(f"{text}\n{measured_on(spec, target)}".encode()).hexdigest()[:32]


def _structure(expression: Expression) -> Expression:
    return tuple(replace(i, params=()) for i in expression)


def describe(spec: Spec) -> str:
    """A kernel in a few words, for people."""
    if isinstance(spec, SparseSpec):
        return f"sparse {describe(spec.linear)}"
    if isinstance(spec, LinearSpec):
        kind = f"{spec.kernel[0]}x{spec.kernel[1]} " if spec.kernel != (1, 1) else ""
        batch = f" batch {spec.batch[0]}x{spec.batch[1]}" if spec.batch != (1, 1) else ""
        return f"linear {kind}{spec.ic}->{spec.oc} at {spec.out[0]}x{spec.out[1]}{batch} {spec.x_dtype}"
    if isinstance(spec, DepthwiseSpec):
        size = f"{spec.kernel[0]}x{spec.kernel[1]}"
        return f"depthwise {size} {spec.channels} at {spec.out[0]}x{spec.out[1]} {spec.x_dtype}"
    if isinstance(spec, WinogradSpec):
        tile = f"F({spec.tile[0]}x{spec.tile[1]})"
        return f"winograd {tile} {spec.ic}->{spec.oc} at {spec.images}x{spec.out[0]}x{spec.out[1]}"
    if isinstance(spec, AttentionSpec):
        return f"attention {spec.batch[0]}x{spec.batch[1]} of {spec.rows}x{spec.keys}x{spec.width} {spec.q_dtype}"
    return type(spec).__name__.removesuffix("Spec").lower()
