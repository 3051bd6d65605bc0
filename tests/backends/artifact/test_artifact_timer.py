"""Times of steps. How long they take is nobody's promise; that each step has its own time, and results stay, is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import toy

from irc.backends.artifact.load import load_program
from irc.backends.artifact.timer import StepTimer, timer_ll
from irc.backends.tvm.assemble import assemble
from irc.errors import UnsupportedError
from irc.targets.catalogue import TARGETS

pytestmark = pytest.mark.skipif(not toy.runs_natively(), reason="the toy kernels are x86-64 code")


@pytest.fixture(scope="module")
def timer():
    return assemble(timer_ll(toy.X86), toy.X86)


def test_every_parallel_step_has_its_time(timer):
    program = toy.chain("copy", "exp", "copy", n=4096, parallel=True)
    x = np.linspace(-1, 1, 4096, dtype=np.float32)
    with load_program(program, toy.assembled(program)) as net:
        want = net(x)
        with StepTimer(net, timer, toy.X86, 3) as steps:
            seconds, whole = steps.seconds(lambda: np.testing.assert_array_equal(net(x), want), 7)
            assert seconds.shape == (7, 3)
            assert (seconds > 0).all()
            assert (seconds.sum(1) < whole).all()
            # exp of 4096 numbers takes longer than a copy of them, on any machine
            assert np.median(seconds[:, 1]) > np.median(seconds[:, 0])
        np.testing.assert_array_equal(net(x), want)  # the timer is gone, the network stays


def test_a_wrong_number_of_steps_is_noticed(timer):
    program = toy.chain("copy", "copy", parallel=True)
    with (
        load_program(program, toy.assembled(program)) as net,
        StepTimer(net, timer, toy.X86, 3) as steps,
        pytest.raises(UnsupportedError, match="2 of 3 kernels could be timed"),
    ):
        steps.seconds(lambda: net(np.zeros(toy.N, np.float32)), 2)


def test_targets_without_a_clock():
    arm = dataclasses.replace(TARGETS["aarch64"], triple="aarch64-none-elf")
    with pytest.raises(UnsupportedError, match="cannot be taken on this target"):
        timer_ll(arm)
    assert assemble(timer_ll(TARGETS["aarch64"]), TARGETS["aarch64"])[:4] == b"\x7fELF"
