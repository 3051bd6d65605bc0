"""Networks as one LLVM module: texts that are merged, objects of every format, what their linkers say."""

from __future__ import annotations

import collections
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from irc.backends.artifact.finish import undefined_symbols
from irc.backends.artifact.glue import glue_ll
from irc.backends.artifact.link import link, link_object
from irc.backends.artifact.machines import missing_tools
from irc.backends.artifact.module import MARKER_BYTES, ModuleObject, marker, merged_text
from irc.backends.artifact.qemu import Emulated
from irc.backends.artifact.write import write_artifact
from irc.backends.program import Arg, Blob, Port, Program, Step
from irc.backends.tvm.assemble import assemble
from irc.errors import InternalError
from irc.targets.catalogue import TARGETS
from irc.targets.target import Target

MODULES = [t for t in TARGETS.values() if t.linking == "module"]
N = 100

# y[i] = x[i] + w[i] + table[0]; both kernels have a constant of the same name.
_KERNEL = """
; ModuleID = 'x'
target triple = "{triple}"
@table = private unnamed_addr constant [2 x i8] c"{byte}\\00"
define void @{symbol}(ptr %x, ptr %w, ptr %y{shares}) local_unnamed_addr #0 {{
entry:
  %c = load i8, ptr @table, align 1
  br label %loop
loop:
  %i = phi i32 [ 0, %entry ], [ %next, %loop ]
  %xp = getelementptr inbounds i8, ptr %x, i32 %i
  %xv = load i8, ptr %xp, align 1
  %wp = getelementptr inbounds i8, ptr %w, i32 %i
  %wv = load i8, ptr %wp, align 1
  %s = add i8 %xv, %wv
  %t = add i8 %s, %c
  %yp = getelementptr inbounds i8, ptr %y, i32 %i
  store i8 %t, ptr %yp, align 1
  %next = add i32 %i, 1
  %more = icmp ult i32 %next, 100
  br i1 %more, label %loop, label %done
done:
  ret void
}}
attributes #0 = {{ nounwind "x"="#0 {symbol}" }}
"""


def _kernel(symbol: str, byte: str, target: Target) -> bytes:
    shares = ", i32 %part, i32 %parts" if target.threads else ""
    return _KERNEL.format(symbol=symbol, byte=byte, triple=target.triple, shares=shares).encode()


def _weights() -> np.ndarray:
    return np.arange(2 * N, dtype=np.int8) * 3


def _network(target: Target) -> Program:
    kernels = {"k_a": _kernel("k_a", "\\05", target), "k_b": _kernel("k_b", "\\07", target)}
    steps = (
        Step("k_a", (Arg("input", 0, 0), Arg("weights", 0), Arg("workspace", 0))),
        Step("k_b", (Arg("workspace", 0), Arg("weights", N), Arg("output", 0, 0))),
    )
    port = (Port("x", "int8", (N,)),)
    out = (Port("y", "int8", (N,)),)
    return Program(
        "net", target, port, out, steps, kernels, (Blob(0, _weights()),), 2 * N, 2 * N + 56, target.alignment
    )


def _expected(x: np.ndarray) -> np.ndarray:
    w = _weights()
    return x + w[:N] + w[N:] + np.int8(12)


@pytest.mark.parametrize("target", MODULES, ids=lambda t: t.name)
def test_objects_hold_the_weights_in_their_place(target: Target) -> None:
    program = _network(target)
    linked = link(program, assemble(glue_ll(program), target))
    assert isinstance(linked, ModuleObject)
    data = b"".join(bytes(c) for c in linked.chunks)
    assert data.count(_weights().tobytes()) == 1
    assert marker(program) not in data
    sizes = collections.Counter[str]()
    for section in linked.sections:
        sizes[section.name] += section.size
    assert 100 < sizes[".text"] < 3000
    assert sum(sizes.values()) - sizes[".text"] >= 2 * N
    if target.object_format == "elf":
        assert sizes[".rodata.net_weights"] == 2 * N
        assert undefined_symbols(data) == ()
    assert link_object(program, assemble(glue_ll(program), target)) == data, "the same bytes again"


@pytest.mark.parametrize("target", [t for t in MODULES if t.runner], ids=lambda t: t.name)
def test_networks_run_on_their_machines(target: Target) -> None:
    if missing_tools(target):
        pytest.skip(f"needs {missing_tools(target)}")
    program = _network(target)
    x = np.arange(-50, 50, dtype=np.int8)
    with Emulated(program, assemble(glue_ll(program), target)) as network:
        np.testing.assert_array_equal(network.run({"x": x})["y"], _expected(x))


_MAIN = """
#include "net.h"
int main(void) {
    static signed char x[100], y[100];
    static long long workspace[64];
    const void *in[1] = {x};
    void *out[1] = {y};
    net_ctx ctx;
    return net_init(&ctx, 0, 0) || net_run(&ctx, in, out, workspace);
}
"""


def _artifact(target: Target, folder: Path) -> Path:
    program = _network(target)
    glue = assemble(glue_ll(program), target)
    write_artifact(program, folder / "net", manifest={}, glue_object=glue, emit={"archive", "header", "object"})
    (folder / "main.c").write_text(_MAIN)
    return folder / "net"


@pytest.mark.parametrize("floats", ["soft", "softfp", "hard"])
def test_one_object_links_with_callers_of_every_float_abi(
    floats: str, tmp_path: Path, need_tool: Callable[..., str]
) -> None:
    compiler, names = need_tool("arm-none-eabi-gcc"), need_tool("arm-none-eabi-nm")
    net = _artifact(TARGETS["cortex-m4"], tmp_path)
    command = [compiler, "-mcpu=cortex-m4", "-mthumb", f"-mfloat-abi={floats}", "-nostdlib", "-Wl,--gc-sections"]
    files = [str(tmp_path / "main.c"), str(net / "lib" / "libnet.a"), "-lgcc"]
    out = str(tmp_path / "a.elf")
    flags = ["-Wl,--fatal-warnings", "-Wa,--noexecstack", "-Wl,-e,main", "-Wl,-u,main"]
    subprocess.run([*command, *flags, f"-I{net / 'include'}", *files, "-o", out], check=True)
    kept = subprocess.run([names, out], check=True, capture_output=True, text=True).stdout
    assert " net_run" in kept
    assert "net_info" not in kept, "descriptions are left out where nobody refers to them"
    assert "net_set_parallel" not in kept


def test_coff_links(tmp_path: Path, need_tool: Callable[..., str]) -> None:
    compiler = need_tool("x86_64-w64-mingw32-gcc")
    net = _artifact(TARGETS["windows-x86-64"], tmp_path)
    library = [str(tmp_path / "main.c"), f"-L{net / 'lib'}", "-lnet"]
    subprocess.run([compiler, f"-I{net / 'include'}", *library, "-o", str(tmp_path / "a.exe")], check=True)
    assert (tmp_path / "a.exe").read_bytes()[:2] == b"MZ"


def test_mach_o_has_apples_names(tmp_path: Path) -> None:
    net = _artifact(TARGETS["apple-m1"], tmp_path)
    data = (net / "lib" / "net.o").read_bytes()
    assert data[:8] == b"\xcf\xfa\xed\xfe\x0c\x00\x00\x01"  # 64-bit Mach-O, arm64
    assert b"\0_net_run\0" in data
    archive = (net / "lib" / "libnet.a").read_bytes()
    assert b"__.SYMDEF" in archive[:100]
    assert b"\0_net_run\0" in archive[:600]


def test_texts_that_cannot_be_merged_are_refused() -> None:
    target = TARGETS["cortex-m4"]
    text = _kernel("k", "a", target).decode()
    for other, what in (
        (text.replace("@k(", "@other("), "defined twice"),
        (text + "%T = type { i32 }\n", "named type"),
        (text + "declare void @printf(ptr)\n", "undefined symbol printf"),
        (text.replace("ret void", "call void @nobody()\n  ret void"), "does not declare"),
        ('target datalayout = "e-p:64:64"\n' + text, "two data layouts"),
    ):
        glue = 'target datalayout = "e-p:32:32"\ndefine void @other() {\n  ret void\n}\n'
        kernels = {"k": other.encode()} if what != "defined twice" else {"other": other.encode()}
        with pytest.raises(InternalError, match=what):
            merged_text(kernels, glue, target, "e")


def test_weights_need_one_place_of_their_own() -> None:
    program = _network(TARGETS["riscv32"])
    data = assemble(glue_ll(program), program.target)
    at = data.index(marker(program))
    for wrong in (
        data[:at] + bytes(MARKER_BYTES) + data[at + MARKER_BYTES :],
        data + marker(program),
        data[: at + MARKER_BYTES] + b"x" + data[at + MARKER_BYTES + 1 :],
    ):
        with pytest.raises(InternalError, match="no place of their own"):
            link(program, wrong)
