"""Instructions of one run of a network, or of one kernel, from its assembly text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from irc.backends.tvm.counting import aarch64, riscv, thumb, x86
from irc.backends.tvm.counting.flow import Call, Counter, Flow, GaveUp, Instruction, Value
from irc.backends.tvm.counting.reading import Text, functions
from irc.targets.target import Target

KERNEL = "irc_k_"
"""Kernels' names begin so: what they are called with are addresses, and the numbers of a share."""

_ARRAYS = 0x10000000  # the first argument's address; the next ones lie far behind
_APART = 0x1000000

_OUTSIDE = (("mem", 40.0), ("div", 140.0), ("mul", 45.0), ("add", 60.0), ("sub", 65.0), ("", 30.0))
_MATH = 90.0
"""Instructions of functions that are not in the text, by a part of their names: soft floats of compilers' libraries
on random numbers, and libm. They are a small part of any network."""

Reader = Callable[[Text], list[str | Instruction]]


def reader_of(target: Target) -> tuple[Reader, tuple[str, ...], int] | None:
    """What reads the target's assembly, its argument registers, and bytes of an argument on the stack."""
    if target.object_format != "elf":
        return None
    if target.arch == "arm32":
        return thumb.read, thumb.ARGUMENTS, 4
    if target.arch in ("riscv32", "riscv64"):
        bits = target.pointer_bits
        return partial(riscv.read, bits=bits), riscv.ARGUMENTS, bits // 8
    if target.arch == "x86-64":
        return x86.read, x86.ARGUMENTS, 8
    if target.arch == "aarch64":
        return aarch64.read, aarch64.ARGUMENTS, 8
    return None


def count_program(assembly: str, target: Target, name: str) -> int | None:
    """Instructions of a call of `name` ("NAME_run"); None where they cannot be told."""
    found = reader_of(target)
    if found is None:
        return None
    given = {r: 0x01000000 * (i + 1) for i, r in enumerate(found[1])}
    return _counted(functions(assembly), *found, {name: given}).get(name)


def count_kernels(assembly: str, target: Target, pointers: Mapping[str, int]) -> dict[str, int]:
    """Instructions of a call of each kernel that does all its work in one part, where they can be told. `pointers`: how
    many arrays each has."""
    found = reader_of(target)
    if found is None:
        return {}
    calls = {}
    for symbol, count in pointers.items():
        arguments = [_ARRAYS + _APART * i for i in range(count)] + [0, 1]
        names = [*found[1], *(_slot(0, i, found[2]) for i in range(len(arguments)))]
        calls[symbol] = dict(zip(names, arguments, strict=False))
    return _counted(functions(assembly), *found, calls)


def _counted(
    texts: Mapping[str, Text],
    read: Reader,
    registers: Sequence[str],
    word: int,
    calls: Mapping[str, Mapping[str, Value]],
) -> dict[str, int]:
    """Instructions of calls of functions with what is in registers, by name."""

    def arguments(call: Call, env: Mapping[str, Value]) -> dict[str, Value]:
        called = env.get(call.name) if call.register else call.name
        kernel = str(called).startswith(KERNEL)
        places = [*((r, r) for r in registers), *((_slot(0, i, word), _slot(call.slot, i, word)) for i in range(8))]
        found = {}
        for i, (inside, outside) in enumerate(places):
            value = env.get(outside)
            found[inside] = _ARRAYS + _APART * i if kernel and not isinstance(value, int) else value
        return found

    flows, counts = {}, {}
    for name, text in texts.items():
        with suppress(GaveUp):
            flows[name] = Flow(read(text))
    counter = Counter(flows, arguments, _cost, 8 * word)
    for name in calls.keys() & flows:
        with suppress(GaveUp):
            counts[name] = round(counter.run(name, calls[name]).instructions)
    return counts


def _slot(depth: int, index: int, word: int) -> str:
    return f"slot{depth - word * index}"


def _cost(name: str, values: Mapping[str, Value]) -> float | None:
    if name.startswith(KERNEL):  # one that could not be followed
        return None
    if not name.startswith("__") and not name.startswith("mem"):
        return _MATH
    return next(cost for part, cost in _OUTSIDE if part in name)
