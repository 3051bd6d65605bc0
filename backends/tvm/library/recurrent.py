"""LSTM, GRU and RNN: one loop over the steps, with dot products in vector lanes.

Source: the operators' pages of the ONNX standard; their gate orders (i o f c; z r h) are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from irc.backends.tvm.library.elementwise import Definition, exp, like, sigmoid, softplus, tanh
from irc.backends.tvm.library.op import (
    Expr,
    Op,
    Refused,
    Tensor,
    const,
    index32,
    sequential,
)

LANES = 8
"""Partial sums of a dot product (float32): one AVX register, two of NEON."""

Activation = Callable[[Expr], Expr]


def activation(name: str, alpha: float | None, beta: float | None) -> Activation:
    """An activation of the standard; the defaults of alpha and beta are those of the operator of the same name."""

    def a(default: float) -> float:
        return default if alpha is None else alpha

    def b(default: float) -> float:
        return default if beta is None else beta

    def hard(x: Expr) -> Expr:
        return tirx.max(tirx.min(like(a(0.2), x) * x + like(b(0.5), x), like(1, x)), like(0, x))

    known: dict[str, Activation] = {
        "affine": lambda x: like(a(1.0), x) * x + like(b(0.0), x),
        "elu": lambda x: tirx.Select(x < like(0, x), like(a(1.0), x) * (exp(x) - like(1, x)), x),
        "hardsigmoid": hard,
        "leakyrelu": lambda x: tirx.Select(x < like(0, x), like(a(0.01), x) * x, x),
        "relu": lambda x: tirx.max(x, like(0, x)),
        "scaledtanh": lambda x: like(a(1.0), x) * tanh(like(b(1.0), x) * x),
        "sigmoid": sigmoid,
        "softplus": softplus,
        "softsign": lambda x: x / (like(1, x) + tirx.abs(x)),
        "tanh": tanh,
        "thresholdedrelu": lambda x: tirx.Select(x > like(a(1.0), x), x, like(0, x)),
    }
    if name.lower() not in known:
        raise Refused(f"activation {name}")
    return known[name.lower()]


_TAKES_ALPHA = {"affine", "elu", "hardsigmoid", "leakyrelu", "scaledtanh", "thresholdedrelu"}
_TAKES_BETA = {"affine", "hardsigmoid", "scaledtanh"}


def activations(op: Op, defaults: Sequence[str], directions: int) -> list[list[Activation]]:
    """The activations of each direction. `activation_alpha` and `_beta` are given in order to those that take one."""
    names = (op.attr("activations") or list(defaults) * directions)[: len(defaults) * directions]
    if len(names) != len(defaults) * directions:
        raise Refused(f"{len(names)} activations")
    alphas, betas = iter(op.attr("activation_alpha") or []), iter(op.attr("activation_beta") or [])
    made = [
        activation(
            n,
            next(alphas, None) if n.lower() in _TAKES_ALPHA else None,
            next(betas, None) if n.lower() in _TAKES_BETA else None,
        )
        for n in names
    ]
    count = len(defaults)
    return [made[i * count : (i + 1) * count] for i in range(directions)]


@dataclass(frozen=True)
class Cell:
    """The sizes of a recurrent node: steps, batch, input features, hidden features, gates, directions."""

    steps: int
    batch: int
    features: int
    hidden: int
    gates: int
    reverse: tuple[bool, ...]
    batch_first: bool


def cell_of(op: Op, gates: int) -> Cell:
    first = bool(op.attr("layout", 0))
    a, b, features = op.value(0).shape
    reverse = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[op.attr("direction", "forward")]
    hidden = op.value(2).shape[2]
    return Cell(b if first else a, a if first else b, features, hidden, gates, reverse, first)


def dot(terms: Sequence[tuple[Callable[[Expr], Expr], Callable[[Expr], Expr], int]], dtype: str, total: Any) -> None:
    """total[0] += sum of a(k) * b(k) over k < length, for each (a, b, length). Inside an `IRBuilder`."""
    from tvm.script.ir_builder import tirx as T

    sums = T.buffer_proxy(T.alloc_buffer((LANES,), dtype))
    with T.vectorized(0, LANES) as lane:
        sums[lane] = const(0, dtype)
    for a, b, length in terms:
        if length >= LANES:
            with T.serial(0, length // LANES) as k, T.vectorized(0, LANES) as lane:
                sums[lane] = sums[lane] + a(k * LANES + lane) * b(k * LANES + lane)
        start = length // LANES * LANES
        if length > start:
            with T.serial(0, length - start) as k:
                total[0] = total[0] + a(k + start) * b(k + start)
    for lane in range(LANES):
        total[0] = total[0] + sums[lane]


class Layer:
    """What the three operators share: operands, states, the walk over time, and the outputs."""

    def __init__(self, op: Op, gates: int, states: int) -> None:
        self.op, self.cell, self.states = op, cell_of(op, gates), states
        self.dtype = op.value(0).dtype
        if self.dtype not in ("float32", "float64"):
            raise Refused(f"element type {self.dtype}")
        self.clip = op.attr("clip")
        self.inputs: list[Tensor] = [op.tensor(0), op.tensor(1), op.tensor(2)]
        self.where: dict[str, int] = {"x": 0, "w": 1, "r": 2}
        names = ("b", "lens", "h", "c", "p")
        for i, name in enumerate(names, 3):
            if op.has(i):
                self.where[name] = len(self.inputs)
                self.inputs.append(op.tensor(i))

    def build(self, step: Callable[[_Step], None]) -> list[Tensor]:
        """The outputs Y, Y_h (and Y_c); `step` computes the new state of one batch element at one time."""
        c = self.cell
        d = len(c.reverse)
        y = (c.batch, c.steps, d, c.hidden) if c.batch_first else (c.steps, d, c.batch, c.hidden)
        last = (c.batch, d, c.hidden) if c.batch_first else (d, c.batch, c.hidden)
        work = (c.gates * c.hidden + 2 * c.hidden,)
        shapes = [y, *[last] * self.states, work, (1,)]

        def body(ins: list[Any], outs: list[Any]) -> None:
            for direction, reverse in enumerate(c.reverse):
                self._direction(ins, outs, direction, reverse, step)

        made = sequential(shapes, [self.dtype] * len(shapes), self.inputs, body, self.op.kind)
        wanted = made[: 1 + self.states]
        return [t if self.op.wants(i) else None for i, t in enumerate(wanted)][: self.op.arity]

    def _direction(
        self, ins: list[Any], outs: list[Any], direction: int, reverse: bool, step: Callable[[_Step], None]
    ) -> None:
        from tvm.script.ir_builder import tirx as T

        c = self.cell
        with T.serial(0, c.batch) as n:
            for s, name in enumerate(("h", "c")[: self.states]):
                state = (lambda j, s=s: (n, direction, j)) if c.batch_first else (lambda j, s=s: (direction, n, j))
                with T.serial(0, c.hidden) as j:
                    given = ins[self.where[name]][state(j)] if name in self.where else const(0, self.dtype)
                    if "lens" in self.where:  # as onnxruntime does: an empty sequence ends in zero
                        empty = ins[self.where["lens"]][n] == 0
                        given = tirx.Select(empty, const(0, self.dtype), given)
                    outs[1 + s][state(j)] = given
            with T.serial(0, c.steps) as k:
                if "lens" in self.where:
                    length = tirx.min(index32(ins[self.where["lens"]][n]), c.steps)
                    time = tirx.Select(k < length, length - 1 - k, k) if reverse else k
                    with T.If(k < length):
                        with T.Then():
                            self._one(ins, outs, direction, n, time, step)
                        with T.Else(), T.serial(0, c.hidden) as j:
                            outs[0][self._y(direction, n, time, j)] = const(0, self.dtype)
                else:
                    self._one(ins, outs, direction, n, c.steps - 1 - k if reverse else k, step)

    def _y(self, direction: int, n: Expr, time: Expr, j: Expr) -> tuple[Expr, ...]:
        return (n, time, direction, j) if self.cell.batch_first else (time, direction, n, j)

    def _one(
        self, ins: list[Any], outs: list[Any], direction: int, n: Expr, time: Expr, step: Callable[[_Step], None]
    ) -> None:
        from tvm.script.ir_builder import tirx as T

        now = _Step(self, ins, outs, direction, n, time)
        step(now)
        with T.serial(0, self.cell.hidden) as j:
            outs[0][self._y(direction, n, time, j)] = now.state(0, j)


@dataclass
class _Step:
    """One batch element at one time, in one direction."""

    layer: Layer
    ins: list[Any]
    outs: list[Any]
    direction: int
    n: Expr
    time: Expr

    @property
    def work(self) -> Any:
        return self.outs[1 + self.layer.states]

    def _at(self, j: Expr) -> tuple[Expr, ...]:
        return (self.n, self.direction, j) if self.layer.cell.batch_first else (self.direction, self.n, j)

    def state(self, s: int, j: Expr) -> Expr:
        return self.outs[1 + s][self._at(j)]

    def set_state(self, s: int, j: Expr, value: Expr) -> None:
        self.outs[1 + s][self._at(j)] = value

    def x(self, k: Expr) -> Expr:
        where = (self.n, self.time, k) if self.layer.cell.batch_first else (self.time, self.n, k)
        return self.ins[0][where]

    def w(self, row: Expr, k: Expr) -> Expr:
        return self.ins[1][self.direction, row, k]

    def r(self, row: Expr, k: Expr) -> Expr:
        return self.ins[2][self.direction, row, k]

    def bias(self, row: Expr, recurrent: bool) -> Expr:
        layer = self.layer
        if "b" not in layer.where:
            return const(0, layer.dtype)
        shift = layer.cell.gates * layer.cell.hidden if recurrent else 0
        return self.ins[layer.where["b"]][self.direction, row + shift]

    def peephole(self, gate: int, j: Expr, c: Expr) -> Expr:
        """P of one gate times the cell state; nothing without P."""
        layer = self.layer
        if "p" not in layer.where:
            return const(0, layer.dtype)
        return self.ins[layer.where["p"]][self.direction, gate * layer.cell.hidden + j] * c

    def clipped(self, value: Expr) -> Expr:
        limit = self.layer.clip
        if not limit:
            return value
        return tirx.max(tirx.min(value, like(limit, value)), like(-limit, value))

    def affine(self, gates: Sequence[int], place: int, *, x: bool = True, h: bool = True, both: bool = True) -> None:
        """work[place + g * H + j] = (W x)[g, j] + (R h)[g, j] + biases, for the given gates."""
        from tvm.script.ir_builder import tirx as T

        cell, total = self.layer.cell, self.outs[2 + self.layer.states]
        for g in gates:
            with T.serial(0, cell.hidden) as j:
                row = g * cell.hidden + j
                start = self.bias(row, False) if x else const(0, self.layer.dtype)
                start = start + self.bias(row, True) if both or not x else start
                total[0] = start
                terms = []
                if x:
                    terms.append((self.x, lambda k, row=row: self.w(row, k), cell.features))
                if h:
                    terms.append((lambda k: self.state(0, k), lambda k, row=row: self.r(row, k), cell.hidden))
                dot(terms, self.layer.dtype, total)
                self.work[place + row] = total[0]


def lstm(op: Op) -> list[Tensor]:
    from tvm.script.ir_builder import tirx as T

    layer = Layer(op, 4, 2)
    cell = layer.cell
    chosen = activations(op, ("Sigmoid", "Tanh", "Tanh"), len(cell.reverse))
    coupled = bool(op.attr("input_forget", 0))

    def step(now: _Step) -> None:
        f, g, h = chosen[now.direction]
        now.affine((0, 1, 3) if coupled else (0, 1, 2, 3), 0)
        with T.serial(0, cell.hidden) as j:
            gate = [now.work[n * cell.hidden + j] for n in range(4)]
            old = now.state(1, j)
            now.work[j] = f(now.clipped(gate[0] + now.peephole(0, j, old)))
            entry = now.work[j]
            # P holds the peepholes of i, o, f
            forget = like(1, entry) - entry if coupled else f(now.clipped(gate[2] + now.peephole(2, j, old)))
            now.work[4 * cell.hidden + j] = forget * old + entry * g(now.clipped(gate[3]))
        with T.serial(0, cell.hidden) as j:
            new = now.work[4 * cell.hidden + j]
            out = f(now.clipped(now.work[cell.hidden + j] + now.peephole(1, j, new)))
            now.set_state(1, j, new)
            now.set_state(0, j, out * h(new))

    return layer.build(step)


def gru(op: Op) -> list[Tensor]:
    from tvm.script.ir_builder import tirx as T

    layer = Layer(op, 3, 1)
    cell = layer.cell
    size = cell.hidden
    chosen = activations(op, ("Sigmoid", "Tanh"), len(cell.reverse))
    before = bool(op.attr("linear_before_reset", 0))

    def step(now: _Step) -> None:
        f, g = chosen[now.direction]
        now.affine((0, 1), 0)
        now.affine((2,), 0, h=False, both=not before)
        if before:
            now.affine((2,), size, x=False)  # into the place behind: R h + its bias
        else:
            with T.serial(0, size) as j:
                now.work[4 * size + j] = f(now.clipped(now.work[size + j])) * now.state(0, j)
            total = now.outs[3]
            with T.serial(0, size) as j:
                total[0] = now.work[2 * size + j]
                dot(
                    [(lambda k: now.work[4 * size + k], lambda k: now.r(2 * size + j, k), size)],
                    layer.dtype,
                    total,
                )
                now.work[3 * size + j] = total[0]
        with T.serial(0, size) as j:
            # each gate is stored before it is used: an expression must not appear twice
            now.work[j] = f(now.clipped(now.work[j]))
            if before:
                now.work[size + j] = f(now.clipped(now.work[size + j]))
                now.work[3 * size + j] = now.work[2 * size + j] + now.work[size + j] * now.work[3 * size + j]
            now.work[3 * size + j] = g(now.clipped(now.work[3 * size + j]))
        with T.serial(0, size) as j:
            update, new = now.work[j], now.work[3 * size + j]
            now.set_state(0, j, (like(1, new) - update) * new + update * now.state(0, j))

    return layer.build(step)


def rnn(op: Op) -> list[Tensor]:
    from tvm.script.ir_builder import tirx as T

    layer = Layer(op, 1, 1)
    cell = layer.cell
    chosen = activations(op, ("Tanh",), len(cell.reverse))

    def step(now: _Step) -> None:
        (f,) = chosen[now.direction]
        now.affine((0,), 0)
        with T.serial(0, cell.hidden) as j:
            now.set_state(0, j, f(now.clipped(now.work[j])))

    return layer.build(step)


OPERATORS: dict[str, Definition] = {"GRU": gru, "LSTM": lstm, "RNN": rnn}
