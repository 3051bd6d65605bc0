"""Instructions of one run of a network, or of one kernel, from its assembly text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from irc.backends.tvm.counting import aarch64, riscv, thumb
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
    if target.arch == "aarch64":
        return aarch64.read, aarch64.ARGUMENTS, 8
    return None


def count_program(assembly: str, target: Target, name: str) -> int | None:
    """Instructions of a call of `name` ("NAME_run"); None where they cannot be told."""
    found = reader_of(target)
    if found is None:
        return None
    read, registers, word = found
    given = {r: 0x01000000 * (i + 1) for i, r in enumerate(registers)}
    return _counted(functions(assembly), read, registers, word, name, given)


def count_kernel(assembly: str, target: Target, symbol: str, pointers: int) -> int | None:
    """Instructions of a call of the kernel `symbol` that does all its work in one part. `pointers`: its arrays."""
    found = reader_of(target)
    if found is None:
        return None
    read, registers, word = found
    arguments: list[int] = [_ARRAYS + _APART * i for i in range(pointers)] + [0, 1]
    names = [*registers, *(_slot(0, i, word) for i in range(len(arguments)))]
    return _counted(functions(assembly), read, registers, word, symbol, dict(zip(names, arguments, strict=False)))


def _counted(
    texts: Mapping[str, Text], read: Reader, registers: Sequence[str], word: int, name: str, given: dict[str, Value]
) -> int | None:
    def arguments(call: Call, env: Mapping[str, Value]) -> dict[str, Value]:
        called = env.get(call.name) if call.register else call.name
        kernel = str(called).startswith(KERNEL)
        places = [*((r, r) for r in registers), *((_slot(0, i, word), _slot(call.slot, i, word)) for i in range(8))]
        found = {}
        for i, (inside, outside) in enumerate(places):
            value = env.get(outside)
            found[inside] = _ARRAYS + _APART * i if kernel and not isinstance(value, int) else value
        return found

    try:
        flows = {n: Flow(read(text)) for n, text in texts.items()}
        counter = Counter(flows, arguments, _cost, 8 * word)
        return round(counter.run(name, given).instructions) if name in flows else None
    except GaveUp:
        return None


def _slot(depth: int, index: int, word: int) -> str:
    return f"slot{depth - word * index}"


def _cost(name: str, values: Mapping[str, Value]) -> float:
    if not name.startswith("__") and not name.startswith("mem"):
        return _MATH
    return next(cost for part, cost in _OUTSIDE if part in name)
