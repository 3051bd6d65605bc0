"""The decoder of coded weights as LLVM IR text: part of the glue. `decoder.c` says the same in C, step for step, and
explains it; the functions here have its names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

from irc.backends.artifact.coder.ir import DECLARATIONS, Function, Value
from irc.backends.artifact.coder.rans import CHUNK, LANES
from irc.backends.artifact.coder.runs import (
    AID,
    BLOCK,
    COPY,
    END,
    PALETTE,
    SPREAD,
    SUM16,
    SUM32,
    TABLE,
    ZIGZAG32,
)
from irc.backends.artifact.coder.tables import LEVELS, OCTAVE, ONE

_LOW = 1 << 16
_BITS = 14
_SHAPES = 4

# The decoder's variables, by offset: pointers first, whatever their width.
_META, _WORD, _END, _OUT, _SYMBOLS, _RANGES = range(0, 48, 8)
_BIT, _BITS_END, _BYTES, _BAD, _LEFT, _PLACE, _NEXT, _NEWEST, _COUNT, _AID, _COLOURS = range(48, 92, 4)
_X = 92
_SHAPE = _X + 4 * LANES
_SHAPE_BYTES = 12
_SIZE = _SHAPE + _SHAPE_BYTES * _SHAPES

ENTRY = "irc_decode"
OPERATIONS = frozenset({AID, COPY, ZIGZAG32, SUM16, SUM32, PALETTE, SPREAD})
"""What may be done after decoding."""


def decoder_ll(word: str, operations: Collection[int] = OPERATIONS) -> list[str]:
    """@irc_decode(data, meta bytes, bytes, out, out bytes, scratch): 1 when `out` holds the decoded bytes.

    `word`: the integer as wide as a pointer. `operations` that occur: what the others need is left out, and they are
    taken for damage.
    """
    octave = ", ".join(f"i16 {value - 65536 if value > 32767 else value}" for value in OCTAVE)
    functions: list[Callable[[str], Function]] = [
        *(_bits, _number, _difference, _weight, _levels, _table, _start, _some, _run),
        *(_bytes_at, _target, _taken, _coded),
        *(make for number, make in _MAKERS.items() if number in operations),
        lambda word: _after(word, operations),
        _decode,
    ]
    texts = [line for make in functions for line in make(word).lines()]
    return [*DECLARATIONS, f"@octave = private unnamed_addr constant [8 x i16] [{octave}]", *texts, *_many()]


def _bits(word: str) -> Function:
    f = Function("coder_bits", ["ptr", "i32"], "i32", word=word)
    d, count = f.parameters
    value = f.variable()
    with f.for_(count):
        bit = d.load("i32", _BIT)
        with f.if_(bit >= d.load("i32", _BITS_END)):
            d.store(1, _BAD)
            f.give(0)
        byte = d.load("ptr", _META).load("i8", bit >> 3).to("i32")
        value.set(value.get() << 1 | (byte >> (bit & 7) & 1))
        d.store(bit + 1, _BIT)
    f.give(value.get())
    return f


def _number(word: str) -> Function:
    f = Function("coder_number", ["ptr", "i32"], "i32", word=word)
    d, order = f.parameters
    zeros = f.variable(order)
    with f.while_(lambda: f.call("coder_bits", [d, 1], "i32").equals(0)):
        zeros.set(zeros.get() + 1)
        with f.if_(zeros.get() > 30):
            d.store(1, _BAD)
            f.give(0)
    one = f.constant(1)
    f.give((one << zeros.get()) - (one << order) + f.call("coder_bits", [d, zeros.get()], "i32"))
    return f


def _difference(word: str) -> Function:
    f = Function("coder_difference", ["ptr", "i32"], "i32", word=word)
    n = f.call("coder_number", f.parameters, "i32")
    f.give(n >> 1 ^ (n & 1).negated())
    return f


def _weight(word: str) -> Function:
    f = Function("coder_weight", ["i32"], "i32", word=word)
    (level,) = f.parameters
    with f.if_(level >= LEVELS):
        f.give(0)
    octave = Value(f, "ptr", "@octave").load("i16", (level & 7) << 1).to("i32")
    f.give(octave << (level >> 3) >> 15)
    return f


def _levels(word: str) -> Function:
    """The part of `table` that reads a description."""
    f = Function("coder_levels", ["ptr"], word=word)
    (d,) = f.parameters
    w = d.load("ptr", _RANGES)

    def bits(count: int) -> Value:
        return f.call("coder_bits", [d, count], "i32")

    mirrored, sparse, pairs, scale, order = map(bits, (1, 1, 1, 3, 2))
    start = f.variable()
    with f.if_(bits(1).equals(1)):
        start.set(bits(8))
    first, size = start.get(), f.call("coder_number", [d, 4], "i32")
    mask = pairs.equals(1).choose(15, 255)
    code, a, b, before = f.variable(), f.variable(), f.variable(), f.variable()
    i = f.variable()
    going = f.variable(1)
    with f.while_(lambda: (going.get() & (d.load("i32", _BAD) ^ 1)).differs(0)):
        a.set(b.get())
        b.set(i.get())
        with f.if_((sparse.equals(1).to("i32") & (i.get() > 1).to("i32")).differs(0)):
            b.set(((i.get() & 1) + 2) << ((i.get() >> 1) - 1))
        b.set(b.get().least(size))
        with f.if_(i.get().equals(0)):
            below = f.call("coder_number", [d, 0], "i32")
            code.set((f.constant(LEVELS - 1) >> scale) + 1 - below)
        with f.if_(i.get().differs(0)):
            code.set(code.get() + f.call("coder_difference", [d, order], "i32"))
        to = code.get().equals(0).choose(LEVELS, (code.get() - 1) << scale)
        far = b.get() - a.get()
        with f.for_(b.get() + 1, i.get().equals(0).choose(0, a.get() + 1)) as j:
            level = f.variable(to)
            with f.if_(far > 1):
                rise = (to - before.get()) * (j - a.get())
                level.set(before.get() + rise.signed_division(far))
            one = f.call("coder_weight", [level.get()], "i32")
            w.store(one, ((first + j) & mask) << 2)
            with f.if_(mirrored.equals(1)):
                w.store(one, ((first - j) & mask) << 2)
        before.set(to)
        going.set(b.get().differs(size).to("i32"))
        i.set(i.get() + 1)
    with f.if_(pairs.equals(1)):
        half = f.memory(64)
        f.move(half, w, 64)
        with f.for_(256) as j:
            product = half.load("i32", j >> 4 << 2) * half.load("i32", (j & 15) << 2)
            small = ((product.differs(0)).to("i32") & (product < 8192).to("i32")).equals(1)
            w.store(small.choose(1, product >> 13), j << 2)
    f.give()
    return f


def _table(word: str) -> Function:
    f = Function("coder_table", ["ptr"], word=word)
    (d,) = f.parameters
    w, symbols = d.load("ptr", _RANGES), d.load("ptr", _SYMBOLS)
    f.fill(w, 0, 4 * 256)
    described = f.call("coder_bits", [d, 1], "i32")
    with f.if_(described.equals(1)):
        f.call("coder_levels", [d])
    with f.if_(described.equals(0)), f.for_(256) as i:
        w.store(1, i << 2)
    total, count, most, largest = f.variable(), f.variable(), f.variable(), f.variable()
    with f.for_(256) as i:
        one = w.load("i32", i << 2)
        with f.if_(one.differs(0)):
            total.set(total.get() + one)
            count.set(count.get() + 1)
            with f.if_(one > largest.get()):
                largest.set(one)
                most.set(i)
    with f.if_(count.get().equals(0)):
        d.store(1, _BAD)
        f.give()
    slot = f.variable()
    with f.for_(256) as i:
        one = w.load("i32", i << 2)
        with f.if_((one.differs(0).to("i32") & i.differs(most.get()).to("i32")).differs(0)):
            share = one * (count.get().negated() + ONE) // total.get() + 1
            f.fill(symbols.at(slot.get()), i.to("i8"), share)
            w.store(share | slot.get() << 16, i << 2)
            slot.set(slot.get() + share)
    rest = slot.get().negated() + ONE
    f.fill(symbols.at(slot.get()), most.get().to("i8"), rest)
    w.store(rest | slot.get() << 16, most.get() << 2)
    f.give()
    return f


def _check_ends(f: Function, d: Value) -> None:
    with f.for_(LANES) as i:
        other = d.load("i32", (i << 2) + _X).differs(_LOW)
        d.store(d.load("i32", _BAD) | other.to("i32"), _BAD)


def _start(word: str) -> Function:
    f = Function("coder_start", ["ptr"], word=word)
    (d,) = f.parameters
    _check_ends(f, d)
    at = d.load("ptr", _WORD)
    with f.if_(d.load("ptr", _END).minus(at) < 4 * LANES):
        d.store(1, _BAD)
        f.give()
    f.move(d.at(_X), at, 4 * LANES)
    d.store(at.at(4 * LANES), _WORD)
    d.store(CHUNK, _LEFT)
    f.give()
    return f


def _some(word: str) -> Function:
    f = Function("coder_some", ["ptr", "ptr", "i32", "i32"], word=word)
    d, to, count, step = f.parameters
    with f.if_(d.load("i32", _LEFT).equals(0)):
        f.call("coder_start", [d])
    place = f.variable(to)
    with f.for_(count) as i:
        own = d.at((i << 2) + _X)
        x = f.variable(own.load("i32"))
        slot = x.get() & (ONE - 1)
        symbol = d.load("ptr", _SYMBOLS).load("i8", slot)
        row = d.load("ptr", _RANGES).load("i32", symbol.to("i32") << 2)
        x.set((row & 65535) * (x.get() >> _BITS) + slot - (row >> 16))
        with f.if_(x.get() < _LOW):
            at = d.load("ptr", _WORD)
            with f.if_(d.load("ptr", _END).minus(at) < 2):
                d.store(1, _BAD)
                f.give()
            x.set(x.get() << 16 | at.load("i16").to("i32"))
            d.store(at.at(2), _WORD)
        own.store(x.get())
        place.get().store(symbol)
        place.set(place.get().at(step))
    d.store(d.load("i32", _LEFT) - 1, _LEFT)
    f.give()
    return f


def _many() -> list[str]:
    """Whether a word is needed is not foreseeable: no branch asks for it."""
    out = [
        "define internal void @coder_many(ptr %d, ptr %to, i32 %rounds, i32 %step) noinline nounwind {",
        "entry:",
        f"  %pw = getelementptr i8, ptr %d, i32 {_WORD}",
        "  %w0 = load ptr, ptr %pw",
        f"  %ps = getelementptr i8, ptr %d, i32 {_SYMBOLS}",
        "  %symbols = load ptr, ptr %ps",
        f"  %pr = getelementptr i8, ptr %d, i32 {_RANGES}",
        "  %ranges = load ptr, ptr %pr",
        f"  %pl = getelementptr i8, ptr %d, i32 {_LEFT}",
        "  %left = load i32, ptr %pl",
        "  %less = sub i32 %left, %rounds",
        "  store i32 %less, ptr %pl",
    ]
    for i in range(LANES):
        out += [f"  %p{i} = getelementptr i8, ptr %d, i32 {_X + 4 * i}", f"  %b{i} = load i32, ptr %p{i}"]
    out += ["  br label %loop", "loop:", "  %n = phi i32 [ %rounds, %entry ], [ %fewer, %loop ]"]
    out += ["  %t0 = phi ptr [ %to, %entry ], [ %t8, %loop ]", "  %u0 = phi ptr [ %w0, %entry ], [ %u8, %loop ]"]
    out += [f"  %x{i} = phi i32 [ %b{i}, %entry ], [ %y{i}, %loop ]" for i in range(LANES)]
    for i in range(LANES):
        out += [
            f"  %slot{i} = and i32 %x{i}, {ONE - 1}",
            f"  %sp{i} = getelementptr i8, ptr %symbols, i32 %slot{i}",
            f"  %s{i} = load i8, ptr %sp{i}",
            f"  store i8 %s{i}, ptr %t{i}",
            f"  %t{i + 1} = getelementptr i8, ptr %t{i}, i32 %step",
            f"  %si{i} = zext i8 %s{i} to i32",
            f"  %rp{i} = getelementptr i32, ptr %ranges, i32 %si{i}",
            f"  %r{i} = load i32, ptr %rp{i}",
            f"  %f{i} = and i32 %r{i}, 65535",
            f"  %h{i} = lshr i32 %x{i}, {_BITS}",
            f"  %m{i} = mul i32 %f{i}, %h{i}",
            f"  %c{i} = lshr i32 %r{i}, 16",
            f"  %o{i} = sub i32 %slot{i}, %c{i}",
            f"  %z{i} = add i32 %m{i}, %o{i}",
            f"  %low{i} = icmp ult i32 %z{i}, {_LOW}",
            f"  %bit{i} = zext i1 %low{i} to i32",
            f"  %shift{i} = shl i32 %bit{i}, 4",
            f"  %up{i} = shl i32 %z{i}, %shift{i}",
            f"  %q{i} = load i16, ptr %u{i}, align 1",
            f"  %qw{i} = zext i16 %q{i} to i32",
            f"  %mask{i} = sub i32 0, %bit{i}",
            f"  %in{i} = and i32 %qw{i}, %mask{i}",
            f"  %y{i} = or i32 %up{i}, %in{i}",
            f"  %skip{i} = shl i32 %bit{i}, 1",
            f"  %u{i + 1} = getelementptr i8, ptr %u{i}, i32 %skip{i}",
        ]
    out += ["  %fewer = add i32 %n, -1", "  %more = icmp ne i32 %fewer, 0", "  br i1 %more, label %loop, label %out"]
    out += ["out:", f"  store ptr %u{LANES}, ptr %pw"]
    out += [f"  store i32 %y{i}, ptr %p{i}" for i in range(LANES)]
    return [*out, "  ret void", "}", ""]


def _run(word: str) -> Function:
    f = Function("coder_run", ["ptr", "ptr", "i32", "i32"], word=word)
    d, to, count, step = f.parameters
    left, place = f.variable(count), f.variable(to)
    with f.while_(lambda: (left.get().differs(0).to("i32") & (d.load("i32", _BAD) ^ 1)).differs(0)):
        fed = (d.load("ptr", _END).minus(d.load("ptr", _WORD)) // (2 * LANES)).to("i32")
        rounds = f.variable((left.get() // LANES).least(d.load("i32", _LEFT)).least(fed))
        with f.if_(rounds.get().equals(0)):
            symbols = (left.get() < LANES).choose(left.get(), LANES)
            f.call("coder_some", [d, place.get(), symbols, step])
            left.set(left.get() - symbols)
            place.set(place.get().at(_times(symbols, step, word)))
        with f.if_(rounds.get().differs(0)):
            f.call("coder_many", [d, place.get(), rounds.get(), step])
            left.set(left.get() - rounds.get() * LANES)
            place.set(place.get().at(_times(rounds.get() * LANES, step, word)))
    f.give()
    return f


def _times(a: Value, b: Value, word: str) -> Value:
    return a.to(word) * b.to(word)


def _bytes_at(word: str) -> Function:
    f = Function("coder_bytes_at", ["ptr", "i64", "i64"], "ptr", word=word)
    d, at, size = f.parameters
    beyond = (at + size) > d.load("i32", _BYTES).to("i64")
    with f.if_((d.load("i32", _BAD) | beyond.to("i32")).differs(0)):
        d.store(1, _BAD)
        f.give(Value(f, "ptr", "null"))
    f.give(d.load("ptr", _OUT).at(at.to(word)))
    return f


def _target(word: str) -> Function:
    f = Function("coder_target", ["ptr", "i64", "i64"], "ptr", word=word)
    d, first, size = f.parameters
    at = d.load("i32", _PLACE).to("i64") * BLOCK + first
    d.store(((at + size + (BLOCK - 1)) // BLOCK).to("i32"), _NEXT)
    f.give(f.call("coder_bytes_at", [d, at, size], "ptr"))
    return f


def _taken(word: str) -> Function:
    """`from` is the offset of the decoder's variable."""
    f = Function("coder_taken", ["ptr", "i32", "i64"], "ptr", word=word)
    d, cursor, size = f.parameters
    at = d.load("i32", cursor)
    found = f.call("coder_bytes_at", [d, at.to("i64"), size], "ptr")
    d.store(at + size.to("i32"), cursor)
    f.give(found)
    return f


def _coded(word: str) -> Function:
    f = Function("coder_coded", ["ptr"], word=word)
    (d,) = f.parameters
    form = f.call("coder_bits", [d, 2], "i32")
    newest = f.variable(d.load("i32", _NEWEST))
    with f.if_(form.equals(0)):
        newest.set(newest.get() - f.call("coder_bits", [d, 2], "i32"))
    with f.if_(form.differs(0)):
        newest.set(newest.get() + 1)
        d.store(newest.get(), _NEWEST)
    shape = d.at((newest.get() & (_SHAPES - 1)) * _SHAPE_BYTES + _SHAPE)
    with f.if_(form.differs(0)):
        # first, run, step: the forms that have each, the order of its code, what it is otherwise
        for i, (least, order, other) in enumerate(((2, 1, 0), (1, 6, 0), (2, 1, 1))):
            value = f.variable(other)
            with f.if_(form >= least):
                value.set(f.call("coder_number", [d, order], "i32"))
            shape.store(value.get(), 4 * i)
    first, run, step = (shape.load("i32", 4 * i) for i in range(3))
    with f.if_(run.equals(0)):
        d.store(1, _BAD)
        f.give()
    size = step.to("i64") * (run - 1).to("i64") + 1
    to = f.call("coder_target", [d, first.to("i64"), size], "ptr")
    f.call("coder_run", [d, to, run, step])
    f.give()
    return f


def _each(
    name: str, kind: str, size: int, change: Callable[[Value, Value], tuple[Value, Value]], word: str
) -> Function:
    """A function (to, count) that replaces each word by `change(word, state)`, which also gives the next state."""
    f = Function(name, ["ptr", "i32"], word=word)
    to, count = f.parameters
    place, state = f.variable(to), f.variable(0, kind)
    with f.for_(count):
        value, after = change(place.get().load(kind), state.get())
        state.set(after)
        place.get().store(value)
        place.set(place.get().at(size))
    f.give()
    return f


def _zigzag32(word: str) -> Function:
    return _each("coder_zigzag32", "i32", 4, lambda n, state: (n >> 1 ^ (n & 1).negated(), state), word)


def _sum16(word: str) -> Function:
    return _each("coder_sum16", "i16", 2, lambda n, total: (total + n, total + n), word)


def _sum32(word: str) -> Function:
    return _each("coder_sum32", "i32", 4, lambda n, total: (total + n, total + n), word)


def _palette(word: str) -> Function:
    f = Function("coder_palette", ["ptr", "i32", "ptr", "i32", "ptr"], word=word)
    to, count, colours, size, numbers = f.parameters
    with f.for_(count) as i:
        number = numbers.load("i8", i).to("i32")
        number = (number < size).choose(number, 0)
        to.store(colours.load("i32", number << 2), i.to(word) << 2)
    f.give()
    return f


def _spread(word: str) -> Function:
    f = Function("coder_spread", ["ptr", "i32", "i32", "ptr"], word=word)
    to, count, unit, marks = f.parameters

    def is_set(i: Value) -> Value:
        return marks.load("i8", i >> 3).to("i32") >> (i & 7) & 1

    kept = f.variable()
    with f.for_(count) as i:
        kept.set(kept.get() + is_set(i))
    wide = unit.to(word)
    source = f.variable(to.at((count - kept.get()).to(word) * wide))
    place = f.variable(to)
    with f.for_(count) as i:
        mark = is_set(i)
        with f.if_(mark.equals(1)):
            f.move(place.get(), source.get(), unit)
            source.set(source.get().at(wide))
        with f.if_(mark.equals(0)):
            f.fill(place.get(), 0, unit)
        place.set(place.get().at(wide))
    f.give()
    return f


_MAKERS: dict[int, Callable[[str], Function]] = {
    ZIGZAG32: _zigzag32,
    SUM16: _sum16,
    SUM32: _sum32,
    PALETTE: _palette,
    SPREAD: _spread,
}


def _after(word: str, operations: Collection[int]) -> Function:
    f = Function("coder_after", ["ptr", "i32"], word=word)
    d, op = f.parameters
    with f.if_(op.equals(AID)):
        d.store(d.load("i32", _AID), _COLOURS)
        d.store(d.load("i32", _PLACE) * BLOCK, _AID)
        f.give()
    with f.if_(f.call("coder_bits", [d, 1], "i32").equals(1)):
        d.store(f.call("coder_number", [d, 6], "i32"), _COUNT)
    count = d.load("i32", _COUNT)
    wide = count.to("i64")
    unit = f.variable(op.equals(SUM16).choose(2, 4))
    if SPREAD in operations:
        with f.if_(op.equals(SPREAD)):
            unit.set(f.call("coder_number", [d, 4], "i32"))
    to = f.call("coder_target", [d, f.constant(0, "i64"), wide * unit.get().to("i64")], "ptr")

    def taken(cursor: int, size: Value) -> Value:
        return f.call("coder_taken", [d, cursor, size], "ptr")

    @contextmanager
    def if_good() -> Iterator[None]:
        with f.if_(d.load("i32", _BAD).equals(0)):
            yield

    def copy() -> None:
        source = taken(_AID, wide << 2)
        with if_good():
            f.move(to, source, count << 2)

    def palette() -> None:
        size = f.call("coder_number", [d, 1], "i32") + 1
        colours = taken(_COLOURS, size.to("i64") << 2)
        numbers = taken(_AID, wide)
        with if_good():
            f.call("coder_palette", [to, count, colours, size, numbers])

    def spread() -> None:
        marks = taken(_AID, (wide + 7) >> 3)
        with if_good():
            f.call("coder_spread", [to, count, unit.get(), marks])

    def each(name: str) -> Callable[[], None]:
        def change() -> None:
            with if_good():
                f.call(f"coder_{name}", [to, count])

        return change

    others = {ZIGZAG32: each("zigzag32"), SUM16: each("sum16"), SUM32: each("sum32")}
    for number, write in ({COPY: copy, PALETTE: palette, SPREAD: spread} | others).items():
        if number in operations:
            with f.if_(op.equals(number)):
                write()
                f.give()
    d.store(1, _BAD)
    f.give()
    return f


def _decode(word: str) -> Function:
    f = Function(ENTRY, ["ptr", "i32", "i32", "ptr", "i32", "ptr"], "i32", word=word)
    data, meta, size, out, out_bytes, scratch = f.parameters
    d = f.memory(_SIZE)
    f.fill(d, 0, _SIZE)
    f.fill(out, 0, out_bytes)
    starts: Sequence[tuple[int, Value | int]] = (
        (_META, data),
        (_BITS_END, meta << 3),
        (_WORD, data.at(meta)),
        (_END, data.at(size)),
        (_OUT, out),
        (_BYTES, out_bytes),
        (_RANGES, scratch),
        (_SYMBOLS, scratch.at(4 * 256)),
        *((_X + 4 * i, _LOW) for i in range(LANES)),
    )
    for offset, value in starts:
        d.store(value, offset)
    going = f.variable(1)
    with f.while_(lambda: (going.get() & (d.load("i32", _BAD) ^ 1)).differs(0)):
        is_coded = f.call("coder_bits", [d, 1], "i32")
        op = f.variable(END)
        with f.if_(is_coded.equals(0)):
            op.set(f.call("coder_bits", [d, 4], "i32"))
            with f.if_(op.get().equals(END)):
                going.set(0)
            with f.if_(op.get().equals(TABLE)):
                f.call("coder_table", [d])
        with f.if_((is_coded | (op.get() > TABLE).to("i32")).differs(0)):
            place = f.variable(d.load("i32", _NEXT))
            with f.if_(f.call("coder_bits", [d, 1], "i32").equals(1)):
                moved = f.call("coder_bits", [d, 1], "i32")
                with f.if_(moved.equals(0)):
                    place.set(d.load("i32", _PLACE))
                with f.if_(moved.equals(1)):
                    place.set(place.get() + f.call("coder_difference", [d, 4], "i32"))
            d.store(place.get(), _PLACE)
            with f.if_(is_coded.equals(1)):
                f.call("coder_coded", [d])
            with f.if_(is_coded.equals(0)):
                f.call("coder_after", [d, op.get()])
    _check_ends(f, d)
    complete = d.load("ptr", _WORD).minus(d.load("ptr", _END)).equals(0).to("i32")
    f.give(complete & (d.load("i32", _BAD) ^ 1))
    return f
