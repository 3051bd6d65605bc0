"""Names, scopes, order and constants of imported graphs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from irc.errors import ModelError
from irc.export import to_proto
from irc.frontend import from_proto
from irc.ir.types import DType

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEAD + text)


def refusal(proto: onnx.ModelProto) -> str:
    with pytest.raises(ModelError) as caught:
        from_proto(proto)
    return str(caught.value)


def test_nodes_without_names_are_named_after_their_operator() -> None:
    model = from_proto(parse("g (float[2] x) => (float[2] y) { a = Relu(x) b = Relu(a) y = Neg(b) }"))
    assert [n.name for n in model.graph.nodes] == ["Relu", "Relu_1", "Neg"]
    assert [str(n.origin) for n in model.graph.nodes] == ["a", "b", "y"]


def test_given_names_win_over_made_up_ones() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { a = Relu(x) y = Neg(a) }")
    proto.graph.node[1].name = "Relu"
    assert [n.name for n in from_proto(proto).graph.nodes] == ["Relu_1", "Relu"]


def test_unsorted_nodes_are_sorted_with_captures_of_subgraphs() -> None:
    proto = parse(
        """g (float[2] x, bool c) => (float[2] y) {
            y = If (c) <then_branch = t () => (float[2] o) { o = Neg(late) },
                        else_branch = e () => (float[2] p) { p = Identity(x) }>
            late = Relu(x)
        }"""
    )
    model = from_proto(proto)
    assert [n.op_type for n in model.graph.nodes] == ["Relu", "If"]
    (branch, _) = model.graph.nodes[1].subgraphs
    assert branch.captured() == (model.graph.nodes[0].output,)


def test_a_cycle_names_a_node_on_it() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { a = Add(x, y) y = Neg(a) }")
    text = refusal(proto)
    assert "cycle" in text
    assert "(Add)" in text or "(Neg)" in text


def test_long_chains_do_not_exhaust_the_stack() -> None:
    nodes = [helper.make_node("Neg", [f"v{i}"], [f"v{i + 1}"]) for i in reversed(range(5000))]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("v0", "v5000")]
    proto = helper.make_model(helper.make_graph(nodes, "long", info[:1], info[1:]), ir_version=10)
    proto.opset_import[0].version = 21
    assert len(from_proto(proto).graph) == 5000


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{ y = Add(x, nowhere) }", "its input 'nowhere' is made by no node"),
        ("{ a = Relu(x) a = Neg(x) y = Neg(a) }", "value 'a' is defined twice"),
        ("{ x = Relu(x) y = Neg(x) }", "value 'x' is defined twice"),
        ("{ a = Relu(x) }", "output 'y' is made by no node"),
        ("{ y = Relo(x) }", "did you mean 'Relu'"),
        ("{ y = Relu <alpha = 1, alpha = 2> (x) }", "attribute 'alpha' is given twice"),
    ],
)
def test_broken_graphs(body: str, said: str) -> None:
    assert said in refusal(parse("g (float[2] x) => (float[2] y) " + body))


def test_an_output_listed_twice() -> None:
    assert "listed twice" in refusal(parse("g (float[2] x) => (float[2] y, float[2] y) { y = Relu(x) }"))


def test_names_of_sibling_subgraphs_are_made_unique_and_outer_names_stay() -> None:
    proto = parse(
        """g (float[2] x, bool c) => (float[2] y, float[2] t) {
            y = If (c) <then_branch = a () => (float[2] t) { t = Neg(x) },
                        else_branch = b () => (float[2] t) { t = Abs(x) }>
            t = Relu(y)
        }"""
    )
    model = from_proto(proto)
    names = [v.name for n in model.graph.walk() for v in n.outputs]
    assert len(set(names)) == len(names)
    assert [v.name for v in model.graph.outputs] == ["y", "t"]
    onnx.checker.check_model(to_proto(model), full_check=True)


def test_a_branch_that_returns_an_outer_value_gets_an_identity() -> None:
    proto = parse(
        """g (float[2] x, bool c) => (float[2] y) {
            y = If (c) <then_branch = a () => (float[2] x) { }, else_branch = b () => (float[2] t) { t = Abs(x) }>
        }"""
    )
    branch = from_proto(proto).graph.nodes[0].subgraphs[0]
    assert [n.op_type for n in branch.nodes] == ["Identity"]


def test_weights_listed_as_inputs_are_constants() -> None:
    proto = parse("g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
    model = from_proto(proto)
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert model.graph.constants["w"].numpy().tolist() == [1, 2]


def test_tied_weights_stay_one_constant() -> None:
    model = from_proto(parse("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { a = Add(x, w) y = Mul(a, w) }"))
    assert len(model.graph.constants) == 1
    assert len(model.graph.constants["w"].uses) == 2
    assert len(to_proto(model).graph.initializer) == 1


def _constant_node(**attributes: object) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["k"], **attributes)


SPARSE = helper.make_sparse_tensor(
    helper.make_tensor("v", TensorProto.FLOAT, [2], [3, 4]),
    helper.make_tensor("i", TensorProto.INT64, [2], [1, 5]),
    [2, 3],
)
SPARSE_2D = helper.make_sparse_tensor(
    helper.make_tensor("v", TensorProto.FLOAT, [2], [3, 4]),
    helper.make_tensor("i", TensorProto.INT64, [2, 2], [0, 1, 1, 2]),
    [2, 3],
)


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (_constant_node(value_float=1.5), np.float32(1.5)),
        (_constant_node(value_floats=[1.5, 2]), np.array([1.5, 2], np.float32)),
        (_constant_node(value_int=7), np.int64(7)),
        (_constant_node(value_ints=[7, 8]), np.array([7, 8])),
        (_constant_node(value_string="ab"), np.array("ab", object)),
        (_constant_node(value_strings=["a", "b"]), np.array(["a", "b"], object)),
        (_constant_node(value=numpy_helper.from_array(np.eye(2))), np.eye(2)),
        (_constant_node(sparse_value=SPARSE), np.array([[0, 3, 0], [0, 0, 4]], np.float32)),
        (_constant_node(sparse_value=SPARSE_2D), np.array([[0, 3, 0], [0, 0, 4]], np.float32)),
    ],
)
def test_constant_nodes_become_constants(node: onnx.NodeProto, expected: np.ndarray) -> None:
    graph = helper.make_graph(
        [node, helper.make_node("Identity", ["k"], ["y"])], "g", [], [onnx.ValueInfoProto(name="y")]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model = from_proto(proto)
    value = model.graph.constants["k"]
    np.testing.assert_array_equal(value.numpy(), expected)
    assert value.dtype is DType.from_numpy(np.asarray(expected).dtype)
    assert [n.op_type for n in model.graph.nodes] == ["Identity"]


def test_sparse_initializers_become_dense() -> None:
    proto = parse("g (float[2,3] x) => (float[2,3] y) { y = Add(x, v) }")
    proto.graph.sparse_initializer.append(SPARSE)
    model = from_proto(proto)
    assert model.graph.constants["v"].numpy().tolist() == [[0, 3, 0], [0, 0, 4]]


def test_left_out_inputs_and_outputs() -> None:
    proto = parse(
        "g (float[2,1,3] x, float[1,16,3] w, float[1,16,4] r, float[1,1,4] h) => (float[1,1,4] y)"
        ' { "", y = LSTM <hidden_size = 4> (x, w, r, "", "", h) }'
    )
    model = from_proto(proto)
    node = model.graph.nodes[0]
    assert [v is None for v in node.inputs] == [False, False, False, True, True, False]
    written = to_proto(model).graph.node[0]
    assert list(written.input) == ["x", "w", "r", "", "", "h"]
    assert list(written.output) == ["", "y"]


def test_operators_of_other_domains_pass_through() -> None:
    proto = parse('g (float[2] x) => (float[2] y) { y = com.acme.Magic <level = 3, mode = "fast"> (x) }')
    proto.opset_import.add(domain="com.acme", version=4)
    model = from_proto(proto)
    written = to_proto(model)
    assert {o.domain: o.version for o in written.opset_import}["com.acme"] == 4
    assert written.graph.node[0].domain == "com.acme"
    assert {a.name: helper.get_attribute_value(a) for a in written.graph.node[0].attribute} == {
        "level": 3,
        "mode": b"fast",
    }
    assert str(model.graph.outputs[0].type) == "float32[2]"  # inference knows nothing, the file does


def test_a_wrong_declared_shape_does_not_win() -> None:
    proto = parse("g (float[2,3] x) => (float[7,unk__7] y) { y = Relu(x) }")
    assert str(from_proto(proto).graph.outputs[0].type) == "float32[2,3]"


def test_no_opset() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    del proto.opset_import[:]
    assert "names no opset" in refusal(proto)


def test_metadata_survives() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    proto.metadata_props.add(key="author", value="me")
    assert {p.key: p.value for p in to_proto(from_proto(proto)).metadata_props} == {"author": "me"}


def test_import_leaves_the_proto_alone() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    before = proto.SerializeToString()
    from_proto(proto)
    assert proto.SerializeToString() == before


def test_functions_are_inlined() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "mine" : 1]>
    g (float[2] x) => (float[2] y) { a = mine.twice <by = 3.0> (x) y = mine.twice <by = 2.0> (a) }
    <domain: "mine", opset_import: ["" : 21]>
    twice <by> (v) => (w) { k = Constant <value_float: float = @by> () w = Mul(v, k) }
    """
    model = from_proto(onnx.parser.parse_model(text))
    assert [n.op_type for n in model.graph.nodes] == ["Mul", "Mul"]
    assert sorted(float(v.numpy()) for v in model.graph.constants.values()) == [2, 3]
    assert not model.functions


def test_functions_of_another_opset() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "mine" : 1]>
    g (float[2,3] x) => (float[2,3] y) { y = mine.f (x) }
    <domain: "mine", opset_import: ["" : 14]>
    f (v) => (w) { a = Relu(v) w = Identity(a) }
    """
    assert [n.op_type for n in from_proto(onnx.parser.parse_model(text)).graph.nodes] == ["Relu", "Identity"]
    changed = text.replace("Relu(v)", "Softmax(v)").replace('"" : 14', '"" : 12')
    nodes = from_proto(onnx.parser.parse_model(changed)).graph.nodes
    softmax = next(n for n in nodes if n.op_type == "Softmax")
    assert softmax.get_int("axis", -1) == -1, "converted, or over the last axis, which is the same for rank 2"


def test_a_function_that_calls_itself() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "mine" : 1]>
    g (float[2] x) => (float[2] y) { y = mine.f (x) }
    <domain: "mine", opset_import: ["" : 21, "mine" : 1]>
    f (v) => (w) { w = mine.f (v) }
    """
    assert "calls itself" in refusal(onnx.parser.parse_model(text))


def test_newer_opsets() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    proto.opset_import[0].version = 28
    assert from_proto(proto).opsets == {"": 26}
    proto.graph.node[0].op_type = "SwiGLU"
    assert "exporting with opset 26" in refusal(proto)
