"""The C interface that every network has: names, constants, records. Glue, header and loader agree through this file.

The interface is stable: a later irc may add functions and use reserved words, but a program written against
ABI_VERSION 1 keeps compiling and linking. What changes the layout of a record raises ABI_VERSION.
"""

from __future__ import annotations

import json
import re
import zlib

import numpy as np

from irc.backends.artifact.pool import ram_bytes
from irc.backends.program import Port, Program
from irc.errors import OptionError
from irc.ir.types import DType

ABI_VERSION = 1
CTX_WORDS = 16
"""Pointer-sized words of a context. Their use is private to the library; what is not used is zero."""
CTX_WORDS_ALONE = 2
"""The same where there are neither threads nor levels: the tag and the weights."""
CTX_TAG, CTX_WEIGHTS, CTX_PARALLEL_FOR, CTX_PARALLEL_USER, CTX_PARTS, CTX_POOL, CTX_KERNELS = range(7)

OK, ERROR_NULL, ERROR_ALIGN, ERROR_UNINITIALISED, ERROR_VERSION, ERROR_RAM, ERROR_ARGUMENT, ERROR_DATA = range(8)
ERRORS = {
    OK: ("IRC_OK", "success"),
    ERROR_NULL: ("IRC_ERROR_NULL", "a pointer that is needed is null"),
    ERROR_ALIGN: ("IRC_ERROR_ALIGN", "the workspace or the RAM is not aligned as it must be"),
    ERROR_UNINITIALISED: ("IRC_ERROR_UNINITIALISED", "the context was not initialised by this network"),
    ERROR_VERSION: ("IRC_ERROR_VERSION", "the header belongs to another build of the library"),
    ERROR_RAM: ("IRC_ERROR_RAM", "fewer bytes of RAM than needed"),
    ERROR_ARGUMENT: ("IRC_ERROR_ARGUMENT", "an argument is out of range"),
    ERROR_DATA: ("IRC_ERROR_DATA", "the coded weights are damaged"),
}


_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")


def check_name(name: str) -> None:
    """Raises OptionError unless `name` can start the names of C functions."""
    if not _IDENTIFIER.match(name) or len(name) > 128:
        raise OptionError(
            "the name of a network must be a C identifier",
            expected="a letter, then letters, digits and underscores, at most 128",
            got=repr(name),
            hint=f"--name {identifier(name)}",
        )


def identifier(text: str) -> str:
    """The nearest valid name: "ic-resnet8 (v2)" -> "ic_resnet8_v2"."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[:128]
    return name if name[:1].isalpha() else "net_" + name if name else "net"


def ctx_words(program: Program) -> int:
    """Words of a context of `program`."""
    return CTX_WORDS if program.target.threads else CTX_WORDS_ALONE


def init_ram_bytes(program: Program) -> int:
    """RAM that NAME_init needs: for coded weights and the thread pool. The pool starts when the weights are decoded,
    and takes the place of what the decoder worked with."""
    pool = ram_bytes(program.threads)
    return pool if program.coded is None else pool_offset(program) + max(program.coded.scratch_bytes, pool)


def pool_offset(program: Program) -> int:
    """Where the pool begins in the RAM of NAME_init: behind the decoded weights."""
    return 0 if program.coded is None else -(-program.coded.out_bytes // program.alignment) * program.alignment


def interface_hash(program: Program) -> int:
    """32 bits, never 0, that change when a header and a library do not belong together."""
    facts = {
        "abi": ABI_VERSION,
        "name": program.name,
        "ports": [[_facts(p) for p in ports] for ports in (program.inputs, program.outputs)],
        "workspace": [program.workspace_bytes, program.alignment, init_ram_bytes(program)],
    }
    if program.input_places or program.output_places:
        facts["places"] = [list(program.input_places), list(program.output_places)]
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode()) or 1


def _facts(port: Port) -> list[object]:
    scale = None if port.scale is None else np.float32(port.scale).tobytes().hex()
    return [port.name, port.dtype, list(port.shape), scale, port.zero_point]


def dtype_number(port: Port) -> int:
    """The element type as C programs see it: ONNX's TensorProto.DataType."""
    return DType(port.dtype).onnx


def elements(port: Port) -> int:
    n = 1
    for d in port.shape:
        n *= d
    return n
