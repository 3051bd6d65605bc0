"""A compiling process: reads one JSON request a line, answers with one JSON line.

TVM and LLVM live here and nowhere else: a crash in them ends this process, not the compiler.
Requests: {"kind": "kernel", "spec", "target", "symbol"} or {"kind": "assemble", "text", "target"}.
Answers: {"ok": true, "object": base64, "info": {...}} or {"ok": false, "error", "trace"}.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import traceback
from typing import Any

from irc.backends.tvm.specs import LibrarySpec, Spec, from_json
from irc.errors import UnsupportedError
from irc.targets.target import Target


def read_target(text: str) -> Target:
    fields = json.loads(text)
    fields.update({name: tuple(value) for name, value in fields.items() if isinstance(value, list)})
    return Target(**fields)


def compile_kernel(spec: Spec, target: Target, symbol: str) -> tuple[bytes, dict[str, Any]]:
    """Object and facts of one kernel; its C text for targets that are C."""
    if target.arch == "c":
        from irc.backends.tvm.source.kernels import kernel_source

        source, facts = kernel_source(spec, target, symbol)
        return source.encode(), facts
    from irc.backends.tvm.slim import assembly_from_ll, object_from_assembly

    if isinstance(spec, LibrarySpec):
        from irc.backends.tvm.codegen import finished
        from irc.backends.tvm.library.compile import compile_library_text

        text, info = compile_library_text(spec.model, target, symbol)
        data = finished(text, target)
        counted = _instructions(assembly_from_ll(text), text, target, symbol) if _counts(target) else {}
        return data, {"scratch": info.scratch_bytes, **counted}
    from irc.backends.tvm.codegen import finished, kernel_text
    from irc.backends.tvm.kernels.table import build, instructions

    written = instructions(symbol, spec, target)
    if written is not None:
        return written.encode(), {}
    text = kernel_text(build(symbol, spec, target), target)
    if not _counts(target):
        return finished(text, target), {}
    assembly = assembly_from_ll(text)
    return object_from_assembly(assembly, text), _instructions(assembly, text, target, symbol)


def _counts(target: Target) -> bool:
    """Whether each kernel is an object of its own and its instructions can be told."""
    from irc.backends.tvm.counting.program import reader_of

    return target.linking != "module" and reader_of(target) is not None


def _instructions(assembly: str, text: str, target: Target, symbol: str) -> dict[str, Any]:
    """The estimated instructions of a kernel, where they can be told."""
    from irc.backends.tvm.counting.program import count_kernels

    found = count_kernels(assembly, target, _pointers(text))
    return {"instructions": found[symbol]} if symbol in found else {}


def _pointers(text: str) -> dict[str, int]:
    """How many arrays each kernel in LLVM IR text has."""
    heads = re.findall(r"^define .*@(irc_k_\w+)\((.*)\)", text, re.MULTILINE)
    return {name: parameters.count("ptr") for name, parameters in heads}


def _facts(assembly: str, text: str, target: Target) -> dict[str, Any]:
    """What the assembly of a whole program says of it: stack, functions outside, estimated instructions (of each
    kernel, where the entry function hands out shares of work)."""
    from irc.backends.tvm.counting.program import count_kernels, count_program
    from irc.backends.tvm.stack import stack_use

    stack = stack_use(assembly)
    info: dict[str, Any] = {} if stack is None else {"stack_bytes": stack.nbytes, "outside": list(stack.outside)}
    if target.threads:
        return {**info, "kernels": count_kernels(assembly, target, _pointers(text))}
    entry = re.search(r"^\s*\.globl\s+(\w+_run)\b", assembly, re.MULTILINE)
    count = count_program(assembly, target, entry[1]) if entry else None
    return info if count is None else {**info, "instructions": count}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    target = read_target(request["target"])
    info: dict[str, Any]
    if request["kind"] == "assemble":
        from irc.backends.tvm.assemble import assemble_with_text

        data, assembly = assemble_with_text(request["text"], target)
        info = _facts(assembly, request["text"], target) if assembly else {}
    else:
        data, info = compile_kernel(from_json(request["spec"]), target, request["symbol"])
    return {"ok": True, "object": base64.b64encode(data).decode(), "info": info}


def main() -> None:
    # Whatever libraries print must not mix with the answers.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except UnsupportedError as error:
            reply = {"ok": False, "error": error.what, "unsupported": True}
        except Exception as error:  # every failure is an answer; the caller reports it
            reply = {"ok": False, "error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        channel.write(json.dumps(reply) + "\n")
        channel.flush()


if __name__ == "__main__":
    main()
