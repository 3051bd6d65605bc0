"""Objects: reading, writing, and merging into one."""

from __future__ import annotations

import contextlib
import dataclasses
import random

import numpy as np
import pytest
import toy

from irc.backends.artifact import elf
from irc.backends.artifact.contents import public_symbols
from irc.backends.artifact.link import MAX_BYTES, link, link_object, weights_section
from irc.backends.program import Arg, Blob, Step
from irc.backends.tvm.assemble import assemble
from irc.errors import InternalError, UnsupportedError


@pytest.mark.parametrize("arch", toy.TARGETS)
def test_written_objects_read_back(arch):
    first = elf.read_object(toy.kernel("table", toy.N, arch))
    again = elf.read_object(elf.joined(elf.write_object(first)))
    kept = [s for s in again.sections if s.flags & elf.SHF_ALLOC]
    for old, new in zip((s for s in first.sections if s.flags & elf.SHF_ALLOC), kept, strict=True):
        assert (old.name, old.kind, old.flags, old.align, old.data()) == (
            new.name,
            new.kind,
            new.flags,
            new.align,
            new.data(),
        )
        assert [(r.offset, r.kind, r.symbol.name, r.addend) for r in old.relocations] == [
            (r.offset, r.kind, r.symbol.name, r.addend) for r in new.relocations
        ]
    assert {(s.name, s.value, s.binding) for s in first.symbols} == {
        (s.name, s.value, s.binding) for s in again.symbols
    }


def test_damaged_objects_are_refused_or_read_but_never_crash():
    good = toy.kernel("exp", toy.N, "x86-64")
    for size in range(0, len(good), 7):
        with pytest.raises(InternalError):
            elf.read_object(good[:size])
    rng = random.Random(0)
    for _ in range(300):
        bad = bytearray(good)
        for _ in range(4):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        with contextlib.suppress(InternalError):
            elf.read_object(bytes(bad))


@pytest.mark.parametrize("arch", toy.TARGETS)
def test_only_the_interface_is_global(arch):
    program = toy.toy(arch)
    obj = elf.read_object(link_object(program, toy.glue("toy", arch)))
    defined = {s.name for s in obj.symbols if s.binding != elf.STB_LOCAL and s.defined}
    undefined = {s.name for s in obj.symbols if s.binding != elf.STB_LOCAL and not s.defined}
    assert defined == set(public_symbols(program))
    assert undefined == {"expf", "sinf", "cosf"}
    names = [s.name for s in obj.sections]
    assert names == [".text", ".rodata", ".data.rel.ro", ".rodata.toy_weights", ".note.GNU-stack"]
    stack = next(s for s in obj.sections if s.name == ".note.GNU-stack")
    assert not stack.flags & elf.SHF_EXECINSTR
    assert "unused_helper" not in {s.name for s in obj.symbols}  # it would need no_such_function


@pytest.mark.parametrize("arch", toy.TARGETS)
def test_weights_are_where_the_plan_puts_them(arch):
    obj = elf.read_object(link_object(toy.toy(arch), toy.glue("toy", arch)))
    weights = next(s for s in obj.sections if s.name == ".rodata.toy_weights")
    data = weights.data()
    assert weights.align == 64
    assert len(data) == 384
    assert data[:8] == bytes(range(8))
    np.testing.assert_array_equal(np.frombuffer(data, np.float32, toy.N, 128), toy.weights())


def test_same_bytes_whatever_the_order_of_the_kernels():
    program = toy.toy()
    turned = dataclasses.replace(program, kernels=dict(reversed(list(program.kernels.items()))))
    assert link_object(program, toy.glue()) == link_object(turned, toy.glue())


def test_kernels_in_one_object_and_equal_weak_helpers_are_kept_once():
    text = toy.kernel("table", toy.N, "x86-64")
    program = dataclasses.replace(
        toy.chain("table"), kernels={"k_table": text, "k_other": toy.kernel("table", toy.N, "x86-64", "k_other")}
    )
    arg = (Arg("input", 0, 0), Arg("output", 0, 0))
    program.steps = (Step("k_table", arg), Step("k_other", arg))
    obj = link(program, toy.assembled(program))
    assert [s.name for s in obj.symbols].count("twice") == 1


def _with_kernel(text: str):
    program = toy.chain("copy")
    kernel = f'target triple = "{program.target.triple}"\n{text}'
    return dataclasses.replace(program, kernels={"k_copy": assemble(kernel, program.target)})


def test_what_may_not_stay_undefined_is_named():
    program = _with_kernel(
        "declare void @TVMBackendAllocWorkspace()\n"
        "define void @k_copy(ptr %x, ptr %y, i32 %p, i32 %n) {\n"
        "  call void @TVMBackendAllocWorkspace()\n  ret void\n}"
    )
    with pytest.raises(InternalError, match="undefined symbol TVMBackendAllocWorkspace"):
        link(program, toy.assembled(program))


def test_writable_data_is_refused():
    program = _with_kernel(
        "@state = internal global i32 1\ndefine void @k_copy(ptr %x, ptr %y, i32 %p, i32 %n) {\n"
        "  store volatile i32 2, ptr @state\n  ret void\n}"
    )
    with pytest.raises(InternalError, match=r"k_copy: writable section \.data"):
        link(program, toy.assembled(program))


def test_two_definitions_are_refused():
    program = toy.chain("copy", "exp")
    clash = dataclasses.replace(
        program, kernels=program.kernels | {"k_exp": toy.kernel("exp", toy.N, "x86-64", "k_copy")}
    )
    with pytest.raises(InternalError, match="k_copy is defined twice"):
        link(clash, toy.assembled(program))


def test_objects_for_another_machine_are_refused():
    program = toy.chain("copy")
    wrong = dataclasses.replace(program, kernels={"k_copy": toy.kernel("copy", toy.N, "aarch64")})
    with pytest.raises(InternalError, match="another machine"):
        link(wrong, toy.assembled(program))


def test_weights_that_do_not_fit():
    program = toy.toy()
    overlap = dataclasses.replace(program, weights=(*program.weights, Blob(130, np.zeros(4, np.int8), "late")))
    with pytest.raises(InternalError, match="overlap"):
        weights_section(overlap)
    with pytest.raises(InternalError, match="beyond"):
        weights_section(dataclasses.replace(program, weights_bytes=200))
    with pytest.raises(UnsupportedError, match="too large"):
        link(dataclasses.replace(program, weights_bytes=MAX_BYTES + 1), toy.glue())


def test_weights_are_not_copied():
    array = np.arange(64, dtype=np.float32)
    section = weights_section(dataclasses.replace(toy.toy(), weights=(Blob(0, array),)))
    view = np.frombuffer(section.chunks[0], np.uint8)
    assert np.shares_memory(view, array)


def test_non_contiguous_and_narrow_weights_are_written_in_order():
    turned = np.arange(6, dtype=np.float16).reshape(2, 3).T
    section = weights_section(dataclasses.replace(toy.toy(), weights=(Blob(4, turned),), weights_bytes=16))
    assert section.data() == bytes(4) + turned.tobytes()
