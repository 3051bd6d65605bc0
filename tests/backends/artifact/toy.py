"""Toy programs whose kernels are hand-written LLVM IR: what the artifact tests link, load and run."""

from __future__ import annotations

import platform
from functools import cache

import numpy as np

from irc.backends.artifact.glue import glue_ll
from irc.backends.program import Arg, Blob, Port, Program, Step
from irc.backends.tvm.assemble import assemble
from irc.targets.target import Target

X86 = Target("x86-64", "any 64-bit x86", "x86-64", "x86_64-unknown-linux-gnu", "x86-64")
ARM = Target(
    "aarch64", "any 64-bit Arm", "aarch64", "aarch64-unknown-linux-gnu", "cortex-a53",
    runner="qemu-user", qemu="qemu-aarch64", qemu_cpu="max", linker="aarch64-linux-gnu-gcc",
)  # fmt: skip
TARGETS = {"x86-64": X86, "aarch64": ARM}


def runs_natively() -> bool:
    return platform.system() == "Linux" and platform.machine() == "x86_64"


# y[i] = OP(x[i]) for the share `part` of `parts` of n elements.
_ELEMENTWISE = """
target triple = "{triple}"
{extra}
define void @{name}({params}, i32 %part, i32 %parts) nounwind {{
entry:
  %p64 = sext i32 %part to i64
  %n64 = sext i32 %parts to i64
  %t0 = mul i64 %p64, {n}
  %begin = udiv i64 %t0, %n64
  %p1 = add i64 %p64, 1
  %t1 = mul i64 %p1, {n}
  %end = udiv i64 %t1, %n64
  %any = icmp ult i64 %begin, %end
  br i1 %any, label %loop, label %done
loop:
  %i = phi i64 [ %begin, %entry ], [ %next, %loop ]
{body}
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %end
  br i1 %more, label %loop, label %done
done:
  ret void
}}
"""

_LOAD_X = "  %xp = getelementptr float, ptr %x, i64 %i\n  %xv = load float, ptr %xp\n"
_STORE = "  %yp = getelementptr float, ptr %y, i64 %i\n  store float %yv, ptr %yp"

_BODIES = {
    # x * w + constant from the constant pool
    "scale": (
        "ptr %x, ptr %w, ptr %y",
        _LOAD_X + "  %wp = getelementptr float, ptr %w, i64 %i\n  %wv = load float, ptr %wp\n"
        "  %m = fmul float %xv, %wv\n  %yv = fadd float %m, 0x3FF3333340000000\n" + _STORE,
        "",
    ),
    "exp": ("ptr %x, ptr %y", _LOAD_X + "  %yv = call float @expf(float %xv)\n" + _STORE, "declare float @expf(float)"),
    # through a table of functions' addresses and a global offset table entry
    "table": (
        "ptr %x, ptr %y",
        _LOAD_X + "  %j = and i64 %i, 1\n  %fp = getelementptr ptr, ptr @table, i64 %j\n  %f = load ptr, ptr %fp\n"
        "  %v = call float %f(float %xv)\n  %g = load volatile ptr, ptr @holder\n"
        "  %yv = call float %g(float %v)\n" + _STORE,
        "@table = internal constant [2 x ptr] [ptr @sinf, ptr @twice]\n@holder = internal constant ptr @cosf\n"
        "declare float @sinf(float)\ndeclare float @cosf(float)\n"
        "define weak float @twice(float %a) nounwind section \".text.helpers\" {\n"
        "  %b = fadd float %a, %a\n  ret float %b\n}\n"
        "define weak float @unused_helper(float %a) nounwind section \".text.unused\" {\n"
        "  %b = call float @no_such_function(float %a)\n  ret float %b\n}\ndeclare float @no_such_function(float)",
    ),
    # constants of every width: each has a relocation kind of its own on Arm
    "loads": (
        "ptr %x, ptr %y",
        _LOAD_X + "  %c1 = load volatile i8, ptr @c1\n  %c2 = load volatile i16, ptr @c2\n"
        "  %c4 = load volatile i32, ptr @c4\n  %c8 = load volatile i64, ptr @c8\n"
        "  %c16 = load volatile <4 x float>, ptr @c16\n  %e = extractelement <4 x float> %c16, i32 3\n"
        "  %w1 = zext i8 %c1 to i64\n  %w2 = zext i16 %c2 to i64\n  %w4 = zext i32 %c4 to i64\n"
        "  %s1 = add i64 %w1, %w2\n  %s2 = add i64 %s1, %w4\n  %s3 = add i64 %s2, %c8\n"
        "  %s = uitofp i64 %s3 to float\n  %a = fadd float %s, %e\n  %yv = fadd float %a, %xv\n" + _STORE,
        "@pad = internal constant i8 99\n@c1 = internal constant i8 1, align 1\n"
        "@c2 = internal constant i16 20, align 2\n@c4 = internal constant i32 300, align 4\n"
        "@c8 = internal constant i64 4000, align 8\n"
        "@c16 = internal constant <4 x float> <float 0.0, float 0.0, float 0.0, float 50000.0>, align 16",
    ),
    "copy": (
        "ptr %x, ptr %y",
        _LOAD_X + "  %yv = fadd float %xv, -0.0\n" + _STORE,
        "",
    ),
}  # fmt: skip


@cache
def kernel(op: str, n: int, arch: str, name: str = "") -> bytes:
    """An object that defines `name` (default: k_OP)."""
    params, body, extra = _BODIES[op]
    target = TARGETS[arch]
    text = _ELEMENTWISE.format(
        triple=target.triple, extra=extra, name=name or f"k_{op}", params=params, n=n, body=body
    )  # fmt: skip
    return assemble(text, target)


N = 37


def weights() -> np.ndarray:
    return np.linspace(-1.0, 2.0, N, dtype=np.float32)


@cache
def toy(arch: str = "x86-64", name: str = "toy") -> Program:
    """(a, b) -> y = exp(a * w + 1.2), z = table(b): two inputs, two outputs, serial and parallel steps."""
    ops = ("scale", "exp", "table")
    workspace = Arg("workspace", 64)
    return Program(
        name,
        TARGETS[arch],
        (Port("a", "float32", (1, N)), Port("b:0", "float32", (N,))),
        (Port("y", "float32", (N,)), Port('odd "name" */ %', "float32", (1, N, 1), 0.5, 3)),
        (
            Step("k_scale", (Arg("input", 0, 0), Arg("weights", 128), workspace), parallel=True),
            Step("k_exp", (workspace, Arg("output", 0, 0))),
            Step("k_table", (Arg("input", 0, 1), Arg("output", 0, 1)), parallel=True),
        ),
        {f"k_{op}": kernel(op, N, arch) for op in ops},
        (Blob(0, np.arange(8, dtype=np.int8), "other"), Blob(128, weights(), "w")),
        384,
        512,
    )


def toy_expected(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y = np.exp(a.reshape(-1).astype(np.float64) * weights() + 1.2)
    b = b.astype(np.float64)
    z = np.cos(np.where(np.arange(N) % 2 == 0, np.sin(b), 2 * b))
    return y.astype(np.float32), z.astype(np.float32).reshape(1, N, 1)


def toy_inputs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((1, N), np.float32), rng.standard_normal(N, np.float32)


def chain(*ops: str, arch: str = "x86-64", n: int = N, name: str = "net", parallel: bool = False) -> Program:
    """x -> the kernels one after the other -> y, through the workspace."""
    steps, source = [], Arg("input", 0, 0)
    for i, op in enumerate(ops):
        target = Arg("output", 0, 0) if i == len(ops) - 1 else Arg("workspace", 4 * n * i)
        steps.append(Step(f"k_{op}", (source, target), parallel))
        source = target
    kernels = {f"k_{op}": kernel(op, n, arch) for op in ops}
    port = (Port("x", "float32", (n,)),)
    workspace = 4 * n * max(0, len(ops) - 1)
    return Program(name, TARGETS[arch], port, (Port("y", "float32", (n,)),), tuple(steps), kernels, (), 0, workspace)


def assembled(program: Program) -> bytes:
    """The glue of any program."""
    return assemble(glue_ll(program), program.target)


@cache
def glue(program_name: str = "toy", arch: str = "x86-64") -> bytes:
    program = toy(arch, program_name)
    return assemble(glue_ll(program), program.target)
