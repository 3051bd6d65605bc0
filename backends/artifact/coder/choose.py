"""rANS or Huffman codes.

rANS comes nearest to the entropy and is faster. The decoder of Huffman codes is a fifth of its decoder: they are for
what is so small that rANS saves less than that takes, and for whoever asks for them.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from dataclasses import replace
from typing import Literal

from irc.backends.artifact.coder.decoder import decoder_ll
from irc.backends.artifact.coder.encode import encode
from irc.backends.artifact.coder.huffman import encode_huffman
from irc.backends.artifact.coder.huffman_ll import huffman_ll
from irc.backends.artifact.coder.runs import AID, BLOCK, COPY, PALETTE, SPREAD, SUM16, SUM32, ZIGZAG32
from irc.backends.program import Arg, Coded, Program
from irc.errors import UnsupportedError
from irc.targets.target import Target

Coding = Literal["rans", "huffman"]

_MOST = 2**31 - 2**24  # bytes: the decoder counts in 32 bits
_MOST_HUFFMAN = 1 << 14
"""Bytes of weights up to which Huffman codes are tried unasked."""
_RANS, _HUFFMAN = 4550, 1000
"""Bytes of code and of its symbols, without operations. They hardly differ between processors."""
_OPERATIONS = {AID: 0, COPY: 60, ZIGZAG32: 136, SUM16: 136, SUM32: 130, PALETTE: 198, SPREAD: 350}


def coded_program(program: Program, coding: Coding | None = None) -> Program:
    """`program` with its weights coded; as it is where it has none.

    `coding`: None takes rANS, but for small networks where the library does not become smaller by it: these take the
    coding that makes it smallest.
    Raises UnsupportedError for 2 GB and more.
    """
    if not program.weights_bytes:
        return program
    program = _in_blocks(program)
    if coding == "huffman":
        coded = encode_huffman(program.weights, program.weights_bytes)
    else:
        coded = encode(program.weights, program.weights_bytes)
        if coding is None and _total(coded) >= program.weights_bytes and program.weights_bytes <= _MOST_HUFFMAN:
            coded = min(coded, encode_huffman(program.weights, program.weights_bytes), key=_total)
    if coded.out_bytes > _MOST:
        raise UnsupportedError(
            "the weights are too large to be coded",
            where=program.name,
            expected=f"at most {_MOST} bytes",
            got=f"{coded.out_bytes} bytes",
            hint="--weights plain",
        )
    return replace(program, coded=coded)


def _in_blocks(program: Program) -> Program:
    """`program` with its weights at multiples of BLOCK bytes, where targets of small alignment have them closer."""
    blobs = sorted(program.weights, key=lambda blob: blob.offset)
    if not any(blob.offset % BLOCK for blob in blobs):
        return program
    old = [blob.offset for blob in blobs]
    sizes = [-(-blob.data.nbytes // BLOCK) * BLOCK for blob in blobs]
    new = [0, *itertools.accumulate(sizes)]

    def moved(arg: Arg) -> Arg:
        if arg.space != "weights":
            return arg
        at = bisect_right(old, arg.offset) - 1
        return replace(arg, offset=arg.offset - old[at] + new[at])

    return replace(
        program,
        steps=tuple(replace(step, args=tuple(map(moved, step.args))) for step in program.steps),
        weights=tuple(replace(blob, offset=at) for blob, at in zip(blobs, new, strict=False)),
        weights_bytes=new[-1],
    )


def _total(coded: Coded) -> int:
    return len(coded.data) + decoder_bytes(coded)


def decoder_bytes(coded: Coded) -> int:
    """About what the decoder takes in the library; a test compares it with what is assembled."""
    if coded.coding == "huffman":
        return _HUFFMAN
    return _RANS + sum(_OPERATIONS[operation] for operation in coded.operations)


def decoder_text(target: Target, coded: Coded) -> list[str]:
    """The decoder as LLVM IR."""
    word = f"i{target.pointer_bits}"
    return huffman_ll(word) if coded.coding == "huffman" else decoder_ll(word, coded.operations)
