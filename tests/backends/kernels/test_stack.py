"""The stack of functions, from their assembly text."""

from __future__ import annotations

import pytest

from irc.backends.tvm.stack import ALLOWANCE, stack_use


def arm(name: str, *lines: str, public: bool = False) -> str:
    head = [f"\t.globl\t{name}"] if public else []
    body = "\n".join(f"\t{line}" if not line.endswith(":") else line for line in lines)
    return "\n".join([*head, f"\t.type\t{name},%function", f"{name}:", body, f"\t.size\t{name}, 4", ""])


def stack(*functions: str) -> tuple[int, tuple[str, ...]] | None:
    found = stack_use("\n".join(functions))
    return None if found is None else (found.nbytes, found.outside)


def test_frames_add_up_along_the_deepest_calls() -> None:
    run = arm("run", "push\t{r4, r5, r7, lr}", "sub\tsp, #24", "bl\ta", "bl\tb", "add\tsp, #24", public=True)
    a = arm("a", "push.w\t{r4-r11, lr}", "vpush\t{d8-d11}", "sub.w\tsp, sp, #256", "bl\tc")
    b = arm("b", "str\tlr, [sp, #-8]!")
    c = arm("c", "push\t{r4, lr}")
    assert stack(run, a, b, c) == (40 + (36 + 32 + 256) + 8, ())


def test_functions_called_through_registers_count() -> None:
    run = arm("run", "push\t{r4, lr}", "ldr\tr4, .LCPI0_0", "blx\tr4", ".LCPI0_0:", ".long\tdeep", public=True)
    assert stack(run, arm("deep", "sub\tsp, #400")) == (408, ())


def test_functions_outside_count_with_an_allowance() -> None:
    assert stack(arm("run", "push\t{r4, lr}", "bl\texpf", public=True)) == (8 + ALLOWANCE, ("expf",))


def test_private_functions_that_nobody_calls_do_not_count() -> None:
    assert stack(arm("run", "bx\tlr", public=True), arm("unused", "sub\tsp, #4000")) == (0, ())


def test_large_frames_of_small_cores() -> None:
    """ARMv6-M subtracts a constant from memory."""
    run = arm(
        "run", "push\t{r4, lr}", "ldr\tr4, .LCPI0_0", "add\tsp, r4", ".LCPI0_0:", ".long\t4294966296", public=True
    )
    assert stack(run) == (8 + 1000, ())


def test_frames_that_are_aligned() -> None:
    run = arm("run", "push\t{r4, r6, r7, lr}", "sub\tr4, sp, #40", "bfc\tr4, #0, #4", "mov\tsp, r4", public=True)
    assert stack(run) == (16 + 40 + 8, ())


def test_riscv() -> None:
    run = arm("run", "addi\tsp, sp, -48", "call\tdeep", "addi\tsp, sp, 48", "ret", public=True)
    deep = arm("deep", "addi\tsp, sp, -16", "lui\ta0, 1", "sub\tsp, sp, a0", "add\tsp, sp, a0", "addi\tsp, sp, 16")
    assert stack(run, deep) == (48 + 16 + 4096, ())


@pytest.mark.parametrize("line", ["sub\tsp, r3", "sub\tsp, sp, r3"])
def test_frames_of_unknown_size_have_no_bound(line: str) -> None:
    assert stack(arm("run", line, public=True)) is None


def test_recursion_has_no_bound() -> None:
    first = arm("first", "push\t{lr}", "bl\tsecond", public=True)
    assert stack(first, arm("second", "push\t{lr}", "bl\tfirst")) is None
