"""Processors and features that LLVM must know before a user's target is compiled for."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from irc.backends.tvm.cpus import check_machine
from irc.errors import OptionError
from irc.targets.catalogue import TARGETS
from irc.targets.target import Target


@pytest.mark.parametrize("target", [t for t in TARGETS.values() if t.triple], ids=lambda t: t.name)
def test_names_of_the_table_are_llvms(target: Target) -> None:
    check_machine(dataclasses.replace(target, base=target.name))


def test_unknown_names_have_neighbours(capfd: pytest.CaptureFixture[str]) -> None:
    base = dataclasses.replace(TARGETS["cortex-m4"], base="cortex-m4")
    with pytest.raises(OptionError, match=r"no processor 'cortex-m44'.*did you mean 'cortex-m4'"):
        check_machine(dataclasses.replace(base, cpu="cortex-m44"))
    with pytest.raises(OptionError, match=r"no feature 'dspp'.*did you mean 'dsp'"):
        check_machine(dataclasses.replace(base, features=("+dspp",)))
    assert capfd.readouterr().err == ""  # LLVM's own remarks on such names


@pytest.mark.parametrize(
    ("name", "changes", "needed"),
    [
        ("cortex-m4", {"dot": "mve"}, "mve"),
        ("cortex-m4", {"features": ("-dsp",)}, "dsp"),
        ("cortex-m3", {"dot": "smlad"}, "dsp"),
        ("aarch64", {"dot": "smmla"}, "i8mm"),
        ("x86-64-v3", {"dot": "vpdpbusd"}, "avx512vnni or avxvnni"),
    ],
)
def test_dot_products_have_their_instructions(name: str, changes: dict[str, Any], needed: str) -> None:
    """LLVM would end the process over them."""
    made = dataclasses.replace(TARGETS[name], base=name, **changes)
    with pytest.raises(OptionError, match=rf"no instructions for the dot product .*expected a cpu or .*{needed}"):
        check_machine(made)
    if not made.features:
        check_machine(dataclasses.replace(made, features=(f"+{needed.split()[0]}",)))
