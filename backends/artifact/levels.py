"""Kernels for several levels of a machine in one library, as LLVM IR text: which level runs is settled by NAME_init.

There is one table of kernel addresses per level, and the context holds the address of one of them; every call of a
kernel goes through it. The processor is asked with cpuid, and with xgetbv whether the operating system saves the
registers of AVX and AVX-512. Nothing global is written, and no environment variable is read.

Intel SDM volume 2, CPUID and XGETBV; names of the flags as in /proc/cpuinfo.
"""

from __future__ import annotations

from irc.backends.artifact import interface as abi
from irc.backends.artifact.features import required_flags
from irc.backends.program import Program, Step
from irc.errors import InternalError

# Registers of cpuid: name of the value in @cpu_levels -> leaf, subleaf, index of eax, ebx, ecx, edx.
_REGISTERS = {
    "max": (0, 0, 0),
    "c1": (1, 0, 2),
    "a7": (7, 0, 0),
    "b7": (7, 0, 1),
    "c7": (7, 0, 2),
    "a71": (7, 1, 0),
    "extended": (0x80000000, 0, 0),
    "c81": (0x80000001, 0, 2),
}
_FLAGS = {
    "ssse3": ("c1", 9),
    "fma": ("c1", 12),
    "cx16": ("c1", 13),
    "sse4_1": ("c1", 19),
    "sse4_2": ("c1", 20),
    "movbe": ("c1", 22),
    "popcnt": ("c1", 23),
    "avx": ("c1", 28),
    "f16c": ("c1", 29),
    "bmi1": ("b7", 3),
    "avx2": ("b7", 5),
    "bmi2": ("b7", 8),
    "avx512f": ("b7", 16),
    "avx512dq": ("b7", 17),
    "avx512cd": ("b7", 28),
    "avx512bw": ("b7", 30),
    "avx512vl": ("b7", 31),
    "avx512_vnni": ("c7", 11),
    "avx_vnni": ("a71", 4),
    "abm": ("c81", 5),
}
_VALID = {"b7": ("max", 7), "c7": ("max", 7), "a7": ("max", 7), "a71": ("a7", 1), "c81": ("extended", 0x80000001)}
"""A register means something only where another one is at least this."""
_OSXSAVE = 27  # of c1
_STATE = {"avx": 0x06, "avx512": 0xE6}  # xcr0: xmm and ymm; opmask and both halves of zmm as well


def requirements(program: Program) -> list[dict[str, int]]:
    """For each level the bits that must be set, by register (`_REGISTERS`, and "xcr0")."""
    found = []
    for level in program.levels:
        bits: dict[str, int] = {}
        for flag in required_flags(level):
            if flag not in _FLAGS:
                raise InternalError(f"no known bit of cpuid says {flag}", where=f"target {level.name}")
            register, bit = _FLAGS[flag]
            bits[register] = bits.get(register, 0) | 1 << bit
            for start, state in _STATE.items():
                if flag.startswith(start) or (start == "avx" and flag in ("fma", "f16c")):
                    bits["xcr0"] = bits.get("xcr0", 0) | state
        found.append(bits)
    return found


def symbols(program: Program) -> tuple[str, ...]:
    """Public functions of programs with levels, without the network's name."""
    return ("level", "set_level") if program.levels else ()


def levels_ll(program: Program, check_ctx: list[str]) -> list[str]:
    """The tables of kernels, @cpu_levels, NAME_level and NAME_set_level.

    `check_ctx` ends a function with an error unless %ctx was initialised, and goes on in block `ready`.
    """
    if program.target.arch != "x86-64":
        raise InternalError("levels are told apart on x86-64 only", where=f"target {program.target.name}")
    slots = _slots(program)
    rows = [", ".join(f'ptr @"{variants[i]}"' for variants in slots) for i in range(len(program.levels))]
    row = f"[{len(slots)} x ptr]"
    tables = ",\n  ".join(f"{row} [{text}]" for text in rows)
    return [
        f"@kernels = internal constant [{len(rows)} x {row}] [\n  {tables}\n]",
        "",
        *_cpu_levels(program),
        *_functions(program, check_ctx, len(slots) * 8),
    ]


def _slots(program: Program) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(step.variants for step in program.steps if step.variants))


def kernel_pointer(program: Program, step: Step, name: str) -> list[str]:
    """Code that sets `name` to the kernel of `step` for the level of %ctx."""
    offset = 8 * _slots(program).index(step.variants)
    return [
        f"  {name}_c = getelementptr inbounds i8, ptr %ctx, i64 {8 * abi.CTX_KERNELS}",
        f"  {name}_t = load ptr, ptr {name}_c",
        f"  {name}_s = getelementptr inbounds i8, ptr {name}_t, i64 {offset}",
        f"  {name} = load ptr, ptr {name}_s",
    ]


def start(program: Program) -> list[str]:
    """The part of NAME_init that picks the best level."""
    return ["  %level = call i32 @best_level()", "  call void @use_level(ptr %ctx, i32 %level)"]


def _cpu_levels(program: Program) -> list[str]:
    """@cpu_levels: bit i of its result says whether this processor runs level i. @best_level: the highest such i."""
    out = ["define internal i32 @cpu_levels() #1 {"]
    asked: dict[tuple[int, int], str] = {}
    for name, (leaf, subleaf, index) in _REGISTERS.items():
        if (leaf, subleaf) not in asked:
            asked[leaf, subleaf] = f"%r{len(asked)}"
            out.append(f"  {asked[leaf, subleaf]} = {_cpuid(leaf, subleaf)}")
        raw = f"%{name}" if name not in _VALID else f"%{name}_raw"
        out.append(f"  {raw} = extractvalue {{ i32, i32, i32, i32 }} {asked[leaf, subleaf]}, {index}")
    for name, (other, least) in _VALID.items():
        pass_through = f"%{name}"
        signed = least - (1 << 32) if least >> 31 else least
        out.append(f"  {pass_through}_ok = icmp uge i32 %{other}, {signed}")
        out.append(f"  {pass_through} = select i1 {pass_through}_ok, i32 {pass_through}_raw, i32 0")
    out += [
        f"  %os = and i32 %c1, {1 << _OSXSAVE}",
        "  %saves = icmp ne i32 %os, 0",
        "  br i1 %saves, label %ask, label %decide",
        "ask:",
        '  %x = call { i32, i32 } asm sideeffect ".byte 0x0f, 0x01, 0xd0", "={ax},={dx},{cx}"(i32 0)',
        "  %state = extractvalue { i32, i32 } %x, 0",
        "  br label %decide",
        "decide:",
        "  %xcr0 = phi i32 [ 0, %0 ], [ %state, %ask ]",
    ]
    total = "0"
    for i, bits in enumerate(requirements(program)):
        good = "true"
        for name, mask in bits.items():
            signed = mask - (1 << 32) if mask >> 31 else mask
            out.append(f"  %m{i}_{name} = and i32 %{name}, {signed}")
            out.append(f"  %e{i}_{name} = icmp eq i32 %m{i}_{name}, {signed}")
            out.append(f"  %g{i}_{name} = and i1 {good}, %e{i}_{name}")
            good = f"%g{i}_{name}"
        out.append(f"  %l{i} = select i1 {good}, i32 {1 << i}, i32 0")
        out.append(f"  %t{i} = or i32 {total}, %l{i}")
        total = f"%t{i}"
    return [
        *out,
        f"  ret i32 {total}",
        "}",
        "",
        "declare i32 @llvm.ctlz.i32(i32, i1)",
        "define internal i32 @best_level() #0 {",
        "  %levels = call i32 @cpu_levels()",
        "  %zeros = call i32 @llvm.ctlz.i32(i32 %levels, i1 false)",
        "  %level = sub i32 31, %zeros",
        "  ret i32 %level",
        "}",
        "",
    ]


def _cpuid(leaf: int, subleaf: int) -> str:
    signed = leaf - (1 << 32) if leaf >> 31 else leaf
    return (
        'call { i32, i32, i32, i32 } asm sideeffect "cpuid", "={ax},={bx},={cx},={dx},{ax},{cx}"'
        f"(i32 {signed}, i32 {subleaf})"
    )


def _functions(program: Program, check_ctx: list[str], stride: int) -> list[str]:
    count = len(program.levels)
    place = f"  %at = getelementptr inbounds i8, ptr %ctx, i64 {8 * abi.CTX_KERNELS}"
    return [
        "define internal void @use_level(ptr %ctx, i32 %level) #0 {",
        "  %wide = zext i32 %level to i64",
        f"  %offset = mul i64 %wide, {stride}",
        "  %table = getelementptr inbounds i8, ptr @kernels, i64 %offset",
        place,
        "  store ptr %table, ptr %at",
        "  ret void",
        "}",
        "",
        f"define i32 @{program.name}_level(ptr %ctx) #0 {{",
        "  %none = icmp eq ptr %ctx, null",
        "  br i1 %none, label %best, label %mine",
        "best:",
        "  %highest = call i32 @best_level()",
        "  ret i32 %highest",
        "mine:",
        place,
        "  %table = load ptr, ptr %at",
        "  %end = ptrtoint ptr %table to i64",
        "  %begin = ptrtoint ptr @kernels to i64",
        "  %offset = sub i64 %end, %begin",
        f"  %wide = udiv i64 %offset, {max(stride, 1)}",
        "  %level = trunc i64 %wide to i32",
        "  ret i32 %level",
        "}",
        "",
        f"define i32 @{program.name}_set_level(ptr %ctx, i32 %level) #0 {{",
        *check_ctx,
        f"  %known = icmp ult i32 %level, {count}",
        "  br i1 %known, label %look, label %refuse",
        "refuse:",
        f"  ret i32 {abi.ERROR_ARGUMENT}",
        "look:",
        "  %levels = call i32 @cpu_levels()",
        "  %moved = lshr i32 %levels, %level",
        "  %bit = and i32 %moved, 1",
        "  %runs = icmp ne i32 %bit, 0",
        "  br i1 %runs, label %use, label %refuse",
        "use:",
        "  call void @use_level(ptr %ctx, i32 %level)",
        f"  ret i32 {abi.OK}",
        "}",
        "",
    ]
