"""Import, each lossless pass in turn, export: onnxruntime gives for the result what it gives for the original."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from e2e_models import FLOAT, QDQ, RealModel, feeds, relative_error, session, within_one_step

from irc.export import to_bytes
from irc.frontend import load_model
from irc.ir.clone import clone
from irc.ir.compare import difference
from irc.ir.graph import Graph, Value
from irc.ir.parser import parse_model
from irc.ir.printer import print_model
from irc.pipeline import PassContext, Pipeline

LOSSLESS = (
    "canonicalize,fold-constants,simplify,fold-batchnorm,fold-affine,fuse-functions,eliminate-common,eliminate-dead"
)


def run(data: bytes, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    found = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in found.get_outputs()]
    return dict(zip(names, found.run(names, feed), strict=True))


@pytest.mark.parametrize("entry", [*FLOAT, *QDQ], ids=lambda m: m.name)
def test_each_pass(entry: RealModel, data_dir: Path) -> None:
    path = data_dir / "models" / entry.file
    original = session(path)
    (feed,) = feeds(entry, original, 1)
    wanted = dict(zip([o.name for o in original.get_outputs()], original.run(None, feed), strict=True))
    model = load_model(path, shapes=entry.shapes)
    for text in ("", *LOSSLESS.split(","), "none"):
        Pipeline.parse(text).run(model, PassContext())
        found = run(to_bytes(model), feed)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert found[name].shape == value.shape
            if value.dtype.kind in "iu":
                assert within_one_step(found[name], value) >= 0.99, text
            else:  # folding changes weights in the last bits; 1e-5 of the largest output is some 80 of them
                assert relative_error(found[name], value) <= 1e-5, text


@pytest.mark.parametrize("entry", [*FLOAT, *QDQ], ids=lambda m: m.name)
def test_text_round_trip(entry: RealModel, data_dir: Path) -> None:
    model = load_model(data_dir / "models" / entry.file)
    constants = {value.constant.digest(): value.constant for value in all_constants(model.graph)}
    again = parse_model(print_model(model), lambda digest: constants[digest])
    assert difference(model, again) is None
    assert difference(clone(model), again) is None


def all_constants(graph: Graph) -> Iterator[Value]:
    yield from graph.constants.values()
    for node in graph.nodes:
        for sub in node.subgraphs:
            yield from all_constants(sub)
