"""TIR function -> relocatable object with a plain C ABI: no packed calls, no TVM runtime, no debug information."""

from __future__ import annotations

import re
from typing import Any

import tvm
from tvm import tirx

from irc.backends.tvm.assemble import target_spec
from irc.targets.target import Target


def llvm_target(target: Target) -> Any:
    """The TVM target of `target`, being its own host."""
    made = tvm.target.Target(target_spec(target))
    return made.with_host(made)


def lower_built(func: Any, target: Any) -> Any:
    """Lower a function made by `KernelBuilder` (flat buffers, explicit vectors, no blocks)."""
    module = tvm.IRModule({str(func.attrs["global_symbol"]): func})
    return tvm.ir.transform.Sequential(
        [
            tirx.transform.BindTarget(target),
            tirx.transform.StmtSimplify(),
            tirx.transform.LowerIntrin(),
        ]
    )(module)


def compile_ll(func: Any, target: Target) -> str:
    """Optimized LLVM IR text of a kernel."""
    made = _optimizing_target(target)
    text = str(tvm.get_global_func("target.build.llvm")(lower_built(func, made), made).inspect_source("ll"))
    return _without_last_feature(text, _NO_UNROLLING) if target.unrolls_no_loops else text


_NO_UNROLLING = "-mclass"


def _optimizing_target(target: Target) -> Any:
    """The target of LLVM's optimizer. For Cortex-M it makes four or eight copies of every small loop, which LLVM has no
    option against that TVM passes on; other Arm cores are spared. Only the code generator has to know the core."""
    if not target.unrolls_no_loops:
        return llvm_target(target)
    spec = target_spec(target)
    made = tvm.target.Target({**spec, "mattr": [*spec.get("mattr", []), _NO_UNROLLING]})
    return made.with_host(made)


def _without_last_feature(text: str, feature: str) -> str:
    """`text` without a target feature, in the attributes of functions and in the module flag."""
    return re.sub(rf",?(\\22)?{feature}(\\22)?", "", text)


def compile_object(func: Any, target: Target) -> bytes:
    """The object of a kernel, slim; its LLVM IR text where all kernels become one module."""
    return finished(kernel_text(func, target), target)


def kernel_text(func: Any, target: Target) -> str:
    """Optimized LLVM IR text of a kernel, without what nobody needs."""
    from irc.backends.tvm.slim import align_stack, slim_ll

    text = slim_ll(
        compile_ll(func, target)
    )  # functions of `soft.py` join it in the assembler: once for all kernels of a module
    if target.arch == "x86-64" and target.vector_bytes > 16:
        text = align_stack(text)
    return text


def finished(text: str, target: Target) -> bytes:
    """What a program keeps of a kernel, from its slim LLVM IR text."""
    from irc.backends.tvm.slim import object_from_ll, tightened

    return tightened(text, target).encode() if target.linking == "module" else object_from_ll(text)


def compile_assembly(func: Any, target: Target) -> str:
    """Assembly text of a kernel: for tests that look at instructions, and for people."""
    if target.unrolls_no_loops:
        from irc.backends.tvm.slim import loaded_ll

        return str(loaded_ll(compile_ll(func, target)).inspect_source("asm"))
    made = llvm_target(target)
    module = tvm.get_global_func("target.build.llvm")(lower_built(func, made), made)
    return str(module.inspect_source("asm"))
