"""Bindings of symbolic dimensions."""

from __future__ import annotations

import onnx
import pytest

from irc.errors import OptionError, ShapeError
from irc.frontend import bind, default_batch, from_proto, require_static
from irc.ir.graph import Model

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'


def load(text: str) -> Model:
    return from_proto(onnx.parser.parse_model(HEAD + text))


def two_inputs() -> Model:
    return load(
        """g (float[batch, 3, h, w] x, float[batch, 8] s) => (float[unk__1, 3, unk__2, unk__3] y, float[unk__1, 8] z)
        { y = Relu(x) z = Neg(s) }"""
    )


def types(model: Model) -> list[str]:
    return [str(v.type) for v in (*model.graph.inputs, *model.graph.outputs)]


def test_a_dim_is_bound_everywhere() -> None:
    model = two_inputs()
    bind(model, {}, {"batch": 2, "h": 5})
    assert types(model) == ["float32[2,3,5,w]", "float32[2,8]", "float32[2,3,5,w]", "float32[2,8]"]


def test_a_shape_binds_its_symbols_everywhere() -> None:
    model = two_inputs()
    bind(model, {"x": (4, 3, 6, 7)}, {})
    assert types(model) == ["float32[4,3,6,7]", "float32[4,8]", "float32[4,3,6,7]", "float32[4,8]"]
    require_static(model, everywhere=True)


def test_unnamed_dims_get_names_and_the_error_shows_them() -> None:
    model = load("g (float[?, 3, ?] x) => (float[?, 3, ?] y) { y = Relu(x) }")
    assert types(model) == ["float32[x_dim0,3,x_dim2]"] * 2
    with pytest.raises(ShapeError) as caught:
        require_static(model)
    assert "--dim x_dim0=N --dim x_dim2=N" in str(caught.value)
    assert "--shape x=Nx3xN" in str(caught.value)
    bind(model, {}, {"x_dim0": 1, "x_dim2": 9})
    assert types(model) == ["float32[1,3,9]"] * 2
    require_static(model)


def test_fresh_names_do_not_meet_existing_ones() -> None:
    model = load("g (float[?, x_dim0] x) => (float[a, b] y) { y = Relu(x) }")
    assert types(model)[0] == "float32[x_dim0_2,x_dim0]"


def test_minus_one_and_question_mark_are_no_names() -> None:
    proto = onnx.parser.parse_model(HEAD + "g (float[N, M] x) => (float[N, M] y) { y = Relu(x) }")
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    dims[0].dim_param = "?"
    dims[1].dim_value = -1
    assert types(from_proto(proto))[0] == "float32[x_dim0,x_dim1]"


@pytest.mark.parametrize(
    ("shapes", "dims", "said"),
    [
        ({"X": (1, 3, 2, 2)}, {}, "one of s, x"),
        ({"x": (1, 3, 2)}, {}, "expected 4"),
        ({"x": (1, 4, 2, 2)}, {}, "dimension 1 is fixed"),
        ({"x": (1, 3, 0, 2)}, {}, "at least 1"),
        ({"x": (1, 3, 2, 2), "s": (2, 8)}, {}, "'batch' gets two values"),
        ({"x": (1, 3, 2, 2)}, {"batch": 2}, "'batch' gets two values"),
        ({}, {"bach": 2}, "did you mean 'batch'"),
        ({}, {"batch": -1}, "at least 1"),
    ],
)
def test_bindings_that_do_not_fit(shapes: dict[str, tuple[int, ...]], dims: dict[str, int], said: str) -> None:
    model = two_inputs()
    before = types(model)
    with pytest.raises(OptionError) as caught:
        bind(model, shapes, dims)
    assert said in str(caught.value)
    assert types(model) == before


def test_default_batch_binds_first_dims_and_says_so() -> None:
    model = two_inputs()
    notes = default_batch(model)
    assert len(notes) == 1
    assert "--dim batch=N" in notes[0]
    assert types(model)[0] == "float32[1,3,h,w]"
    assert default_batch(model) == []


def test_unknown_rank() -> None:
    model = load("g (float x) => (float y) { y = Relu(x) }")
    model.graph.inputs[0].type = type(model.graph.inputs[0].tensor)(model.graph.inputs[0].tensor.dtype, None)
    with pytest.raises(ShapeError, match="--shape x="):
        require_static(model)
    bind(model, {"x": (2, 3)}, {})
    assert types(model)[0] == "float32[2,3]"


def test_shapes_inside_branches_follow() -> None:
    model = load(
        """g (float[n, 2] x, bool c) => (float[n, 2] y) {
            y = If (c) <then_branch = a () => (float[n, 2] o) { o = Neg(x) },
                        else_branch = b () => (float[n, 2] p) { p = Abs(x) }>
        }"""
    )
    bind(model, {}, {"n": 3})
    assert {str(v.type) for n in model.graph.walk() for v in n.outputs} == {"float32[3,2]"}


def test_shapes_that_depend_on_data_are_named() -> None:
    model = load("g (float[4] x) => (int64[1, k] y) { y = NonZero(x) }")
    require_static(model)
    with pytest.raises(ShapeError, match=r"node 'NonZero' \(NonZero\)"):
        require_static(model, everywhere=True)


def test_results_of_custom_operators_keep_their_declared_shape() -> None:
    proto = onnx.parser.parse_model(HEAD + "g (float[n, 2] x) => (float[n, 5] y) { a = my.Op(x) y = Relu(a) }")
    proto.opset_import.add(domain="my", version=1)
    proto.graph.value_info.append(
        onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, ["n", 5]),
    )
    model = from_proto(proto)
    bind(model, {}, {"n": 7})
    assert types(model)[-1] == "float32[7,5]"
