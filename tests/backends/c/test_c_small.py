"""Small forms of kernels: where they are used, and that they give what the fast ones do."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from c_sources import run_compiled
from in_process import program_of
from test_c_real import LAYERS, feeds, wanted

from irc.backends.c.merge import merge
from irc.backends.c.small import chosen, either, form
from irc.backends.c.source import source_text
from irc.backends.program import Program
from irc.ir.builder import GraphBuilder
from irc.ir.clone import clone
from irc.targets.catalogue import TARGETS

SMALL = (
    "odd",
    "points",
    "strided points",
    "added",
    "added, clamped",
    "long row",
    "rows",
    "depthwise",
    "depthwise, strided",
    "depthwise, narrow",
)


def program(*names: str) -> Program:
    b = GraphBuilder("small")
    for name in names:
        shape, layer = LAYERS[name]
        b.output(layer(b, b.input(name, "float32", list(shape))), name=f"{name} y")
    return program_of(clone(b.build()), TARGETS["c"], name="net")


def kernel(name: str, small: str, fast: str) -> str:
    return "\n".join([f"static void {name}(float *y)", "{", *either([small], [fast]), "}", ""])


@pytest.mark.parametrize("way", ["small", "small, checked"])
def test_as_onnxruntime(way: str, tmp_path: Path, need_tool: Callable[..., str]) -> None:
    """Sums of at most 300 products in another order."""
    made = program(*SMALL)
    code = form(source_text(made).split("weights_0[")[1], small=True)  # what follows the helpers
    assert "irc_conv_f32(" in code
    assert "irc_tiles" not in code
    got = run_compiled(made, way, {name: feeds()[name] for name in SMALL}, tmp_path, need_tool)
    for name in SMALL:
        result = wanted()[f"{name} y"]
        assert np.abs(got[f"{name} y"] - result).max() < 1e-5 * np.abs(result).max(), name


@pytest.mark.parametrize("other", ["dilated", "groups", "added to two", "other end", "bytes", "depthwise, odd"])
def test_beside_a_fast_one_there_is_none(other: str) -> None:
    assert "irc_conv_f32" not in source_text(program("points", other))


def test_each_form_names_the_numbers_that_it_uses() -> None:
    a, b = (kernel(n, f"    y[{i}] = 0;", f"    y[{i}] = {i}.5f;") for n, i in (("a", 2), ("b", 3)))
    (made,) = merge({"a": a, "b": b})
    small, fast = form(made.text, small=True), form(made.text, small=False)
    assert "y[q0] = 0;" in small
    assert "(void)r_;" in small
    assert "const int32_t q0 = q_[0];" in fast
    assert "y[q0] = r0;" in fast


def test_constants_that_became_parameters_are_made_where_they_are_used() -> None:
    a, b = (
        kernel(n, f"    static const uint16_t t[2] = {{7, {i}}};", f"    y[{i}] = 0;") for n, i in (("a", 2), ("b", 3))
    )
    (made,) = merge({"a": a, "b": b})
    assert "    const uint16_t t[2] = {7, (uint16_t)q0};" in made.text
    (alone,) = merge({"a": a})
    assert "static const uint16_t t[2] = {7, 2};" in alone.text


def test_small_forms_are_chosen_for_all_or_none() -> None:
    both = kernel("a", "    irc_conv_f32(y);", "    irc_tiles4(y);")
    fast = "static void b(float *y)\n{\n    irc_depthwise(y);\n}\n"
    assert chosen({"a": both}) == {"a": both}
    assert chosen({"a": both, "b": fast}) == {"a": "static void a(float *y)\n{\n    irc_tiles4(y);\n}\n", "b": fast}
