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

_SOFT = ("mul", "add", "sub", "div", "i2f", "float", "")
_SOFT_COSTS = {
    "thumb2": (30, 57, 65, 148, 10, 10, 25),
    "thumb1": (115, 64, 64, 409, 45, 45, 30),
    "riscv": (105, 70, 75, 350, 45, 45, 22),
}
"""Instructions of float arithmetic in libgcc, as QEMU counts them on average in Softmax and requantizations."""
_MATH = 90.0
"""Of a function of libm."""

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
    return _counted(functions(assembly), target, *found, {name: given}).get(name)


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
    return _counted(functions(assembly), target, *found, calls)


def _counted(
    texts: Mapping[str, Text],
    target: Target,
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
    counter = Counter(flows, arguments, partial(_cost, target), 8 * word)
    for name in calls.keys() & flows:
        with suppress(GaveUp):
            counts[name] = round(counter.run(name, calls[name]).instructions)
    return counts


def _slot(depth: int, index: int, word: int) -> str:
    return f"slot{depth - word * index}"


def _cost(target: Target, name: str, values: Mapping[str, Value]) -> float | None:
    """Of a function that is not in the text."""
    if name.startswith(KERNEL):  # one that could not be followed
        return None
    arm = target.arch == "arm32"
    if "mem" in name:  # by words on Arm, by bytes in picolibc
        eabi = name.startswith(("__aeabi_memset", "__aeabi_memclr"))  # the size before the byte, or no byte
        size = values.get("r1" if eabi else "r2" if arm else "a2")
        return 20 + (size / 3 if arm else size) if isinstance(size, int) else 40.0
    if not name.startswith("__"):
        return _MATH
    costs = _SOFT_COSTS["riscv" if not arm else "thumb1" if "v6m" in target.triple else "thumb2"]
    return next(float(cost) for part, cost in zip(_SOFT, costs, strict=True) if part in name)
