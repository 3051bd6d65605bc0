"""Classes of kernels, records and their files, candidates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from irc.backends.tvm.cache import code_digest
from irc.backends.tvm.expression import ExpressionBuilder
from irc.backends.tvm.geometry import lanes_of
from irc.backends.tvm.specs import DepthwiseSpec, FillSpec, LinearSpec, Operand
from irc.backends.tvm.tune.candidates import candidates, other_orders, predicted, ranked
from irc.backends.tvm.tune.classes import choice_of, class_key, describe, with_choice
from irc.backends.tvm.tune.records import Record, Records
from irc.errors import DataError
from irc.targets import TARGETS

V4 = TARGETS["x86-64-v4"]
ARM = TARGETS["arm"]


def linear(scale: float = 0.5, **changes: Any) -> LinearSpec:
    b = ExpressionBuilder()
    y = b.add("mul", "float32", b.add("accumulator", "float32"), b.constant(scale, "float32"))
    expression = b.finish(b.add("add", "float32", y, b.operand(0, "float32")))
    spec = LinearSpec(
        "float32",
        "float32",
        (1, 1),
        (14, 14),
        (3, 3),
        32,
        48,
        (0, 0, 16 * 32, 32),
        (0, 0, 14 * 48, 48),
        (0, 0),
        expression=expression,
        operands=(Operand("float32", (0, 0, 0, 0, 1), 48),),
        tile=(1, 14, 1),
    )
    return replace(spec, **changes)


DEPTHWISE = DepthwiseSpec(
    "float32", "float32", "float32", 1, (14, 14), (3, 3), 96, (0, 16 * 96, 96), (0, 14 * 96, 96), tile=(4, 4)
)


def record(spec: LinearSpec | DepthwiseSpec = DEPTHWISE, **changes: Any) -> Record:
    made = Record(
        class_key(spec, V4), V4.key, code_digest(), choice_of(spec), choice_of(spec), 1e-6, 2e-6, describe(spec)
    )
    return replace(made, **changes)


@pytest.mark.parametrize(
    "other",
    [
        linear(tile=(2, 7, 2)),
        linear(order="channels"),
        linear(scale=0.25),
        linear(x_size=9000, y_size=9000, w_size=9000),
        linear(operands=(Operand("float32", (0, 0, 0, 0, 1), 64),)),
    ],
    ids=["tile", "order", "constant", "sizes", "operand size"],
)
def test_the_same_layer_is_the_same_class(other: LinearSpec) -> None:
    assert class_key(other, V4) == class_key(linear(), V4)


@pytest.mark.parametrize(
    "other",
    [linear(ic=64), linear(out=(7, 28)), linear(x_strides=(0, 0, 640, 32)), linear(expression=()), DEPTHWISE],
    ids=["channels", "extents", "strides", "expression", "family"],
)
def test_other_layers_are_other_classes(other: LinearSpec | DepthwiseSpec) -> None:
    assert class_key(other, V4) != class_key(linear(), V4)


def test_targets_have_classes_of_their_own() -> None:
    assert class_key(linear(), V4) != class_key(linear(), ARM)


def test_a_choice_goes_into_a_spec_and_comes_out() -> None:
    choice = {"tile": [1, 7, 3], "order": "channels"}
    made = with_choice(linear(), choice)
    assert made == linear(tile=(1, 7, 3), order="channels")
    assert choice_of(made) == choice


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"tile": [1, 7, 3]},
        {"tile": [1, 7], "order": "rows"},
        {"tile": [1, 0, 3], "order": "rows"},
        {"tile": [1, 7, 1000], "order": "rows"},
        {"tile": [1, 7, True], "order": "rows"},
        {"tile": "177", "order": "rows"},
        {"tile": [1, 7, 3], "order": "sideways"},
        {"tile": [1, 7, 3], "order": "rows", "more": 1},
    ],
)
def test_what_is_no_choice_is_refused(choice: dict[str, Any]) -> None:
    assert with_choice(linear(), choice) is None


def test_kernels_without_a_choice_have_none() -> None:
    fill = FillSpec("float32", (1, 4, 4, 8), (128, 32, 8), (1, 1, 2, 2, 8), 0.0)
    assert choice_of(fill) == {}
    assert with_choice(fill, {}) is None


def test_files_keep_records(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    kept = [record(), record(linear()), record(target="elsewhere"), record(code="old")]
    Records(kept).save(path)
    assert {r.identity: r for r in Records.load(path)} == {r.identity: r for r in kept}


def test_files_of_the_same_records_are_the_same_bytes(tmp_path: Path) -> None:
    kept = [record(), record(linear()), record(target="elsewhere")]
    Records(kept).save(tmp_path / "a")
    Records(reversed(kept)).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_new_record_replaces_that_of_the_same_class() -> None:
    records = Records([record(), record(seconds=5e-7)])
    assert len(records) == 1
    found = records.find(DEPTHWISE, V4)
    assert found is not None
    assert found.gain == pytest.approx(4.0)


def test_records_of_other_code_or_targets_are_not_found() -> None:
    records = Records([record(code="old"), record(target=ARM.key)])
    assert records.find(DEPTHWISE, V4) is None
    assert records.stale(V4) == 1
    assert records.current(V4) == 0
    assert Records([record()]).current(V4) == 1


GOOD = {"irc_tuning": 1, "records": []}
BAD_RECORDS = [
    {},
    {**json.loads(json.dumps(record().__dict__)), "seconds": 0},
    {**json.loads(json.dumps(record().__dict__)), "seconds": float("nan")},
    {**json.loads(json.dumps(record().__dict__)), "seconds": "fast"},
    {**json.loads(json.dumps(record().__dict__)), "choice": [1]},
    {**json.loads(json.dumps(record().__dict__)), "kernel": 1},
    {**json.loads(json.dumps(record().__dict__)), "extra": 1},
]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"irc_tuning": 2, "records": []}', '{"irc_tuning": 1, "records": {}}', "\udcff"]
    + [json.dumps({**GOOD, "records": [r]}) for r in BAD_RECORDS],
)
def test_files_that_hold_something_else_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"no tuning records can be read.*irc tune") as caught:
        Records.load(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("target", [t for t in TARGETS.values() if not t.small], ids=lambda t: t.name)
@pytest.mark.parametrize("spec", [linear(), linear(out=(1, 49), order="channels"), DEPTHWISE])
def test_candidates_differ_in_tuned_fields_only(spec: LinearSpec | DepthwiseSpec, target: Any) -> None:
    found = candidates(spec, target, count=40)
    assert found[0] == spec
    assert len(found) == len(set(found)) > 3
    assert all(with_choice(spec, choice_of(c)) == c for c in found)
    assert candidates(spec, target, count=3) == found[:3]


@pytest.mark.parametrize("target", [t for t in TARGETS.values() if not t.small], ids=lambda t: t.name)
def test_candidates_fit_the_registers(target: Any) -> None:
    for c in candidates(linear(), target, count=40)[1:]:
        assert isinstance(c, LinearSpec)
        rows, columns, vectors = c.tile
        if c.tile != linear().tile:
            assert rows * columns * vectors + vectors < target.vector_registers
        assert vectors <= -(-48 // lanes_of(target))


def test_few_rows_are_not_walked_by_rows() -> None:
    """One item of work could not be shared out among threads."""
    assert all(c.order == "channels" for c in candidates(linear(out=(1, 49), order="channels"), V4))  # type: ignore[union-attr]  # linear
    assert other_orders([linear(out=(1, 49), order="channels")]) == []
    assert other_orders([linear(), linear(order="channels")]) == [linear(order="channels"), linear()]


def test_the_model_speaks_of_its_own_tiles() -> None:
    best = ranked(linear(), V4)[0]
    spec = linear(tile=(best.rows, best.columns, best.vectors))
    assert predicted(spec, V4) == best
    assert predicted(linear(tile=(9, 9, 9)), V4) is None
    assert predicted(DEPTHWISE, V4) is None
