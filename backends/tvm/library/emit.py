"""TIR functions and the order of their calls -> one object with one entry and no other global symbol."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from irc.backends.tvm.library.lower import Lowered, finish
from irc.backends.tvm.slim import object_from_ll, slim_ll, tightened
from irc.ir.types import Array
from irc.targets.target import Target

ALIGNMENT = 64


@dataclass(frozen=True)
class Ref:
    """An argument: number `index` of the inputs, outputs or constants."""

    space: Literal["input", "output", "constant"]
    index: int


@dataclass(frozen=True)
class Call:
    """A call of a function. Its own scratch parameters follow `args` and are placed by `entry`."""

    function: Lowered
    args: tuple[Ref, ...]


@dataclass(frozen=True)
class LibraryKernel:
    """A region as calls of TIR functions. `inputs` and `outputs`: dtype and shape of each."""

    calls: tuple[Call, ...]
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, tuple[int, ...]], ...]
    constants: tuple[Array, ...] = ()


def scratch_of(kernel: LibraryKernel) -> int:
    """Bytes of scratch memory: the largest need of one call."""
    return max((_padded(c.function.scratch) for c in kernel.calls), default=0)


def _padded(sizes: Sequence[int]) -> int:
    return sum(-(-s // ALIGNMENT) * ALIGNMENT for s in sizes)


def object_text(kernel: LibraryKernel, target: Target, symbol: str) -> str:
    """LLVM IR text with one entry `void symbol(inputs..., outputs..., scratch, int32 part, int32 parts)`.

    Part 0 does all the work; the two are missing where the target has no threads. Functions of the region are internal
    to the text.
    """
    text = _code(kernel, target)
    head, flag = _split_flag(text)
    head = re.sub(r"^define (?!internal|weak)", "define internal ", head, flags=re.M)
    return "\n".join([head, *_constants(kernel.constants), "", *_entry(kernel, symbol, target), "", flag])


def object_bytes(kernel: LibraryKernel, target: Target, symbol: str) -> bytes:
    text = object_text(kernel, target, symbol)
    return tightened(text, target).encode() if target.linking == "module" else object_from_ll(text)


def _code(kernel: LibraryKernel, target: Target) -> str:
    import tvm

    from irc.backends.tvm.codegen import llvm_target

    made = llvm_target(target)
    functions = {c.function.name: c.function for c in kernel.calls}
    built = tvm.get_global_func("target.build.llvm")(finish(list(functions.values()), made), made)
    return slim_ll(str(built.inspect_source("ll")))


def _split_flag(text: str) -> tuple[str, str]:
    """The metadata has to stay last."""
    at = text.rindex("!llvm.module.flags")
    return text[:at].rstrip(), text[at:]


def _constants(arrays: Sequence[Array]) -> list[str]:
    lines = []
    for i, array in enumerate(arrays):
        data = array.tobytes()
        escaped = "".join(f"\\{b:02x}" for b in data)
        lines.append(
            f'@constant.{i} = internal unnamed_addr constant [{len(data)} x i8] c"{escaped}", align {ALIGNMENT}'
        )
    return lines


def _entry(kernel: LibraryKernel, symbol: str, target: Target) -> list[str]:
    inputs = [f"%in{i}" for i in range(len(kernel.inputs))]
    outputs = [f"%out{i}" for i in range(len(kernel.outputs))]
    parameters = [f"ptr {p}" for p in (*inputs, *outputs, "%scratch")]
    if target.threads:
        parameters += ["i32 %part", "i32 %parts"]
    lines = [f"define void @{symbol}({', '.join(parameters)}) {{", "entry:"]
    if target.threads:
        lines += ["  %mine = icmp eq i32 %part, 0", "  br i1 %mine, label %work, label %done", "work:"]
    count = 0

    def scratch(offset: int) -> str:
        nonlocal count
        count += 1
        lines.append(f"  %s{count} = getelementptr i8, ptr %scratch, i{target.pointer_bits} {offset}")
        return f"%s{count}"

    for call in kernel.calls:
        args = [_operand(ref) for ref in call.args]
        offset = 0
        for size in call.function.scratch:
            args.append(scratch(offset))
            offset += -(-size // ALIGNMENT) * ALIGNMENT
        lines.append(f"  call void @{call.function.name}({', '.join(f'ptr {a}' for a in args)})")
    return [*lines, *(["  br label %done", "done:"] if target.threads else []), "  ret void", "}"]


def _operand(ref: Ref) -> str:
    if ref.space == "input":
        return f"%in{ref.index}"
    if ref.space == "output":
        return f"%out{ref.index}"
    return f"@constant.{ref.index}"
