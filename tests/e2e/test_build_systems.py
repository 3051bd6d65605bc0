"""The examples for build systems, with the real tools: from clean to a program that runs; building again does
nothing; touching the model compiles it again.

Each works on a copy of the example, with the model beside it, and finds irc as a program on PATH.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

CLASS = "class 5\n"
"""What every example prints for its image."""


@dataclass(frozen=True)
class Project:
    """A copy of one example. `examples`: the folder with it and the model."""

    folder: Path
    examples: Path
    environment: dict[str, str]

    def run(self, *command: object, code: int = 0) -> str:
        """Standard output (and error, behind it) of a command in the project."""
        words = [str(word) for word in command]
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    @property
    def model(self) -> Path:
        return self.examples / "digits" / "digits.onnx"


@pytest.fixture
def project(root: Path, tmp_path: Path, kernel_cache: Path) -> Callable[[str], Project]:
    def copied(name: str) -> Project:
        examples = tmp_path / "an example"  # build systems and blanks in paths are old enemies
        shutil.copytree(root / "examples" / name, examples / name, ignore=shutil.ignore_patterns("build", "target"))
        shutil.copytree(root / "examples" / "digits", examples / "digits")
        program = tmp_path / "bin" / "irc"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\nPYTHONPATH='{root}' exec '{sys.executable}' -m irc \"$@\"\n")
        program.chmod(0o755)
        path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "XDG_CACHE_HOME": str(kernel_cache)}
        for variable in ("CFLAGS", "LDFLAGS", "MAKEFLAGS", "VIRTUAL_ENV", "CARGO_TARGET_DIR"):
            environment.pop(variable, None)
        return Project(examples / name, examples, environment)

    return copied


def check_cycle(project: Project, build: Callable[[], str], library: Path, program: Path) -> None:
    """Builds three times: all of it, nothing, all that hangs on the model."""
    build()
    first = times(library, program)
    build()
    assert times(library, program) == first
    project.model.touch()
    build()
    again = times(library, program)
    assert again[0] > first[0]
    assert again[1] > first[1]
    build()
    assert times(library, program) == again


def times(*paths: Path) -> list[int]:
    return [path.stat().st_mtime_ns for path in paths]


def configure(project: Project, *options: str, generator: str = "Ninja", code: int = 0) -> str:
    folder = project.run("irc", "cmake-dir").strip()
    return project.run("cmake", "-G", generator, "-B", "build", f"-Dirc_DIR={folder}", *options, code=code)


def cmake_build(project: Project) -> str:
    return project.run("cmake", "--build", "build")


# CMake


@pytest.mark.parametrize("generator", ["Ninja", "Unix Makefiles"])
def test_cmake(generator: str, project: Callable[[str], Project], need_tool: Callable[..., str]) -> None:
    for tool in ("cmake", "cc", "ninja" if generator == "Ninja" else "make"):
        need_tool(tool)
    here = project("cmake")
    configure(here, generator=generator)
    library, program = here.folder / "build/digits-irc/lib/libdigits.a", here.folder / "build/classify"
    check_cycle(here, lambda: cmake_build(here), library, program)
    assert here.run(program) == CLASS

    # Other options are another network; Makefiles do not see this by themselves.
    lists = here.folder / "CMakeLists.txt"
    lists.write_text(lists.read_text().replace("MAX_DROP 1", "MAX_DROP 2"))
    before = times(library)
    cmake_build(here)
    assert times(library) > before
    lists.touch()  # configures again, to the same
    before = times(library)
    cmake_build(here)
    assert times(library) == before


def test_cmake_takes_the_target_of_a_cross_build(
    project: Callable[[str], Project], need_tool: Callable[..., str]
) -> None:
    for tool in ("cmake", "ninja", "aarch64-linux-gnu-gcc"):
        need_tool(tool)
    here = project("cmake")
    configure(here, "-DCMAKE_TOOLCHAIN_FILE=aarch64-linux-gnu.cmake")
    assert "for cortex-a72" in cmake_build(here)
    assert here.run(need_tool("qemu-aarch64"), here.folder / "build/classify") == CLASS


def test_cmake_compiles_c_source_for_any_machine(
    project: Callable[[str], Project], need_tool: Callable[..., str]
) -> None:
    for tool in ("cmake", "ninja", "cc"):
        need_tool(tool)
    here = project("cmake")
    lists = here.folder / "CMakeLists.txt"
    lists.write_text(lists.read_text().replace("PRESET speed", "TARGET c PRESET speed"))
    configure(here)
    cmake_build(here)
    assert here.run(here.folder / "build/classify") == CLASS


@pytest.mark.parametrize("generator", ["Ninja", "Unix Makefiles"])
def test_cmake_cleans_and_goes_on_after_an_interruption(
    generator: str, project: Callable[[str], Project], need_tool: Callable[..., str]
) -> None:
    for tool in ("cmake", "cc", "ninja" if generator == "Ninja" else "make"):
        need_tool(tool)
    here = project("cmake")
    configure(here, generator=generator)
    cmake_build(here)
    folder = here.folder / "build" / "digits-irc"
    for path in (folder / "lib/libdigits.a", folder / "include/digits.h", folder / "include/digits.hpp"):
        path.unlink()  # what Ninja does to the outputs of a command that is interrupted
    cmake_build(here)
    here.run("cmake", "--build", "build", "--target", "clean")
    assert not folder.exists()
    cmake_build(here)
    assert here.run(here.folder / "build/classify") == CLASS


def test_cmake_takes_a_target_from_a_file(project: Callable[[str], Project], need_tool: Callable[..., str]) -> None:
    for tool in ("cmake", "ninja", "cc"):
        need_tool(tool)
    here = project("cmake")
    (here.folder / "board.toml").write_text('base = "c"\nram_bytes = "64k"\n')
    lists = here.folder / "CMakeLists.txt"
    lists.write_text(lists.read_text().replace("PRESET speed", "TARGET board.toml PRESET speed"))
    configure(here)
    cmake_build(here)
    assert (here.folder / "build/digits-irc/src/digits.c").is_file()
    assert here.run(here.folder / "build/classify") == CLASS
    (here.folder / "board.toml").write_text('base = "c"\nram_bytes = "1k"\n')
    assert "more RAM than it may use" in here.run("cmake", "--build", "build", code=1)


@pytest.mark.parametrize(
    ("lists", "options", "message"),
    [
        ("irc_add_model(n MODEL m.onnx TARGET none.toml)", (), "none.toml: cannot read the target"),
        ("irc_add_model(n MODEL m.onnx)\nirc_add_model(o MODEL m.onnx DIRECTORY n-irc)", (), "another model has"),
        ("", ("-DIRC_EXECUTABLE=/no/irc",), "'/no/irc --version' fails"),
        ("irc_add_model(n MODEL m.onnx PRESET speed PASSES none)", (), "either PASSES or PRESET"),
        ("irc_add_model(n PRESET speed)", (), "MODEL file.onnx is missing"),
        ("irc_add_model(n-n MODEL m.onnx)", (), "the name is the prefix of C functions"),
        ("irc_add_model(n MODEL m.onnx PRESE speed)", (), "these mean nothing: PRESE;speed"),
        (
            "irc_add_model(n MODEL m.onnx)",
            ("-DCMAKE_SYSTEM_NAME=Generic", "-DCMAKE_SYSTEM_PROCESSOR=xtensa"),
            "irc has no target for this build",
        ),
        (
            "irc_add_model(n MODEL m.onnx)",
            ("-DCMAKE_SYSTEM_NAME=Generic", "-DCMAKE_SYSTEM_PROCESSOR=arm"),
            "expected a flag such as -mcpu=cortex-m4",
        ),
    ],
)
def test_cmake_says_what_is_wrong(
    lists: str,
    options: tuple[str, ...],
    message: str,
    project: Callable[[str], Project],
    need_tool: Callable[..., str],
) -> None:
    need_tool("cmake")
    need_tool("ninja")
    here = project("cmake")
    top = "cmake_minimum_required(VERSION 3.21)\nproject(p NONE)\nfind_package(irc REQUIRED)\n"
    (here.folder / "CMakeLists.txt").write_text(top + lists)
    assert message in " ".join(configure(here, *options, code=1).split())


def test_cmake_passes_on_types_of_ports(project: Callable[[str], Project], need_tool: Callable[..., str]) -> None:
    need_tool("cmake")
    need_tool("ninja")
    here = project("cmake")
    model = "irc_add_model(n MODEL m.onnx TARGET cortex-m4 PRESET speed IO int8 scores=float32)"
    top = "cmake_minimum_required(VERSION 3.21)\nproject(p NONE)\nfind_package(irc REQUIRED)\n"
    (here.folder / "CMakeLists.txt").write_text(top + model)
    configure(here)
    assert "--io int8 --io scores=float32" in here.run("ninja", "-C", "build", "-t", "commands", "n_irc")


def test_cmake_without_irc(project: Callable[[str], Project], need_tool: Callable[..., str], root: Path) -> None:
    cmake = need_tool("cmake")
    here = project("cmake")
    shutil.copy(root / "irc" / "cmake" / "irc-config.cmake", here.folder)  # far from any installation
    text = (
        "set(irc_DIR ${CMAKE_CURRENT_SOURCE_DIR})\nset(CMAKE_DISABLE_FIND_PACKAGE_Python3 TRUE)\n"
        "set(CMAKE_FIND_USE_SYSTEM_ENVIRONMENT_PATH FALSE)\nset(CMAKE_FIND_USE_CMAKE_SYSTEM_PATH FALSE)\n"
        "find_package(irc REQUIRED)\n"
    )
    (here.folder / "CMakeLists.txt").write_text(f"cmake_minimum_required(VERSION 3.21)\nproject(p NONE)\n{text}")
    assert "install irc-compiler" in " ".join(here.run(cmake, "-B", "build", code=1).split())


# The others


def test_make(project: Callable[[str], Project], need_tool: Callable[..., str]) -> None:
    need_tool("cc")
    make = need_tool("make")
    here = project("make")
    library, program = here.folder / "build/digits/lib/libdigits.a", here.folder / "build/classify"
    check_cycle(here, lambda: here.run(make), library, program)
    assert "is up to date" in here.run(make)
    assert here.run(program) == CLASS


def test_meson(project: Callable[[str], Project], need_tool: Callable[..., str]) -> None:
    for tool in ("cc", "ninja"):
        need_tool(tool)
    meson = need_tool("meson")
    here = project("meson")
    here.run(meson, "setup", "build")
    library, program = here.folder / "build/libdigits.a", here.folder / "build/classify"
    check_cycle(here, lambda: here.run(meson, "compile", "-C", "build"), library, program)
    assert here.run(program) == CLASS


def test_meson_takes_the_target_of_a_cross_build(
    project: Callable[[str], Project], need_tool: Callable[..., str]
) -> None:
    for tool in ("ninja", "aarch64-linux-gnu-gcc"):
        need_tool(tool)
    meson = need_tool("meson")
    here = project("meson")
    cross = (
        "[binaries]\nc = 'aarch64-linux-gnu-gcc'\nar = 'aarch64-linux-gnu-ar'\n[built-in options]\n"
        "c_args = [{}]\nc_link_args = ['-static']\n[host_machine]\nsystem = 'linux'\ncpu_family = '{}'\n"
        "cpu = 'any'\nendian = 'little'\n"
    )
    (here.folder / "a72.txt").write_text(cross.format("'-mcpu=cortex-a72'", "aarch64"))
    here.run(meson, "setup", "build", "--cross-file", "a72.txt")
    assert "--target cortex-a72 " in (here.folder / "build" / "build.ninja").read_text()
    here.run(meson, "compile", "-C", "build")
    assert here.run(need_tool("qemu-aarch64"), here.folder / "build" / "classify") == CLASS
    (here.folder / "unknown.txt").write_text(cross.format("", "sparc"))
    assert "irc has no target for this build" in here.run(
        meson, "setup", "other", "--cross-file", "unknown.txt", code=1
    )


def test_cpp(project: Callable[[str], Project], need_tool: Callable[..., str]) -> None:
    for tool in ("cmake", "ninja", "g++"):
        need_tool(tool)
    here = project("cpp")
    configure(here, "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Wpedantic -Wshadow -Werror")
    library, program = here.folder / "build/digits-irc/lib/libdigits.a", here.folder / "build/classify"
    check_cycle(here, lambda: cmake_build(here), library, program)
    assert here.run(program) == CLASS


def test_rust(project: Callable[[str], Project], need_tool: Callable[..., str]) -> None:
    need_tool("cc")
    cargo = need_tool("cargo")
    here = project("rust")
    program = here.folder / "target/release/classify"

    def build() -> str:
        return here.run(cargo, "build", "--release", "--offline", "--quiet")

    build()
    (library,) = here.folder.glob("target/release/build/*/out/digits/lib/libdigits.a")
    check_cycle(here, build, library, library)  # cargo leaves a program alone that came out the same
    assert here.run(program) == CLASS


def test_firmware(project: Callable[[str], Project], need_tool: Callable[..., str]) -> None:
    for tool in ("cmake", "ninja", "arm-none-eabi-gcc"):
        need_tool(tool)
    qemu = need_tool("qemu-system-arm")
    here = project("firmware")
    configure(here, "-DCMAKE_TOOLCHAIN_FILE=arm-none-eabi.cmake")
    library, program = here.folder / "build/digits-irc/lib/libdigits.a", here.folder / "build/firmware.elf"
    check_cycle(here, lambda: cmake_build(here), library, program)
    board = ("-M", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "none", "-icount", "shift=0")
    text = here.run(qemu, *board, "-semihosting-config", "enable=on,target=native", "-kernel", program)
    assert text.startswith(f"{CLASS}cycles ")
    assert 1000 < int(text.split()[-1]) < 10_000_000  # 200 thousand multiply-adds: neither nothing nor wrapped round
