"""Calls of kernels that repeat become loops."""

from irc.backends.c.calls import Argument, KernelCall, call_lines


def call(name: str, *offsets: int) -> KernelCall:
    return KernelCall(name, tuple(Argument("(w + {})", offset) for offset in offsets))


def test_blocks_at_equal_distances_become_a_loop() -> None:
    calls = [call("a", 0, 8)]
    for i in range(3):
        calls += [call("b", 8, 100 + 20 * i), call("c", 8, 110 - 30 * i)]
    assert call_lines([*calls, call("a", 8, 0)]) == [
        "    a((w + 0), (w + 8));",
        "    for (ptrdiff_t i = 0; i < 3; i++) {",
        "        b((w + 8), (w + 100 + i * 20));",
        "        c((w + 8), (w + 110 + i * (-30)));",
        "    }",
        "    a((w + 8), (w + 0));",
    ]


def test_few_calls_stay_as_they_are() -> None:
    assert call_lines([call("a", 0), call("a", 4), call("b", 0)]) == [
        "    a((w + 0));",
        "    a((w + 4));",
        "    b((w + 0));",
    ]


def test_other_distances_stay_apart() -> None:
    lines = call_lines([call("a", n) for n in (0, 4, 8, 13)])
    assert not any("for" in line for line in lines)


def test_other_texts_stay_apart() -> None:
    calls = [KernelCall("a", (Argument(name),)) for name in ("q_0", "q_1", "q_2", "q_3", "q_4")]
    assert len(call_lines(calls)) == 5


def test_the_block_that_saves_most_is_taken() -> None:
    """Twice four calls, not two loops of two."""
    calls = [call(name, 16 * turn) for turn in range(2) for name in "aabb"]
    lines = call_lines(calls)
    assert lines[0].startswith("    for")
    assert len(lines) == 6
