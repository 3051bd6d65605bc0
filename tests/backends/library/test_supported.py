"""The tables of operators against the standard."""

from __future__ import annotations

import onnx
import pytest

from irc.backends.tvm.library.supported import CONSTANT, REASONS, WRITTEN_OUT, road
from irc.backends.tvm.library.table import FAMILIES, OPERATORS

STANDARD = sorted({s.name for s in onnx.defs.get_all_schemas() if s.domain == ""})


@pytest.mark.parametrize("name", STANDARD)
def test_every_operator_has_a_road_or_a_reason(name: str) -> None:
    assert road(name) != "none" or name in REASONS


def test_no_name_is_misspelt() -> None:
    named = {name for _, name in OPERATORS} | set(REASONS) | set(WRITTEN_OUT) | set(CONSTANT)
    assert named <= set(STANDARD)


def test_no_operator_is_defined_twice() -> None:
    assert sum(len(family.OPERATORS) for family in FAMILIES) == len(OPERATORS)


def test_what_is_refused_has_no_definition() -> None:
    assert not {name for _, name in OPERATORS} & set(REASONS)
