"""The one entry of the long tail: an ONNX region as bytes -> an object."""

from __future__ import annotations

from dataclasses import dataclass

from irc.targets.target import Target


@dataclass(frozen=True)
class LibraryInfo:
    """What a caller must know of the object. `dtypes`: of inputs, then outputs; `shapes` likewise."""

    scratch_bytes: int
    n_inputs: int
    n_outputs: int
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]


def compile_library(model_bytes: bytes, target: Target, symbol: str) -> tuple[bytes, LibraryInfo]:
    """As `compile_library_text`, finished: an object, or text where all kernels become one module."""
    from irc.backends.tvm.codegen import finished

    text, info = compile_library_text(model_bytes, target, symbol)
    return finished(text, target), info


def compile_library_text(model_bytes: bytes, target: Target, symbol: str) -> tuple[str, LibraryInfo]:
    """LLVM IR text with `void symbol(inputs..., outputs..., scratch, int32 part, int32 parts)`; part 0 does the work.

    `model_bytes`: an ONNX model of one or a few nodes, static shapes; initializers are compiled in, graph inputs are
    the parameters in their order. All arrays are C-contiguous, `scratch` is 64-byte aligned. Raises UnsupportedError.
    """
    from irc.backends.tvm.library.emit import object_text, scratch_of
    from irc.backends.tvm.library.region import lower_region

    kernel = lower_region(model_bytes)
    ports = (*kernel.inputs, *kernel.outputs)
    info = LibraryInfo(
        scratch_of(kernel), len(kernel.inputs), len(kernel.outputs), tuple(p[0] for p in ports),
        tuple(p[1] for p in ports),
    )  # fmt: skip
    return object_text(kernel, target, symbol), info
