"""Inline model-local functions. Function operators of the standard (HardSwish, ...) stay as they are."""

from __future__ import annotations

import onnx
import onnx.inliner

from irc.errors import ModelError
from irc.frontend.adapters import ADAPTERS


def inline_functions(proto: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """The model without functions. Raises ModelError for recursive ones and for opsets that do not go together."""
    if not proto.functions:
        return proto
    _refuse_recursion(proto, where)
    try:
        inlined = onnx.inliner.inline_local_functions(_same_opset(proto), convert_version=True)
    except Exception as error:  # the inliner raises bare C++ exceptions of many kinds
        raise ModelError(
            f"a function of the model cannot be inlined: {str(error).splitlines()[0]}",
            where=where,
            hint="exporting the model with functions inlined (onnx.inliner)",
        ) from None
    known = {entry.domain for entry in inlined.opset_import}
    for function in proto.functions:  # operators that came out of a function need their domain's version
        for entry in function.opset_import:
            if entry.domain not in known:
                known.add(entry.domain)
                inlined.opset_import.append(entry)
    return inlined


def _same_opset(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Let functions of another opset declare the model's where it means the same, so that nothing is converted."""
    opset = _standard(proto)
    for function in proto.functions:
        entry = _standard(function)
        if opset is None or entry is None or entry.version == opset.version:
            continue
        low, high = sorted((entry.version, opset.version))
        if not any(low < version <= high for node in function.node for version, _ in ADAPTERS.get(node.op_type, ())):
            entry.version = opset.version
    return proto


def _standard(owner: onnx.ModelProto | onnx.FunctionProto) -> onnx.OperatorSetIdProto | None:
    return next((e for e in owner.opset_import if e.domain in ("", "ai.onnx")), None)


def _refuse_recursion(proto: onnx.ModelProto, where: str) -> None:
    bodies = {(f.domain, f.name): f for f in proto.functions}
    done: set[tuple[str, str]] = set()

    def visit(key: tuple[str, str], path: tuple[tuple[str, str], ...]) -> None:
        if key in path:
            raise ModelError(f"function '{key[0]}.{key[1]}' calls itself", where=where)
        if key in done:
            return
        for node in bodies[key].node:
            called = (node.domain, node.op_type)
            if called in bodies:
                visit(called, (*path, key))
        done.add(key)

    for key in bodies:
        visit(key, ())
