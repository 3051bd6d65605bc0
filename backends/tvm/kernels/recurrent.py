"""LSTM and GRU: the part that goes step by step. What depends on the inputs alone has been computed for all steps.

One step is a product of the state with all gates' recurrent weights. A block of 16 hidden units has its gates side by
side: its sums stay in registers while the state's elements pass, its activations are vectors, and its weights are one
stream. The steps follow each other, so the kernel is not shared out.

Gates in the order of the standard: i o f c (LSTM), z r h (GRU, the reset after the product).
"""

from __future__ import annotations

from typing import Any

from irc.backends.tvm.geometry import BLOCK, chunks, lanes_of
from irc.backends.tvm.kernels.builder import Expr, KernelBuilder, broadcast, const
from irc.backends.tvm.kernels.emit import sigmoid, tanh
from irc.backends.tvm.kernels.steps import weight_type, widened
from irc.backends.tvm.specs import RecurrentSpec
from irc.targets.target import Target


class _Recurrent:
    def __init__(self, symbol: str, spec: RecurrentSpec, target: Target) -> None:
        self.spec = spec
        self.lanes = lanes_of(target)
        self.gates = spec.gates
        self.blocks = -(-spec.hidden // BLOCK)
        padded = self.blocks * BLOCK
        self.row, self.state = padded, padded * spec.batch
        k = self.k = KernelBuilder(symbol, target)
        self.z = k.pointer("z", "float32", spec.steps * spec.batch * self.gates * padded)
        self.r_type = weight_type("float32", spec.w_dtype, target)
        self.r = k.pointer("r", self.r_type, padded * self.gates * spec.hidden)
        self.bias = k.pointer("b", "float32", padded) if spec.kind == "gru" else None
        self.first = [k.pointer(f"s{i}", "float32", spec.batch * spec.hidden) for i in range(spec.given)]
        self.y = k.pointer("y", "float32", spec.y_size)
        self.last = [k.pointer(f"l{i}", "float32", spec.batch * spec.hidden) for i in range(2)]
        self.s = k.pointer("s", "float32", 3 * self.state)  # state before and after a step, cell
        self.acc = k.local(self.gates * BLOCK * 2, "float32")

    def build(self) -> Any:
        spec, k = self.spec, self.k
        with k.first_part():
            self._begin()
            with k.loop(spec.steps, "t") as t:
                old = k.let(t % 2 * self.state, "old")
                new = k.let(self.state - old, "new")
                time = k.let((spec.steps - 1) - t if spec.reverse else t, "time")
                with k.loop(self.blocks, "j") as block, k.loop(spec.batch, "b") as b:
                    self._block(time, b, block, old, new)
                self._write(time, new)
            self._end()
        return k.finish()

    def _pieces(self) -> list[tuple[int, int]]:
        """(first, size): the hidden units of one row in vectors and parts of one."""
        lanes, whole = self.lanes, self.spec.hidden // self.lanes * self.lanes
        rest = self.spec.hidden - whole
        return [(whole + offset, size) for offset, size in chunks(lanes, rest)] if rest else []

    def _rows(self, source: Any, at: Expr, target: Any, to: Expr) -> None:
        """Copies one row of the state."""
        k, lanes = self.k, self.lanes
        with k.loop(self.spec.hidden // lanes, "v") as v:
            k.store(target, to + v * lanes, k.load(source, at + v * lanes, lanes), lanes)
        for first, size in self._pieces():
            k.store(target, to + first, k.load(source, at + first, size), size)

    def _begin(self) -> None:
        k, lanes, spec = self.k, self.lanes, self.spec
        with k.loop(3 * self.state // lanes, "v") as v:
            k.store(self.s, v * lanes, const(0.0, "float32", lanes), lanes)
        for number, source in enumerate(self.first):
            with k.loop(spec.batch, "b") as b:
                self._rows(source, b * spec.hidden, self.s, b * self.row + number * 2 * self.state)

    def _write(self, time: Expr, new: Expr) -> None:
        k, spec = self.k, self.spec
        step, batch = spec.y_strides
        with k.loop(spec.batch, "b") as b:
            self._rows(self.s, new + b * self.row, self.y, time * step + b * batch)

    def _end(self) -> None:
        k, spec = self.k, self.spec
        final = spec.steps % 2 * self.state
        for number in range(2 if spec.kind == "lstm" else 1):
            with k.loop(spec.batch, "b") as b:
                at = b * self.row + (2 * self.state if number else final)
                self._rows(self.s, at, self.last[number], b * spec.hidden)

    def _block(self, time: Expr, b: Expr, block: Expr, old: Expr, new: Expr) -> None:
        """The new state of 16 hidden units of one batch element."""
        k, lanes, spec = self.k, self.lanes, self.spec
        vectors = BLOCK // lanes
        places = [(g, v) for g in range(self.gates) for v in range(vectors)]
        half = len(places) * lanes  # even and odd terms are summed apart: twice as many sums are under way
        z_at = k.let(((time * spec.batch + b) * self.gates * self.blocks + block) * BLOCK, "z")
        for i, (g, v) in enumerate(places):
            reset = spec.kind == "gru" and g == 2  # its input part comes after the product
            at = z_at + (g * self.row + v * lanes)
            value = k.load(self.bias, block * BLOCK + v * lanes, lanes) if reset else k.load(self.z, at, lanes)
            k.store(self.acc, i * lanes, value, lanes)
            k.store(self.acc, half + i * lanes, const(0.0, "float32", lanes), lanes)
        state = k.let(old + b * self.row, "h")
        weights = k.let(block * (spec.hidden * self.gates * BLOCK), "w")
        with k.loop(spec.hidden // 2, "k") as pair:
            for odd in range(2):
                self._term(places, state, weights, k.let(pair * 2 + odd, "k"), odd * half)
        if spec.hidden % 2:
            self._term(places, state, weights, const(spec.hidden - 1, "int32"), 0)
        for v in range(vectors):
            sums = []
            for g in range(self.gates):
                i = g * vectors + v
                total = k.load(self.acc, i * lanes, lanes) + k.load(self.acc, half + i * lanes, lanes)
                sums.append(k.let(total, "g"))
            place = k.let(b * self.row + block * BLOCK + v * lanes, "p")
            self._gates(sums, z_at + (2 * self.row + v * lanes), place, old, new)

    def _term(self, places: list[tuple[int, int]], state: Expr, weights: Expr, index: Expr, first: int) -> None:
        k, lanes = self.k, self.lanes
        x = k.let(broadcast(k.load(self.s, state + index), lanes), "x")
        for i, (g, v) in enumerate(places):
            stored = k.load(self.r, weights + index * (self.gates * BLOCK) + (g * BLOCK + v * lanes), lanes)
            w = widened(k, stored, self.spec.w_dtype, self.r_type, lanes)
            at = first + i * lanes
            k.store(self.acc, at, k.load(self.acc, at, lanes) + x * w, lanes)

    def _gates(self, sums: list[Expr], z_reset: Expr, place: Expr, old: Expr, new: Expr) -> None:
        k, lanes, one = self.k, self.lanes, const(1.0, "float32", self.lanes)
        if self.spec.kind == "lstm":
            i, o, f = (k.let(sigmoid(k, x, lanes), "g") for x in sums[:3])
            cell = k.load(self.s, place + 2 * self.state, lanes)
            cell = k.let(f * cell + i * tanh(k, sums[3], lanes), "c")
            k.store(self.s, place + 2 * self.state, cell, lanes)
            k.store(self.s, new + place, o * tanh(k, cell, lanes), lanes)
            return
        z, r = (k.let(sigmoid(k, x, lanes), "g") for x in sums[:2])
        h = k.let(tanh(k, k.let(k.load(self.z, z_reset, lanes) + r * sums[2]), lanes), "h")
        k.store(self.s, new + place, (one - z) * h + z * k.load(self.s, old + place, lanes), lanes)


def build(symbol: str, spec: RecurrentSpec, target: Target) -> Any:
    """`symbol(z, r, [b], first states..., y, last h, last c, scratch, part, parts)`; only part 0 of 1 does anything."""
    return _Recurrent(symbol, spec, target).build()
