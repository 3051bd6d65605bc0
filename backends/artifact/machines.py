"""How the network of an artifact becomes a program for its machine, and what starts that here.

Emulators of one process (QEMU's user mode) and boards without an operating system (QEMU's system mode, semihosting)
run a small C program with the static library in it; node runs a WebAssembly module. The C compilers see only the small
program of `drivers`, the network is the library that the artifact holds.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from irc.backends.artifact import interface as abi
from irc.backends.program import Port
from irc.errors import IrcError, VerificationError
from irc.targets.target import Target

RUN_ERROR = 110
"""Exit code of a driver program for error 0 of NAME_run."""

PACKAGES = {
    "qemu-aarch64": "qemu-user",
    "qemu-arm": "qemu-user",
    "qemu-riscv64": "qemu-user",
    "qemu-riscv32": "qemu-user",
    "qemu-system-arm": "qemu-system-arm",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "arm-linux-gnueabihf-gcc": "gcc-arm-linux-gnueabihf",
    "riscv64-linux-gnu-gcc": "gcc-riscv64-linux-gnu",
    "riscv64-unknown-elf-gcc": "gcc-riscv64-unknown-elf and picolibc-riscv64-unknown-elf",
    "arm-none-eabi-gcc": "gcc-arm-none-eabi and libnewlib-arm-none-eabi",
    "x86_64-w64-mingw32-gcc": "gcc-mingw-w64-x86-64",
    "wasm-ld": "lld",
    "node": "nodejs",
    "cc": "gcc",
}
"""Tool -> Debian packages."""


@dataclass(frozen=True)
class Board:
    """Memory of one of QEMU's boards: origin and bytes of what holds the program, data and stack, and large data;
    `mhz`: the clock of its processor's timer."""

    code: tuple[int, int]
    ram: tuple[int, int]
    big: tuple[int, int]
    mhz: int


_MB = 1024 * 1024
BOARDS = {
    "mps2-an385": Board((0x0, 4 * _MB), (0x20000000, 4 * _MB), (0x21000000, 16 * _MB), 25),
    "mps2-an386": Board((0x0, 4 * _MB), (0x20000000, 4 * _MB), (0x21000000, 16 * _MB), 25),
    "mps2-an500": Board((0x0, 4 * _MB), (0x20000000, 4 * _MB), (0x60000000, 16 * _MB), 25),
    "mps2-an505": Board((0x10000000, 4 * _MB), (0x38000000, 4 * _MB), (0x80000000, 16 * _MB), 20),
    "mps3-an547": Board((0x0, _MB // 2), (0x20000000, _MB // 2), (0x60000000, 64 * _MB), 32),
}
"""From QEMU's hw/arm/mps2.c and mps2-tz.c. Code begins with the vector table."""

_STACK = 64 * 1024
_SCRIPT = """\
ENTRY(irc_reset)
MEMORY {
  code : ORIGIN = @CODE@
  ram : ORIGIN = @RAM@
  big : ORIGIN = @BIG@
}
SECTIONS {
  .text : { KEEP(*(.vectors)) *(.text .text.*) } > code
  .ARM.exidx : { __exidx_start = .; *(.ARM.exidx* .ARM.extab*) __exidx_end = .; } > code
  .rodata : { *(.rodata .rodata.* .data .data.*) } > @CONSTANTS@
  .bss (NOLOAD) : { irc_bss_begin = .; *(.bss .bss.* COMMON) . = ALIGN(8); irc_bss_end = .; } > ram
  .irc_big (NOLOAD) : { *(.irc_big) } > big
  irc_stack_top = ORIGIN(ram) + LENGTH(ram);
}
"""


def missing_tools(target: Target) -> str:
    """Why code for `target` cannot be run here, with what to install; empty when it can be."""
    tools = _tools(target)
    if not tools:
        return f"target {target.name} names no emulator"
    if target.runner == "qemu-system" and target.board not in BOARDS:
        return f"no memory map of the board '{target.board}' is known (of {', '.join(BOARDS)})"
    absent = [tool for tool in tools if not tool or not shutil.which(tool)]
    if not absent:
        return ""
    packages = [PACKAGES[tool] for tool in absent if tool in PACKAGES]
    hint = f" (Debian: {', '.join(dict.fromkeys(packages))})" if packages else ""
    return "not found: " + ", ".join(tool or "a linker" for tool in absent) + hint


def _tools(target: Target) -> list[str]:
    if target.runner == "node":
        return ["node", _wasm_linker()]
    if target.runner == "cc":
        return ["cc"]
    if target.runner in ("qemu-user", "qemu-system") and target.qemu:
        return [target.qemu, target.linker]
    return []


def _wasm_linker() -> str:
    """Debian's packages of LLVM name it by version, too."""
    return next((tool for tool in ("wasm-ld", "wasm-ld-19", "wasm-ld-14") if shutil.which(tool)), "wasm-ld")


def machine_of(target: Target) -> Machine:
    """What runs code for `target`; `missing_tools` has nothing to say."""
    if target.runner == "node":
        return Node(target)
    return Bare(target) if target.runner == "qemu-system" else Hosted(target)


class Machine(ABC):
    """One way to build and start a program. `one_shot`: a program runs one sample, handed over in files."""

    one_shot = False

    def __init__(self, target: Target) -> None:
        self.target = target

    @abstractmethod
    def build(self, folder: Path, header: str, library: Path, network: Network) -> None:
        """Makes the program in `folder`. Raises VerificationError when it cannot be linked."""

    @abstractmethod
    def command(self, folder: Path) -> list[str]:
        """What starts the program."""


@dataclass(frozen=True)
class Network:
    """What a driver program has to know. Sizes in bytes."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    workspace: int
    init_ram: int
    alignment: int
    interface: int

    @property
    def port_bytes(self) -> int:
        return 64 + sum(-(-p.nbytes // 64) * 64 for p in (*self.inputs, *self.outputs))


class _Compiled(Machine):
    """A C program with the static library in it."""

    source = ""
    libraries: Sequence[str] = ()

    @abstractmethod
    def flags(self, folder: Path, network: Network) -> Sequence[str]:
        """Of the compiler, for this machine."""

    def build(self, folder: Path, header: str, library: Path, network: Network) -> None:
        (folder / f"{network.name}.h").write_text(header)
        (folder / "network.h").write_text(_network_header(network))
        (folder / "main.c").write_text(_driver(self.source))
        command = [self.target.linker, *self.target.link_flags, "-O1", "-o", str(folder / "network")]
        command += [*self.flags(folder, network), str(folder / "main.c"), str(library), *self.libraries]
        execute(command, "linking for the target failed")


class Hosted(_Compiled):
    """QEMU's user mode."""

    libraries: Sequence[str] = ("-lm", "-lpthread")

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.source = "riscv32.c" if target.arch == "riscv32" else "hosted.c"
        if target.arch == "riscv32":
            self.libraries = ("-lm", "-lc", "-lgcc")

    def flags(self, folder: Path, network: Network) -> Sequence[str]:
        if self.target.arch == "riscv32":
            script = folder / "network.ld"
            script.write_text(_RISCV32_SCRIPT)
            return ("-static", "-nostartfiles", "--specs=picolibc.specs", f"-T{script}")
        return ("-static",)

    def command(self, folder: Path) -> list[str]:
        cpu = ["-cpu", self.target.qemu_cpu] if self.target.qemu_cpu else []
        return [self.target.qemu, *cpu, str(folder / "network")]


_RISCV32_SCRIPT = """\
ENTRY(irc_start)
SECTIONS {
  . = 0x10000;
  .text : { *(.text .text.*) *(.rodata .rodata.* .srodata .srodata.*) }
  . = ALIGN(4096);
  .data : { __global_pointer$ = . + 0x800; *(.data .data.* .sdata .sdata.*) }
  .bss : { *(.sbss .sbss.* .bss .bss.* COMMON) }
}
"""


class Bare(_Compiled):
    """QEMU's boards."""

    one_shot = True
    source = "cortex_m.c"
    libraries = ("-lm", "-lc", "-lgcc")

    def flags(self, folder: Path, network: Network) -> Sequence[str]:
        board = BOARDS[self.target.board]
        large = folder.joinpath("library.a").stat().st_size > board.code[1] - _STACK
        script = _SCRIPT.replace("@CONSTANTS@", "big" if large else "code")
        for key, (origin, size) in (("CODE", board.code), ("RAM", board.ram), ("BIG", board.big)):
            script = script.replace(f"@{key}@", f"{origin:#x}, LENGTH = {size:#x}")
        (folder / "network.ld").write_text(script)
        place = ".bss.workspace" if network.workspace < board.ram[1] - 2 * _STACK else ".irc_big"
        return (
            "-nostartfiles",
            "--specs=nosys.specs",
            f"-T{folder / 'network.ld'}",
            f'-DIRCNET_WORKSPACE_SECTION="{place}"',
            "-Wl,--gc-sections",
        )

    def command(self, folder: Path) -> list[str]:
        semihosting = "enable=on,target=native"
        quiet = ["-display", "none", "-serial", "none", "-monitor", "none"]
        start = [self.target.qemu, "-M", self.target.board, *quiet]
        return [*start, *_COUNTING, "-semihosting-config", semihosting, "-kernel", str(folder / "network")]


class Node(Machine):
    """WebAssembly in node."""

    def build(self, folder: Path, header: str, library: Path, network: Network) -> None:
        exports = [f"--export={network.name}_{f}" for f in ("init_checked", "run")]
        flags = ["--no-entry", "--allow-undefined", "--export=__heap_base", "-z", "stack-size=65536"]
        command = [_wasm_linker(), *flags, *exports, "--whole-archive", str(library)]
        execute([*command, "-o", str(folder / "network.wasm")], "linking for the target failed")
        (folder / "node.js").write_text(_driver("node.js"))
        description = {
            "name": network.name,
            "workspace": network.workspace,
            "ctx": abi.CTX_WORDS * 4,
            "ram": network.init_ram,
            "inputs": [p.nbytes for p in network.inputs],
            "outputs": [p.nbytes for p in network.outputs],
            "interface": network.interface,
        }
        (folder / "network.json").write_text(json.dumps(description))

    def command(self, folder: Path) -> list[str]:
        return ["node", str(folder / "node.js"), str(folder / "network.wasm"), (folder / "network.json").read_text()]


_COUNTING = ("-icount", "shift=0")
"""Every instruction takes a nanosecond of the board's time: its timer counts instructions."""


def instructions(target: Target, ticks: int) -> int:
    """Of the board of `target`, in so many ticks of its timer; in steps of a tick (31 to 50 instructions)."""
    return ticks * 1000 // BOARDS[target.board].mhz


def sample_file(runs: int, inputs: bytes, *, inside: bool = False) -> bytes:
    """What a one-shot program reads. `inside`: inputs and outputs take their places in the workspace."""
    return struct.pack("<I", runs | (1 << 31 if inside else 0)) + inputs


def _driver(name: str) -> str:
    return files("irc.backends.artifact.drivers").joinpath(name).read_text()


def _network_header(network: Network) -> str:
    name, upper = network.name, network.name.upper()
    lines = [f'#include "{name}.h"', f"typedef {name}_ctx ircnet_ctx;"]
    lines += [f"#define ircnet_{f} {name}_{f}" for f in ("init", "run", "info", "inputs", "outputs")]
    constants = ("INPUTS", "OUTPUTS", "WORKSPACE_BYTES", "WORKSPACE_ALIGN", "INIT_RAM_BYTES")
    lines += [f"#define IRCNET_{c} {upper}_{c}" for c in constants]
    for kind, ports in (("INPUT", network.inputs), ("OUTPUT", network.outputs)):
        for i in range(len(ports)):  # the header has a place in the workspace for all ports, or for none
            lines += [f"#ifndef {upper}_{kind}_{i}_OFFSET", f"#define {upper}_{kind}_{i}_OFFSET 0", "#endif"]
        lines.append(
            f"#define IRCNET_{kind}_PLACES {' '.join(f'{upper}_{kind}_{i}_OFFSET,' for i in range(len(ports)))}"
        )
    return "\n".join([*lines, f"#define IRCNET_PORT_BYTES {network.port_bytes}", ""])


def execute(command: Sequence[str], what: str) -> None:
    """Runs a tool. Raises VerificationError with the telling line of what it prints."""
    try:
        done = subprocess.run(command, capture_output=True, env={**os.environ, "LC_ALL": "C"})
    except OSError as error:
        raise IrcError(what, where=command[0], got=str(error)) from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        telling = [line for line in lines if "error" in line or "undefined" in line]
        telling = telling or lines[-1:] or [f"exit code {done.returncode}"]
        raise VerificationError(what, where=command[0], got=telling[0])
