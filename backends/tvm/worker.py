"""A compiling process: reads one JSON request a line, answers with one JSON line.

TVM and LLVM live here and nowhere else: a crash in them ends this process, not the compiler.
Requests: {"kind": "kernel", "spec", "target", "symbol"} or {"kind": "assemble", "text", "target"}.
Answers: {"ok": true, "object": base64, "info": {...}} or {"ok": false, "error", "trace"}.
"""

from __future__ import annotations

import base64
import json
import os
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
    if isinstance(spec, LibrarySpec):
        from irc.backends.tvm.library.compile import compile_library

        data, info = compile_library(spec.model, target, symbol)
        return data, {"scratch": info.scratch_bytes}
    from irc.backends.tvm.codegen import compile_object
    from irc.backends.tvm.kernels.table import build, instructions

    text = instructions(symbol, spec, target)
    if text is not None:
        return text.encode(), {}

    return compile_object(build(symbol, spec, target), target), {}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    target = read_target(request["target"])
    info: dict[str, Any]
    if request["kind"] == "assemble":
        from irc.backends.tvm.assemble import assemble_with_stack

        data, stack = assemble_with_stack(request["text"], target)
        info = {} if stack is None else {"stack_bytes": stack.nbytes, "outside": list(stack.outside)}
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
