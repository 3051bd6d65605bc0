"""Instructions that code executes, counted from its assembly text."""

from __future__ import annotations

import pytest

from irc.backends.tvm.counting.flow import Counter, Flow, GaveUp
from irc.backends.tvm.counting.program import count_kernels, count_program
from irc.backends.tvm.counting.reading import Text
from irc.backends.tvm.counting.thumb import read
from irc.targets import get_target
from irc.targets.target import Target

M4, RISCV, ARM64, X86 = (get_target(t) for t in ("cortex-m4", "riscv32", "neoverse-v1", "x86-64-v3"))


def function(name: str, *lines: str) -> str:
    body = "\n".join(line if line.endswith(":") else f"\t{line}" for line in lines)
    return f"\t.globl\t{name}\n\t.type\t{name},%function\n{name}:\n{body}\n\t.size\t{name}, 4\n"


def run(*lines: str) -> int | None:
    return count_program(function("net_run", *lines), M4, "net_run")


def test_straight_code() -> None:
    assert run("movs\tr0, #0", "bx\tlr") == 2


def test_a_loop_with_a_counter() -> None:
    assert run("movs\tr4, #10", ".LBB0_1:", "ldr\tr1, [r0], #4", "subs\tr4, #1", "bne\t.LBB0_1", "bx\tlr") == 1 + 30 + 1


def test_a_loop_up_to_an_address() -> None:
    """What LLVM makes of a counter: a pointer that is compared with the end."""
    lines = ("add.w\tr1, r0, #64", ".LBB0_1:", "ldrd\tr2, r3, [r0], #8", "cmp\tr0, r1", "bne\t.LBB0_1", "bx\tlr")
    assert run(*lines) == 1 + 8 * 3 + 1


def test_a_counter_on_the_stack() -> None:
    lines = ("sub\tsp, #8", "movs\tr0, #5", "str\tr0, [sp, #4]", ".LBB0_1:", "ldr\tr0, [sp, #4]", "subs\tr0, #1")
    assert run(*lines, "str\tr0, [sp, #4]", "bne\t.LBB0_1", "add\tsp, #8", "bx\tlr") == 3 + 5 * 4 + 2


def test_nests_cost_little() -> None:
    """A thousand times a thousand times a thousand, whose bounds do not depend on each other; and a triangle."""
    square = ("mov.w\tr4, #1000", ".LBB0_1:", "mov.w\tr5, #1000", ".LBB0_2:", "mov.w\tr6, #1000", ".LBB0_3:")
    square += ("subs\tr6, #1", "bne\t.LBB0_3", "subs\tr5, #1", "bne\t.LBB0_2", "subs\tr4, #1", "bne\t.LBB0_1", "bx\tlr")
    assert run(*square) == 2 + 1000 * (3 + 1000 * (3 + 2000))
    triangle = ("mov.w\tr4, #100", ".LBB0_1:", "mov\tr5, r4", ".LBB0_2:", "subs\tr5, #1", "bne\t.LBB0_2")
    assert run(*triangle, "subs\tr4, #1", "bne\t.LBB0_1", "bx\tlr") == 2 + 100 * 3 + 2 * 5050


def test_rows_of_places_with_a_border() -> None:
    """The first and the last of 64 places go another way; 64 rows of them. Skipping finds both."""
    lines = ("movs\tr4, #0", ".LBB0_1:", "movs\tr5, #0", ".LBB0_2:", "movs\tr6, #0", ".LBB0_3:", "adds\tr7, r5, r6")
    lines += ("subs\tr7, #1", "cmp\tr7, #64", "bhs\t.LBB0_4", "nop", "nop", "nop", "nop", "nop", "nop", "nop")
    lines += (".LBB0_4:", "adds\tr6, #1", "cmp\tr6, #3", "bne\t.LBB0_3", "adds\tr5, #1", "cmp\tr5, #64", "bne\t.LBB0_2")
    lines += ("adds\tr4, #1", "cmp\tr4, #64", "bne\t.LBB0_1", "bx\tlr")
    row = 64 * (1 + 3 * 7 + 3 * 7 + 3) - 2 * 7
    assert run(*lines) == 2 + 64 * (row + 4)


def test_what_depends_on_data_counts_half_or_falls_through() -> None:
    assert run("ldr\tr1, [r0]", "cmp\tr1, #0", "bge\t.LBB0_1", "movs\tr1, #0", "nop", ".LBB0_1:", "bx\tlr") == 3 + 1 + 1
    rare = ["nop"] * 20
    assert run("ldr\tr1, [r0]", "cbz\tr1, .LBB0_2", "bx\tlr", ".LBB0_2:", *rare, "bx\tlr") == 3


def test_calls_that_are_rare() -> None:
    soft = function("irc_soft_level", *["nop"] * 50, "bx\tlr")
    lines = ("ldr\tr1, [r0]", "cmp\tr1, #14", "bhi\t.LBB0_1", "bl\tirc_soft_level", ".LBB0_1:", "pop\t{r4, pc}")
    assert count_program(function("net_run", *lines) + soft, M4, "net_run") == 4


@pytest.mark.parametrize("name", ["__aeabi_memset", "__aeabi_memset4", "__aeabi_memclr", "__aeabi_memclr8"])
def test_memory_is_set_for_as_long_as_its_second_argument_says(name: str) -> None:
    setting = ("movs\tr1, #96", "mvn\tr2, #0", f"bl\t{name}", "pop\t{r4, pc}")
    assert run("push\t{r4, lr}", *setting) == 5 + 20 + 96 // 3


def test_kernels_are_called_with_numbers_on_the_stack() -> None:
    kernel = function(
        "irc_k_a",
        "ldr\tr3, [sp]",
        "add.w\tr0, r3, #16",
        ".LBB1_1:",
        "adds\tr3, #4",
        "cmp\tr3, r0",
        "bne\t.LBB1_1",
        "bx\tlr",
    )
    lines = ("push\t{r4, lr}", "sub\tsp, #8", "str\tr3, [sp]", "bl\tirc_k_a", "add\tsp, #8", "pop\t{r4, pc}")
    assert count_program(function("net_run", *lines) + kernel, M4, "net_run") == 6 + 2 + 12 + 1


def test_predicated_instructions_and_low_overhead_loops() -> None:
    lines = (
        "movs\tr1, #3",
        "cmp\tr1, #3",
        "it\teq",
        "moveq\tr1, #7",
        "dls\tlr, r1",
        ".LBB0_1:",
        "nop",
        "le\tlr, .LBB0_1",
    )
    assert run(*lines, "bx\tlr") == 5 + 14 + 1


@pytest.mark.parametrize(
    ("target", "lines", "expected"),
    [
        (RISCV, ("li\ta5, 9", ".LBB0_1:", "addi\ta5, a5, -1", "bnez\ta5, .LBB0_1", "ret"), 20),
        (
            RISCV,
            ("addi\ta1, a0, 40", ".LBB0_1:", "lw\ta2, 0(a0)", "addi\ta0, a0, 4", "bne\ta0, a1, .LBB0_1", "ret"),
            32,
        ),
        (ARM64, ("mov\tw8, #9", ".LBB0_1:", "ldr\tq0, [x0], #16", "subs\tw8, w8, #1", "b.ne\t.LBB0_1", "ret"), 29),
        (ARM64, ("add\tx8, x0, #32", ".LBB0_1:", "add\tx0, x0, #8", "cmp\tx0, x8", "b.lo\t.LBB0_1", "ret"), 14),
        (X86, ("movl\t$9, %eax", ".LBB0_1:", "decl\t%eax", "jne\t.LBB0_1", "retq"), 20),
        (X86, ("leaq\t32(%rdi), %rax", ".LBB0_1:", "addq\t$8, %rdi", "cmpq\t%rax, %rdi", "jb\t.LBB0_1", "retq"), 14),
    ],
)
def test_other_instruction_sets(target: Target, lines: tuple[str, ...], expected: int) -> None:
    assert count_kernels(function("irc_k_a", *lines), target, {"irc_k_a": 1}) == {"irc_k_a": expected}


def test_shares_of_work_are_whole() -> None:
    """A kernel's last two arguments: part 0 of 1."""
    lines = ("mul\tw8, w1, w9", "lsl\tw9, w2, #3", ".LBB0_1:", "subs\tw9, w9, #1", "b.ne\t.LBB0_1", "ret")
    assert count_kernels(function("irc_k_a", *lines), ARM64, {"irc_k_a": 1}) == {"irc_k_a": 2 + 16 + 1}


def test_loops_without_an_end_are_given_up() -> None:
    endless = Text("net_run", [".L1", ("movs", ["r0", "#1"]), ("cmp", ["r0", "#2"]), ("bne", [".L1"])])
    with pytest.raises(GaveUp):
        Counter({"net_run": Flow(read(endless))}, lambda call, env: {}, lambda name, env: None).run("net_run", {})
    assert run(".L1:", "movs\tr0, #1", "cmp\tr0, #2", "bne\t.L1", "bx\tlr") is None


def test_calls_of_unknown_functions_are_given_up() -> None:
    assert run("ldr\tr3, [r0]", "blx\tr3", "bx\tlr") is None


def test_no_estimate_where_nothing_reads_the_assembly() -> None:
    assert count_program("", get_target("wasm32"), "net_run") is None
