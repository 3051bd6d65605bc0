"""onnx's own operator cases: what is inferred must be what the operator gives, and each must survive the text form."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
from sample_models import all_constants

from irc.errors import IrcError
from irc.ir.clone import clone
from irc.ir.compare import difference
from irc.ir.graph import Model
from irc.ir.infer import infer
from irc.ir.parser import parse_model
from irc.ir.printer import print_model
from irc.ir.types import DType, TensorType
from irc.ir.verify import verify

FLOATS_GIVE_SHAPES = {"OneHot", "Range", "Resize", "Upsample"}
MANY = 1500


@pytest.fixture(scope="module")
def cases() -> list[tuple[str, Model, list[Any]]]:
    """(name, model without inferred types, expected outputs) of all cases that irc's importer takes."""
    from onnx.backend.test.case.node import collect_testcases

    from irc.frontend import from_proto

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overflows that the cases make on purpose
        collected = collect_testcases(None)
    found = []
    for case in collected:
        inputs, outputs = case.data_sets[0]
        try:
            model = from_proto(case.model)
        except IrcError:  # newer opsets than irc's, and what has no upgrade: the importer's tests look at those
            continue
        _fix_shape_operands(model, inputs)
        for node in model.graph.walk():
            for value in node.outputs:
                value.type = None
        found.append((case.name, model, outputs))
    return found


def _fix_shape_operands(model: Model, inputs: list[Any]) -> None:
    """The cases feed shapes, axes and sizes; models hold them as constants."""
    used = {n.op_type for n in model.graph.nodes}
    for value, data in zip(tuple(model.graph.inputs), inputs, strict=True):
        if not isinstance(data, np.ndarray | np.generic) or np.ndim(data) > 1:
            continue
        if data.dtype in (np.int64, np.int32) or used & FLOATS_GIVE_SHAPES:
            constant = model.graph.add_constant(np.asarray(data), f"{value.name}_fixed")
            model.graph.replace_uses(value, constant)


def test_inferred_types_are_those_of_the_results(cases: list[tuple[str, Model, list[Any]]]) -> None:
    found: Counter[str] = Counter()
    for name, model, expected in cases:
        infer(model)
        verify(model)
        for value, result in zip(model.graph.outputs, expected, strict=True):
            if isinstance(result, np.ndarray):
                found[_judge(name, value.type, result)] += 1
    # Data-dependent sizes (NonZero, Unique, Compress, strings) stay unknown; everything else must be there.
    assert found["exact"] > MANY
    assert found["unknown"] < found["exact"] / 20


def _judge(name: str, type: object, result: np.ndarray[Any, Any]) -> str:
    if not isinstance(type, TensorType):
        return "unknown"
    assert type.dtype is DType.STRING or type.dtype.numpy == result.dtype, name
    if type.shape is None:
        return "unknown"
    assert type.shape.rank == result.ndim, name
    assert all(d == n for d, n in zip(type.shape, result.shape, strict=True) if isinstance(d, int)), (name, type)
    return "exact" if type.shape.is_static else "unknown"


def test_text_form_and_clone(cases: list[tuple[str, Model, list[Any]]]) -> None:
    assert len(cases) > MANY
    for name, model, _ in cases:
        text = print_model(model)
        read = parse_model(text, all_constants(model).__getitem__)
        assert print_model(read) == text, name
        assert difference(read, model) is None, name
        assert print_model(clone(model)) == text, name
