"""Processors and features that LLVM must know before a user's target is compiled for."""

from __future__ import annotations

import dataclasses

import pytest

from irc.backends.tvm.cpus import check_machine
from irc.errors import OptionError
from irc.targets.catalogue import TARGETS
from irc.targets.target import Target


@pytest.mark.parametrize("target", [t for t in TARGETS.values() if t.triple], ids=lambda t: t.name)
def test_names_of_the_table_are_llvms(target: Target) -> None:
    check_machine(dataclasses.replace(target, base=target.name))


def test_unknown_names_have_neighbours() -> None:
    base = dataclasses.replace(TARGETS["cortex-m4"], base="cortex-m4")
    with pytest.raises(OptionError, match=r"no processor 'cortex-m44'.*did you mean 'cortex-m4'"):
        check_machine(dataclasses.replace(base, cpu="cortex-m44"))
    with pytest.raises(OptionError, match=r"no feature 'dspp'.*did you mean 'dsp'"):
        check_machine(dataclasses.replace(base, features=("+dspp",)))
