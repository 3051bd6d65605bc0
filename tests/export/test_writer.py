"""The IR as ONNX: attributes, names, opsets, regions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from irc.errors import ModelError
from irc.export import compatible_opset, subgraph_model, to_proto
from irc.frontend import from_proto
from irc.ir.graph import Graph, Model
from irc.ir.types import Constant, DType, Origin, SequenceType, Shape, TensorType

F2 = TensorType(DType.FLOAT, Shape.of(2))


def one(op: str, attributes: dict[str, object] | None = None, **more: object) -> onnx.NodeProto:
    graph = Graph()
    x = graph.add_input("x", F2)
    node = graph.add(op, [x], ["y"], attributes, types=[F2], **more)  # type: ignore[arg-type]
    graph.set_outputs([node.output])
    return to_proto(Model(graph)).graph.node[0]


def attribute(value: object, op: str = "Op", domain: str = "my", name: str = "a") -> onnx.AttributeProto:
    return one(op, {name: value}, domain=domain).attribute[0]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (3, "INT"),
        (True, "INT"),
        (0.5, "FLOAT"),
        ("text", "STRING"),
        (b"\xff", "STRING"),
        ((1, 2), "INTS"),
        ((1.0, 2.0), "FLOATS"),
        ((1, 2.5), "FLOATS"),
        (("a", "b"), "STRINGS"),
        ((), "INTS"),
        (Constant.of(np.eye(2)), "TENSOR"),
        ((Constant.of(np.eye(2)),), "TENSORS"),
        (SequenceType(F2), "TYPE_PROTO"),
        ((F2, F2), "TYPE_PROTOS"),
    ],
)
def test_attributes_keep_their_kind_through_both_ways(value: object, kind: str) -> None:
    written = attribute(value)
    assert onnx.AttributeProto.AttributeType.Name(written.type) == kind
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21, "my" : 1]> g (float[2] x) => (y) {}')
    proto.graph.node.append(helper.make_node("Op", ["x"], ["y"], domain="my"))
    proto.graph.node[0].attribute.append(written)
    back = to_proto(from_proto(proto)).graph.node[0].attribute[0]
    assert back == written


def test_whole_numbers_for_float_attributes_become_floats() -> None:
    assert attribute(1, "LeakyRelu", "", "alpha").type == onnx.AttributeProto.FLOAT
    assert attribute((), "RandomNormal", "", "shape").type == onnx.AttributeProto.INTS


def test_empty_lists_take_their_kind_from_the_schema() -> None:
    graph = Graph()
    node = graph.add("Scan", [], 0, {"scan_input_axes": ()})
    assert node.attributes["scan_input_axes"] == ()
    assert attribute((), "StringNormalizer", "", "stopwords").type == onnx.AttributeProto.STRINGS


def test_origin_survives() -> None:
    origin = Origin(("conv1", "bn1"), ("fold-batchnorm",))
    graph = Graph()
    x = graph.add_input("x", F2)
    graph.set_outputs([graph.add("Relu", [x], ["y"], name="r", origin=origin).output])
    back = from_proto(to_proto(Model(graph)))
    assert back.graph.nodes[0].origin == origin
    assert not to_proto(from_proto(_relu())).graph.node[0].metadata_props, "only what the name does not say"


def _relu() -> onnx.ModelProto:
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]> g (float[2] x) => (float[2] y) {}')
    proto.graph.node.append(helper.make_node("Relu", ["x"], ["y"], name="r"))
    return proto


def test_a_branch_that_returns_a_value_twice_gets_an_identity() -> None:
    graph = Graph()
    x, c = graph.add_input("x", F2), graph.add_input("c", TensorType(DType.BOOL, Shape.of()))
    then, other = graph.subgraph("then"), graph.subgraph("other")
    for branch, op in ((then, "Neg"), (other, "Abs")):
        made = branch.add(op, [x], types=[F2]).output
        branch.set_outputs([made, made])
    node = graph.add("If", [c], ["y", "z"], {"then_branch": then, "else_branch": other}, types=[F2, F2])
    graph.set_outputs(node.outputs)
    proto = to_proto(Model(graph))
    onnx.checker.check_model(proto, full_check=True)
    for attribute in proto.graph.node[0].attribute:
        assert attribute.g.node[1].op_type == "Identity"
        assert len({o.name for o in attribute.g.output}) == 2


def test_value_types_are_written() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.FLOAT, Shape.of("n", 2, None)))
    kind = TensorType(DType.FLOAT, Shape.of("n", 2, None))
    hidden = graph.add("Relu", [x], ["h"], types=[kind]).output
    graph.set_outputs([graph.add("Neg", [hidden], ["y"], types=[kind]).output])
    proto = to_proto(Model(graph))
    dims = proto.graph.value_info[0].type.tensor_type.shape.dim
    assert [(d.dim_param, d.dim_value) for d in dims] == [("n", 0), ("", 2), ("", 0)]


# opsets


def model_of(op: str, dtype: DType = DType.FLOAT, **attributes: object) -> Model:
    graph = Graph()
    kind = TensorType(dtype, Shape.of(1, 1, 4, 4))
    x = graph.add_input("x", kind)
    graph.set_outputs([graph.add(op, [x], ["y"], attributes, types=[kind]).output])  # type: ignore[arg-type]
    return Model(graph)


@pytest.mark.parametrize(
    ("model", "opset"),
    [
        (model_of("Relu"), 18),
        (model_of("Identity"), 18),
        (model_of("Identity", DType.INT4), 21),
        (model_of("Cast", to=1), 18),
        (model_of("Cast", to=1, round_mode="down"), 24),
        (model_of("AveragePool", kernel_shape=(1, 1)), 18),
        (model_of("AveragePool", kernel_shape=(1, 1), dilations=(1, 1)), 19),
        (model_of("AveragePool", kernel_shape=(1, 1), ceil_mode=1), 22),
        (model_of("Gelu"), 20),
        (model_of("Swish"), 24),
    ],
    ids=lambda m: m.graph.nodes[0].op_type if isinstance(m, Model) else str(m),
)
def test_the_oldest_opset_that_means_the_same(model: Model, opset: int) -> None:
    assert compatible_opset(model) == opset
    proto = to_proto(model)
    assert {o.domain: o.version for o in proto.opset_import} == {"": opset}
    onnx.checker.check_model(proto, full_check=True)
    if opset > 18:
        with pytest.raises(ModelError, match=f"opset {opset - 1}"):
            to_proto(model, opset=opset - 1)


def test_below_18_only_identical_operators() -> None:
    assert to_proto(model_of("Relu"), opset=14).opset_import[0].version == 14
    with pytest.raises(ModelError, match="changed in opset 14"):
        to_proto(model_of("Relu"), opset=13)
    with pytest.raises(ModelError, match="above 26"):
        to_proto(model_of("Relu"), opset=27)


def test_ir_version_fits_opset_and_element_types() -> None:
    assert to_proto(model_of("Relu")).ir_version == 10
    assert to_proto(model_of("Relu"), opset=26).ir_version == 13
    assert to_proto(model_of("Identity", DType.FLOAT4E2M1)).ir_version == 11


# regions


def test_region_as_a_model() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[2] x, float[2] z) => (float[2] y) <float[2] w = {1, 2}, float[2] v = {3, 4}> {
            a = Relu(x) b = Mul(a, w) c = Add(b, z) d = Neg(c) e = Sub(b, v) y = Add(d, e)
        }"""
    )
    model = from_proto(proto)
    nodes = model.graph.nodes[1:4]
    region = subgraph_model(tuple(reversed(nodes)))
    onnx.checker.check_model(region, full_check=True)
    assert [n.op_type for n in region.graph.node] == ["Mul", "Add", "Neg"]
    assert region.opset_import[0].version == 18
    assert [i.name for i in region.graph.input] == ["a", "z"]
    assert [t.name for t in region.graph.initializer] == ["w"]
    assert [o.name for o in region.graph.output] == ["b", "d"]


def test_region_with_a_branch_counts_captured_values() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[2] x, bool c) => (float[2] y) {
            a = Relu(x) b = Neg(x)
            y = If (c) <then_branch = t () => (float[2] o) { o = Neg(a) },
                        else_branch = e () => (float[2] p) { p = Abs(b) }>
        }"""
    )
    model = from_proto(proto)
    relu, neg, branch = model.graph.nodes
    assert [i.name for i in subgraph_model([branch]).graph.input] == ["c", "a", "b"]
    assert [o.name for o in subgraph_model([relu, neg]).graph.output] == ["a", "b"]
