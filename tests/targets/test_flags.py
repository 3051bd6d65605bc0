"""The target of a build, from its words: what the machine runs, or a readable error."""

from __future__ import annotations

import pytest

from irc.cli import main as cli
from irc.errors import OptionError
from irc.targets import all_targets
from irc.targets.flags import _A64, _ARCH_M, _CORTEX_M, _THUMB, _WITHOUT_FPU, target_for

CASES = {
    "Generic arm -mcpu=cortex-m4 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16 arm-none-eabi-gcc": "cortex-m4",
    "Generic arm -mcpu=cortex-m4 -mthumb -mfloat-abi=softfp arm-none-eabi-gcc": "cortex-m4",
    # Without a float ABI gcc takes "soft": nobody switches the FPU on.
    "Generic arm -mcpu=cortex-m4 -mthumb arm-none-eabi-gcc": "cortex-m4-nofpu",
    "Generic arm -mcpu=cortex-m4+nofp -mfloat-abi=hard": "cortex-m4-nofpu",
    "Generic arm -mcpu=cortex-m33+nodsp -mfloat-abi=hard": "cortex-m3",
    "Generic arm -mcpu=cortex-m7 -mfloat-abi=soft": "cortex-m4-nofpu",
    "Generic arm -mcpu=cortex-m55 -mfloat-abi=hard": "cortex-m55",
    # The vectors need the hard-float ABI.
    "Generic arm -mcpu=cortex-m55 -mfloat-abi=softfp": "cortex-m33",
    "Generic arm -march=armv7e-m+fp -mfloat-abi=hard": "cortex-m4",
    "Generic arm -mcpu=cortex-m0": "cortex-m0plus",
    # Cores have their options until they are switched off; architectures have those that are named.
    "Generic arm -mcpu=cortex-m33 -mfloat-abi=hard": "cortex-m33",
    "Generic arm -march=armv8-m.main+fp -mfloat-abi=hard": "cortex-m3",
    "Generic arm -march=armv8-m.main+dsp+fp -mfloat-abi=hard": "cortex-m33",
    "Generic arm -march=armv8.1-m.main+mve.fp -mfloat-abi=hard": "cortex-m55",
    "Generic arm -march=armv8.1-m.main+dsp+fp -mfloat-abi=hard": "cortex-m33",
    "thumbv8m.main-none-eabihf": "cortex-m3",
    "thumbv8m.main-none-eabihf -mcpu=cortex-m33 -mfloat-abi=hard": "cortex-m33",
    "Linux aarch64 aarch64-linux-gnu-gcc": "aarch64",
    "Linux aarch64 -mcpu=cortex-a72": "cortex-a72",
    "Linux aarch64 -march=armv8.2-a+dotprod": "arm",
    "Linux aarch64 -march=armv8.2-a": "aarch64",
    "Linux aarch64 -march=armv8.5-a": "arm",
    "Android aarch64 clang --target=aarch64-none-linux-android21": "aarch64",
    "Linux arm arm-linux-gnueabihf-gcc -mcpu=cortex-a7": "armv7",
    "Linux armv7l cc -mcpu=cortex-a15 -mfloat-abi=hard": "armv7",
    "Linux arm /usr/bin/arm-linux-gnueabihf-gcc -march=armv8-a": "armv7",
    "/usr/bin/aarch64-linux-gnu-gcc": "aarch64",
    "Darwin arm64 cc": "apple-m1",
    "Linux riscv64 riscv64-linux-gnu-gcc": "riscv64",
    "Linux riscv64 -march=rv64gcv riscv64-linux-gnu-gcc": "riscv64-v",
    "Generic riscv -march=rv32imc_zicsr -mabi=ilp32 riscv64-unknown-elf-gcc": "riscv32",
    "Emscripten x86 emcc": "wasm32",
    "Windows AMD64 x86_64-w64-mingw32-gcc -march=x86-64-v3": "windows-x86-64",
    "Windows AMD64 cl /arch:AVX2": "windows-x86-64",
    "Linux x86_64 gcc": "x86-64",
    "Linux x86_64 -march=x86-64-v3": "x86-64-v3",
    "thumbv7em-none-eabihf": "cortex-m4",
    "thumbv7em-none-eabi": "cortex-m4-nofpu",
    "thumbv6m-none-eabi": "cortex-m0plus",
    "riscv32imc-unknown-none-elf": "riscv32",
}


@pytest.mark.parametrize(("build", "target"), CASES.items())
def test_target_of_a_build(build: str, target: str) -> None:
    assert target_for(build) == target
    assert target in all_targets()


def test_tables_name_targets() -> None:
    named = {name for table in (_A64, _ARCH_M, _CORTEX_M, _THUMB, _WITHOUT_FPU) for name in table.values()}
    assert named <= set(all_targets())


@pytest.mark.parametrize(
    "build",
    [
        "Generic xtensa xtensa-esp32-elf-gcc",
        "Generic riscv -march=rv32i",  # no multiplication
        "Linux riscv64 -march=rv64imac",
        "Generic riscv -march=rv32imafc -mabi=ilp32f",  # floats in registers
        "riscv32imafc-unknown-none-elf",
        "Linux riscv64 -march=rv64gc -mabi=lp64",
        "iOS arm64 clang",
        "Linux x86_64 gcc -m32",
        "Darwin x86_64 cc",
        "Windows ARM64 cl",
        "Linux i686 gcc",
        "",
    ],
)
def test_unknown_machines_are_refused(build: str) -> None:
    with pytest.raises(OptionError, match=r"irc has no target for this build.*'c' is source"):
        target_for(build)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        ("Generic arm arm-none-eabi-gcc", "-mcpu=cortex-m4"),
        ("Linux arm arm-linux-gnueabihf-gcc", "-mcpu=cortex-a7"),  # may be without NEON
        ("Linux arm arm-linux-gnueabihf-gcc -mcpu=cortex-a9", "-mcpu=cortex-a7"),  # without division
        ("Android armv7-a clang --target=armv7-none-linux-androideabi21 -mcpu=cortex-a7", "hard floats"),
        ("x86_64-pc-windows-gnu", "-march=x86-64-v3"),
    ],
)
def test_builds_that_say_too_little_are_asked(build: str, expected: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The answer is never better than the machine."""
    assert cli.main(["targets", "--for", build]) == 2
    assert expected in capfd.readouterr().err


def test_the_command_prints_the_name(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["targets", "--for=-mcpu=cortex-m3"]) == 0
    assert capfd.readouterr().out == "cortex-m3\n"
