"""Which calls wait for earlier ones: bytes that meet, not storages."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from irc.backends.tvm.plan.planner import Call, Pointer
from irc.backends.tvm.plan.views import Storage
from irc.backends.tvm.plan.waits import waits, worth_sharing, worth_threads
from irc.backends.tvm.specs import ElementwiseSpec, FillSpec, Operand

WORK = ElementwiseSpec("float32", (4,), (1,), (), (), 4)
FILL = FillSpec("float32", (1, 4, 4, 1), (16, 4, 1), (1, 1, 2, 2, 1), 0.0, 16)


def _storages():
    """0: weights, 1: input, 2 and 3: workspace side by side, 4: over both, 5: output."""
    return [
        Storage(0, "weights", 64),
        Storage(1, "input", 64, port=0),
        Storage(2, "workspace", 64, offset=0),
        Storage(3, "workspace", 64, offset=64),
        Storage(4, "workspace", 128, offset=0),
        Storage(5, "output", 64, port=0),
        Storage(6, "output", 64, port=1),
    ]


def _call(reads, writes, parallel=True, spec=WORK):
    args = tuple(Pointer(n, 0) for n in (*reads, *writes))
    return Call(spec, args, tuple(writes), parallel=parallel)


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        pytest.param([_call([1], [2]), _call([2], [5])], [False, True], id="reads what was written"),
        pytest.param([_call([1], [2]), _call([1], [3])], [False, False], id="both read the input"),
        pytest.param([_call([0, 1], [2]), _call([0, 1], [3])], [False, False], id="both read weights"),
        pytest.param([_call([2], [5]), _call([1], [2])], [False, True], id="writes what was read"),
        pytest.param([_call([1], [3]), _call([1], [4])], [False, True], id="writes over it"),
        pytest.param([_call([1], [5]), _call([1], [6])], [False, False], id="two outputs"),
        pytest.param([_call([1], [5]), _call([1], [5])], [False, True], id="one output"),
        pytest.param(
            [_call([1], [2]), _call([1], [3]), _call([2], [5]), _call([3], [6])],
            [False, False, True, False],
            id="one wait serves two",
        ),
        pytest.param(
            [_call([1], [2], False), _call([2], [3], False), _call([2], [5])],
            [False, False, True],
            id="on one thread there is nothing to wait for, but the next one waits for both",
        ),
        pytest.param([_call([], [2], spec=FILL), _call([1], [2])], [False, False], id="border and inside"),
        pytest.param([_call([], [2], spec=FILL), _call([2], [5])], [False, True], id="reads the border"),
        pytest.param([_call([], [2], spec=FILL), _call([], [2], spec=FILL)], [False, True], id="two borders"),
        pytest.param([_call([], [2], spec=FILL), _call([1], [4])], [False, True], id="border of memory used again"),
    ],
)
def test_waits(calls, expected):
    assert waits(calls, _storages()) == expected


@pytest.mark.parametrize(
    ("macs", "size", "parallel", "worth"),
    [
        (0, 64, True, False),
        (0, 1 << 20, True, True),
        (0, 1 << 20, False, False),
        (1_000_000, 64, True, True),
        (1_000, 64, True, False),
    ],
)
def test_what_is_over_sooner_than_threads_meet_is_not_shared_out(macs, size, parallel, worth):
    storages = [Storage(0, "input", size), Storage(1, "workspace", size)]
    plan = SimpleNamespace(planner=SimpleNamespace(storages=storages))
    spec = ElementwiseSpec("float32", (size // 4,), (1,), (), (Operand("float32", (1,), size // 4),), size // 4)
    call = Call(spec, (Pointer(0, 0), Pointer(1, 0)), (1,), macs=macs, parallel=parallel)
    assert worth_sharing(call, plan) is worth
    assert not worth_threads([call] * 2, plan)
    assert worth_threads([call] * 300, plan) is worth
