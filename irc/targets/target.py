"""What irc knows of a machine that it compiles for. Descriptions are data (`catalogue.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DotProduct = Literal["vpdpbusd", "sdot", "pmaddwd", "widening"]
"""How 8-bit products are summed: AVX-512/AVX VNNI, Arm dotprod, x86 16-bit pairs, or plain widening multiplies."""


@dataclass(frozen=True)
class Target:
    """One target. Sizes in bytes.

    `cpu` and `features` are LLVM's names (-mcpu, -mattr). `vector_bytes` is the width of a SIMD register,
    `vector_registers` their number. `activations` is the 8-bit type that the dot product wants for data
    (weights are always int8). `qemu_cpu` and `linker` say how results are run on another machine.

    `plain` names the target that differs from this one in `dot` only: kernels without 8-bit products are the same for
    both. `upgrades` names better targets, weakest first, whose kernels a library for this one holds as well, to pick
    from when it starts.
    """

    name: str
    description: str
    arch: Literal["x86-64", "aarch64"]
    triple: str
    cpu: str
    features: tuple[str, ...] = ()
    vector_bytes: int = 16
    vector_registers: int = 16
    fma: bool = True
    dot: DotProduct = "widening"
    activations: Literal["uint8", "int8"] = "int8"
    l1_bytes: int = 32 * 1024
    l2_bytes: int = 512 * 1024
    alignment: int = 64
    object_format: Literal["elf"] = "elf"
    pointer_bits: int = 64
    qemu: str = ""
    qemu_cpu: str = ""
    linker: str = ""
    plain: str = ""
    upgrades: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What generated code depends on: part of every cache key."""
        isa = "/".join((self.triple, self.cpu, ",".join(self.features)))
        return f"{isa}/{self.vector_bytes}x{self.vector_registers}/{self.dot}"
