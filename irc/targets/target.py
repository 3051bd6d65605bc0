"""What irc knows of a machine that it compiles for. Descriptions are data (`table.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Arch = Literal["x86-64", "aarch64", "arm32", "riscv64", "riscv32", "wasm32", "c"]
"""Instruction set. arm32: ARMv7-A and every Cortex-M. c: none, the result is C source."""

DotProduct = Literal[
    "vpdpbusd", "sdot", "smmla", "pmaddwd", "smlad", "mve", "rvv", "wasm", "vpadal", "widening", "scalar"
]
"""How 8-bit products are summed: x86 VNNI, Arm dotprod, Arm 2x8x2 matrices (i8mm), x86 16-bit pairs, pairs of 16 bits
in one Arm register (DSP extension), Arm MVE (Helium), RISC-V vectors, wasm's i32x4.dot_i16x8_s, 16-bit products
added in pairs (32-bit Arm), plain widening vector multiplies, or one product at a time."""

Fpu = Literal["none", "single", "double"]
"""Widest float type that has instructions."""

FloatAbi = Literal["", "soft", "hard"]
"""How floats are passed on 32-bit Arm ("soft": in integer registers, whatever computes them). Empty elsewhere."""

ObjectFormat = Literal["elf", "macho", "coff", "wasm", "source"]

Linking = Literal["sections", "module", "source"]
"""How kernels become one object: their ELF sections are merged, or they are compiled as one LLVM module, or neither
(the result is C source)."""

Runner = Literal["", "process", "qemu-user", "qemu-system", "node", "cc"]
"""How results are run on this kind of host. Empty: not at all."""


@dataclass(frozen=True)
class Target:
    """One target. Sizes in bytes.

    `cpu` and `features` are LLVM's names (-mcpu, -mattr), `abi` its -target-abi. `vector_bytes` is the width of a SIMD
    register (4: there are none, one element at a time), `vector_registers` their number. `activations` is the 8-bit
    type that the dot product wants for data (weights are always int8). `small` asks for the plan of microcontrollers;
    without `threads` nothing is shared out among them. `ram_bytes` and `flash_bytes` are 0 where the machine does not
    fix them. `runner`, `qemu`, `qemu_cpu`, `board`, `linker` and `link_flags` say how results are run on another
    machine.

    `plain` names the target that differs from this one in `dot` only: kernels without 8-bit products are the same for
    both. `upgrades` names better targets, weakest first, whose kernels a library for this one holds as well, to pick
    from when it starts. `base` names the target of the table that a user's own target starts from.
    """

    name: str
    description: str
    arch: Arch
    triple: str
    cpu: str
    features: tuple[str, ...] = ()
    abi: str = ""
    float_abi: FloatAbi = ""
    vector_bytes: int = 16
    vector_registers: int = 16
    fpu: Fpu = "double"
    fma: bool = True
    dot: DotProduct = "widening"
    activations: Literal["uint8", "int8"] = "int8"
    l1_bytes: int = 32 * 1024
    l2_bytes: int = 512 * 1024
    ram_bytes: int = 0
    flash_bytes: int = 0
    alignment: int = 64
    small: bool = False
    threads: bool = True
    object_format: ObjectFormat = "elf"
    linking: Linking = "sections"
    pointer_bits: int = 64
    runner: Runner = ""
    qemu: str = ""
    qemu_cpu: str = ""
    board: str = ""
    linker: str = ""
    link_flags: tuple[str, ...] = ()
    plain: str = ""
    upgrades: tuple[str, ...] = ()
    base: str = ""

    @property
    def unrolls_no_loops(self) -> bool:
        """Whether LLVM would multiply small loops, which the target's code memory is too small for."""
        return self.small and self.arch == "arm32" and self.dot != "mve"

    @property
    def key(self) -> str:
        """What generated code depends on: part of every cache key."""
        isa = "/".join((self.triple, self.cpu, ",".join(self.features)))
        text = f"{isa}/{self.vector_bytes}x{self.vector_registers}/{self.dot}"
        if self.linking == "sections" and not self.base:
            return text
        calls = f"{self.abi}/{self.float_abi}/fpu {self.fpu}/fma {self.fma:d}/{self.activations}"
        form = f"small {self.small:d}/threads {self.threads:d}/{self.pointer_bits} bit/align {self.alignment}"
        return f"{text}/{calls}/{form}/{self.object_format}/{self.linking}"
