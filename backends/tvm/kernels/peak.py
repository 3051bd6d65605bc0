"""How fast this machine can multiply and add: chains of accumulators in registers, operands from the first-level cache.

The loop is that of a linear kernel's tile without anything around it, and with data that never leaves the cache; what
it reaches is what `irc bench --layers` calls the machine's peak.
"""

from __future__ import annotations

from typing import Any

from irc.backends.tvm.geometry import lanes_of
from irc.backends.tvm.kernels.builder import KernelBuilder, const
from irc.backends.tvm.kernels.steps import choose_step
from irc.backends.tvm.peak import DEPTH, PLACES, peak_sizes, vectors_of
from irc.backends.tvm.specs import PeakSpec
from irc.targets.target import Target


def build(symbol: str, spec: PeakSpec, target: Target) -> Any:
    """The TIR function `symbol(x, w, y, part, parts)`; y are the sums, so that nothing is left out."""
    k, lanes, vectors = KernelBuilder(symbol), lanes_of(target), vectors_of(target)
    step = choose_step(spec.x_dtype, target, 4)
    x_size, w_size, y_size = peak_sizes(spec, target)
    x = k.pointer("x", spec.x_dtype, x_size)
    w = k.pointer("w", "float32" if spec.x_dtype == "float32" else "int8", w_size)
    y = k.pointer("y", step.acc_dtype, y_size)
    acc = k.local(y_size, step.acc_dtype)
    with k.first_part():
        for i in range(PLACES * vectors):
            k.store(acc, i * lanes, const(0, step.acc_dtype, lanes), lanes)
        with k.loop(spec.rounds, "r"), k.loop(DEPTH, "i") as i:
            weights = [step.load_w(k, w, (i * vectors + v) * (lanes * step.channels)) for v in range(vectors)]
            for p in range(PLACES):
                value = step.load_x(k, x, (i * PLACES + p) * step.channels)
                for v in range(vectors):
                    at = (p * vectors + v) * lanes
                    k.store(acc, at, step.mac(k.load(acc, at, lanes), value, weights[v]), lanes)
        for i in range(PLACES * vectors):
            k.store(y, i * lanes, k.load(acc, i * lanes, lanes), lanes)
    return k.finish()
