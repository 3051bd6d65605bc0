"""Sizes of sections of every object format, against LLVM's reader."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from irc.backends.artifact.sections import section_sizes
from irc.backends.tvm.assemble import assemble
from irc.targets.catalogue import TARGETS

_TEXT = """
target triple = "{triple}"
@words = constant [5 x i32] [i32 1, i32 2, i32 3, i32 4, i32 5], align 4
define i32 @add(i32 %a, i32 %b) nounwind {{
  %c = add i32 %a, %b
  ret i32 %c
}}
"""


@pytest.mark.parametrize("name", ["cortex-m4", "riscv64", "windows-x86-64", "apple-m1", "wasm32"])
def test_sizes_are_those_of_llvm(name: str, tmp_path: Path, need_tool: Callable[..., str]) -> None:
    reader = need_tool("llvm-size", "llvm-size-14")
    target = TARGETS[name]
    data = assemble(_TEXT.format(triple=target.triple), target)
    path = tmp_path / "a.o"
    path.write_bytes(data)
    sizes = section_sizes(data, target.object_format)
    command = [reader, "-A", str(path)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    known = {
        int(line.split()[1]) for line in shown.splitlines() if len(line.split()) == 3 and line.split()[1].isdigit()
    }
    assert {".text", ".rodata"} <= {s.name for s in sizes}
    assert all(s.size in known for s in sizes), shown
