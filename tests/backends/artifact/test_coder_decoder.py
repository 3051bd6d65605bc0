"""Coded weights come back exactly: through the decoder in LLVM IR, natively and for Arm, and through the one in C."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import toy

from irc.backends.artifact import coder
from irc.backends.artifact.coder.decoder import decoder_ll
from irc.backends.artifact.coder.encode import encode
from irc.backends.artifact.coder.rans import CHUNK, LANES
from irc.backends.artifact.function import Function
from irc.backends.program import Blob
from irc.backends.tvm.assemble import assemble

pytestmark = pytest.mark.skipif(not toy.runs_natively(), reason="runs x86-64 code")

C_SOURCE = Path(coder.__file__).with_name("decoder.c")
EXPORT = """
attributes #1 = { noinline nounwind }
define i32 @decode(ptr %a, i32 %b, i32 %c, ptr %d, i32 %e, ptr %f) nounwind {
  %r = call i32 @irc_decode(ptr %a, i32 %b, i32 %c, ptr %d, i32 %e, ptr %f)
  ret i32 %r
}
"""


def callable_decoder(lines):
    """The function `decode` of LLVM IR that defines irc_decode."""
    text = "\n".join([f'target triple = "{toy.X86.triple}"', *lines, EXPORT])
    function = Function(assemble(text, toy.X86), "decode", toy.X86)
    function._call.restype = ctypes.c_int
    return function


def c_library(folder, tool):
    """decoder.c as a shared library, with every warning an error."""
    library = folder / "decoder.so"
    strict = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror")
    tool("gcc", *strict, "-O2", "-shared", "-fPIC", C_SOURCE, "-o", library)
    return ctypes.CDLL(str(library))


@cache
def native():
    return callable_decoder(decoder_ll("i64"))


@pytest.fixture(scope="module")
def in_c(tmp_path_factory, tool):
    return c_library(tmp_path_factory.mktemp("decoder"), tool).irc_decode


def decode(call, coded, data=None):
    """(code, the RAM). The RAM is between guards that must stay."""
    data = np.frombuffer(coded.data if data is None else data, np.uint8)
    ram = np.full(coded.out_bytes + 128, 0xAA, np.uint8)
    scratch = np.full(coded.scratch_bytes + 128, 0xAA, np.uint8)
    code = call(
        ctypes.c_void_p(data.ctypes.data), coded.meta_bytes, data.size,
        ctypes.c_void_p(ram.ctypes.data + 64), coded.out_bytes, ctypes.c_void_p(scratch.ctypes.data + 64),
    )  # fmt: skip
    for memory in (ram, scratch):
        assert (memory[:64] == 0xAA).all()
        assert (memory[-64:] == 0xAA).all()
    return code, ram[64:-64]


def placed(arrays):
    blobs, offset = [], 0
    for array in arrays:
        blobs.append(Blob(offset, array))
        offset = -(-(offset + array.nbytes) // 64) * 64
    return blobs, offset


def image(blobs, size):
    out = np.zeros(size, np.uint8)
    for blob in blobs:
        out[blob.offset : blob.offset + blob.data.nbytes] = np.ascontiguousarray(blob.data).reshape(-1).view(np.uint8)
    return out


def laplace(rng, count, width, limit=127):
    return np.clip(np.rint(rng.laplace(0, width, count)), -limit, limit).astype(np.int8)


def networks():
    rng = np.random.default_rng(7)
    words = rng.normal(0, 1, 70).astype(np.float32)
    yield "small", [laplace(rng, 500, 20), words, rng.integers(-4000, 4000, 64).astype(np.int32), laplace(rng, 13, 2)]
    yield "one byte", [np.array([7], np.uint8)]
    yield "constant", [np.full(1000, -3, np.int8), np.zeros((5, 7), np.float32)]
    yield "noise", [rng.integers(0, 256, 5000).astype(np.uint8)]
    yield "two values far apart", [rng.choice(np.array([0, 255], np.uint8), 3000, p=[0.99, 0.01])]
    yield "several chunks", [laplace(rng, 2 * CHUNK * LANES + 5, 1.5), laplace(rng, 333, 30)]
    yield "types", [
        rng.normal(0, 1, 99), rng.integers(0, 9, 50).astype(np.int64), rng.normal(0, 1, 31).astype(np.float16),
        np.arange(0, 3000, 3).astype(np.uint16), rng.random(9) > 0.5,
    ]  # fmt: skip


NETWORKS = dict(networks())


@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip(name, in_c):
    blobs, size = placed(NETWORKS[name])
    coded = encode(blobs, size)
    for call in (native()._call, in_c):
        code, ram = decode(call, coded)
        assert code == 1
        np.testing.assert_array_equal(ram[:size], image(blobs, size))


def test_truncated_data_is_refused_and_nothing_else_is_touched(in_c):
    blobs, size = placed(NETWORKS["small"])
    coded = encode(blobs, size)
    for call in (native()._call, in_c):
        for length in range(coded.meta_bytes, len(coded.data)):
            assert decode(call, coded, coded.data[:length])[0] == 0


def test_random_damage_never_touches_other_memory(in_c):
    rng = np.random.default_rng(3)
    blobs, size = placed(NETWORKS["small"])
    coded = encode(blobs, size)
    for _ in range(300):
        data = bytearray(coded.data)
        for place in rng.integers(0, len(data), 3):
            data[place] ^= 1 << int(rng.integers(8))
        results = [decode(call, coded, bytes(data)) for call in (native()._call, in_c)]
        assert results[0][0] == results[1][0]
        if results[0][0]:
            np.testing.assert_array_equal(results[0][1], results[1][1])
