"""Attention in one kernel: scores, softmax and weighted sum of a block of query rows without leaving the cache.

The block's queries lie across the lanes: q is transposed once per block, every element of k is broadcast, and so each
key gives a vector of scores. Maximum and sum over the keys then run down the vectors, lane by lane, without a
horizontal step. The second product broadcasts one probability per query and runs its vectors over the columns of v. So
k, v and y are read and written as they lie, whatever their strides. 8-bit products take the target's dot product
(`steps.py`); v is interleaved for it once per head. The scores of a block stay on the stack.

Dao et al., "FlashAttention" (2022), has the idea of keeping the scores in fast memory; here they need not be computed
in pieces, since one block's rows fit.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

from irc.backends.tvm.geometry import chunks, lanes_of, spans, without_matrices
from irc.backends.tvm.kernels.builder import Buffer, Expr, KernelBuilder, broadcast, cast, const, reinterpret
from irc.backends.tvm.kernels.channels import channel_pieces
from irc.backends.tvm.kernels.emit import decay, emit_expression
from irc.backends.tvm.kernels.steps import choose_step
from irc.backends.tvm.specs import AttentionSpec, Operand
from irc.targets.target import Target

_UNROLL = 4  # keys that one step of the softmax takes


class _Block:
    """`rows` queries of one batch, in `vectors` vectors."""

    def __init__(self, a: Expr, b: Expr, first: Expr, rows: int, lanes: int) -> None:
        self.a, self.b, self.first, self.rows = a, b, first, rows
        self.vectors = -(-rows // lanes)
        self.width = self.vectors * lanes


class _Attention:
    def __init__(self, symbol: str, spec: AttentionSpec, target: Target) -> None:
        self.spec = spec
        self.lanes = lanes = lanes_of(target)
        k = self.k = KernelBuilder(symbol, target)
        self.q = k.pointer("q", spec.q_dtype, spec.q_size)
        self.key = k.pointer("key", spec.k_dtype, spec.k_size)
        self.v = k.pointer("v", spec.v_dtype, spec.v_size)
        self.score_operands = [k.pointer(f"s{i}", o.dtype, o.size) for i, o in enumerate(spec.score_operands)]
        self.operands = [k.pointer(f"e{i}", o.dtype, o.size) for i, o in enumerate(spec.operands)]
        self.y = k.pointer("y", spec.y_dtype, spec.y_size)
        self.block_rows = min(spec.score_tile[1] * lanes, -(-spec.rows // lanes) * lanes)
        self.first = choose_step(spec.k_dtype, without_matrices(target), spec.width)
        self.second = choose_step(spec.p_dtype, without_matrices(target), 0)
        # zero points as the dot products see them: q and v are int8 there
        self.q_zero = spec.zeros[0] - (128 if spec.q_dtype == "uint8" else 0)
        self.v_zero = spec.zeros[3] - (128 if spec.v_dtype == "uint8" else 0)
        self.real_scores, self.real_values = spec.k_dtype == "float32", spec.p_dtype == "float32"
        self._allocate()

    def _allocate(self) -> None:
        spec, k, lanes = self.spec, self.k, self.lanes
        width = self.block_rows
        self.packed_q = k.local(spec.width * width, "float32" if self.real_scores else "int8", "qt")
        self.scores = k.local(spec.keys * width, "float32", "scores")
        self.top = k.local(width, "float32", "top")
        self.inverse = k.local(width, "float32", "inverse")
        tile = max(spec.score_tile[0] * spec.score_tile[1], spec.value_tile[0] * spec.value_tile[1])
        self.acc = {t: k.local(tile * lanes, t) for t in {self.first.acc_dtype, self.second.acc_dtype}}
        if not self.real_scores:
            self.q_sum = k.local(width, "int32", "qsum")
            self.k_sum = k.local(spec.score_tile[0] * lanes, "int32", "ksum")
        if not self.real_values:
            groups, columns = -(-spec.keys // self.second.channels), -(-spec.columns // lanes) * lanes
            self.packed_p = k.local(groups * self.second.channels * width, spec.p_dtype, "p")
            self.p_sum = k.local(width, "int32", "psum")
            self.packed_v = k.local(groups * self.second.channels * columns, "int8", "vp")
            self.v_sum = k.local(columns, "int32", "vsum")
            self.packed_head = k.local(1, "int32", "head")

    def build(self) -> Any:
        spec, k = self.spec, self.k
        blocks = spans(spec.rows, self.block_rows)
        per_head = sum(count for _, count, _ in blocks)
        if not self.real_values:
            k.store(self.packed_head, 0, const(-1, "int32"))
        with k.work(spec.batch[0] * spec.batch[1] * per_head, "r") as item:
            head = k.let(item // per_head, "head")
            number = k.let(item % per_head, "block")
            a, b = k.let(head // spec.batch[1], "a"), k.let(head % spec.batch[1], "b")
            if not self.real_values:
                with k.when(k.load(self.packed_head, 0) != head):
                    self._pack_v(a, b)
                    k.store(self.packed_head, 0, head)
            for start, count, rows in blocks:
                with k.when(None if len(blocks) == 1 else (number < count if start == 0 else number >= per_head - 1)):
                    self._block(_Block(a, b, k.let(number * self.block_rows, "row"), rows, self.lanes))
        return k.finish()

    def _block(self, block: _Block) -> None:
        self._pack_q(block)
        self._scores(block)
        self._softmax(block)
        self._values(block)

    # First product
    def _pack_q(self, block: _Block) -> None:
        """q [rows, width] -> [units, rows, channels of a step]. Rows beyond the last repeat it."""
        spec, k, lanes, c = self.spec, self.k, self.lanes, self.first.channels
        sa, sb, sr, sc = spec.q_strides
        base = k.let(block.a * sa + block.b * sb + block.first * sr, "qb")
        units = spec.width // c

        def unit(row: int, at: Expr, size: int) -> Expr:
            """`size` neighbouring units of a row, as words of c elements."""
            place = base + min(row, block.rows - 1) * sr + at * (c * sc)
            if self.real_scores:
                return k.load(self.q, place, size)
            raw = reinterpret(k.load(self.q, place, size * c), _vector(_WORDS[c], size))
            return raw ^ const(_FLIPS[c], _WORDS[c], size) if spec.q_dtype == "uint8" else raw

        contiguous = not self.real_scores or sc == 1
        for start, count, _, size in channel_pieces(units, lanes if contiguous else 1, 1):
            with k.loop(count, "u") as t:
                at = k.let(t * size + start, "at")
                for v in range(block.vectors):
                    rows = [k.let(unit(v * lanes + r, at, size), "qr") for r in range(lanes)]
                    for u, value in enumerate(transposed(k, rows, size)):
                        place = ((at + u) * block.vectors + v) * (lanes * c)
                        if not self.real_scores:
                            value = reinterpret(value, f"int8x{lanes * c}")
                        k.store(self.packed_q, place, value, lanes * c)
        if self.real_scores or not spec.zeros[1]:
            return
        for v in range(block.vectors):  # -zero(k) * sum(q - zero(q)) is where the sums start
            k.store(self.q_sum, v * lanes, const(0, "int32", lanes), lanes)
        with k.loop(units, "u") as u:
            for v in range(block.vectors):
                w = self.first.load_w(k, self.packed_q, (u * block.vectors + v) * (lanes * c))
                old = k.load(self.q_sum, v * lanes, lanes)
                k.store(self.q_sum, v * lanes, self.first.mac(old, self.first.ones, w), lanes)
        for v in range(block.vectors):
            shifted = k.load(self.q_sum, v * lanes, lanes) - const(spec.width * self.q_zero, "int32", lanes)
            k.store(self.q_sum, v * lanes, shifted * const(-spec.zeros[1], "int32", lanes), lanes)

    def _scores(self, block: _Block) -> None:
        k, lanes = self.k, self.lanes
        for v in range(block.vectors):
            k.store(self.top, v * lanes, const(-math.inf, "float32", lanes), lanes)
        sa, sb, _, _ = self.spec.k_strides
        base = k.let(block.a * sa + block.b * sb, "kb")
        for start, count, keys in spans(self.spec.keys, self.spec.score_tile[0]):
            with k.loop(count, "t") as t:
                self._score_tile(block, base, k.let(t * keys + start, "key"), keys)

    def _score_tile(self, block: _Block, base: Expr, key: Expr, keys: int) -> None:
        spec, k, lanes, step = self.spec, self.k, self.lanes, self.first
        acc, summed = self.acc[step.acc_dtype], bool(not self.real_scores and self.q_zero)
        _, _, sk, sc = spec.k_strides
        vectors = block.vectors
        for i in range(keys * vectors):
            at_zero = self.real_scores or not spec.zeros[1]
            start = const(0, step.acc_dtype, lanes) if at_zero else k.load(self.q_sum, i % vectors * lanes, lanes)
            k.store(acc, i * lanes, start, lanes)
        if summed:
            for r in range(keys):
                k.store(self.k_sum, r * lanes, const(0, "int32", lanes), lanes)
        row = k.let(base + key * sk, "kr")
        with k.loop(spec.width // step.channels, "i") as i:
            place = i * (vectors * lanes * step.channels)
            w = [step.load_w(k, self.packed_q, place + v * (lanes * step.channels)) for v in range(vectors)]
            for r in range(keys):
                x = step.load_x(k, self.key, row + r * sk + i * (step.channels * sc))
                for v in range(vectors):
                    at = (r * vectors + v) * lanes
                    k.store(acc, at, step.mac(k.load(acc, at, lanes), x, w[v]), lanes)
                if summed:
                    k.store(self.k_sum, r * lanes, step.mac(k.load(self.k_sum, r * lanes, lanes), x, step.ones), lanes)
        tops = [k.load(self.top, v * lanes, lanes) for v in range(vectors)]
        for r in range(keys):
            for v in range(vectors):
                value = k.load(acc, (r * vectors + v) * lanes, lanes)
                if summed:
                    value = value - k.load(self.k_sum, r * lanes, lanes) * const(self.q_zero, "int32", lanes)
                score = k.let(self._score(block, key + r, v, value), "s")
                k.store(self.scores, (key + r) * block.width + v * lanes, score, lanes)
                tops[v] = k.let(tirx.Max(tops[v], score), "m")
        for v in range(vectors):
            k.store(self.top, v * lanes, tops[v], lanes)

    def _score(self, block: _Block, key: Expr, vector: int, value: Expr) -> Expr:
        def operand(n: int, size: int) -> Expr:
            o = self.spec.score_operands[n]
            at = self._place(block, o, vector * self.lanes) + key * o.strides[3]
            if o.strides[2] == 0:
                return broadcast(self.k.load(self.score_operands[n], at), size)
            return self.k.load(self.score_operands[n], at, size)

        return emit_expression(self.k, self.spec.scores, self.lanes, operand, value)

    def _place(self, block: _Block, o: Operand, row: Expr) -> Expr:
        return block.a * o.strides[0] + block.b * o.strides[1] + (block.first + row) * o.strides[2]

    # Softmax
    def _softmax(self, block: _Block) -> None:
        """scores -> e**(score - top) in place, and 1 / sum; then, where they are stored so, 8-bit probabilities."""
        spec, k, lanes = self.spec, self.k, self.lanes
        total = k.local(block.width, "float32", "total")
        for v in range(block.vectors):
            k.store(total, v * lanes, const(0.0, "float32", lanes), lanes)
        for start, count, keys in spans(spec.keys, _UNROLL):
            with k.loop(count, "t") as t:
                key = k.let(t * keys + start, "key")
                for r in range(keys):
                    for v in range(block.vectors):
                        at = (key + r) * block.width + v * lanes
                        shifted = k.let(k.load(self.scores, at, lanes) - k.load(self.top, v * lanes, lanes))
                        value = k.let(decay(k, shifted, lanes))
                        k.store(self.scores, at, value, lanes)
                        k.store(total, v * lanes, k.load(total, v * lanes, lanes) + value, lanes)
        for v in range(block.vectors):
            inverse = const(1.0, "float32", lanes) / k.load(total, v * lanes, lanes)
            k.store(self.inverse, v * lanes, inverse, lanes)
        if spec.probabilities:
            self._round(block)

    def _round(self, block: _Block) -> None:
        """Probabilities as their expression gives them: in place, or 8 bits [groups of keys, rows, keys of a group]."""
        spec, k, lanes = self.spec, self.k, self.lanes
        c = 1 if self.real_values else self.second.channels
        if not self.real_values:
            for v in range(block.vectors):
                k.store(self.p_sum, v * lanes, const(0, "int32", lanes), lanes)
        for start, count, keys in spans(spec.keys, c):
            with k.loop(count, "g") as g:
                group = k.let(g + start // c, "group")
                for v in range(block.vectors):
                    values = [k.let(self._probability(block, group * c + j, v)) for j in range(keys)]
                    if self.real_values:
                        k.store(self.scores, group * block.width + v * lanes, values[0], lanes)
                    else:
                        self._store_group(group * block.width + v * lanes, v, values)

    def _probability(self, block: _Block, key: Expr, vector: int) -> Expr:
        k, lanes = self.k, self.lanes
        at = key * block.width + vector * lanes
        value = k.let(k.load(self.scores, at, lanes) * k.load(self.inverse, vector * lanes, lanes))

        def operand(n: int, size: int) -> Expr:
            raise ValueError("probabilities have no operands")

        return emit_expression(k, self.spec.probabilities, lanes, operand, value)

    def _store_group(self, place: Expr, vector: int, values: list[Expr]) -> None:
        k, lanes, c, dtype = self.k, self.lanes, self.second.channels, self.spec.p_dtype
        wide = [k.let(cast(v, "int32", lanes)) for v in values]
        if self.v_zero:
            total = k.load(self.p_sum, vector * lanes, lanes)
            k.store(self.p_sum, vector * lanes, sum(wide, total), lanes)
        if c == 1:
            k.store(self.packed_p, place, values[0], lanes)
            return
        word = const(0, "int32", lanes)
        for j, value in enumerate(wide):
            word = word | ((value & const(255, "int32", lanes)) << const(8 * j, "int32", lanes))
        narrow = word if c == 4 else cast(word, "int16", lanes)
        k.store(self.packed_p, place * c, reinterpret(narrow, f"{dtype}x{lanes * c}"), lanes * c)

    # Second product
    def _pack_v(self, a: Expr, b: Expr) -> None:
        """v [keys, columns] -> int8 [groups of keys, columns, keys of a group]; keys beyond the last are 0."""
        spec, k, lanes, c = self.spec, self.k, self.lanes, self.second.channels
        sa, sb, sk, _ = spec.v_strides
        base = k.let(a * sa + b * sb, "vb")
        padded = -(-spec.columns // lanes) * lanes
        for start, count, keys in spans(spec.keys, c):
            with k.loop(count, "g") as g:
                group = k.let(g + start // c, "group")
                for start, tiles, _, size in channel_pieces(spec.columns, lanes, 1):
                    with k.loop(tiles, "col") as t:
                        column = k.let(t * size + start, "col")
                        rows = [self._row_of_v(base + (group * c + j) * sk + column, size) for j in range(keys)]
                        rows += [const(0, "int8", size)] * (c - keys)
                        value = rows[0]
                        if c > 1:
                            value = tirx.Shuffle(rows, [j * size + i for i in range(size) for j in range(c)])
                        k.store(self.packed_v, (group * padded + column) * c, value, size * c)
        if spec.zeros[2]:
            self._sum_v(padded)

    def _row_of_v(self, place: Expr, size: int) -> Expr:
        raw = self.k.load(self.v, place, size)
        if self.spec.v_dtype == "uint8":
            raw = reinterpret(raw ^ const(128, "uint8", size), _vector("int8", size))
        return self.k.let(raw, "vr")

    def _sum_v(self, padded: int) -> None:
        """-zero(p) * sum(v - zero(v)) over the keys: where the sums of each column start."""
        spec, k, lanes, step = self.spec, self.k, self.lanes, self.second
        for v in range(padded // lanes):
            k.store(self.v_sum, v * lanes, const(0, "int32", lanes), lanes)
        with k.loop(-(-spec.keys // step.channels), "g") as group:
            for v in range(padded // lanes):
                w = step.load_w(k, self.packed_v, (group * padded + v * lanes) * step.channels)
                old = k.load(self.v_sum, v * lanes, lanes)
                k.store(self.v_sum, v * lanes, step.mac(old, step.ones, w), lanes)
        for v in range(padded // lanes):
            shifted = k.load(self.v_sum, v * lanes, lanes) - const(spec.keys * self.v_zero, "int32", lanes)
            k.store(self.v_sum, v * lanes, shifted * const(-spec.zeros[2], "int32", lanes), lanes)

    def _values(self, block: _Block) -> None:
        spec, k, lanes = self.spec, self.k, self.lanes
        if self.real_values:
            pieces = channel_pieces(spec.columns, lanes, spec.value_tile[1])
        else:
            tiles = spans(-(-spec.columns // lanes), spec.value_tile[1])
            pieces = [(start * lanes, count, size, lanes) for start, count, size in tiles]
        for first, count, rows in spans(block.rows, spec.value_tile[0]):
            with k.loop(count, "t") as t:
                row = k.let(t * rows + first, "row")
                for start, tiles_here, vectors, size in pieces:
                    with k.loop(tiles_here, "c") as column_tile:
                        column = k.let(column_tile * (vectors * size) + start, "col")
                        if self.real_values:
                            self._real_tile(block, row, rows, column, vectors, size)
                        else:
                            last = start + (tiles_here - 1) * vectors * size + vectors * size > spec.columns
                            self._integer_tile(block, row, rows, column, vectors, last=last)

    def _real_tile(self, block: _Block, row: Expr, rows: int, column: Expr, vectors: int, size: int) -> None:
        spec, k, acc = self.spec, self.k, self.acc["float32"]
        sa, sb, sk, _ = spec.v_strides
        for i in range(rows * vectors):
            k.store(acc, i * size, const(0.0, "float32", size), size)
        base = k.let(block.a * sa + block.b * sb + column, "vb")
        with k.loop(spec.keys, "key") as key:
            w = [k.let(k.load(self.v, base + key * sk + v * size, size), "w") for v in range(vectors)]
            for r in range(rows):
                x = k.let(broadcast(k.load(self.scores, key * block.width + row + r), size), "d")
                for v in range(vectors):
                    at = (r * vectors + v) * size
                    k.store(acc, at, k.load(acc, at, size) + x * w[v], size)
        for r in range(rows):
            for v in range(vectors):
                value = k.load(acc, (r * vectors + v) * size, size)
                if not spec.probabilities:
                    value = value * broadcast(k.load(self.inverse, row + r), size)
                self._write(block, row + r, column + v * size, size, k.let(value))

    def _integer_tile(self, block: _Block, row: Expr, rows: int, column: Expr, vectors: int, *, last: bool) -> None:
        spec, k, lanes, step = self.spec, self.k, self.lanes, self.second
        acc, c = self.acc["int32"], step.channels
        padded = -(-spec.columns // lanes) * lanes
        for i in range(rows * vectors):
            start = const(0, "int32", lanes)
            if spec.zeros[2]:
                start = k.load(self.v_sum, column + i % vectors * lanes, lanes)
            k.store(acc, i * lanes, start, lanes)
        with k.loop(-(-spec.keys // c), "g") as group:
            at = (group * padded + column) * c
            w = [step.load_w(k, self.packed_v, at + v * (lanes * c)) for v in range(vectors)]
            for r in range(rows):
                x = step.load_x(k, self.packed_p, (group * block.width + row + r) * c)
                for v in range(vectors):
                    at_acc = (r * vectors + v) * lanes
                    k.store(acc, at_acc, step.mac(k.load(acc, at_acc, lanes), x, w[v]), lanes)
        for r in range(rows):
            for v in range(vectors):
                used = spec.columns % lanes if last and v == vectors - 1 and spec.columns % lanes else lanes
                for offset, size in chunks(lanes, used):
                    value = k.load(acc, (r * vectors + v) * lanes + offset, size)
                    if self.v_zero:
                        value = value - broadcast(k.load(self.p_sum, row + r) * self.v_zero, size)
                    self._write(block, row + r, column + (v * lanes + offset), size, k.let(value))

    def _write(self, block: _Block, row: Expr, column: Expr, size: int, value: Expr) -> None:
        spec, k = self.spec, self.k

        def operand(n: int, size: int) -> Expr:
            o = spec.operands[n]
            at = self._place(block, o, row) + column * o.strides[3]
            if o.strides[3] == 0:
                return broadcast(k.load(self.operands[n], at), size)
            return k.load(self.operands[n], at, size)

        sa, sb, sr, _ = spec.y_strides
        at = block.a * sa + block.b * sb + (block.first + row) * sr + column
        k.store(self.y, at, emit_expression(k, spec.expression, size, operand, value), size)


_WORDS = {1: "int8", 2: "int16", 4: "int32"}
_FLIPS = {1: -128, 2: -0x7F80, 4: -0x7F7F7F80}  # 0x80 in every byte


def _vector(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def transposed(k: KernelBuilder, rows: list[Expr], size: int) -> list[Expr]:
    """`size` (a power of two) vectors with one element of each row, from rows of `size` elements.

    The rows are first laid side by side, `size` vectors of len(rows) elements. In each stretch of `size` lanes these
    hold a square, and all squares are turned at once: log2(size) times, blocks beside the diagonal change places.
    """
    lanes = len(rows)
    if size == 1:
        return [k.let(tirx.Shuffle(rows, list(range(lanes))), "tr")]
    if size < lanes:
        rows = [k.let(tirx.Shuffle(rows[i::size], list(range(lanes))), "tr") for i in range(size)]
    step = 1
    while step < size:
        low = [j if not j & step else lanes + j - step for j in range(lanes)]
        high = [j + step if not j & step else lanes + j for j in range(lanes)]
        turned = list(rows)
        for i in range(size):
            if not i & step:
                turned[i] = k.let(tirx.Shuffle([rows[i], rows[i + step]], low), "tr")
                turned[i + step] = k.let(tirx.Shuffle([rows[i], rows[i + step]], high), "tr")
        rows = turned
        step *= 2
    return rows


def stack_bytes(spec: AttentionSpec, target: Target) -> int:
    """What the kernel keeps on the stack, nearly."""
    lanes = lanes_of(target)
    rows = min(spec.score_tile[1] * lanes, -(-spec.rows // lanes) * lanes)
    total = spec.keys * rows * 4 + spec.width * rows * (4 if spec.k_dtype == "float32" else 1)
    if spec.p_dtype != "float32":
        total += (spec.keys + 4) * (rows + -(-spec.columns // lanes) * lanes)
    return total


def build(symbol: str, spec: AttentionSpec, target: Target) -> Any:
    """The TIR function `symbol(q, k, v, score operands..., operands..., y, part, parts)`."""
    return _Attention(symbol, spec, target).build()


__all__ = ["Buffer", "build", "stack_bytes", "transposed"]
