"""Models that several tests of the IR share."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from irc.ir.builder import GraphBuilder, weights
from irc.ir.graph import Function, Graph, Model, Value
from irc.ir.types import (
    Constant,
    DType,
    MapType,
    OptionalType,
    Origin,
    SequenceType,
    Shape,
    SparseType,
    TensorType,
)


def conv_net() -> Model:
    """Conv, Relu, pooling, flatten, Gemm."""
    b = GraphBuilder("net")
    x = b.input("x", "float32", [1, 3, 8, 8])
    y = b.op("Relu", b.conv(x, weights(4, 3, 3, 3), np.zeros(4, np.float32), pads=[1, 1, 1, 1], name="conv1"))
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    b.output(b.gemm(y, weights(10, 4, seed=1), transB=1, name="head"), name="logits")
    return b.build()


def branches() -> Model:
    """If with captured values, a Loop inside one branch."""
    b = GraphBuilder("control")
    x, c = b.input("x", "float32", [2, 3]), b.input("c", "bool", [])
    y = b.op("Abs", x)

    def body(s: GraphBuilder) -> None:
        s.input("i", "int64", [])
        go, state = s.input("go", "bool", []), s.input("state", "float32", [2, 3])
        s.output(s.op("Identity", go), s.op("Mul", state, s.op("Add", y, np.float32(1))))

    def then(s: GraphBuilder) -> None:
        s.output(s.op("Loop", 3, None, y, body=s.subgraph(body)))

    b.output(b.op("If", c, then_branch=b.subgraph(then), else_branch=b.subgraph(lambda s: s.output(s.op("Neg", x)))))
    return b.build()


def everything() -> Model:
    """Every kind of attribute, type, constant and name that the text form has to carry. Not meant to run."""
    b = GraphBuilder('a "quoted" name')
    x = b.input("x:0", "float32", ["N", None, 3])
    y = b.input("y", SequenceType(OptionalType(TensorType(DType.INT8))))
    z = b.input("z", MapType(DType.STRING, SparseType(DType.DOUBLE, Shape.of(2))))
    b.input("inf", TensorType(DType.STRING, Shape.of("a dim", "3", "_")))
    node = b.node(
        "Op 1",
        x,
        None,
        y,
        z,
        outputs=["out/1", "nan"],
        name="the node\n",
        domain="my.domain",
        i=-(2**63),
        f=0.10000000149011612,
        inf=float("-inf"),
        nan=float("nan"),
        s='text "with" \u20ac \\ and \n',
        raw=b"\xff\x00",
        ints=[1, -2],
        floats=[1.0, 1e-45, -0.0, 3e38],
        mixed=[1, 0.5],
        strings=["a", ""],
        raws=[b"\xfe", b""],
        empty=[],
        tensor=np.arange(3, dtype=np.int64),
        tensors=[np.array(1.5, np.float32), np.zeros((0, 2), np.float16)],
        type=TensorType(DType.FLOAT, Shape.of("N", 2)),
        types=[SequenceType(TensorType(DType.BOOL)), OptionalType(TensorType(DType.INT4, Shape.of()))],
    )
    node.overload = "v 2"
    node.origin = Origin(("conv", 'b"n'), ("fold", "fuse-x"))
    constants: list[Value] = [b.constant(c, "c") for c in constants_of_all_types()]
    big = b.constant(weights(5, 5), "big")
    b.output(node.outputs[0], b.op("Use", *constants, big, domain="d"), node.outputs[1], b.op("Nothing", domain="d"))
    bare = b.node("Sink", x, outputs=0, domain="d")
    bare.origin = Origin()
    model = b.build(check=False)
    model.opsets.update({"my.domain": 3, "d": 1})
    model.metadata.update({"author": "a\nb", "": "empty key"})
    model.notes.append("batch bound to 1")
    model.functions["d", "Use", ""] = Function("d", "Use", "", b"\x0a\x03")
    return model


def constants_of_all_types() -> list[Constant]:
    floats = [0.0, -0.0, 1.0, 0.5, 2.0]
    found = []
    for dtype in DType:
        if dtype is DType.STRING:
            continue
        values = [0, 1] if dtype in (DType.BOOL, DType.UINT2) or not dtype.is_float else floats
        if dtype is DType.FLOAT8E8M0:
            values = [0.5, 1.0, 2.0]
        found.append(Constant.of(np.array(values, np.float64).astype(dtype.numpy), dtype))
    found += [
        Constant.of(np.array(["a", b"b", b"\xff", ""], object)),
        Constant.of(np.array([0.1, 1 / 3, 1e-45, 3.4028235e38, -np.inf], np.float32)),
        Constant.of(np.array([np.nan, -np.nan, 1], np.float32)),
        Constant.of(np.array([0.1, 1e-310, 2**53 + 1.0], np.float64)),
        Constant.of(np.array([2**64 - 1, 0], np.uint64)),
        Constant.of(np.array([-(2**63), 2**63 - 1], np.int64)),
        Constant.of(np.array([3.140625, -1e30], ml_dtypes.bfloat16)),
        Constant.of(np.array([1 + 2j, np.nan], np.complex64)),
        Constant.of(np.array([-8, 7], ml_dtypes.int4)),
        Constant.of(np.array(True)),
        Constant.of(np.zeros((0, 3), np.int8)),
    ]
    return found


def all_constants(model: Model) -> dict[str, Constant]:
    """By digest: the store that the parser asks."""
    found: dict[str, Constant] = {}

    def visit(graph: Graph) -> None:
        for value in graph.constants.values():
            assert value.constant is not None
            found[value.constant.digest()] = value.constant
        for node in graph.nodes:
            for attribute in node.attributes.values():
                for item in attribute if isinstance(attribute, tuple) else (attribute,):
                    if isinstance(item, Constant):
                        found[item.digest()] = item
            for sub in node.subgraphs:
                visit(sub)

    visit(model.graph)
    return found
