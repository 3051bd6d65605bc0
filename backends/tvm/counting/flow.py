"""Counting by following control flow: which blocks of a function run how often, and how many instructions they hold.

Loops of kernels count with numbers that the code itself sets, so what decides on branches can be computed without the
data. An instruction set's reader (`thumb.py`, `riscv.py`, `aarch64.py`) turns text into `Instruction`s: what they do to
registers and stack slots, as far as that is integer arithmetic, and where they branch. Of these only what branches
depend on is kept (a backward slice, by liveness), and the slice is executed.

A loop that is entered again with the same numbers in what it reads takes the same steps: its count and what it leaves
in registers are remembered, so that a nest of loops costs about the sum of its extents, not their product. Where what
changes from one time to the next decides on nothing but the end of the loop, only that is computed; and where a loop
with others in it (the places of a row) has taken as long several times, it is taken to go on so until shortly before
its end.

Where a branch depends on data it is not known where it goes. A few instructions that are jumped over count half (a
selection), a loop is left; otherwise control falls through, which is where LLVM places what it takes for likely.
`Counted.unknown` says how many instructions follow such a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Value = Any
"""An int, a name (a function's address), what a comparison left, or None: not known."""
Function = Callable[..., Value]

MOST_STEPS = 400_000
"""Blocks that are followed before counting is given up."""
RARE = "irc_soft_"
"""Functions that are called about once in ten thousand elements begin so."""
_ALIKE = 4  # times that a loop has to take as long before loops inside are taken to go on so
_LAST = 5  # times that are followed all the same
_SKIPPED = 6  # instructions of a block that counts half where nobody knows whether it is jumped over


@dataclass(frozen=True)
class Op:
    """`target` = `compute`(`reads`...), None where that is not known. Known operands are bound into `compute`."""

    target: str
    compute: Function | None = None
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Branch:
    """To `label` (None: back to the caller) where `holds`(`reads`...) is true; always where there is no condition."""

    label: str | None
    holds: Function | None = None
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Call:
    """Of the function `name`, or of the one whose name is in the register `name`. Registers `reads` hold arguments,
    those of `clobbers` hold nothing afterwards."""

    name: str
    register: bool
    reads: tuple[str, ...]
    clobbers: tuple[str, ...]
    ends: bool = False
    slot: int = 0


@dataclass(frozen=True)
class Instruction:
    """One instruction. `ops` in order, before `branch`."""

    ops: tuple[Op, ...] = ()
    branch: Branch | None = None
    call: Call | None = None


@dataclass
class _Block:
    count: int = 0
    steps: list[Op | Call] = field(default_factory=list)
    branch: Branch | None = None
    target: int | None = None  # block that the branch goes to; None: to the caller
    follows: int | None = None  # block that lies behind; None: the function ends here
    needed: frozenset[str] = frozenset()  # what decides on branches from here on
    skip: bool = False  # the branch jumps over a few instructions
    leaves: bool = False  # the branch leaves the innermost loop, or goes round a call that is rare

    @property
    def successors(self) -> list[int]:
        found = [self.target] if self.branch is not None and self.target is not None else []
        conditional = self.branch is None or self.branch.holds is not None
        return [n for n in (*found, self.follows if conditional else None) if n is not None]


@dataclass
class _Loop:
    header: int
    blocks: set[int]
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    known: dict[tuple[Value, ...], tuple[int | None, dict[str, Value], float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Counted:
    """Instructions, and how many of them lie behind branches of which nobody knows where they go."""

    instructions: float
    unknown: float


class GaveUp(Exception):
    """The control flow cannot be followed."""


class Flow:
    """The control flow of one function."""

    def __init__(self, lines: Sequence[str | Instruction]) -> None:
        """`lines`: instructions, and labels as text, in order."""
        self.blocks = _blocks(lines)
        _drop_unknown(self.blocks)
        _slice(self.blocks)
        self.loops = _loops(self.blocks)
        self.needed = tuple(sorted(self.blocks[0].needed)) if self.blocks else ()


def _blocks(lines: Sequence[str | Instruction]) -> list[_Block]:
    blocks = [_Block()]
    at: dict[str, int] = {}
    for line in lines:
        current = blocks[-1]
        if isinstance(line, str):
            if current.count or current.branch:
                blocks.append(_Block())
            at[line] = len(blocks) - 1
            continue
        current.count += 1
        current.steps += line.ops
        if line.call is not None:
            current.steps.append(line.call)
        ends = line.call is not None and line.call.ends
        if line.branch is not None or ends:
            current.branch = line.branch or Branch(None)
            blocks.append(_Block())
    for number, block in enumerate(blocks):
        block.follows = number + 1 if number + 1 < len(blocks) else None
        if block.branch is not None and block.branch.label is not None:
            if block.branch.label not in at:
                raise GaveUp(f"a branch to {block.branch.label}")
            block.target = at[block.branch.label]
    for number, block in enumerate(blocks):
        if block.branch is None or block.branch.holds is None or block.target is None:
            continue
        between = blocks[number + 1 : block.target]
        plain = all(b.branch is None and not any(isinstance(s, Call) for s in b.steps) for b in between)
        block.skip = bool(between) and plain and sum(b.count for b in between) <= _SKIPPED
    return blocks


def _drop_unknown(blocks: list[_Block]) -> None:
    """Takes the operands from what is never known, on no way that leads there: what depends on data."""
    unknown: dict[int, set[str]] = {0: set()}
    todo = [0]
    while todo:
        number = todo.pop()
        after = set(unknown[number])
        for step in blocks[number].steps:
            _after(step, after)
        for s in blocks[number].successors:
            both = after if s not in unknown else unknown[s] & after
            if s not in unknown or both != unknown[s]:
                unknown[s] = set(both)
                todo.append(s)
    for number, block in enumerate(blocks):
        now = unknown.get(number, set())
        kept: list[Op | Call] = []
        for step in block.steps:
            kept.append(Op(step.target) if isinstance(step, Op) and not now.isdisjoint(step.reads) else step)
            _after(step, now)
        block.steps = kept
        if block.branch is not None and not now.isdisjoint(block.branch.reads):
            block.branch = Branch(block.branch.label, lambda: None)


def _after(step: Op | Call, unknown: set[str]) -> None:
    """What is not known before a step -> behind it."""
    if isinstance(step, Call):
        unknown.update(step.clobbers)
    elif step.compute is None or not unknown.isdisjoint(step.reads):
        unknown.add(step.target)
    else:
        unknown.discard(step.target)


def _slice(blocks: list[_Block]) -> None:
    """Keeps of each block what decides on branches."""
    needed: list[set[str]] = [set() for _ in blocks]
    changed = True
    while changed:
        changed = False
        for number in range(len(blocks) - 1, -1, -1):
            block = blocks[number]
            live = set().union(*(needed[s] for s in block.successors))
            if block.branch is not None:
                live.update(block.branch.reads)
            for step in reversed(block.steps):
                _before(step, live)
            if live != needed[number]:
                needed[number] = live
                changed = True
    for number, block in enumerate(blocks):
        live = set().union(*(needed[s] for s in block.successors))
        if block.branch is not None:
            live.update(block.branch.reads)
        kept: list[Op | Call] = []
        for step in reversed(block.steps):
            if isinstance(step, Call) or step.target in live:
                kept.append(step)
            _before(step, live)
        block.steps = kept[::-1]
        block.needed = frozenset(needed[number])


def _before(step: Op | Call, live: set[str]) -> None:
    """`live` behind a step -> before it."""
    if isinstance(step, Op):
        if step.target in live:
            live.discard(step.target)
            live.update(step.reads)
        return
    live.difference_update(step.clobbers)
    live.update(step.reads)
    if step.register:
        live.add(step.name)


def _loops(blocks: list[_Block]) -> dict[int, _Loop]:
    """Natural loops by header (Aho, Sethi, Ullman, 10.4). Raises GaveUp for a loop with two entries."""
    order, back = _depth_first(blocks)
    before: dict[int, list[int]] = {n: [] for n in order}
    for n in order:
        for s in blocks[n].successors:
            before[s].append(n)
    loops: dict[int, _Loop] = {}
    for tail, header in back:
        loop = loops.setdefault(header, _Loop(header, {header}))
        todo = [tail]
        while todo:
            n = todo.pop()
            if n in loop.blocks:
                continue
            if n == 0:
                raise GaveUp("a loop with two entries")
            loop.blocks.add(n)
            todo += before[n]
    for loop in loops.values():
        reads: set[str] = set()
        writes: set[str] = set()
        for n in loop.blocks:
            for step in blocks[n].steps:
                reads.update(step.reads)
                if isinstance(step, Op):
                    writes.add(step.target)
                else:
                    writes.update(step.clobbers)
                    reads.update({step.name} if step.register else ())
            branch = blocks[n].branch
            if branch is not None:
                reads.update(branch.reads)
        loop.reads = tuple(sorted(reads & blocks[loop.header].needed))
        loop.writes = tuple(sorted(writes))
    for loop in sorted(loops.values(), key=lambda found: -len(found.blocks)):  # the innermost last
        for n in loop.blocks:
            block = blocks[n]
            block.leaves = block.target not in loop.blocks and block.follows in loop.blocks
    rare = _rare(blocks)
    for block in blocks:
        if block.target is not None and (block.target in rare) is not (block.follows in rare):
            block.leaves, block.skip = block.follows in rare, False
    return loops


def _rare(blocks: list[_Block]) -> set[int]:
    """Blocks from which every way leads to a call that is rare."""
    found = {n for n, b in enumerate(blocks) if any(isinstance(s, Call) and s.name.startswith(RARE) for s in b.steps)}
    more = True
    while more:
        ways = ((n, b.successors) for n, b in enumerate(blocks) if n not in found)
        new = {n for n, following in ways if following and found.issuperset(following)}
        found |= new
        more = bool(new)
    return found


def _depth_first(blocks: list[_Block]) -> tuple[list[int], list[tuple[int, int]]]:
    """Blocks that are reached, and edges back to a block that is still open."""
    state = {0: 1}
    order, back = [0], []
    stack = [(0, iter(blocks[0].successors))]
    while stack:
        n, following = stack[-1]
        s = next(following, None)
        if s is None:
            state[n] = 2
            stack.pop()
        elif s not in state:
            state[s] = 1
            order.append(s)
            stack.append((s, iter(blocks[s].successors)))
        elif state[s] == 1:
            back.append((n, s))
    return order, back


class Counter:
    """Counts runs of functions. `flows`: by name; `outside`: instructions of functions that are not among them, by
    name and arguments."""

    def __init__(
        self,
        flows: Mapping[str, Flow],
        arguments: Callable[[Call, Mapping[str, Value]], dict[str, Value]],
        outside: Callable[[str, Mapping[str, Value]], float | None],
        bits: int = 64,
    ) -> None:
        self.mask = (1 << bits) - 1
        self.flows, self.outside, self.arguments = flows, outside, arguments
        self.steps = 0.0
        self._known: dict[tuple[Value, ...], Counted] = {}
        self._open: set[str] = set()

    def run(self, name: str, values: Mapping[str, Value]) -> Counted:
        """One call of `name` with what is in registers and stack slots. Raises GaveUp."""
        flow = self.flows.get(name)
        if flow is None:
            cost = self.outside(name, values)
            if cost is None:
                raise GaveUp(f"a call of {name}")
            return Counted(cost, cost)
        key = (name, *(values.get(v) for v in flow.needed))
        if key not in self._known:
            if name in self._open:
                raise GaveUp(f"{name} calls itself")
            self._open.add(name)
            env = {v: values[v] for v in flow.needed if v in values}
            _, count, unknown = self._walk(flow, 0, None, env)
            self._open.discard(name)
            self._known[key] = Counted(count, unknown)
        return self._known[key]

    def _walk(
        self, flow: Flow, start: int, loop: _Loop | None, env: dict[str, Value], trace: list[_Seen] | None = None
    ) -> tuple[int | None, float, float]:
        """From `start` to where control leaves `loop` or comes back to its header. `trace` gets what was done."""
        at: int | None = start
        count = unknown = 0.0
        while at is not None:
            inner = flow.loops.get(at)
            if inner is not None and inner is not loop:
                known = {v: env.get(v) for v in inner.reads} if trace is not None else {}
                at, more, guessed = self._repeat(flow, inner, env)
                if trace is not None:
                    trace.append(_Seen(inner, known, left={v: env[v] for v in inner.writes if v in env}))
            else:
                at, more, guessed = self._block(flow, at, env, trace)
            count, unknown = count + more, unknown + guessed
            if loop is not None and (at == loop.header or at not in loop.blocks):
                break
        return at, count, unknown

    def _repeat(self, flow: Flow, loop: _Loop, env: dict[str, Value]) -> tuple[int | None, float, float]:
        key = tuple(env.get(v) for v in loop.reads)
        found = loop.known.get(key)
        if found is None:
            own = dict(zip(loop.reads, key, strict=True))
            before = dict(own)
            at, count, unknown = self._walk(flow, loop.header, loop, own)
            times, same, last, earlier = 1, 0, 0.0, list[_Seen]()
            while at == loop.header:
                looked = times < 2 * _ALIKE or times % 8 < 2  # looking takes longer than going on
                start, trace = dict(own), list[_Seen]()
                at, more, guessed = self._walk(flow, loop.header, loop, own, trace if looked else None)
                count, unknown, times = count + more, unknown + guessed, times + 1
                same, last = same + 1 if more == last else 0, more
                if at == loop.header and looked:
                    alike = earlier if same >= _ALIKE and _same_way(earlier, trace) else None
                    again = self._alike(loop, start, own, trace, alike)
                    count, unknown = count + again * more, unknown + again * guessed
                    same = 0 if again else same
                earlier = trace
            left = {v: own[v] for v in loop.writes if v in own and (v not in before or own[v] != before[v])}
            found = loop.known[key] = (at, left, count, unknown)
        env.update(found[1])
        return found[0], found[2], found[3]

    def _alike(
        self,
        loop: _Loop,
        start: Mapping[str, Value],
        env: dict[str, Value],
        trace: Sequence[_Seen],
        earlier: Sequence[_Seen] | None,
    ) -> int:
        """How many more times the loop goes the way of `trace`, which began with `start` and ended with `env`; `env`
        becomes what is left then. Only what changes from one time to the next is computed. `earlier`: the time before,
        where loops inside have taken as long several times: they go on to, and leave numbers that grow as they did; but
        not the last few times, which may meet the edge of an image."""
        moving = {v for v in loop.reads if start.get(v) != env.get(v)}
        steps, guesses = _changing(trace, moving, loop.reads, None), False
        if not steps and earlier is not None:
            moving = {v for v in loop.reads if start.get(v) != env.get(v)}
            steps, guesses = _changing(trace, moving, loop.reads, earlier), True
        if not steps:
            return 0
        states = [{v: env.get(v) for v in moving}]
        while self.steps <= MOST_STEPS:
            now = dict(states[-1])
            for step in steps:
                if not self._again(step, now, len(states)):
                    times = max(0, len(states) - 1 - (_LAST if guesses else 0))
                    env.update(states[times])
                    return times
            states.append({v: now.get(v) for v in moving})
            self.steps += len(steps) / 8  # a block takes about as long as eight of these
        raise GaveUp("too many steps")

    def _again(self, step: _Step, now: dict[str, Value], times: int) -> bool:
        """Does a step once more; False where it is a branch that goes another way."""
        seen, reads = step.seen, step.changing
        what = seen.what
        if isinstance(what, _Loop):
            for v, value in seen.left.items():
                now[v] = (value + times * step.growth[v]) & self.mask if v in step.growth else value
            return True
        if isinstance(what, Call):
            now.update(dict.fromkeys(what.clobbers))
            return True
        values = [now.get(v) if v in reads else seen.known.get(v) for v in what.reads]
        compute = what.compute if isinstance(what, Op) else what.holds
        computed = None if compute is None or any(v is None for v in values) else compute(*values)
        if isinstance(what, Op):
            now[what.target] = computed
            return True
        return computed is not None and bool(computed) is seen.taken

    def _block(
        self, flow: Flow, number: int, env: dict[str, Value], trace: list[_Seen] | None
    ) -> tuple[int | None, float, float]:
        block = flow.blocks[number]
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise GaveUp("too many steps")
        count, unknown = float(block.count), 0.0
        for step in block.steps:
            if trace is not None:
                trace.append(_Seen(step, {v: env.get(v) for v in step.reads}))
            if isinstance(step, Op):
                env[step.target] = _computed(step.compute, step.reads, env)
                continue
            called = self._call(step, env)
            count, unknown = count + called.instructions, unknown + called.unknown
            env.update(dict.fromkeys(step.clobbers))
        branch = block.branch
        if branch is None:
            return block.follows, count, unknown
        if branch.holds is None:
            return block.target, count, unknown
        known = {v: env.get(v) for v in branch.reads}
        taken = _computed(branch.holds, branch.reads, env)
        if trace is not None:
            trace.append(_Seen(branch, known, taken))
        if taken is None and block.skip:
            assert block.target is not None
            between = flow.blocks[number + 1 : block.target]
            for b in between:
                env.update(dict.fromkeys(s.target for s in b.steps if isinstance(s, Op)))
            half = sum(b.count for b in between) / 2
            return block.target, count + half, unknown + half
        if taken is None:
            taken = block.leaves
            unknown += block.count
        return block.target if taken else block.follows, count, unknown

    def _call(self, call: Call, env: Mapping[str, Value]) -> Counted:
        name = env.get(call.name) if call.register else call.name
        if not isinstance(name, str):
            raise GaveUp("a call of an unknown function")
        return self.run(name, self.arguments(call, env))


@dataclass(frozen=True)
class _Seen:
    """A step, loop or branch that control went through, what it read, whether the branch was taken, and what the loop
    left."""

    what: Op | Call | Branch | _Loop
    known: Mapping[str, Value]
    taken: bool | None = None
    left: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class _Step:
    """A step that is different every time: operands that change, and by how much the results of a loop grow."""

    seen: _Seen
    changing: frozenset[str]
    growth: Mapping[str, int] = field(default_factory=dict)


def _same_way(a: Sequence[_Seen], b: Sequence[_Seen]) -> bool:
    return len(a) == len(b) and all(x.what is y.what and x.taken is y.taken for x, y in zip(a, b, strict=True))


def _changing(
    trace: Sequence[_Seen], moving: set[str], reads: Sequence[str], earlier: Sequence[_Seen] | None
) -> list[_Step]:
    """The steps and branches of `trace` whose operands change from one time to the next; `moving`, what changes over
    the loop, grows where more does. Nothing where, without `earlier`, a call or a loop depends on what changes, or no
    branch does (then only data end the loop)."""
    while True:
        changes, steps, ends = set(moving), list[_Step](), False
        for index, seen in enumerate(trace):
            what = seen.what
            touched = frozenset(changes.intersection(what.reads))
            if isinstance(what, Call):
                if earlier is None and (touched or changes.intersection(what.clobbers)):
                    return []
                changes.difference_update(what.clobbers)
                steps.append(_Step(seen, touched))
            elif isinstance(what, _Loop):
                growth = _growth(seen, earlier[index]) if earlier is not None else None
                if growth is None and (touched or changes.intersection(what.writes)):
                    return []
                if growth is not None:
                    changes = changes.difference(seen.left) | set(growth)
                    steps.append(_Step(seen, touched, growth))
            elif isinstance(what, Branch):
                if touched and seen.taken is None:
                    return []
                ends = ends or bool(touched)
                steps += [_Step(seen, touched)] if touched else []
            elif touched or what.target in changes:
                (changes.add if touched else changes.discard)(what.target)
                steps.append(_Step(seen, touched))
        more = changes.intersection(reads) - moving
        if not more:
            return steps if ends else []
        moving |= more


def _growth(seen: _Seen, before: _Seen) -> dict[str, int]:
    """By how much what a loop leaves grew since the time before."""
    both = ((v, seen.left[v], before.left.get(v)) for v in seen.left)
    return {v: a - b for v, a, b in both if isinstance(a, int) and isinstance(b, int) and a != b}


def _computed(compute: Function | None, reads: Sequence[str], env: Mapping[str, Value]) -> Value:
    if compute is None:
        return None
    values = [env.get(v) for v in reads]
    return None if None in values else compute(*values)
