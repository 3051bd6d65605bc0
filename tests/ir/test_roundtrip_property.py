"""Random models survive the text form (hypothesis looks for the smallest one that does not)."""

from __future__ import annotations

import math

import numpy as np
import pytest

hypothesis = pytest.importorskip("hypothesis", reason="needs hypothesis (pip install hypothesis)")
from hypothesis import given, settings  # noqa: E402  # only after the check that it is there
from hypothesis import strategies as st  # noqa: E402  # as above
from sample_models import all_constants  # noqa: E402  # as above

from irc.ir.clone import clone  # noqa: E402  # as above
from irc.ir.compare import difference  # noqa: E402  # as above
from irc.ir.graph import AttributeValue, Graph, Model, Value  # noqa: E402  # as above
from irc.ir.parser import parse_model  # noqa: E402  # as above
from irc.ir.printer import print_model  # noqa: E402  # as above
from irc.ir.types import (  # noqa: E402  # as above
    Constant,
    DType,
    MapType,
    OptionalType,
    Origin,
    SequenceType,
    Shape,
    SparseType,
    TensorType,
    ValueType,
)

names = st.text(min_size=1, max_size=6) | st.sampled_from(
    ["x", "a/b", "t:0", "inf", "nan", "_", "return", "graph", "1"]
)
dims = st.none() | st.integers(0, 9) | names.filter(lambda n: n != "?")
dtypes = st.sampled_from(list(DType))
shapes = st.none() | st.lists(dims, max_size=3).map(lambda d: Shape(tuple(d)))
tensors = st.builds(TensorType, dtypes, shapes)
types: st.SearchStrategy[ValueType] = st.recursive(
    tensors | st.builds(SparseType, dtypes, shapes),
    lambda inner: st.builds(SequenceType, inner) | st.builds(OptionalType, inner) | st.builds(MapType, dtypes, inner),
    max_leaves=3,
)


@st.composite
def constants(draw: st.DrawFn) -> Constant:
    dtype = draw(st.sampled_from([d for d in DType if d is not DType.STRING]))
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=2)))
    size = math.prod(shape)
    raw = draw(st.binary(min_size=size * dtype.numpy.itemsize, max_size=size * dtype.numpy.itemsize))
    data = np.frombuffer(raw, np.uint8)
    if dtype.bits < 8 or dtype is DType.BOOL:  # one element a byte: only the low bits count
        data = data.astype(np.int64) % 2
        return Constant.of(data.astype(dtype.numpy).reshape(shape), dtype)
    return Constant.of(data.view(dtype.numpy).reshape(shape), dtype)


strings = st.lists(st.text(max_size=4), min_size=1, max_size=4).map(lambda s: Constant.of(np.array(s, object)))
numbers = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False)
plain: st.SearchStrategy[AttributeValue] = st.one_of(
    numbers,
    floats,
    st.text(max_size=5),
    st.binary(max_size=3).filter(lambda b: len(b) > 0),
    constants(),
    types,
    st.lists(numbers, max_size=3).map(tuple),
    st.lists(floats, min_size=1, max_size=3).map(tuple),
    st.lists(st.text(max_size=3), min_size=1, max_size=3).map(tuple),
    st.lists(constants(), min_size=1, max_size=2).map(tuple),
    st.lists(types, min_size=1, max_size=2).map(tuple),
)


@st.composite
def models(draw: st.DrawFn) -> Model:
    graph = Graph(draw(names))
    _fill(draw, graph, [], depth=2)
    metadata = draw(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2))
    return Model(graph, opsets={"": 26, draw(names): draw(st.integers(1, 9))}, metadata=metadata)


def _fill(draw: st.DrawFn, graph: Graph, outer: list[Value], depth: int) -> None:
    values = [
        graph.add_input(graph.unique_name(draw(names)), draw(st.none() | types)) for _ in range(draw(st.integers(0, 2)))
    ]
    values += [graph.add_constant(draw(constants() | strings), draw(names)) for _ in range(draw(st.integers(0, 2)))]
    for _ in range(draw(st.integers(0, 3))):
        readable = [*outer, *values]
        inputs = draw(st.lists(st.none() | st.sampled_from(readable), max_size=3)) if readable else []
        attributes: dict[str, AttributeValue] = dict(draw(st.dictionaries(names, plain, max_size=2)))
        if depth and draw(st.booleans()):
            body = graph.subgraph(draw(names))
            _fill(draw, body, readable, depth - 1)
            attributes["body"] = body
        count = draw(st.integers(0, 2))
        node = graph.add(
            draw(names),
            inputs,
            count,
            attributes,
            types=[draw(st.none() | types) for _ in range(count)],
            domain=draw(st.just("") | names),
            name=draw(names),
            overload=draw(st.just("") | names),
            origin=Origin(tuple(draw(st.lists(names, max_size=2))), tuple(draw(st.lists(names, max_size=1)))),
        )
        values += node.outputs
    own = [v for v in values if v.graph is graph]
    graph.set_outputs(draw(st.lists(st.sampled_from(own), max_size=2)) if own else [])


@settings(max_examples=150, deadline=None)
@given(models())
def test_any_model_survives_the_text_form(model: Model) -> None:
    text = print_model(model)
    read = parse_model(text, all_constants(model).__getitem__)
    assert print_model(read) == text
    assert difference(model, read) is None
    assert print_model(clone(model)) == text
