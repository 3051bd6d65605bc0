"""A compiled network before it becomes files: what the plan hands to the artifact writers.

A program is a straight list of kernel calls. Every argument of a kernel is a pointer into one of four spaces at an
offset known now; nothing is decided at run time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from irc.ir.quantization import STORED, Quantization
from irc.ir.types import Array, DType
from irc.targets.target import Target

Space = Literal["weights", "workspace", "input", "output"]


@dataclass(frozen=True)
class Arg:
    """A pointer: base of `space` (number `index` for inputs and outputs) plus `offset` bytes."""

    space: Space
    offset: int = 0
    index: int = 0


@dataclass(frozen=True)
class Step:
    """One kernel call: `void symbol(arg0, ..., int32_t part, int32_t parts)`.

    Part p of n computes its share of the work; shares touch disjoint memory. `parallel` False: only (0, 1) is legal.
    `waits`: all shares of all earlier steps have ended before it starts. Where that is False it meets none of the steps
    since the last one that waits in memory that one of the two writes, or they all run on one thread.
    `variants`: in a program of several levels the kernel of each, weakest first (`symbol` is the first of them).
    `nodes` are the ONNX nodes computed, `macs` its multiply-adds: for reports.
    """

    symbol: str
    args: tuple[Arg, ...]
    parallel: bool = False
    nodes: tuple[str, ...] = ()
    label: str = ""
    macs: int = 0
    waits: bool = True
    variants: tuple[str, ...] = ()


@dataclass(frozen=True)
class Port:
    """A network input or output as the caller sees it: C-contiguous, shape in elements.

    `scale` and `zero_point` are given where the values are quantized: real = (q - zero_point) * scale.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float | None = None
    zero_point: int | None = None

    @property
    def quantization(self) -> Quantization | None:
        """Between real numbers and the elements of this port; None where these are no quantized numbers."""
        dtype = DType(self.dtype)
        return (
            None if self.scale is None or dtype not in STORED else Quantization(dtype, self.scale, self.zero_point or 0)
        )

    @property
    def nbytes(self) -> int:
        import numpy as np

        n = np.dtype(self.dtype).itemsize
        for d in self.shape:
            n *= d
        return n


@dataclass(frozen=True)
class Blob:
    """Constant data at `offset` of the weights section. `data` is C-contiguous and written as its bytes."""

    offset: int
    data: Array
    name: str = ""


@dataclass(frozen=True)
class Coded:
    """The weights of a program, entropy-coded (`artifact/coder`). `data`: `meta_bytes` of operations, then words.
    `coding`: by which coder.

    Decoding needs `out_bytes` for the weights and what helps to make them, and `scratch_bytes` behind that.
    `blob_bytes`: what the blob at each offset takes of the words; `other_bytes`: what belongs to no single one
    ("tables" of frequencies, "operations", "palettes", "ends" of the coders). Both together are the length of `data`.
    """

    data: bytes
    meta_bytes: int
    out_bytes: int
    scratch_bytes: int
    blob_bytes: tuple[tuple[int, float], ...] = ()
    other_bytes: tuple[tuple[str, float], ...] = ()
    operations: tuple[int, ...] = ()  # of the decoder, as far as they are used
    coding: Literal["rans", "huffman"] = "rans"


@dataclass
class Program:
    """Everything that the artifact is made of."""

    name: str
    target: Target
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    steps: tuple[Step, ...]
    kernels: dict[str, bytes]  # symbol -> relocatable ELF object that defines it
    weights: tuple[Blob, ...]
    weights_bytes: int
    workspace_bytes: int
    alignment: int = 64  # of weights and workspace
    statistics: dict[str, Any] = field(default_factory=dict)
    threads: int = 1  # of the pool that is compiled in; 1: none
    worth_threads: bool = True  # False: a run is over so soon that the pool is left alone
    levels: tuple[Target, ...] = ()  # whose kernels it holds, weakest first, to pick from when it starts; (): target's
    # Where in the workspace inputs and outputs may lie (None: nowhere); () where the plan has no places for them.
    input_places: tuple[int | None, ...] = ()
    output_places: tuple[int | None, ...] = ()
    stack_bytes: int | None = None  # that a call of NAME_run needs at most; None: not known
    outside: tuple[str, ...] = ()  # functions of the C library that it calls, where the stack is known
    instructions: int | None = None  # of one run on one thread, estimated from the code; None: not known
    coded: Coded | None = None  # the weights as the library stores them, to be decoded by NAME_init; None: plain
