"""LLVM IR text as TVM emits it -> the same code without debug information, and from text to an object.

TVM attaches DWARF to every instruction and two weak half-precision helpers to every module: three quarters of a
small object. Its alias metadata (TBAA) is named after addresses of the compiling process, so it also has to go for
objects to be reproducible; `noalias` on parameters says what matters and stays.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from irc.backends.tvm.soft import with_soft_functions
from irc.targets.target import Target

_ATTACHMENT = re.compile(r",? ![a-zA-Z][\w.]* !\d+(?=[,\s]|$)")
_INLINE_LOCATION = re.compile(r",? ![a-zA-Z][\w.]* !(?:DILocation\(.*?\)|\{[^{}]*\})")
_NAMED = re.compile(r"^!([\w.]+) = !\{(.*)\}$")
_NUMBERED = re.compile(r"^!(\d+) = ")
_HELPER = re.compile(r"^define weak .*@__(?:truncsfhf2|extendhfsf2)\(")
_ALLOCA = re.compile(r"( = alloca .*, align )(\d+)$")
_DEFINED_OR_DECLARED = re.compile(r"^declare .*@([\w.$]+)\(")


def slim_ll(text: str) -> str:
    """`text` without debug records, metadata attachments and unused helpers.

    The module flag `tvm_target`, which TVM needs to read the text back, is kept. The half-precision helpers stay
    where the code handles `half` values (the code generator may call them); there they are internal.
    """
    body, numbered, flags = _split(text)
    helpers, rest = _separate_helpers(body)
    if any("half" in line for line in rest if not line.startswith("declare")):
        rest = [*rest, "", *helpers]
    kept = _drop_unused_declarations(rest)
    return "\n".join(_squeeze([*kept, "", *_target_flag(numbered, flags)])) + "\n"


def align_stack(text: str) -> str:
    """`text` with functions that align their stack frame for what they spill.

    The ABI of x86 aligns the stack to 16 bytes. Vectors are wider, and LLVM finds out that it must spill some when it
    is too late to align the frame for them; then every access of such a place may touch two cache lines.
    """
    for number in set(re.findall(r"^define .* #(\d+)\b", text, re.MULTILINE)):
        text = text.replace(f"attributes #{number} = {{", f'attributes #{number} = {{ "stackrealign"', 1)
    return text


def tightened(text: str, target: Target) -> str:
    """Kernel text for small machines and for Windows: stack memory is aligned no more than the target asks for, and
    no function checks its stack page by page (which would call into the C library)."""
    lines = text.splitlines()
    if target.small:
        lines = [_ALLOCA.sub(lambda m: f"{m[1]}{min(int(m[2]), target.alignment)}", line) for line in lines]
    if target.object_format == "coff":
        lines = [re.sub(r"^(attributes #\d+ = \{)", r'\1 "no-stack-arg-probe"', line) for line in lines]
    return "\n".join(lines) + "\n"


def object_from_ll(text: str) -> bytes:
    """A relocatable object made from LLVM IR text that names its target in the flag `tvm_target`.

    The text is not optimized again: it has to be optimized already, as `inspect_source("ll")` is.
    """
    with tempfile.TemporaryDirectory(prefix="irc-") as folder:
        result = Path(folder) / "m.o"
        loaded_ll(text).write_to_file(str(result))
        return result.read_bytes()


def assembly_from_ll(text: str) -> str:
    """The assembly text of LLVM IR text as `object_from_ll` takes it."""
    return str(loaded_ll(text).inspect_source("asm"))


def object_from_assembly(assembly: str, text: str) -> bytes:
    """The object that `object_from_ll(text)` makes (but for the padding before loops on the oldest x86), from
    `assembly_from_ll(text)`: the code generator has run already, which takes most of the time, and LLVM's assembler is
    asked for what is left, through a module that holds nothing else."""
    lines = assembly.replace("\\", "\\5C").replace('"', "\\22").splitlines()
    code = [f'module asm "{line}"' for line in lines if not line.lstrip().startswith(".file")]
    head = [line for line in text.splitlines() if line.startswith("target ")]
    flags = [line for line in text.splitlines() if line.startswith("!")]
    return object_from_ll("\n".join([*head, *code, *flags, ""]))


def loaded_ll(text: str) -> Any:
    """TVM's module of LLVM IR text."""
    import tvm

    with tempfile.TemporaryDirectory(prefix="irc-") as folder:
        source = Path(folder) / "m.ll"
        source.write_text(with_soft_functions(text))
        return tvm.get_global_func("ffi.Module.load_from_file.ll")(str(source), "ll")


def _split(text: str) -> tuple[list[str], dict[str, str], list[str]]:
    """Code lines with their metadata removed; numbered metadata by number; the module flags' numbers."""
    body: list[str] = []
    numbered: dict[str, str] = {}
    flags: list[str] = []
    for line in text.splitlines():
        number, named = _NUMBERED.match(line), _NAMED.match(line)
        if number:
            numbered[number[1]] = line
        elif named:
            if named[1] == "llvm.module.flags":
                flags = re.findall(r"\d+", named[2])
        elif not _is_noise(line):
            body.append(_without_metadata(line))
    return body, numbered, flags


def _is_noise(line: str) -> bool:
    start = line.lstrip()
    if start.startswith(("#dbg_", "; Function Attrs", "; ModuleID", "source_filename")):
        return True
    if "@llvm.experimental.noalias.scope.decl" in start or "@llvm.dbg." in start:
        return True
    return start.startswith("@llvm.global_ctors") and "[0 x" in start


def _without_metadata(line: str) -> str:
    if 'c"' in line:  # a constant string may contain anything
        return line
    if line.startswith("define "):
        line = line.replace("define dllexport ", "define ", 1)
    if "!" not in line:
        return line
    return _ATTACHMENT.sub("", _INLINE_LOCATION.sub("", line))


def _separate_helpers(lines: list[str]) -> tuple[list[str], list[str]]:
    helpers: list[str] = []
    rest: list[str] = []
    inside = False
    for line in lines:
        if _HELPER.match(line):
            inside = True
            line = line.replace("define weak dso_local ", "define internal ", 1)
            line = re.sub(r' section "[^"]*"', "", line)
        (helpers if inside else rest).append(line)
        if inside and line == "}":
            inside = False
    return helpers, rest


def _drop_unused_declarations(lines: list[str]) -> list[str]:
    used = set(re.findall(r"@([\w.$]+)", "\n".join(line for line in lines if not line.startswith("declare "))))
    kept = []
    for line in lines:
        declared = _DEFINED_OR_DECLARED.match(line)
        if declared is None or declared[1] in used:
            kept.append(line)
    return kept


def _squeeze(lines: list[str]) -> list[str]:
    """Runs of empty lines become one."""
    return [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]


def _target_flag(numbered: dict[str, str], flags: list[str]) -> list[str]:
    for number in flags:
        definition = numbered.get(number, "")
        if '!"tvm_target"' in definition:
            return ["!llvm.module.flags = !{!0}", "!0 = " + definition.split(" = ", 1)[1]]
    return []
