"""LLVM IR text -> relocatable object, through the LLVM inside TVM (no other compiler is needed).

TVM's module flag "tvm_target" names the target machine; without it TVM compiles for the default machine of the triple.
The text is assembled as it is: LLVM runs its code generator on it, but no optimization passes.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from irc.backends.tvm.soft import with_soft_functions
from irc.errors import InternalError
from irc.targets.target import Target

_FLAG = re.compile(r'!"tvm_target"')


def target_json(target: Target) -> str:
    """The target as TVM's JSON (keys sorted: the text ends up in cache keys)."""
    return json.dumps(target_spec(target), sort_keys=True, separators=(",", ":"))


def target_spec(target: Target) -> dict[str, Any]:
    """The target in TVM's terms."""
    spec: dict[str, Any] = {"kind": "llvm", "mtriple": target.triple}
    if target.cpu:
        spec["mcpu"] = target.cpu
    if target.features:
        spec["mattr"] = list(target.features)
    if target.abi:
        spec["mabi"] = target.abi
    if target.float_abi:
        spec["mfloat-abi"] = target.float_abi
    return spec


def assemble(ll_text: str, target: Target) -> bytes:
    """A relocatable object (position independent code) of the functions in `ll_text`. As `assemble_with_text`."""
    return assemble_with_text(ll_text, target)[0]


def assemble_with_text(ll_text: str, target: Target) -> tuple[bytes, str]:
    """A relocatable object (position independent code) of the functions in `ll_text`, and its assembly text where the
    text is a whole program and irc reads the target's assembly (`stack.py`, `counting`); otherwise "".

    The text must carry its target triple; the machine is added unless the text already names one.
    Runs in this process: LLVM ends the process on some malformed input, so callers that assemble what users wrote do
    it in a worker. Raises InternalError when LLVM rejects the text.
    """
    import tvm_ffi  # takes a second; irc starts without it
    from tvm import target as _loads_llvm  # noqa: F401

    ll_text = with_soft_functions(ll_text)
    if not _FLAG.search(ll_text):
        ll_text += _machine_flag(target)
    load = tvm_ffi.get_global_func("ffi.Module.load_from_file.ll")
    with tempfile.TemporaryDirectory(prefix="irc-") as folder:
        source, result = Path(folder, "module.ll"), Path(folder, "module.o")
        source.write_text(ll_text)
        try:
            module = load(str(source), "ll")
            module.write_to_file(str(result))
            readable = target.linking == "module" and target.arch in ("arm32", "riscv32", "riscv64")
            assembly = str(module.inspect_source("asm")) if readable else ""
        except Exception as error:  # TVM raises several unrelated classes
            raise InternalError(
                "LLVM rejects generated code", where=f"target {target.name}", got=_reason(str(error))
            ) from error
        return result.read_bytes(), assembly


def _reason(text: str) -> str:
    """The line of LLVM's message that says what is wrong, and the code that it shows."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip(" ^~")]
    at = next((i for i, line in enumerate(lines) if "error:" in line), len(lines) - 1)
    return " / ".join(lines[at : at + 2])[-300:] if lines else "nothing"


def _machine_flag(target: Target) -> str:
    """Metadata that makes TVM take `target`'s CPU and features. Behaviour 4 = override, as no other module joins."""
    escaped = target_json(target).replace('"', "\\22")
    return f'\n!llvm.module.flags = !{{!0}}\n!0 = !{{i32 4, !"tvm_target", !"{escaped}"}}\n'
