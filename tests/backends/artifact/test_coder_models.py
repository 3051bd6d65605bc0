"""What the encoder chooses, how near it comes to the entropy, and that every operation gives the bits back."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
import toy
from test_coder_decoder import decode, image, in_c, laplace, native, placed  # noqa: F401 - in_c is a fixture

from irc.backends.artifact.coder.encode import encode
from irc.backends.artifact.coder.runs import (
    COPY,
    PALETTE,
    SPREAD,
    SUM16,
    SUM32,
    ZIGZAG32,
    counts_of,
    entropy_bits,
    halves_of,
)
from irc.backends.artifact.coder.tables import ONE, UNIFORM, fit
from irc.backends.artifact.storage import bounds

pytestmark = pytest.mark.skipif(not toy.runs_natively(), reason="runs x86-64 code")

RNG = np.random.default_rng(11)


def rows_of_three():
    """As depthwise weights lie: the fourth row is missing everywhere."""
    w = laplace(RNG, 4 * 512, 15).reshape(-1, 4)
    w[:, 3] = 0
    return w


def pruned_blocks():
    w = laplace(RNG, 64 * 300, 25).reshape(300, 64)
    w[RNG.random(300) < 0.7] = 0
    return w


CASES = {
    "missing rows": ([rows_of_three()], {SPREAD}),
    "pruned blocks": ([pruned_blocks()], {SPREAD}),
    "few multipliers": ([RNG.choice(np.float32([0.013, 0.026, 0.052]), 200), RNG.random(50).astype("f4")], {PALETTE}),
    "offsets": ([np.cumsum(RNG.integers(0, 3, 3000)).astype(np.uint16)], {SUM16, COPY}),
    "many offsets": ([np.cumsum(RNG.integers(0, 3, 90000)).astype(np.uint16)], {SUM16}),
    "starts": ([np.arange(0, 64 * 3000, 64, np.int32)], {SUM32, COPY}),
    "biases": ([RNG.normal(0, 900, 800).astype(np.int32), np.arange(3, dtype=np.int64)], {ZIGZAG32, COPY}),
}


@pytest.mark.parametrize("name", CASES)
def test_operations(name, in_c):  # noqa: F811 - the fixture
    arrays, wanted = CASES[name]
    blobs, size = placed(arrays)
    coded = encode(blobs, size)
    assert wanted <= set(coded.operations)
    for call in (native()._call, in_c):
        code, ram = decode(call, coded)
        assert code == 1
        np.testing.assert_array_equal(ram[:size], image(blobs, size))


def bound(arrays):
    blobs, _ = placed(arrays)
    return sum(bounds(blobs))


def coded_bytes(arrays):
    return len(encode(*placed(arrays)).data)


def test_near_the_entropy():
    """1 % for what networks are made of; 3 % where a library is so small that tables show."""
    large = [laplace(RNG, 60000, width) for width in (2, 8, 40)]
    assert coded_bytes(large) < 1.01 * bound(large)
    small = [laplace(RNG, 2500, width) for width in (3, 5, 30)]
    assert coded_bytes(small) < 1.03 * bound(small)


def test_halves_of_bytes_are_symbols():
    numbers = np.clip(np.rint(RNG.normal(0, 2.4, 80000)), -7, 7).astype(np.int8)
    packed = ((numbers[::2] & 15) | (numbers[1::2] << 4)).astype(np.int8)
    by_number = entropy_bits(counts_of(numbers.view(np.uint8))) / 8
    assert bound([packed]) == pytest.approx(by_number)
    assert coded_bytes([packed]) < 1.01 * by_number
    counts = counts_of(packed.view(np.uint8))
    assert fit(counts, nibbles=halves_of(counts)).pairs


def test_what_fills_up_costs_nothing():
    weights = laplace(RNG, 48 * 200, 20).reshape(200, 48)
    padded = np.pad(weights, ((0, 0), (0, 16)))
    assert coded_bytes([padded]) < coded_bytes([weights]) + 32


def test_noise_is_not_made_larger():
    noise = RNG.integers(0, 256, 20000).astype(np.uint8)
    coded = encode(*placed([noise]))
    assert len(coded.data) < noise.size + 48  # ends of eight coders, and a few operations
    assert fit(counts_of(noise)) == UNIFORM


def test_constants_cost_nothing():
    assert coded_bytes([np.full(100000, 5, np.int8), np.zeros((300, 300), np.float32)]) < 100


def test_tables_add_up():
    for counts in (counts_of(laplace(RNG, 3000, w).view(np.uint8)) for w in (0.1, 1, 9, 60)):
        table = fit(counts)
        assert table.frequencies.sum() == ONE
        assert (table.frequencies[counts > 0] > 0).all()


def huffman_bits(counts):
    """Bits of an optimal prefix code. D. Huffman, 1952."""
    heap = [int(c) for c in counts if c]
    heapq.heapify(heap)
    total = 0 if len(heap) > 1 else heap[0]
    while len(heap) > 1:
        pair = heapq.heappop(heap) + heapq.heappop(heap)
        total += pair
        heapq.heappush(heap, pair)
    return total


@pytest.mark.parametrize("width", [0.3, 1, 3, 12, 40])
def test_no_prefix_code_would_be_shorter(width):
    """Tables included, when each length of the code's words took two bits, which is little."""
    counts = counts_of(laplace(RNG, 1500, width).view(np.uint8))
    table = fit(counts)
    assert table.bits + table.cost(counts) <= huffman_bits(counts) + 2 * int((counts > 0).sum())


def test_the_same_bytes_every_time():
    arrays = [laplace(RNG, 5000, 4), RNG.random(64).astype(np.float32), rows_of_three()]
    assert encode(*placed(arrays)).data == encode(*placed([a.copy() for a in arrays])).data


def test_bytes_are_accounted_for():
    arrays = [laplace(RNG, 5000, 4), RNG.random(64).astype(np.float32), rows_of_three(), pruned_blocks()]
    coded = encode(*placed(arrays))
    parts = [*coded.blob_bytes, *coded.other_bytes]
    assert sum(size for _, size in parts) == pytest.approx(len(coded.data))
    assert [offset for offset, _ in coded.blob_bytes] == [b.offset for b in placed(arrays)[0]]
    assert 16 <= dict(coded.other_bytes)["ends"] <= 48
