"""Reductions on 64-bit Arm: multiply-adds that take one of their factors from an element of a vector.

A load brings 16 bytes of a place, which are several steps of the reduction; `fmla` and `sdot` pick the step's element
themselves. Where the machine has products of 2x8 by 8x2 bytes (`smmla`), neighbouring places go in pairs: one
instruction does 32 multiply-adds, of two places with two output channels. Two vectors of sums then hold

    a = [place 0 channels 0 1 | place 1 channels 0 1]        b = [place 0 channels 2 3 | place 1 channels 2 3]

which are put in order after the last step. A place without a partner is its own.

No data are asked for ahead: the cores have units that see such streams coming, and smaller ones wait for no load that
an instruction more would hide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx

from irc.backends.tvm.geometry import dot_of, fields_of, shared_axis, spans, stored_counts
from irc.backends.tvm.kernels.builder import Buffer, Expr, KernelBuilder, const, intrinsic, reinterpret
from irc.backends.tvm.kernels.steps import SDOT, Step, Value
from irc.backends.tvm.specs import LinearSpec
from irc.targets.target import Target

SMMLA = "llvm.aarch64.neon.smmla.v4i32.v16i8"
_BYTES = 16  # of a vector
_LANES = 4


def fits(spec: LinearSpec, target: Target) -> bool:
    """Whether the sums of `spec` are made this way."""
    if target.arch != "aarch64" or spec.scaled:
        return False
    return spec.x_dtype == "float32" or dot_of(spec.x_dtype, target, spec.ic) in ("sdot", "smmla")


def taken(k: KernelBuilder, values: Sequence[Expr], lanes: Sequence[int], dtype: str) -> Expr:
    """The given lanes of the vectors side by side, seen as `dtype`."""
    return reinterpret(tirx.Shuffle(list(values), [const(i, "int32") for i in lanes]), dtype)


class Stream:
    """Neighbouring elements of x in registers, as many at a time as a load brings."""

    def __init__(self, k: KernelBuilder, x: Buffer, dtype: str, each: int) -> None:
        self.k, self.x, self.dtype, self.each = k, x, dtype, each  # each: elements of a step

    def load(self, at: Expr, steps: int) -> list[tuple[Expr, int, int]]:
        """(vector of words, lane, lanes) for each of `steps` steps from `at`; reads no element more."""
        k, found, done = self.k, [], 0
        while done < steps:
            size = 1 << ((steps - done).bit_length() - 1)
            raw = k.load(self.x, at + done * self.each, size * self.each)
            kind = "float32" if self.dtype == "float32" else "int32"
            words = raw if kind == "float32" else reinterpret(raw, kind if size == 1 else f"{kind}x{size}")
            words = k.let(words, "d")
            found += [(words, lane, size) for lane in range(size)]
            done += size
        return found


def splat(element: tuple[Expr, int, int]) -> Expr:
    """The lane of a vector in all four lanes."""
    words, lane, size = element
    if size == 1:
        return tirx.Broadcast(words, _LANES)
    return tirx.Shuffle([words] * (_LANES // size), [const(lane, "int32")] * _LANES)


def multiply(step: Step, acc: Expr, element: tuple[Expr, int, int], w: Expr) -> Expr:
    """acc + element * w; the element stands last, where the instruction takes it from."""
    if step.acc_dtype == "float32":
        return acc + w * splat(element)
    return intrinsic(SDOT, "int32x4", acc, w, reinterpret(splat(element), "int8x16"))


@dataclass(frozen=True)
class Sums:
    """What a register tile adds up: arrays of accumulators with constant indices. `total`: of x alone, or None."""

    acc: Buffer
    total: Buffer | None


class Elements:
    """The reduction of a register tile of `spec`."""

    def __init__(self, k: KernelBuilder, spec: LinearSpec, target: Target, step: Step, x: Buffer, w: Buffer) -> None:
        self.k, self.spec, self.step, self.x, self.w = k, spec, step, x, w
        self.pairs = spec.x_dtype != "float32" and dot_of(spec.x_dtype, target, spec.ic) == "smmla"
        self.chunk = _BYTES // (step.channels * (4 if spec.x_dtype == "float32" else 1))
        self.stream = Stream(k, x, spec.x_dtype, step.channels)
        self.counts = self._counts()
        self.stored = stored_counts(self.counts, step.fields)
        self.axis = shared_axis(self.counts, step.fields)

    def _counts(self) -> tuple[int, int, int]:
        """Rows, columns and steps of the kernel. Columns whose data follow each other in memory are further steps."""
        spec = self.spec
        rows, columns = spec.kernel
        steps = spec.ic // self.step.channels
        if fields_of(spec.w_dtype) == 1 and spec.dilation[1] == 1 and spec.x_strides[3] == spec.ic:
            steps, columns = columns * steps, 1
        return rows, columns, steps

    def reduce(self, sums: Sums, x_base: Expr, weights: list[Expr], w_step: int, places: list[tuple[int, int]]) -> None:
        """Adds all products to the accumulators. `weights`: where each vector's first ones stand, `w_step` elements
        before the next."""
        spare = self._pair(sums, len(places), len(weights)) if self.pairs else None
        k, unit = self.k, self._unit()
        for first, _, fields in spans(self.counts[self.axis], self.step.fields):
            extents = list(self.stored)
            extents[self.axis] = 1 if fields < self.step.fields else self.counts[self.axis] // self.step.fields
            starts = [first // self.step.fields if i == self.axis else 0 for i in range(3)]
            with (
                k.loop(extents[0], "kh", start=starts[0]) as kh,
                k.loop(extents[1], "kw", start=starts[1]) as kw,
            ):
                for begin, many, size in spans(extents[2], unit):
                    with k.loop(many, "i") as i:
                        at = k.let(i * size + (starts[2] + begin), "i")
                        self._steps(sums, spare, x_base, (kh, kw, at), size, fields, weights, w_step, places)
        if spare is not None:
            self._unpair(sums, spare, len(places), len(weights))

    def _unit(self) -> int:
        """Stored steps of a turn of the loop: what a load of x serves."""
        along = self.step.fields if self.axis == 2 else 1
        return max(self.chunk // along, 1)

    def _steps(
        self,
        sums: Sums,
        spare: Buffer | None,
        x_base: Expr,
        taps: tuple[Expr, Expr, Expr],
        size: int,
        fields: int,
        weights: list[Expr],
        w_step: int,
        places: list[tuple[int, int]],
    ) -> None:
        """`size` stored steps from `taps` on: row, column, step."""
        k, step = self.k, self.step
        kh, kw, i = taps
        at = (kh * self.stored[1] + kw) * self.stored[2] + i
        bases = [k.let(base + at * w_step, "wa") for base in weights]
        raw = [[step.load_w(k, self.w, base + j * w_step) for base in bases] for j in range(size)]
        if self.axis == 2:
            row = [[step.unpack(k, w, f) for w in raw[j]] for j in range(size) for f in range(fields)]
            self._row(sums, spare, self._x_at(x_base, kh, kw, i * step.fields), row, places)
            return
        for f in range(fields):
            h, c = (t * step.fields + f if n == self.axis else t for n, t in enumerate((kh, kw)))
            row = [[step.unpack(k, w, f) for w in loaded] for loaded in raw]
            self._row(sums, spare, self._x_at(x_base, h, c, i), row, places)

    def _x_at(self, x_base: Expr, kh: Expr, kw: Expr, i: Expr) -> Expr:
        _, _, sh, sw = self.spec.x_strides
        rows, columns = self.spec.dilation
        return self.k.let(x_base + kh * (rows * sh) + kw * (columns * sw) + i * self.step.channels, "xa")

    def _row(
        self, sums: Sums, spare: Buffer | None, x_at: Expr, steps: list[list[Value]], places: list[tuple[int, int]]
    ) -> None:
        """Neighbouring steps: their weights by vector."""
        spec = self.spec
        _, _, sh, sw = spec.x_strides
        at = [x_at + (r * spec.stride[0] * sh + c * spec.stride[1] * sw) for r, c in places]
        if spare is not None:
            self._matrices(sums, spare, at, steps)
            return
        elements = [self.stream.load(a, len(steps)) for a in at]
        for j, weights in enumerate(steps):
            for p, element in enumerate(elements):
                for v, w in enumerate(weights):
                    self._add(sums.acc, p * len(weights) + v, element[j], w[0])
                if sums.total is not None:
                    self._add(sums.total, p, element[j], self.step.ones[0])

    def _add(self, buffer: Buffer, number: int, element: tuple[Expr, int, int], w: Expr) -> None:
        k, at = self.k, number * _LANES
        k.store(buffer, at, multiply(self.step, k.load(buffer, at, _LANES), element, w), _LANES)

    # Pairs of places
    def _pair(self, sums: Sums, places: int, vectors: int) -> Buffer:
        """Puts the first sums of pairs in the order of the instruction. The array for what a last single place has no
        partner's place for."""
        k = self.k
        spare = k.local(max(vectors * (places % 2), 1) * _LANES, "int32", "b")
        for p in range(0, places, 2):
            for v in range(vectors):
                a, b = self._both(sums, spare, p, v, places, vectors)
                first = k.let(k.load(sums.acc, (p * vectors + v) * _LANES, _LANES), "f")
                k.store(*a, taken(k, [first], (0, 1, 0, 1), "int32x4"), _LANES)
                k.store(*b, taken(k, [first], (2, 3, 2, 3), "int32x4"), _LANES)
        return spare

    def _unpair(self, sums: Sums, spare: Buffer, places: int, vectors: int) -> None:
        k = self.k
        for p in range(0, places, 2):
            for v in range(vectors):
                both = [k.let(k.load(*at, _LANES), "s") for at in self._both(sums, spare, p, v, places, vectors)]
                k.store(sums.acc, (p * vectors + v) * _LANES, taken(k, both, (0, 1, 4, 5), "int32x4"), _LANES)
                if p + 1 < places:
                    at = ((p + 1) * vectors + v) * _LANES
                    k.store(sums.acc, at, taken(k, both, (2, 3, 6, 7), "int32x4"), _LANES)
            if sums.total is not None:
                total = k.let(k.load(sums.total, p * _LANES, _LANES), "s")
                for n in range(min(2, places - p)):
                    k.store(sums.total, (p + n) * _LANES, taken(k, [total], (2 * n,) * 4, "int32x4"), _LANES)

    def _both(
        self, sums: Sums, spare: Buffer, p: int, v: int, places: int, vectors: int
    ) -> tuple[tuple[Buffer, int], tuple[Buffer, int]]:
        """Where the two vectors of sums of a pair stand."""
        a = (sums.acc, (p * vectors + v) * _LANES)
        single = p + 1 == places
        return a, (spare, v * _LANES) if single else (sums.acc, ((p + 1) * vectors + v) * _LANES)

    def _matrices(self, sums: Sums, spare: Buffer, at: list[Expr], steps: list[list[Value]]) -> None:
        k, places = self.k, len(at)
        pairs = [self._pair_of_x(at[p : p + 2], len(steps)) for p in range(0, places, 2)]
        for j, weights in enumerate(steps):
            for v, w in enumerate(weights):
                halves = [taken(k, [reinterpret(w[0], "int64x4")], (n, n + 1), "int8x16") for n in (0, 2)]
                halves = [k.let(h, "w") for h in halves]
                for n, x in enumerate(pairs):
                    for place, half in zip(
                        self._both(sums, spare, 2 * n, v, places, len(weights)), halves, strict=True
                    ):
                        self._matrix(*place, x[j], half)
            if sums.total is not None:
                for n, x in enumerate(pairs):
                    self._matrix(sums.total, 2 * n * _LANES, x[j], const(1, "int8", _BYTES))

    def _matrix(self, buffer: Buffer, at: int, x: Expr, w: Expr) -> None:
        k = self.k
        k.store(buffer, at, intrinsic(SMMLA, "int32x4", k.load(buffer, at, _LANES), x, w), _LANES)

    def _pair_of_x(self, at: list[Expr], steps: int) -> list[Expr]:
        """For each step, its eight bytes of both places (or twice of one)."""
        k, found = self.k, []
        each = self.step.channels
        for first in range(0, steps, 2):
            size = min(2, steps - first)
            raw = []
            for a in at:
                bytes_ = k.load(self.x, a + first * each, size * each)
                raw.append(k.let(reinterpret(bytes_, "int64" if size == 1 else "int64x2"), "r"))
            raw = raw if len(raw) == 2 else [raw[0], raw[0]]
            for j in range(size):
                found.append(k.let(taken(k, raw, (j, size + j), "int8x16"), "d"))
        return found
