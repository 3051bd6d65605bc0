"""C and C++ programs around the library: strict compilers, two networks, CMake, pkg-config, Arm under emulation."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import toy

from irc.backends.artifact.header import header_text
from irc.backends.artifact.load import Network
from irc.backends.artifact.machines import missing_tools
from irc.backends.artifact.qemu import Emulated, open_artifact, run_under_qemu
from irc.backends.artifact.write import write_artifact
from irc.backends.tvm.assemble import assemble
from irc.errors import DataError, OptionError, VerificationError
from irc.targets import get_target

pytestmark = pytest.mark.skipif(not toy.runs_natively(), reason="builds and runs x86-64 programs")

ROOT = Path(__file__).parents[3]
MAIN = ROOT / "examples" / "c" / "main.c"
STRICT = ("-pedantic", "-Wall", "-Wextra", "-Werror")
GCC = {"x86-64": ["gcc"], "aarch64": ["aarch64-linux-gnu-gcc", "-static"]}
RUN = {"x86-64": [], "aarch64": ["qemu-aarch64", "-cpu", "max"]}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifacts")
    for arch in toy.TARGETS:
        for name in ("toy", "Toy_2"):
            program = toy.toy(arch, name)
            write_artifact(program, folder / arch / name, manifest={}, glue_object=toy.glue(name, arch))
    return folder


def _flags(*folders: Path) -> list[object]:
    return [f"-{letter}{f / sub}" for f in folders for letter, sub in (("I", "include"), ("L", "lib"))]


@pytest.mark.parametrize("arch", toy.TARGETS)
@pytest.mark.parametrize("language", ["c89", "c++98"])
def test_the_example(arch, language, artifacts, tmp_path, tool):
    inputs = toy.toy_inputs()
    for x, name in zip(inputs, "ab", strict=True):
        x.tofile(tmp_path / name)
    program = tmp_path / "run"
    compiler, *static = GCC[arch]
    if language == "c++98":
        compiler, kind = compiler.replace("gcc", "g++"), ["-x", "c++"]
    else:
        kind = ["-x", "c"]
    source = [*kind, f"-std={language}", *STRICT, "-DNETWORK=toy", MAIN, "-x", "none"]
    tool(compiler, *static, *source, *_flags(artifacts / arch / "toy"), "-ltoy", "-lm", "-o", program)
    text = tool(*(*RUN[arch], str(program)), tmp_path / "a", tmp_path / "b")
    y, z = text.splitlines()
    want_y, want_z = toy.toy_expected(*inputs)
    # 1e-5: float32 roundings, and the step from y and z to text with nine digits
    np.testing.assert_allclose(np.array(y.split(": ")[1].split(), float), want_y, rtol=1e-5)
    want_real = (want_z.reshape(-1) - 3) * 0.5  # the second output is described as quantized
    np.testing.assert_allclose(np.array(z.split(": ")[1].split(), float), want_real, rtol=1e-5)


TWO = """
#include "toy.h"
#include "Toy_2.h"
#include <stdio.h>
int main(void)
{
    static toy_ctx one;
    static Toy_2_ctx two;
    int (*plain)(toy_ctx *, void *, size_t) = toy_init;
    int bad = toy_init(&one, NULL, 0) + Toy_2_init(&two, NULL, 0) + plain(&one, NULL, 0);
    printf("%d %d %d %s %s\\n", bad, TOY_INPUTS + TOY_2_OUTPUTS, (int)(sizeof one / sizeof(void *)),
           toy_info.name, Toy_2_info.name);
    return bad;
}
"""


@pytest.mark.parametrize("compiler", ["gcc", "g++"])
def test_two_networks_in_one_program(compiler, artifacts, tmp_path, tool):
    (tmp_path / "two.c").write_text(TWO)
    kind = ["-std=c89"] if compiler == "gcc" else []
    folders = [artifacts / "x86-64" / n for n in ("toy", "Toy_2")]
    libraries = ["-ltoy", "-lToy_2", "-lm", "-o", tmp_path / "two"]
    tool(compiler, *kind, *STRICT, tmp_path / "two.c", *_flags(*folders), *libraries)
    assert tool(str(tmp_path / "two")).split() == ["0", "4", "16", "toy", "Toy_2"]


def test_a_stale_header_is_noticed(artifacts, tmp_path, tool):
    header = (artifacts / "x86-64" / "toy" / "include" / "toy.h").read_text()
    old = header.replace("#define TOY_INTERFACE 0x", "#define TOY_INTERFACE 0x1 + 0x")
    assert old != header
    (tmp_path / "toy.h").write_text(old)
    (tmp_path / "t.c").write_text('#include "toy.h"\nint main(void) { toy_ctx c; return toy_init(&c, NULL, 0); }\n')
    flags = [f"-I{tmp_path}", *_flags(artifacts / "x86-64" / "toy")]
    tool("gcc", tmp_path / "t.c", *flags, "-ltoy", "-lm", "-o", tmp_path / "t")
    assert tool("sh", "-c", f"{tmp_path / 't'}; echo $?").strip() == "4"


def test_strange_tensor_names_do_not_break_the_header(tmp_path, tool):
    (tmp_path / "toy.h").write_text(header_text(toy.toy()))
    tool("gcc", "-std=c89", *STRICT, "-fsyntax-only", "-x", "c", tmp_path / "toy.h")


def test_cmake_and_pkg_config_find_a_moved_artifact(artifacts, tmp_path, tool):
    moved = tmp_path / "mo ved"
    (artifacts / "x86-64" / "toy").rename(moved)
    try:
        (tmp_path / "t.c").write_text('#include "toy.h"\nint main(void) { toy_ctx c; return toy_init(&c, NULL, 0); }\n')
        (tmp_path / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.10)\nproject(t C)\n"
            "find_package(toy REQUIRED)\nfind_package(toy REQUIRED)\n"
            "add_executable(t t.c)\ntarget_link_libraries(t toy::toy)\n"
        )
        build = tmp_path / "build"
        tool("cmake", "-S", tmp_path, "-B", build, f"-DCMAKE_PREFIX_PATH={moved}")
        tool("cmake", "--build", build)
        tool(str(build / "t"))
        env = {**os.environ, "PKG_CONFIG_PATH": str(moved / "lib" / "pkgconfig")}
        flags = tool("pkg-config", "--cflags", "--libs", "toy", env=env)
        assert "-ltoy" in flags
        assert "include" in flags
    finally:
        moved.rename(artifacts / "x86-64" / "toy")


# Emulation


def _skip_without_emulator():
    reason = missing_tools(toy.ARM)
    if reason:
        pytest.skip(reason)


def test_emulated_arm_gives_the_results():
    _skip_without_emulator()
    samples = [toy.toy_inputs(seed) for seed in range(3)]
    with Emulated(toy.toy("aarch64"), toy.glue("toy", "aarch64")) as network:
        results = [network.run({"a": a, "b:0": b}) for a, b in samples]
        for result, inputs in zip(results, samples, strict=True):
            for got, want in zip(result.values(), toy.toy_expected(*inputs), strict=True):
                assert got.shape == want.shape
                np.testing.assert_allclose(got, want, rtol=2e-6)  # float32 roundings of three steps
        with pytest.raises(DataError, match="input 'a'"):
            network.run({"a": samples[0][1], "b:0": samples[0][1]})
        with pytest.raises(DataError, match="got nothing"):
            network.run({"a": samples[0][0]})


def test_an_artifact_under_emulation(artifacts, tmp_path):
    _skip_without_emulator()
    a, b = toy.toy_inputs()
    with Emulated.artifact(artifacts / "aarch64" / "toy") as network:
        assert network.inputs == toy.toy().inputs
        results = network.run({"a": a, "b:0": b})
    for got, want in zip(results.values(), toy.toy_expected(a, b), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6)  # float32 roundings of three steps
    with pytest.raises(OptionError, match="no such folder"):
        Emulated.artifact(tmp_path / "absent")
    program = toy.toy("aarch64")
    write_artifact(program, tmp_path / "a", manifest={}, glue_object=toy.glue("toy", "aarch64"), emit={"header"})
    with pytest.raises(OptionError, match=r"libtoy\.a: the artifact lacks a part"):
        Emulated.artifact(tmp_path / "a")


def test_artifacts_open_in_process_or_under_emulation(artifacts, monkeypatch):
    _skip_without_emulator()
    inputs = toy.toy_inputs()
    for arch, kind in (("x86-64", Network), ("aarch64", Emulated)):
        with open_artifact(artifacts / arch / "toy") as network:
            assert type(network) is kind
            for got, want in zip(network(*inputs), toy.toy_expected(*inputs), strict=True):
                np.testing.assert_allclose(got, want, rtol=2e-6)  # float32 roundings of three steps
    monkeypatch.setenv("PATH", "")
    with pytest.raises(OptionError, match="it is for aarch64, this machine is x86-64, and it cannot be emulated"):
        open_artifact(artifacts / "aarch64" / "toy")


def test_what_is_missing_for_emulation_is_named(monkeypatch):
    with pytest.raises(OptionError, match="names no emulator"):
        run_under_qemu(toy.toy(), toy.glue(), {})
    monkeypatch.setenv("PATH", "")
    missing = "not found: qemu-aarch64, aarch64-linux-gnu-gcc (Debian: qemu-user, gcc-aarch64-linux-gnu)"
    assert missing_tools(toy.ARM) == missing
    with pytest.raises(OptionError, match="not found: qemu-aarch64"):
        run_under_qemu(toy.toy("aarch64"), toy.glue("toy", "aarch64"), {})


def test_a_crash_under_emulation_is_an_error():
    _skip_without_emulator()
    program = toy.chain("copy", arch="aarch64")
    trap = (
        f'target triple = "{toy.ARM.triple}"\ndeclare void @llvm.trap()\n'
        "define void @k_copy(ptr %x, ptr %y, i32 %p, i32 %n) {\n  call void @llvm.trap()\n  ret void\n}"
    )
    program.kernels["k_copy"] = assemble(trap, toy.ARM)
    x = np.zeros(toy.N, np.float32)
    with Emulated(program, toy.assembled(program)) as network:
        for _ in range(2):  # the second call starts it again
            with pytest.raises(VerificationError, match=r"the emulated network failed; got (Trace|Illegal)"):
                network.run({"x": x})


def test_what_the_emulator_says_is_told():
    _skip_without_emulator()
    program = toy.chain("copy", arch="aarch64")
    glue = toy.assembled(program)
    program.target = dataclasses.replace(program.target, qemu_cpu="none-such")
    with Emulated(program, glue) as network, pytest.raises(VerificationError, match=r"exit code 1: .*none-such"):
        network.run({"x": np.zeros(toy.N, np.float32)})


def test_boards_without_a_memory_map_are_named():
    target = dataclasses.replace(get_target("cortex-m4"), board="none-such")
    assert "no memory map of the board 'none-such'" in missing_tools(target)


def test_reading_the_workspace_too_early_shows_under_emulation():
    _skip_without_emulator()
    program = toy.chain("copy", "copy", arch="aarch64")
    program.steps = program.steps[1:]
    out = run_under_qemu(program, toy.assembled(program), {"x": np.zeros(toy.N, np.float32)})
    assert np.isnan(out["y"]).all()


def test_an_endless_network_is_stopped():
    _skip_without_emulator()
    program = toy.chain("copy", arch="aarch64")
    endless = (
        f'target triple = "{toy.ARM.triple}"\n'
        "define void @k_copy(ptr %x, ptr %y, i32 %p, i32 %n) {\n  br label %l\nl:\n"
        "  store volatile i32 1, ptr %y\n  br label %l\n}"
    )
    program.kernels["k_copy"] = assemble(endless, toy.ARM)
    with (
        Emulated(program, toy.assembled(program), timeout=0.5) as network,
        pytest.raises(VerificationError, match=r"no end within 0\.5 s"),
    ):
        network.run({"x": np.zeros(toy.N, np.float32)})
