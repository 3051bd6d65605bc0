"""Which target a build compiles for, from what it says anyway: system, processor, compiler and its flags.

`target_for("Generic arm arm-none-eabi-gcc -mcpu=cortex-m4 -mfloat-abi=hard")` is "cortex-m4". The answer is never
better than the machine: where no entry of the table is the very processor, it is one whose code that processor runs.
The flags are those of gcc and clang ("Arm Options", "RISC-V Options" of the GCC manual).
"""

from __future__ import annotations

import re

from irc.errors import OptionError

_CORTEX_M = {
    "cortex-m0": "cortex-m0plus",
    "cortex-m0plus": "cortex-m0plus",
    "cortex-m1": "cortex-m0plus",
    "cortex-m23": "cortex-m0plus",
    "cortex-m3": "cortex-m3",
    "sc300": "cortex-m3",
    "cortex-m4": "cortex-m4",
    "cortex-m7": "cortex-m7",
    "cortex-m33": "cortex-m33",
    "cortex-m35p": "cortex-m33",
    "star-mc1": "cortex-m33",
    "cortex-m52": "cortex-m55",
    "cortex-m55": "cortex-m55",
    "cortex-m85": "cortex-m55",
}
"""-mcpu -> target, for cores with all of their options."""
_ARCH_M = {
    "armv6-m": "cortex-m0plus",
    "armv6s-m": "cortex-m0plus",
    "armv8-m.base": "cortex-m0plus",
    "armv7-m": "cortex-m3",
    "armv7e-m": "cortex-m4",
    "armv8-m.main": "cortex-m33",
    "armv8.1-m.main": "cortex-m55",
}
"""-march -> target, for cores with all that the architecture may have."""
_THUMB = {
    "thumbv6m": "cortex-m0plus",
    "thumbv8m.base": "cortex-m0plus",
    "thumbv7m": "cortex-m3",
    "thumbv7em": "cortex-m4",
    "thumbv8m.main": "cortex-m33",
}
"""First part of a triple -> target; Rust's say by their end ("eabihf") whether there is an FPU."""
_WITHOUT_FPU = {
    "cortex-m4": "cortex-m4-nofpu",
    "cortex-m7": "cortex-m4-nofpu",
    "cortex-m33": "cortex-m33-nofpu",
    "cortex-m55": "cortex-m33-nofpu",
}
_A64 = {
    "cortex-a53": "cortex-a53",
    "cortex-a35": "cortex-a53",
    "cortex-a72": "cortex-a72",
    "cortex-a55": "arm",
    "cortex-a75": "arm",
    "cortex-a76": "cortex-a76",
    "cortex-a77": "cortex-a76",
    "cortex-a78": "cortex-a76",
    "cortex-a710": "neoverse-v1",
    "cortex-x2": "neoverse-v1",
    "neoverse-n1": "cortex-a76",
    "neoverse-n2": "neoverse-v1",
    "neoverse-v1": "neoverse-v1",
    "neoverse-v2": "neoverse-v1",
}
_WITHOUT_DIVISION = ("cortex-a5", "cortex-a8", "cortex-a9")
"""All other 32-bit Cortex-A have it, and VFPv4."""
_WITH_DIVISION = ("armv7ve", "armv8")
"""How architectures (-march) begin that have it."""
_X86_LEVELS = ("x86-64-v3", "x86-64-v4")

_ARCHITECTURES = (
    ("wasm32", r"wasm32\S*|emscripten|emcc|em\+\+|wasi\S*"),
    ("riscv64", r"riscv64-(?!unknown-elf|none-elf)\S*|riscv64|riscv64gc\S*"),
    ("riscv32", r"riscv32ima?c-\S*"),
    ("arm", r"arm|arm-\S*|armv7\S*|armeabi-v7a|armhf|thumb\S*|cortex-m\S*"),
    ("aarch64", r"aarch64\S*|arm64\S*|armv[89]\S*-a\S*"),
    ("x86-64", r"x86_64\S*|amd64|x64"),
)
"""Architecture -> how systems, processors, triples and compilers are called. The first that matches decides."""


def target_for(build: str) -> str:
    """The name of a target for the machine that `build` describes, in words separated by blanks.

    Raises OptionError where no entry of the table is known to be right.
    """
    words = [_word(w) for w in build.lower().split()]
    given = {key: value for key, _, value in (w.partition("=") for w in words if w.startswith("-"))}
    cpu, *options = given.get("-mcpu", "").split("+")
    march = given.get("-march", "")
    if cpu in _CORTEX_M:
        return _cortex_m(_CORTEX_M[cpu], _off(options), given)
    name, *extensions = march.split("+")
    if name in _ARCH_M:
        return _cortex_m(_ARCH_M[name], _off([*extensions, *options]) | _not_on(name, extensions), given)
    triple = next((w for w in words if w.partition("-")[0] in _THUMB), "")
    if triple:
        arch, hard = triple.partition("-")[0], triple.endswith("hf")
        missing = _not_on(arch.replace("thumbv8m", "armv8-m"), [])
        return _cortex_m(_THUMB[arch], missing, {"-mfloat-abi": "hard" if hard else "soft"} | given)
    arch = _architecture(words)
    if march.startswith("rv"):
        return _riscv(march, given, build)
    if arch == "aarch64":
        return _aarch64(cpu, march, words, build)
    if arch == "x86-64":
        return _x86(march, words, build)
    if arch in ("riscv64", "riscv32", "wasm32"):
        return arch
    if arch == "arm" and _is_armv7(cpu, march, words, given):
        return "armv7"
    raise _unknown(arch, build)


def _word(word: str) -> str:
    """A compiler without its folder; flags, /arch:AVX2 too, as they are."""
    return word if word.startswith("-") or ":" in word else word.rpartition("/")[2]


def _off(options: list[str]) -> set[str]:
    """What -mcpu=core+nodsp switches off."""
    return {option[2:] for option in options if option.startswith("no")}


def _not_on(arch: str, extensions: list[str]) -> set[str]:
    """What -march=armv8-m.main leaves out by not naming it; cores have it until it is switched off."""
    if not arch.startswith(("armv8-m.main", "armv8.1-m.main")):
        return set()
    named = {*extensions, *(["dsp"] if "mve.fp" in extensions else [])}
    return {"dsp", "mve.fp"} - named


def _cortex_m(name: str, missing: set[str], given: dict[str, str]) -> str:
    """`missing`: what of the core's options is not there."""
    if name in ("cortex-m0plus", "cortex-m3"):
        return name
    if "dsp" in missing:
        return "cortex-m3"
    float_abi = given.get("-mfloat-abi", "soft")
    if float_abi == "soft" or "fp" in missing:
        return _WITHOUT_FPU[name]
    if name == "cortex-m55" and (float_abi != "hard" or missing & {"mve", "mve.fp"}):
        return "cortex-m33"
    return name


def _is_armv7(cpu: str, march: str, words: list[str], given: dict[str, str]) -> bool:
    """Whether NEON, VFPv4 and division are known to be there, and floats are passed in registers of theirs."""
    known = cpu.startswith("cortex-a") if cpu else march.startswith(_WITH_DIVISION)
    hard = any("eabihf" in word or word == "armhf" for word in words)
    return known and cpu not in _WITHOUT_DIVISION and given.get("-mfloat-abi", "hard" if hard else "") == "hard"


def _riscv(march: str, given: dict[str, str], build: str) -> str:
    """Floats are passed as the targets pass them: objects of other ABIs cannot be linked."""
    base, _, _ = march.partition("_")
    letters = base[4:].replace("g", "imafd")
    abi = given.get("-mabi", "")
    if base.startswith("rv32") and {"m", "c"} <= set(letters) and (abi == "ilp32" or not (abi or "f" in letters)):
        return "riscv32"
    if base.startswith("rv64") and set("mafdc") <= set(letters) and abi in ("", "lp64d"):
        return "riscv64-v" if "v" in letters else "riscv64"
    raise _unknown(base, build)


def _aarch64(cpu: str, march: str, words: list[str], build: str) -> str:
    if _on_windows(words):
        raise _unknown("aarch64", build)
    if _on_apple(words):
        if any("ios" in word for word in words):
            raise _unknown("aarch64", build)  # phones older than the M1
        return "apple-m1"
    if cpu in _A64:
        return _A64[cpu]
    extensions = march.split("+")[1:]
    version = re.match(r"armv(\d+)\.(\d+)-a", march)
    later = version is not None and (int(version[1]), int(version[2])) >= (8, 4)  # has dot products in any case
    if "nodotprod" not in extensions and ("dotprod" in extensions or later or march.startswith("armv9")):
        return "arm"
    return "aarch64"


def _x86(march: str, words: list[str], build: str) -> str:
    if _on_apple(words) or "-m32" in words or "-mx32" in words:
        raise _unknown("x86-64", build)
    if _on_windows(words):
        if march not in _X86_LEVELS and not {"-mavx2", "/arch:avx2"} & set(words):
            raise _unknown("windows", build)
        return "windows-x86-64"
    return march if march in _X86_LEVELS else "x86-64"


def _on_apple(words: list[str]) -> bool:
    return any(word in ("darwin", "ios") or "apple" in word for word in words)


def _on_windows(words: list[str]) -> bool:
    return any("windows" in word or "mingw" in word for word in words)


def _architecture(words: list[str]) -> str:
    named = [w for word in words for w in (word.removeprefix("--target=").removeprefix("-march="),)]
    for arch, pattern in _ARCHITECTURES:
        if any(re.fullmatch(pattern, word) for word in named):
            return arch
    return ""


def _unknown(arch: str, build: str) -> OptionError:
    if arch == "arm":
        what = "the build is for 32-bit Arm, and its flags are not of a core that irc knows"
        expected = "a flag such as -mcpu=cortex-m4, or -mcpu=cortex-a7 with hard floats"
    elif arch == "windows":
        what = "the target windows-x86-64 has AVX2, and the build does not say so"
        expected = "-march=x86-64-v3, or the target's name"
    else:
        what, expected = "irc has no target for this build", "flags of a processor that it knows"
    return OptionError(
        what,
        expected=expected,
        got=f"'{build.strip()}'",
        hint="naming one of irc targets; 'c' is source for any compiler",
    )
