"""Node tests of the ONNX standard, compiled and run natively.

By default one case of each operator; all of them with IRC_NODE_CASES=all (about five minutes).
"""

from __future__ import annotations

import os

import node_cases
import pytest

from irc.errors import UnsupportedError

REFUSED = {
    "test_nonzero_example": "depends on the data",
    "test_unique_sorted_without_axis": "depends on the data",
    "test_strnormalizer_nostopwords_nochangecase": "element type object",
    "test_cast_FLOAT_to_FLOAT8E4M3FN": "float8",
    "test_training_dropout": "random",
    "test_sequence_insert_at_back": "only tensors",
    "test_ai_onnx_ml_binarizer": "machine learning",
}


def chosen() -> list[str]:
    names = node_cases.lowered()
    if os.environ.get("IRC_NODE_CASES") == "all":
        return names
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(node_cases.operator(name), name)
    return sorted(first.values())


@pytest.mark.parametrize("name", chosen())
def test_compiled_node_gives_the_expected_result(name: str) -> None:
    node_cases.check(node_cases.cases()[name])


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_with_the_reason(name: str) -> None:
    with pytest.raises(UnsupportedError, match=REFUSED[name]):
        node_cases.check(node_cases.cases()[name])
