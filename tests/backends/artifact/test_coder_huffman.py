"""Huffman codes: they come back exactly, from LLVM IR and from C; damage is found; the choice between both coders."""

from __future__ import annotations

import dataclasses
import heapq
from functools import cache

import numpy as np
import pytest
import toy
from test_coder_decoder import EXPORT, NETWORKS, c_library, callable_decoder, decode, image, laplace, placed

from irc.backends.artifact.coder.choose import coded_program, decoder_bytes, decoder_text
from irc.backends.artifact.coder.encode import encode
from irc.backends.artifact.coder.huffman import LONGEST, code_lengths, encode_huffman, fit
from irc.backends.artifact.coder.huffman_ll import huffman_ll
from irc.backends.artifact.coder.runs import counts_of, entropy_bits
from irc.backends.artifact.elf import read_object
from irc.backends.artifact.load import load_program
from irc.backends.artifact.machines import missing_tools
from irc.backends.artifact.qemu import run_under_qemu
from irc.backends.artifact.storage import bounds
from irc.backends.program import Blob
from irc.backends.tvm.assemble import assemble
from irc.errors import IrcError
from irc.targets.catalogue import get_target

pytestmark = pytest.mark.skipif(not toy.runs_natively(), reason="runs x86-64 code")

RNG = np.random.default_rng(5)


def halves():
    numbers = np.clip(np.rint(RNG.normal(0, 2.4, 20000)), -7, 7).astype(np.int8)
    return ((numbers[::2] & 15) | (numbers[1::2] << 4)).astype(np.int8)


def gaps():
    w = laplace(RNG, 64 * 300, 25).reshape(300, 64)
    w[20:40], w[100:290] = 0, 0
    return w


CASES = NETWORKS | {
    "halves": [halves(), halves()[:777]],
    "gaps": [np.zeros(100, np.int8), gaps(), np.zeros(3), np.arange(100, dtype=np.int32)],
    "long runs": [laplace(RNG, 70000, 3), RNG.normal(0, 1, 70000).astype(np.float32)],
    "zeros": [np.zeros(500, np.int8)],
}


@cache
def native():
    return callable_decoder(huffman_ll("i64"))


@pytest.fixture(scope="module")
def in_c(tmp_path_factory, tool):
    return c_library(tmp_path_factory.mktemp("decoder"), tool).irc_decode_huffman


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name, in_c):
    blobs, size = placed(CASES[name])
    coded = encode_huffman(blobs, size)
    for call in (native()._call, in_c):
        code, ram = decode(call, coded)
        assert code == 1
        np.testing.assert_array_equal(ram[:size], image(blobs, size))
    assert sum(n for _, n in (*coded.blob_bytes, *coded.other_bytes)) == pytest.approx(len(coded.data))


def test_damage_is_found(in_c):
    blobs, size = placed(CASES["small"])
    coded = encode_huffman(blobs, size)
    for call in (native()._call, in_c):
        for length in range(coded.meta_bytes, len(coded.data), 7):
            assert decode(call, coded, coded.data[:length])[0] == 0
        for place in range(0, len(coded.data), 3):
            data = bytearray(coded.data)
            data[place] ^= 1 << int(RNG.integers(8))
            assert decode(call, coded, bytes(data))[0] == 0


def sealed(data):
    """With the last word that makes the sum 0, so that everything else is read."""
    total = 0
    for word in np.frombuffer(bytes(data[:-4]), "<u4").tolist():
        total = (total << 5 | total >> 27) & 0xFFFFFFFF ^ word
    return bytes(data[:-4]) + ((total << 5 | total >> 27) & 0xFFFFFFFF).to_bytes(4, "little")


def test_damage_behind_a_right_sum_never_touches_other_memory(in_c):
    blobs, size = placed([*CASES["small"], halves()[:100]])
    coded = encode_huffman(blobs, size)
    refused = 0
    for i in range(300):
        data = bytearray(coded.data)
        end = coded.meta_bytes + 20 if i % 2 else len(data)
        for place in RNG.integers(0, end, 1 + i % 3):
            data[place] ^= 1 << int(RNG.integers(8))
        results = [decode(call, coded, sealed(data)) for call in (native()._call, in_c)]
        assert results[0][0] == results[1][0]
        np.testing.assert_array_equal(results[0][1], results[1][1])
        refused += results[0][0] == 0
    assert refused > 100


def test_noise_as_data_never_touches_other_memory(in_c):
    blobs, size = placed(CASES["small"])
    coded = encode_huffman(blobs, size)
    for _ in range(200):
        data = sealed(RNG.integers(0, 256, len(coded.data) & ~3).astype(np.uint8).tobytes())
        for call in (native()._call, in_c):
            decode(call, coded, data)


def huffman_bits(counts):
    """Bits of an optimal prefix code. D. Huffman, 1952."""
    heap = [int(c) for c in counts if c]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        pair = heapq.heappop(heap) + heapq.heappop(heap)
        total += pair
        heapq.heappush(heap, pair)
    return total


def test_lengths_are_the_best_ones():
    for _ in range(20):
        counts = sorted(RNG.integers(50, 1000, int(RNG.integers(2, 200))).tolist(), reverse=True)
        lengths = code_lengths(counts)
        assert sum(2.0**-n for n in lengths) == 1
        assert sum(n * c for n, c in zip(lengths, counts, strict=True)) == huffman_bits(counts)


def test_lengths_are_limited():
    lengths = code_lengths([2.0**-i for i in range(40)])
    assert max(lengths) == LONGEST
    assert sum(2.0**-n for n in lengths) == 1
    assert code_lengths([3]) == [0]


def test_near_the_entropy():
    """1.5 %: codes have whole bits, and lengths that fall with the distance."""
    counts = counts_of(laplace(RNG, 20000, 9).view(np.uint8))
    first, lengths = fit(counts, 256)
    assert first in (0, 1, 255)
    assert sum(2.0**-n for n in lengths) == 1
    arrays = [laplace(RNG, 20000, width) for width in (5, 9, 30)]
    assert len(encode_huffman(*placed(arrays)).data) < 1.015 * sum(bounds(placed(arrays)[0]))
    packed = halves()
    assert len(encode_huffman(*placed([packed])).data) < 1.03 * bounds(placed([packed])[0])[0]
    assert entropy_bits(counts) / 8 < len(encode_huffman(*placed([laplace(RNG, 20000, 9)])).data)


def test_zeros_take_nothing():
    w = gaps()
    dense = w[w.any(axis=1)]
    assert len(encode_huffman(*placed([w])).data) < len(encode_huffman(*placed([dense])).data) + 16


# The choice


def program(arch="x86-64", count=3000, threads=1):
    """The toy network beside `count` bytes that no step reads."""
    toy_program = dataclasses.replace(toy.toy(arch), threads=threads)
    offset = -(-toy_program.weights_bytes // 64) * 64
    blob = Blob(offset, laplace(np.random.default_rng(1), count, 12))
    return dataclasses.replace(
        toy_program, weights=(*toy_program.weights, blob), weights_bytes=-(-(offset + count) // 64) * 64
    )


def test_small_networks_take_huffman_codes_and_large_ones_rans():
    assert coded_program(program(count=3000)).coded.coding == "huffman"
    assert coded_program(program(count=3_000_000)).coded.coding == "rans"


@pytest.mark.parametrize("name", ["x86-64", "x86-64-v4-vnni", "aarch64", "arm"])
def test_bytes_of_decoders_are_known(name):
    """Within 5 %: that is what the choice between coders is made by."""
    target = get_target(name)
    everything = [laplace(RNG, 500, 20), np.arange(300, dtype=np.int32), np.float32([1, 2] * 200), gaps()]
    for coded in (encode(*placed([everything[0]])), encode(*placed(everything)), encode_huffman(*placed(everything))):
        text = [f'target triple = "{target.triple}"', *decoder_text(target, coded), EXPORT]
        obj = read_object(assemble("\n".join(text), target))
        size = sum(s.size for s in obj.sections if s.name.startswith((".text", ".rodata")))
        names = [s.name for s in obj.symbols if s.name.startswith(("coder_", "irc_decode"))]
        size += sum(24 + len(name) + 1 for name in names)
        assert decoder_bytes(coded) == pytest.approx(size, rel=0.05)


def check(outputs, inputs):
    for got, want in zip(outputs, toy.toy_expected(*inputs), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)  # roundings of libm


def test_runs_in_process():
    for threads in (1, 2):
        coded = coded_program(program(threads=threads))
        assert coded.coded.coding == "huffman"
        inputs = toy.toy_inputs()
        with load_program(coded, toy.assembled(coded)) as net:
            check(net(*inputs), inputs)


def test_runs_on_arm():
    reason = missing_tools(toy.ARM)
    if reason:
        pytest.skip(reason)
    coded = coded_program(program("aarch64"))
    assert coded.coded.coding == "huffman"
    a, b = toy.toy_inputs()
    check(run_under_qemu(coded, toy.assembled(coded), {"a": a, "b:0": b}).values(), (a, b))


def test_damaged_weights_are_an_error_of_init():
    coded = coded_program(program())
    damaged = bytearray(coded.coded.data)
    damaged[-30] ^= 0x10
    coded = dataclasses.replace(coded, coded=dataclasses.replace(coded.coded, data=bytes(damaged)))
    with pytest.raises(IrcError, match="damaged"):
        load_program(coded, toy.assembled(coded))
