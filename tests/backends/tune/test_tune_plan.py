"""Records in plans: other tiles and orders, the same results."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from in_process import glue_of, open_program, program_of

from irc.backends.artifact.link import link_object
from irc.backends.tvm.cache import code_digest
from irc.backends.tvm.geometry import lanes_of, step_channels
from irc.backends.tvm.plan.levels import planning_target, versions_of
from irc.backends.tvm.plan.make import Plan, make_plan
from irc.backends.tvm.plan.pack import pack_linear
from irc.backends.tvm.specs import AttentionSpec, DepthwiseSpec, LinearSpec, WinogradSpec
from irc.backends.tvm.tune.apply import apply_records, packed_vectors, repack, tuned_versions
from irc.backends.tvm.tune.candidates import candidates
from irc.backends.tvm.tune.classes import choice_of, class_key, measured_on, tuned_fields
from irc.backends.tvm.tune.records import Record, Records
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.targets import TARGETS, get_target
from irc.targets.catalogue import levels_of
from irc.targets.target import Target


def network() -> Model:
    """A convolution, a grouped one, a depthwise one, one whose channels leave a remainder, a matrix product."""
    b = GraphBuilder("net")
    x = b.input("x", "float32", [1, 8, 9, 9])
    y = b.op("Relu", b.conv(x, weights(40, 8, 3, 3), weights(40, seed=1), pads=[1, 1, 1, 1]))
    y = b.conv(y, weights(80, 20, 1, 1, seed=2), group=2)
    y = b.op("Relu", b.conv(y, weights(80, 1, 3, 3, seed=3), group=80))
    y = b.conv(y, weights(37, 80, 1, 1, seed=4))
    b.output(b.gemm(b.op("Flatten", y), weights(37 * 49, 50, seed=5), weights(50, seed=6)), name="y")
    return b.build()


def plan_of(model: Model, target: Target) -> Plan:
    return make_plan(clone(model).graph, target)


def others(plan: Plan, target: Target) -> Records:
    """For each kernel of the plan a record of a choice that is not the plan's; other vectors where there are any."""
    records = Records()
    for call in plan.calls:
        if not tuned_fields(call.spec):
            continue
        found = candidates(call.spec, target, 40)[1:]
        if isinstance(call.spec, LinearSpec):
            vectors = call.spec.tile[2]
            found.sort(key=lambda c: c.tile[2] == vectors)  # type: ignore[union-attr]  # linear
        if not found:
            continue
        name, choice = class_key(call.spec, target), choice_of(found[0])
        records.add(Record(name, measured_on(call.spec, target), code_digest(), choice, choice_of(call.spec), 1.0, 2.0))
    return records


@pytest.mark.parametrize("target", [t for t in TARGETS.values() if not (t.upgrades or t.small)], ids=lambda t: t.name)
def test_calls_get_the_choice_of_their_record(target: Target) -> None:
    before, after = plan_of(network(), target), plan_of(network(), target)
    records = others(before, target)
    used = apply_records(after, target, records)
    assert used == len(records) >= 4
    changed = [(a.spec, b.spec) for a, b in zip(before.calls, after.calls, strict=True) if a.spec != b.spec]
    assert len(changed) == used
    assert {type(spec) for _, spec in changed} == {LinearSpec, DepthwiseSpec}
    for old, new in changed:
        found = records.find(old, target)
        assert found is not None
        assert choice_of(new) == found.choice


def test_results_stay_the_same_bits() -> None:
    """Tiles and orders do not change the order of a sum's terms."""
    target = get_target("native")
    model = network()
    records = others(plan_of(model, target), target)
    x = np.random.default_rng(0).standard_normal((1, 8, 9, 9)).astype(np.float32)
    with open_program(program_of(model, target)) as net:
        want = net(x)
    tuned = program_of(model, target, tuning=records)
    assert tuned.statistics["tuned"] == len(records)
    with open_program(tuned) as net:
        np.testing.assert_array_equal(net(x), want)


def test_the_same_records_give_the_same_bytes() -> None:
    target = get_target("native")
    records = others(plan_of(network(), target), target)
    first, second = (program_of(network(), target, tuning=records) for _ in range(2))
    assert link_object(first, glue_of(first)) == link_object(second, glue_of(second))


def test_each_level_of_a_library_has_its_own_choice() -> None:
    """What was found for one level, with weights packed for that level alone, holds for it in the library of all."""
    target = TARGETS["x86-64"]
    best = levels_of(target)[-1]
    records = others(plan_of(network(), best), best)
    plan = plan_of(network(), planning_target(target))
    assert apply_records(plan, target, records) == len(records)
    specs = [c.spec for c in plan.calls if tuned_fields(c.spec)]
    changed = 0
    for spec in specs:
        before = versions_of(spec, target)
        after = tuned_versions(before, records)
        assert [t for _, t in after] == [t for _, t in before]
        assert after[0] == before[0]
        found = records.find(spec, best)
        if found is not None:
            changed += 1
            assert choice_of(after[-1][0]) == found.choice != choice_of(before[-1][0])
    assert changed == len(records) >= 3


def test_records_of_other_code_change_nothing() -> None:
    target = get_target("native")
    plan = plan_of(network(), target)
    calls = list(plan.calls)
    stale = Records(replace(r, code="old") for r in others(plan, target))
    assert apply_records(plan, target, stale) == 0
    assert plan.calls == calls


def test_a_record_that_is_no_choice_changes_nothing() -> None:
    target = get_target("native")
    plan = plan_of(network(), target)
    calls = list(plan.calls)
    wrong = Records(replace(r, choice={"tile": [1]}) for r in others(plan, target))
    assert apply_records(plan, target, wrong) == 0
    assert plan.calls == calls


def heavy() -> Model:
    """A convolution that Winograd's transforms make cheaper, and attention."""
    b = GraphBuilder("heavy")
    x = b.input("x", "float32", [1, 48, 40, 40])
    image = b.conv(x, weights(80, 48, 3, 3), weights(80, seed=1), pads=[1, 1, 1, 1])
    q, k, v = (b.input(name, "float32", [1, 2, 48, 32]) for name in "qkv")
    scores = b.op("Mul", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2])), np.float32(0.2))
    b.output(image, b.op("MatMul", b.op("Softmax", scores, axis=-1), v))
    return b.build()


@pytest.mark.parametrize("family", [WinogradSpec, AttentionSpec])
def test_families_of_two_tiles_follow_records(family: type) -> None:
    target = get_target("native")
    if target.vector_bytes < 32:
        pytest.skip("this CPU has neither: no AVX2")
    model = heavy()
    call = next(c for c in plan_of(model, target).calls if isinstance(c.spec, family))
    found = [c for c in candidates(call.spec, target, 40)[1:] if packed_vectors(c) != packed_vectors(call.spec)]
    chosen = (found or candidates(call.spec, target, 40)[1:])[0]
    name, choice = class_key(call.spec, target), choice_of(chosen)
    records = Records(
        [Record(name, measured_on(call.spec, target), code_digest(), choice, choice_of(call.spec), 1.0, 2.0)]
    )
    tuned = program_of(model, target, tuning=records)
    assert tuned.statistics["tuned"] >= 1
    rng = np.random.default_rng(0)
    with open_program(program_of(model, target)) as plain, open_program(tuned) as other:
        feeds = {p.name: rng.standard_normal(p.shape).astype(np.float32) for p in plain.inputs}
        want, got = plain.run(feeds), other.run(feeds)
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value)


@pytest.mark.parametrize("target", [t for t in TARGETS.values() if not t.small], ids=lambda t: t.name)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("x_dtype", "w_dtype"), [("float32", np.float32), ("uint8", np.int8), ("int8", np.int8)])
def test_repacking_is_packing_anew(target: Target, groups: int, x_dtype: str, w_dtype: type) -> None:
    lanes = lanes_of(target)
    step = step_channels(x_dtype, target, 8)
    oc = 5 * lanes + 3
    dense = np.random.default_rng(1).integers(-99, 99, (groups, oc, 3, 2, 8)).astype(w_dtype)
    packed = {v: np.concatenate([pack_linear(g, lanes, v, step) for g in dense]) for v in (1, 2, 3, 4, 6)}
    size = packed[1].size // groups
    specs = {
        v: LinearSpec(
            x_dtype,
            "float32",
            (1, groups),
            (4, 4),
            (3, 2),
            8,
            oc,
            (0, 8, 64, 16),
            (0, oc, 999, 99),
            (0, size if groups > 1 else 0),
            tile=(1, 2, v),
        )
        for v in packed
    }
    for old in packed:
        for new in packed:
            np.testing.assert_array_equal(repack(packed[old], specs[old], specs[new], target), packed[new])
