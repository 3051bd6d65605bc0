"""How fast this machine can multiply and add: chains of accumulators in registers, operands from the first-level cache.

The loop is that of a linear kernel's tile without anything around it, and with data that never leaves the cache; what
it reaches is what `irc bench --layers` calls the machine's peak.
"""

from __future__ import annotations

from typing import Any

from irc.backends.tvm.geometry import lanes_of
from irc.backends.tvm.kernels.builder import KernelBuilder, const
from irc.backends.tvm.kernels.steps import choose_step
from irc.backends.tvm.specs import PeakSpec
from irc.targets.target import Target

DEPTH = 16
"""Reduction steps whose operands lie in the cache: 4 KB of weights with vectors of 64 bytes."""
_PLACES, _VECTORS = 6, {32: 4, 16: 2}


def peak_vectors(target: Target) -> int:
    return _VECTORS.get(target.vector_registers, 1)


def peak_macs(spec: PeakSpec, target: Target) -> int:
    """Multiply-adds of one call."""
    step = choose_step(spec.x_dtype, target, 4)
    return spec.rounds * DEPTH * _PLACES * peak_vectors(target) * lanes_of(target) * step.channels


def peak_sizes(spec: PeakSpec, target: Target) -> tuple[int, int, int]:
    """Elements of x (`spec.x_dtype`), w (float32 or int8) and y (float32 or int32)."""
    step, lanes, vectors = choose_step(spec.x_dtype, target, 4), lanes_of(target), peak_vectors(target)
    return _PLACES * DEPTH * step.channels, DEPTH * vectors * lanes * step.channels, _PLACES * vectors * lanes


def build(symbol: str, spec: PeakSpec, target: Target) -> Any:
    """The TIR function `symbol(x, w, y, part, parts)`; y are the sums, so that nothing is left out."""
    k, lanes, vectors = KernelBuilder(symbol), lanes_of(target), peak_vectors(target)
    step = choose_step(spec.x_dtype, target, 4)
    x_size, w_size, y_size = peak_sizes(spec, target)
    x = k.pointer("x", spec.x_dtype, x_size)
    w = k.pointer("w", "float32" if spec.x_dtype == "float32" else "int8", w_size)
    y = k.pointer("y", step.acc_dtype, y_size)
    acc = k.local(y_size, step.acc_dtype)
    with k.first_part():
        for i in range(_PLACES * vectors):
            k.store(acc, i * lanes, const(0, step.acc_dtype, lanes), lanes)
        with k.loop(spec.rounds, "r"), k.loop(DEPTH, "i") as i:
            weights = [step.load_w(k, w, (i * vectors + v) * (lanes * step.channels)) for v in range(vectors)]
            for p in range(_PLACES):
                value = step.load_x(k, x, (i * _PLACES + p) * step.channels)
                for v in range(vectors):
                    at = (p * vectors + v) * lanes
                    k.store(acc, at, step.mac(k.load(acc, at, lanes), value, weights[v]), lanes)
        for i in range(_PLACES * vectors):
            k.store(y, i * lanes, k.load(acc, i * lanes, lanes), lanes)
    return k.finish()
