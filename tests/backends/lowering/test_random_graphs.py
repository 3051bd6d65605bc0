"""Random models on this machine's processor, on lesser ones of its kind, and on an emulated Arm, against onnxruntime.

onnxruntime computes operator by operator (no optimization of its own). A few seeds; many more were run once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from lowering_harness import Lowering, float_difference, quantized_difference
from random_graphs import float_graph
from random_quantized import quantized_graph

from irc.evaluation.oracle import Oracle
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.pipeline import PRESETS, Pipeline
from irc.pipeline.contract import PassContext
from irc.targets.catalogue import TARGETS

Difference = Callable[[np.ndarray, np.ndarray], str]
KINDS: dict[str, tuple[Callable[[int], tuple[Model, list[np.ndarray]]], Difference]] = {
    "float": (float_graph, float_difference),
    "quantized": (quantized_graph, quantized_difference),
}


def check(lowering: Lowering, kind: str, seed: int, *, clean: bool = False) -> None:
    make, difference = KINDS[kind]
    model, feeds = make(seed)
    names = [v.name for v in model.graph.inputs]
    wanted = Oracle(model).run(dict(zip(names, feeds, strict=True)))
    outputs = [v.name for v in model.graph.outputs]
    model = clone(model)
    if clean:
        Pipeline.parse(PRESETS["none"]).run(model, PassContext())
    for name, result in zip(outputs, lowering.run(model, feeds), strict=True):
        assert not difference(result, wanted[name]), f"{name}: {difference(result, wanted[name])}"


@pytest.fixture(scope="module")
def others(kernel_cache: Path) -> Iterator[Callable[[str], Lowering]]:
    """Compiling processes for other targets, each started once."""
    known: dict[str, Lowering] = {}

    def get(name: str) -> Lowering:
        if name not in known:
            known[name] = Lowering(name, kernel_cache, workers=1)
        return known[name]

    yield get
    for lowering in known.values():
        lowering.__exit__(None, None, None)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", KINDS)
def test_as_onnxruntime(kind: str, seed: int, native: Lowering) -> None:
    check(native, kind, seed)


@pytest.mark.parametrize("seed", range(12, 14))
@pytest.mark.parametrize("kind", KINDS)
def test_as_onnxruntime_after_the_clean_up(kind: str, seed: int, native: Lowering) -> None:
    check(native, kind, seed, clean=True)


@pytest.mark.parametrize("target", ["x86-64", "x86-64-v3"])
@pytest.mark.parametrize("kind", KINDS)
def test_lesser_processors(kind: str, target: str, native: Lowering, others: Callable[[str], Lowering]) -> None:
    if native.target.arch != "x86-64" or native.target.vector_bytes < TARGETS[target].vector_bytes:
        pytest.skip(f"this processor is no {target}")
    check(others(target), kind, 20)


@pytest.mark.parametrize("kind", KINDS)
def test_emulated_arm(kind: str, others: Callable[[str], Lowering], need_tool: Callable[..., str]) -> None:
    need_tool("qemu-aarch64")
    need_tool("aarch64-linux-gnu-gcc")
    check(others("arm"), kind, 22)
