"""What NAME_init, NAME_set_parallel and NAME_run do, through ctypes."""

from __future__ import annotations

import ctypes
import dataclasses

import numpy as np
import pytest
import toy

from irc.backends.artifact import interface as abi
from irc.backends.artifact.contents import public_symbols
from irc.backends.artifact.glue import glue_ll
from irc.backends.artifact.link import link_object
from irc.backends.artifact.load import aligned_empty, load_program
from irc.backends.artifact.shared import shared_library
from irc.backends.program import Arg, Port, Step
from irc.errors import InternalError, OptionError

pytestmark = pytest.mark.skipif(not toy.runs_natively(), reason="the toy kernels are x86-64 code")

TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
PARALLEL_FOR = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)


class Raw:
    """A library with its C functions, as a C program sees them."""

    def __init__(self, program, folder):
        path = folder / f"{program.name}.so"
        path.write_bytes(shared_library(link_object(program, toy.assembled(program)), program.target))
        self.library, self.name, self.program = ctypes.CDLL(str(path)), program.name, program
        self.ctx = (ctypes.c_size_t * abi.CTX_WORDS)(*[0xDEAD] * abi.CTX_WORDS)
        self.workspace = aligned_empty(max(1, program.workspace_bytes), 64)

    def init(self, ctx="own"):
        function = self.library[f"{self.name}_init"]
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        return function(self.ctx if ctx == "own" else ctx, None, 0)

    def init_checked(self, interface):
        function = self.library[f"{self.name}_init_checked"]
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
        return function(self.ctx, None, 0, interface)

    def set_parallel(self, callback, parts, user=None):
        function = self.library[f"{self.name}_set_parallel"]
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
        return function(self.ctx, callback, user, parts)

    def run(self, inputs, outputs, workspace="own", ctx="own"):
        function = self.library[f"{self.name}_run"]
        function.argtypes = [ctypes.c_void_p] * 4
        tables = [self._table(arrays) for arrays in (inputs, outputs)]
        place = self.workspace.ctypes.data if workspace == "own" else workspace
        return function(self.ctx if ctx == "own" else ctx, *tables, place)

    def _table(self, arrays):
        if arrays is None:
            return None
        pointers = [None if a is None else a.ctypes.data for a in arrays]
        return (ctypes.c_void_p * max(1, len(arrays)))(*pointers)


def _toy_arrays():
    a, b = toy.toy_inputs()
    return [a, b], [np.zeros(toy.N, np.float32), np.zeros((1, toy.N, 1), np.float32)]


@pytest.fixture
def raw(tmp_path):
    return Raw(toy.toy(), tmp_path)


def test_a_context_is_filled_and_a_run_gives_the_results(raw):
    inputs, outputs = _toy_arrays()
    assert raw.init() == abi.OK
    assert list(raw.ctx)[5:] == [0] * (abi.CTX_WORDS - 5)
    assert raw.run(inputs, outputs) == abi.OK
    for got, want in zip(outputs, toy.toy_expected(*inputs), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6)  # float32 roundings of three steps


def test_error_codes(raw):
    inputs, outputs = _toy_arrays()
    assert raw.run(inputs, outputs) == abi.ERROR_UNINITIALISED
    assert raw.set_parallel(None, 1) == abi.ERROR_UNINITIALISED
    assert raw.init(None) == abi.ERROR_NULL
    assert raw.init_checked(abi.interface_hash(raw.program) ^ 1) == abi.ERROR_VERSION
    assert raw.init_checked(abi.interface_hash(raw.program)) == abi.OK
    assert raw.run(inputs, outputs, ctx=None) == abi.ERROR_NULL
    assert raw.run(None, outputs) == abi.ERROR_NULL
    assert raw.run(inputs, None) == abi.ERROR_NULL
    assert raw.run([inputs[0], None], outputs) == abi.ERROR_NULL
    assert raw.run(inputs, [None, outputs[1]]) == abi.ERROR_NULL
    assert raw.run(inputs, outputs, workspace=None) == abi.ERROR_NULL
    assert raw.run(inputs, outputs, workspace=raw.workspace.ctypes.data + 32) == abi.ERROR_ALIGN
    assert raw.set_parallel(None, 0) == abi.ERROR_ARGUMENT
    assert not any(o.any() for o in outputs)  # nothing was written
    assert raw.run(inputs, outputs) == abi.OK


def test_a_context_of_another_network_is_refused(raw, tmp_path):
    other = Raw(toy.toy(name="other"), tmp_path)
    assert other.init() == abi.OK
    assert raw.run(*_toy_arrays(), ctx=other.ctx) == abi.ERROR_UNINITIALISED


@pytest.mark.parametrize("parts", [1, 2, 5, 64])
def test_the_callers_parallel_for_gets_the_parallel_steps(raw, parts):
    seen = []

    @PARALLEL_FOR
    def parallel_for(user, task, data, n):
        seen.append((user, n))
        for part in reversed(range(n)):
            TASK(task)(data, part, n)

    inputs, outputs = _toy_arrays()
    _, alone = _toy_arrays()
    assert raw.init() == abi.OK
    assert raw.run(inputs, alone) == abi.OK
    assert raw.set_parallel(parallel_for, parts, 1234) == abi.OK
    assert raw.run(inputs, outputs) == abi.OK
    assert seen == [(1234, parts)] * 2  # two of the three steps are parallel
    for one, many in zip(alone, outputs, strict=True):
        np.testing.assert_array_equal(one, many)
    assert raw.set_parallel(None, 1) == abi.OK
    assert raw.run(inputs, outputs) == abi.OK
    assert len(seen) == 2


def test_no_steps_no_inputs_no_outputs(tmp_path):
    empty = dataclasses.replace(toy.chain("copy"), steps=(), kernels={}, inputs=(), outputs=(), workspace_bytes=0)
    raw = Raw(empty, tmp_path)
    assert raw.init() == abi.OK
    assert raw.run(None, None, workspace=None) == abi.OK


def test_without_workspace_it_may_be_null_and_unaligned(tmp_path):
    raw = Raw(toy.chain("copy"), tmp_path)
    x, y = np.arange(toy.N, dtype=np.float32), np.zeros(toy.N, np.float32)
    assert raw.init() == abi.OK
    assert raw.run([x], [y], workspace=None) == abi.OK
    np.testing.assert_array_equal(x, y)
    assert raw.run([x], [y], workspace=3) == abi.OK


def test_ports_without_elements_may_be_null(tmp_path):
    nothing = Port("nothing", "float32", (0, 3))
    program = dataclasses.replace(toy.chain("copy"), inputs=(Port("x", "float32", (toy.N,)), nothing))
    raw = Raw(program, tmp_path)
    x, y = np.arange(toy.N, dtype=np.float32), np.zeros(toy.N, np.float32)
    assert raw.init() == abi.OK
    assert raw.run([x, None], [y]) == abi.OK


def test_kernels_with_many_arguments():
    """More pointers than registers: some travel on the stack, through the thunk too."""
    names = [f"%p{i}" for i in range(12)]
    stores = "\n".join(f"  %q{i} = getelementptr i8, ptr %p{i}, i64 {4 * i}" for i in range(11))
    stores += "\n" + "\n".join(f"  %v{i} = load i32, ptr %q{i}" for i in range(11))
    total = "\n".join(f"  %s{i} = add i32 %{'v0' if i == 1 else f's{i - 1}'}, %v{i}" for i in range(1, 11))
    text = f"""target triple = "{toy.X86.triple}"
define void @k_many({", ".join("ptr " + n for n in names)}, i32 %part, i32 %parts) nounwind {{
{stores}
{total}
  %s = add i32 %s10, %parts
  store i32 %s, ptr %p11
  ret void
}}"""
    from irc.backends.tvm.assemble import assemble

    args = (*(Arg("input", 4 * i, 0) for i in range(11)), Arg("output", 0, 0))
    for parallel in (False, True):
        program = dataclasses.replace(
            toy.chain("copy"),
            inputs=(Port("x", "int32", (64,)),),
            outputs=(Port("y", "int32", ()),),
            steps=(Step("k_many", args, parallel),),
            kernels={"k_many": assemble(text, toy.X86)},
        )
        x = np.arange(64, dtype=np.int32) ** 2
        with load_program(program, toy.assembled(program)) as net:
            assert net(x) == sum(x[2 * i] for i in range(11)) + 1


def test_descriptions_keep_any_name_and_scale():
    with load_program(toy.toy(), toy.glue()) as net:
        assert net.inputs == toy.toy().inputs
        assert net.outputs == toy.toy().outputs
    tricky = (
        Port('x\n"\\00\u00e9', "int8", (toy.N,), 0.1, -128),
        Port("scalar", "float16", ()),
        Port("flag", "bool", (1, 2, 3, 4, 5, 6, 7, 8, 9)),
        Port("b", "bfloat16", (2,)),
    )
    program = dataclasses.replace(toy.chain("copy"), inputs=tricky, steps=())
    with load_program(program, toy.assembled(program)) as net:
        assert net.inputs[1:] == tricky[1:]
        assert net.inputs[0].name == tricky[0].name
        assert net.inputs[0].scale == float(np.float32(0.1))
        assert net.inputs[0].zero_point == -128


def test_bad_names_are_refused():
    for name in ("", "7net", "a-b", "a b", "_x", "n" * 200):
        with pytest.raises(OptionError, match="C identifier"):
            glue_ll(dataclasses.replace(toy.chain("copy"), name=name))
    assert abi.identifier("mobilenet-v2 (1.0)") == "mobilenet_v2_1_0"
    assert abi.identifier("7") == "net_7"
    assert abi.identifier("\u00e9") == "net"


def test_inconsistent_programs_are_refused():
    program = toy.chain("copy")
    with pytest.raises(InternalError, match="not compiled"):
        glue_ll(dataclasses.replace(program, kernels={}))
    with pytest.raises(InternalError, match="different numbers of arguments"):
        glue_ll(dataclasses.replace(program, steps=(*program.steps, Step("k_copy", ()))))


def test_the_hash_tells_interfaces_apart():
    program = toy.toy()
    changed = [
        dataclasses.replace(program, workspace_bytes=1024),
        dataclasses.replace(program, name="toy2"),
        dataclasses.replace(program, outputs=program.outputs[::-1]),
        dataclasses.replace(program, inputs=(Port("a", "float32", (toy.N, 1)), program.inputs[1])),
    ]
    hashes = {abi.interface_hash(p) for p in (program, *changed)}
    assert len(hashes) == 5
    other_weights = dataclasses.replace(program, weights=(), weights_bytes=0)
    assert abi.interface_hash(other_weights) == abi.interface_hash(program)


def test_public_symbols_start_with_the_name():
    assert all(s.startswith("toy_") for s in public_symbols(toy.toy()))
