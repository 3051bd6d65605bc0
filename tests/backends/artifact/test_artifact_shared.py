"""The linker of shared libraries, natively and for Arm."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import toy

from irc.backends.artifact import elf, relocate
from irc.backends.artifact.link import link, link_object
from irc.backends.artifact.shared import shared_library
from irc.errors import InternalError

ARM_SYSROOT = "/usr/aarch64-linux-gnu"

DLOPEN = r"""
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv)
{
    static void *ctx[16];
    float x[37], y[37];
    const void *in[1];
    void *out[1], *library = dlopen(argv[1], RTLD_NOW);
    static char memory[1 << 16];
    int i, (*init)(void *, void *, unsigned long), (*run)(void *, void *, void *, void *);
    if (argc != 2 || !library) { puts(dlerror()); return 1; }
    *(void **)&init = dlsym(library, "net_init");
    *(void **)&run = dlsym(library, "net_run");
    for (i = 0; i < 37; i++) x[i] = (float)i / 16;
    in[0] = x; out[0] = y;
    if (init(ctx, 0, 0)) return 2;
    if (run(ctx, in, out, memory + (64 - (unsigned long)memory % 64))) return 3;
    for (i = 0; i < 37; i++) printf("%.9g ", y[i]);
    return 0;
}
"""


def _expected(ops: tuple[str, ...]) -> np.ndarray:
    x = np.arange(37) / 16
    for op in ops:
        if op == "table":
            x = np.cos(np.where(np.arange(37) % 2 == 0, np.sin(x), 2 * x))
        else:
            x = {"exp": np.exp, "loads": lambda v: v + 54321, "copy": lambda v: v}[op](x)
    return x


@pytest.mark.parametrize("arch", toy.TARGETS)
@pytest.mark.parametrize("ops", [("copy",), ("table", "exp", "copy"), ("exp", "loads")])
def test_a_c_program_opens_the_library(arch, ops, tmp_path, tool):
    if arch == "x86-64" and not toy.runs_natively():
        pytest.skip("runs x86-64 programs")
    compiler = {"x86-64": "gcc", "aarch64": "aarch64-linux-gnu-gcc"}[arch]
    program = toy.chain(*ops, arch=arch)
    library = tmp_path / "net.so"
    library.write_bytes(shared_library(link_object(program, toy.assembled(program)), program.target, "libnet.so"))
    (tmp_path / "main.c").write_text(DLOPEN)
    tool(compiler, tmp_path / "main.c", "-o", tmp_path / "main", "-ldl")
    if arch == "aarch64":
        text = tool("qemu-aarch64", "-L", ARM_SYSROOT, tmp_path / "main", library)
    else:
        text = tool(str(tmp_path / "main"), library)
    # 2e-6: two roundings to float32 on values of any size, and libm's last bit.
    np.testing.assert_allclose(np.array(text.split(), float), _expected(ops), rtol=2e-6)


@pytest.mark.parametrize("arch", toy.TARGETS)
def test_readelf_finds_what_a_loader_wants(arch, tmp_path, tool):
    program = toy.toy(arch)
    path = tmp_path / "libtoy.so"
    path.write_bytes(shared_library(link(program, toy.glue("toy", arch)), program.target, "libtoy.so"))
    dynamic = tool("readelf", "-dW", path)
    assert "[libm.so.6]" in dynamic
    assert "libc" not in dynamic  # no memcpy in the toy
    assert "TEXTREL" not in dynamic
    assert "Library soname: [libtoy.so]" in dynamic
    headers = tool("readelf", "-lW", path)
    assert "GNU_RELRO" in headers
    loads = [line.split() for line in headers.splitlines() if line.strip().startswith("LOAD")]
    flags = ["".join(line[6:-1]) for line in loads]
    assert flags == ["R", "RE", "RW", "R"]
    assert int(loads[-1][1], 16) % 4096 == 0  # weights start on a page
    assert "RWE" not in headers
    everything = tool("readelf", "-aW", path)
    assert "Warning" not in everything
    assert "Error" not in everything


def test_same_bytes_twice():
    program = toy.toy()
    obj = link_object(program, toy.glue())
    assert shared_library(obj, program.target) == shared_library(link(program, toy.glue()), program.target)


def test_code_that_depends_on_its_address_is_refused():
    program = toy.toy()
    obj = link(program, toy.glue())
    text = next(s for s in obj.sections if s.name == ".text")
    text.relocations[0].kind = 10  # R_X86_64_32
    with pytest.raises(InternalError, match="kind 10 in code that must be position independent"):
        shared_library(obj, program.target)
    text.relocations[0].kind = 1  # R_X86_64_64
    with pytest.raises(InternalError, match=r"absolute address in read-only section \.text"):
        shared_library(obj, program.target)


def test_object_for_another_machine_is_refused():
    with pytest.raises(InternalError, match="another machine"):
        shared_library(link(toy.toy(), toy.glue()), toy.ARM)


def test_distances_that_do_not_fit_are_refused():
    with pytest.raises(InternalError, match="does not reach"):
        relocate.apply(elf.EM_X86_64, bytearray(4), 0, 2, 1 << 31, 0)
    with pytest.raises(InternalError, match="does not reach"):
        relocate.apply(elf.EM_AARCH64, bytearray(4), 0, 283, 1 << 27, 0)
    with pytest.raises(InternalError, match="misaligned"):
        relocate.apply(elf.EM_AARCH64, bytearray(4), 0, 286, 4, 0)


@pytest.mark.parametrize(
    ("kind", "code", "target", "place", "expected"),
    [  # instructions as GNU as and objdump write them
        (283, 0x94000000, 0x2000, 0x1000, 0x94000400),  # bl +0x1000
        (283, 0x94000000, 0x1000, 0x2000, 0x97FFFC00),  # bl -0x1000
        (275, 0x90000000, 0x12345678, 0x1000, 0x90091A20),  # adrp x0, 0x12345000
        (277, 0x91000000, 0x12345678, 0, 0x9119E000),  # add x0, x0, #0x678
        (286, 0xF9400000, 0x12345678, 0, 0xF9433C00),  # ldr x0, [x0, #0x678]
        (299, 0x3DC00000, 0x12345670, 0, 0x3DC19C00),  # ldr q0, [x0, #0x670]
    ],
)
def test_arm_instructions(kind, code, target, place, expected):
    data = bytearray(struct.pack("<I", code))
    relocate.apply(elf.EM_AARCH64, data, 0, kind, target, place)
    assert struct.unpack("<I", data)[0] == expected
