"""The entry functions of a network as LLVM IR text: NAME_init, NAME_set_parallel, NAME_run and the descriptions.

What they do is said in the header (`header.py`). A network is a straight list of kernel calls:

- on one thread NAME_run calls the kernels one after the other;
- with the caller's parallel-for a parallel step is a thunk `step(frame, part, parts)`, where the frame (on NAME_run's
  stack) holds the base pointers;
- with the pool (`pool.py`) all steps are one function that every thread goes through.

The pool's functions lie in a section of their own, which the linker leaves out where nothing refers to them: a static
library without a pool does not contain them. Nothing is allocated, nothing global is written.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from irc.backends.artifact import interface as abi
from irc.backends.artifact import levels, module, pool
from irc.backends.artifact.coder.choose import decoder_text
from irc.backends.artifact.coder.decoder import ENTRY
from irc.backends.artifact.contents import CODED_ALIGNMENT, weights_section, weights_symbol
from irc.backends.program import Arg, Port, Program, Step
from irc.errors import InternalError
from irc.targets.target import Target

_DATALAYOUT = {
    "x86-64": "e-m:e-p270:32:32-p271:32:32-p272:64:64-i64:64-i128:128-f80:128-n8:16:32:64-S128",
    "aarch64": "e-m:e-p270:32:32-p271:32:32-p272:64:64-i8:8:32-i16:16:32-i64:64-i128:128-n32:64-S128-Fn32",
    "arm32": "e-m:e-p:32:32-Fi8-i64:64-v128:64:128-a:0:32-n32-S64",
    "riscv64": "e-m:e-p:64:64-i64:64-i128:128-n32:64-S128",
    "riscv32": "e-m:e-p:32:32-i64:64-n32-S128",
    "wasm32": "e-m:e-p:32:32-p10:8:8-p20:8:8-i64:64-i128:128-n32:64-S128-ni:1:10:20",
}

INFO_TYPE = "{ i32, i32, ptr, %w, %w, %w, %w, i32, i32, ptr, ptr }"
_BASES = (
    ("weights", pool.FRAME_WEIGHTS),
    ("workspace", pool.FRAME_WORKSPACE),
    ("inputs", pool.FRAME_INPUTS),
    ("outputs", pool.FRAME_OUTPUTS),
    ("ctx", pool.FRAME_CTX),
)
TENSOR_TYPE = "{ ptr, i32, i32, ptr, %w, i32, float, i32, i32 }"


def glue_ll(program: Program) -> str:
    """LLVM IR text that defines the public names of `program`.

    Kernels and weights stay hidden externals; where all becomes one module (`module.py`) they are part of it.
    """
    abi.check_name(program.name)
    pool.check_threads(program.threads, program.target)
    text = _Glue(program).text()
    if program.target.linking != "module":
        return text
    return module.merged_text(program.kernels, text, program.target, data_layout(program.target))


class _Glue:
    def __init__(self, program: Program) -> None:
        self.p = program
        self.n = program.name
        self.word = f"i{program.target.pointer_bits}"
        self.word_bytes = program.target.pointer_bits // 8
        self.meetings = [i for i, step in enumerate(program.steps) if i and step.waits]
        self.is_module = program.target.linking == "module"
        self.threads = program.target.threads

    def text(self) -> str:
        p = self.p
        out = [
            f'source_filename = "{self.n}"',
            *([] if self.is_module else [f'target datalayout = "{data_layout(p.target)}"']),
            f'target triple = "{p.target.triple}"',
            "",
        ]
        if p.weights_bytes and self.is_module:
            out.append(self._weights())
        elif p.weights_bytes:
            count = p.weights_bytes if p.coded is None else len(p.coded.data)
            align = p.alignment if p.coded is None else CODED_ALIGNMENT
            out.append(f"@{weights_symbol(p)} = external hidden constant [{count} x i8], align {align}")
        out += self._declarations()
        out += self._tables()
        if p.levels:
            out += levels.levels_ll(p, self._check_ctx())
        if p.coded is not None:
            out += decoder_text(p.target, p.coded)
        out += self._init()
        out += self._set_parallel() if self.threads else self._no_parallel()
        out += self._deinit()
        parallel = [i for i, s in enumerate(p.steps) if s.parallel]
        if parallel:
            out += self._dispatch()
        for i in parallel:
            out += self._thunk(i, p.steps[i])
        out += self._run()
        if pool.has_pool(p.target):
            out += pool.pool_ll(p.target.arch, len(self.meetings), abi.CTX_POOL * self.word_bytes)
            out += self._steps()
            out += self._set_threads()
        size = " minsize optsize" if p.target.small else ""
        out += [f"attributes #0 = {{ nounwind{size} }}", f"attributes #1 = {{ noinline nounwind{size} }}", ""]
        return "\n".join(out)

    def _weights(self) -> str:
        p = self.p
        section = weights_section(p)
        assert section is not None
        data = section.data() if section.size <= module.MARKER_BYTES else None
        return module.weights_constant(p, weights_symbol(p), section.size, data, section.align)

    def _define(self, kind: str, parameters: str) -> str:
        """The start of a public function. In a module it has a section of its own, for linkers to leave out."""
        name = f"@{self.n}_{kind}"
        if not self.is_module:
            return f"define i32 {name}({parameters}) #0 {{"
        section = f' section ".text.{self.n}_{kind}"' if self.p.target.object_format == "elf" else ""
        return f"define dso_local i32 {name}({parameters}) #0{section} {{"

    def _table(self, kind: str, value: str) -> str:
        """A public constant, likewise."""
        if not self.is_module:
            return f"@{self.n}_{kind} = constant {value}"
        # A loader writes addresses into the section of its own that LLVM makes; without one they are constants.
        bare = self.p.target.object_format == "elf" and "linux" not in self.p.target.triple
        section = f', section ".rodata.{self.n}_{kind}"' if bare else ""
        return f"@{self.n}_{kind} = dso_local constant {value}{section}, align {self.word_bytes}"

    def _declarations(self) -> list[str]:
        arity: dict[str, int] = {}
        calls = [(symbol, step) for step in self.p.steps for symbol in (step.symbol, *step.variants)]
        for symbol, step in calls:
            if arity.setdefault(symbol, len(step.args)) != len(step.args):
                raise InternalError("a kernel is called with different numbers of arguments", where=symbol)
            if symbol not in self.p.kernels:
                raise InternalError("a step calls a kernel that was not compiled", where=symbol)
        if self.is_module:
            return []  # defined in the same module
        return [
            f"declare hidden void {_at(name)}({', '.join(['ptr'] * n + ['i32', 'i32'])}) #0"
            for name, n in arity.items()
        ]

    # Descriptions

    def _tables(self) -> list[str]:
        p, n, w = self.p, self.n, self.word
        out: list[str] = []
        for which, ports in (("inputs", p.inputs), ("outputs", p.outputs)):
            rows = []
            for i, port in enumerate(ports):
                out += self._port_data(f"{n}.{which}.{i}", port)
                rows.append(self._row(f"{n}.{which}.{i}", port))
            row_type = TENSOR_TYPE.replace("%w", w)
            # A table of at least one row: C has no empty arrays.
            rows = rows or [f"{row_type} zeroinitializer"]
            out.append(self._table(which, f"[{len(rows)} x {row_type}] [ " + ", ".join(rows) + " ]"))
        out.append(_string(f"{n}.name", n))
        info = [
            f"i32 {abi.ABI_VERSION}",
            f"i32 {_signed(abi.interface_hash(p))}",
            f"ptr @{n}.name",
            f"{w} {abi.ctx_words(p) * self.word_bytes}",
            f"{w} {p.workspace_bytes}",
            f"{w} {p.alignment}",
            f"{w} {abi.init_ram_bytes(p)}",
            f"i32 {len(p.inputs)}",
            f"i32 {len(p.outputs)}",
            f"ptr @{n}_inputs",
            f"ptr @{n}_outputs",
        ]
        out += [self._table("info", f"{INFO_TYPE.replace('%w', w)} {{ {', '.join(info)} }}"), ""]
        return out

    def _port_data(self, label: str, port: Port) -> list[str]:
        dims = port.shape or (1,)  # a scalar: rank 0, one dimension that nobody reads
        words = ", ".join(f"{self.word} {d}" for d in dims)
        return [
            _string(f"{label}.name", port.name),
            f"@{label}.dims = private unnamed_addr constant [{len(dims)} x {self.word}] [{words}]",
        ]

    def _row(self, label: str, port: Port) -> str:
        quantized = port.scale is not None
        fields = [
            f"ptr @{label}.name",
            f"i32 {abi.dtype_number(port)}",
            f"i32 {len(port.shape)}",
            f"ptr @{label}.dims",
            f"{self.word} {port.nbytes}",
            f"i32 {int(quantized)}",
            f"float {_float(port.scale or 0.0)}",
            f"i32 {port.zero_point or 0}",
            "i32 0",
        ]
        return f"{TENSOR_TYPE.replace('%w', self.word)} {{ {', '.join(fields)} }}"

    # NAME_init and NAME_set_parallel

    def _init(self) -> list[str]:
        p, n, w = self.p, self.n, self.word
        weights = f"@{weights_symbol(p)}" if p.weights_bytes else "null"
        weights = weights if p.coded is None else "%ram"
        out = [
            self._define("init", f"ptr %ctx, ptr %ram, {w} %ram_bytes"),
            "  %null = icmp eq ptr %ctx, null",
            "  br i1 %null, label %bad, label %good",
            "bad:",
            f"  ret i32 {abi.ERROR_NULL}",
            "good:",
            *(self._check_ram(str(abi.init_ram_bytes(p))) if abi.init_ram_bytes(p) else []),
            *self._decode(),
        ]
        for i in range(abi.ctx_words(p)):
            value = {abi.CTX_WEIGHTS: f"ptr {weights}", abi.CTX_PARTS: f"{w} 1"}.get(i, f"{w} 0")
            value = f"{w} {self._tag()}" if i == abi.CTX_TAG else value
            out += [*self._field(f"%c{i}", "%ctx", i), f"  store {value}, ptr %c{i}"]
        if p.levels:
            out += levels.start(p)
        if p.threads > 1:
            out += self._behind_weights("%pool_ram")
            out.append(f"  call void @pool_start(ptr %ctx, ptr %pool_ram, i32 {p.threads})")
        return [
            *out,
            f"  ret i32 {abi.OK}",
            "}",
            "",
            self._define("init_checked", f"ptr %ctx, ptr %ram, {w} %ram_bytes, i32 %interface"),
            f"  %same = icmp eq i32 %interface, {_signed(abi.interface_hash(p))}",
            "  br i1 %same, label %good, label %bad",
            "bad:",
            f"  ret i32 {abi.ERROR_VERSION}",
            "good:",
            f"  %r = tail call i32 @{n}_init(ptr %ctx, ptr %ram, {w} %ram_bytes)",
            "  ret i32 %r",
            "}",
            "",
        ]

    def _decode(self) -> list[str]:
        """Decodes coded weights to the start of %ram; ends the function with an error where they are damaged."""
        c = self.p.coded
        if c is None:
            return []
        out = f"ptr %ram, i32 {c.out_bytes}, ptr %scratch"
        return [
            *self._behind_weights("%scratch"),
            f"  %decoded = call i32 @{ENTRY}(ptr @{weights_symbol(self.p)}, i32 {c.meta_bytes}, "
            f"i32 {len(c.data)}, {out})",
            "  %whole = icmp ne i32 %decoded, 0",
            "  br i1 %whole, label %intact, label %damaged",
            "damaged:",
            f"  ret i32 {abi.ERROR_DATA}",
            "intact:",
        ]

    def _behind_weights(self, name: str) -> list[str]:
        """The RAM of NAME_init behind decoded weights: the decoder's, and then the pool's."""
        return [f"  {name} = getelementptr inbounds i8, ptr %ram, {self.word} {abi.pool_offset(self.p)}"]

    def _field(self, name: str, base: str, index: int) -> list[str]:
        return [f"  {name} = getelementptr inbounds i8, ptr {base}, {self.word} {index * self.word_bytes}"]

    def _check_ctx(self) -> list[str]:
        """Ends the function with an error unless %ctx was initialised; goes on in block `ready`."""
        return [
            "  %null = icmp eq ptr %ctx, null",
            "  br i1 %null, label %no_ctx, label %has_ctx",
            "no_ctx:",
            f"  ret i32 {abi.ERROR_NULL}",
            "has_ctx:",
            f"  %tag = load {self.word}, ptr %ctx",
            f"  %mine = icmp eq {self.word} %tag, {self._tag()}",
            "  br i1 %mine, label %ready, label %foreign",
            "foreign:",
            f"  ret i32 {abi.ERROR_UNINITIALISED}",
            "ready:",
        ]

    def _tag(self) -> int:
        """The first word of a context of this network."""
        return abi.interface_hash(self.p) if self.word_bytes == 8 else _signed(abi.interface_hash(self.p))

    def _no_parallel(self) -> list[str]:
        """NAME_set_parallel where nothing is shared out."""
        start = self._define("set_parallel", "ptr %ctx, ptr %f, ptr %user, i32 %parts")
        return [start, f"  ret i32 {abi.ERROR_ARGUMENT}", "}", ""]

    def _set_parallel(self) -> list[str]:
        w = self.word
        return [
            self._define("set_parallel", "ptr %ctx, ptr %f, ptr %user, i32 %parts"),
            *self._check_ctx(),
            "  %few = icmp slt i32 %parts, 1",
            "  br i1 %few, label %bad, label %good",
            "bad:",
            f"  ret i32 {abi.ERROR_ARGUMENT}",
            "good:",
            *self._field("%pf", "%ctx", abi.CTX_PARALLEL_FOR),
            "  store ptr %f, ptr %pf",
            *self._field("%pu", "%ctx", abi.CTX_PARALLEL_USER),
            "  store ptr %user, ptr %pu",
            *self._field("%pp", "%ctx", abi.CTX_PARTS),
            f"  %wide = zext i32 %parts to {w}" if w != "i32" else "  %wide = add i32 %parts, 0",
            f"  store {w} %wide, ptr %pp",
            f"  ret i32 {abi.OK}",
            "}",
            "",
        ]

    def _check_ram(self, needed: str) -> list[str]:
        """Ends the function with an error unless %ram, of %ram_bytes, has `needed` bytes and is aligned."""
        w = self.word
        return [
            "  %no_ram = icmp eq ptr %ram, null",
            f"  %small = icmp ult {w} %ram_bytes, {needed}",
            "  %no_good = or i1 %no_ram, %small",
            "  br i1 %no_good, label %bad_ram, label %has_ram",
            "bad_ram:",
            f"  ret i32 {abi.ERROR_RAM}",
            "has_ram:",
            f"  %ram_at = ptrtoint ptr %ram to {w}",
            f"  %ram_rest = and {w} %ram_at, {self.p.alignment - 1}",
            f"  %ram_aligned = icmp eq {w} %ram_rest, 0",
            "  br i1 %ram_aligned, label %ram_ready, label %odd_ram",
            "odd_ram:",
            f"  ret i32 {abi.ERROR_ALIGN}",
            "ram_ready:",
        ]

    def _stop_pool(self) -> list[str]:
        """Ends the threads of %ctx where it has some; goes on in block `alone`. Through the pool's own pointer: what
        has no pool does not refer to it."""
        return [
            *self._field("%pool_at", "%ctx", abi.CTX_POOL),
            "  %pool = load ptr, ptr %pool_at",
            "  %single = icmp eq ptr %pool, null",
            "  br i1 %single, label %alone, label %several",
            "several:",
            f"  %stop_at = getelementptr inbounds i8, ptr %pool, i64 {pool.STOP}",
            "  %stop = load ptr, ptr %stop_at",
            "  call void %stop(ptr %pool)",
            "  store ptr null, ptr %pool_at",
            "  br label %alone",
            "alone:",
        ]

    def _deinit(self) -> list[str]:
        return [
            self._define("deinit", "ptr %ctx"),
            *self._check_ctx(),
            *(self._stop_pool() if pool.has_pool(self.p.target) else []),
            f"  store {self.word} 0, ptr %ctx",
            f"  ret i32 {abi.OK}",
            "}",
            "",
        ]

    def _set_threads(self) -> list[str]:
        """NAME_set_threads and NAME_threads."""
        w = self.word
        arguments = f"ptr %ctx, ptr %ram, {w} %ram_bytes, i32 %threads"
        return [
            f'define i32 @{self.n}_set_threads({arguments}) #0 section ".text.pool" {{',
            *self._check_ctx(),
            "  %few = icmp slt i32 %threads, 1",
            f"  %many = icmp sgt i32 %threads, {pool.MOST_THREADS}",
            "  %wrong = or i1 %few, %many",
            "  br i1 %wrong, label %refuse, label %accept",
            "refuse:",
            f"  ret i32 {abi.ERROR_ARGUMENT}",
            "accept:",
            # In the RAM of NAME_init decoded weights stay.
            *self._field("%weights_at", "%ctx", abi.CTX_WEIGHTS),
            "  %weights = load ptr, ptr %weights_at",
            "  %own = icmp eq ptr %ram, %weights",
            f"  %before = select i1 %own, {w} {abi.pool_offset(self.p)}, {w} 0",
            "  %one = icmp eq i32 %threads, 1",
            "  br i1 %one, label %ram_ready, label %check",
            "check:",
            f"  %count = zext i32 %threads to {w}",
            f"  %slots = mul {w} %count, {pool.LINE}",
            f"  %behind = add {w} %slots, {pool.ram_bytes(2) - 2 * pool.LINE}",
            f"  %needed = add {w} %behind, %before",
            *self._check_ram("%needed"),
            *self._stop_pool(),
            "  br i1 %one, label %end, label %start",
            "start:",
            f"  %place = getelementptr inbounds i8, ptr %ram, {w} %before",
            "  call void @pool_start(ptr %ctx, ptr %place, i32 %threads)",
            "  br label %end",
            "end:",
            f"  ret i32 {abi.OK}",
            "}",
            "",
            f'define i32 @{self.n}_threads(ptr %ctx) #0 section ".text.pool" {{',
            "  %null = icmp eq ptr %ctx, null",
            "  br i1 %null, label %alone, label %look",
            "look:",
            *self._field("%pool_at", "%ctx", abi.CTX_POOL),
            "  %pool = load ptr, ptr %pool_at",
            "  %single = icmp eq ptr %pool, null",
            "  br i1 %single, label %alone, label %several",
            "several:",
            "  %parts = load i32, ptr %pool",
            "  ret i32 %parts",
            "alone:",
            "  ret i32 1",
            "}",
            "",
        ]

    # Steps

    def _dispatch(self) -> list[str]:
        w = self.word
        return [
            "define internal void @dispatch(ptr %ctx, ptr %frame, ptr %step) #1 {",
            *self._field("%pf", "%ctx", abi.CTX_PARALLEL_FOR),
            "  %f = load ptr, ptr %pf",
            "  %alone = icmp eq ptr %f, null",
            "  br i1 %alone, label %serial, label %parallel",
            "serial:",
            "  tail call void %step(ptr %frame, i32 0, i32 1)",
            "  ret void",
            "parallel:",
            *self._field("%pu", "%ctx", abi.CTX_PARALLEL_USER),
            "  %user = load ptr, ptr %pu",
            *self._field("%pp", "%ctx", abi.CTX_PARTS),
            f"  %wide = load {w}, ptr %pp",
            f"  %parts = trunc {w} %wide to i32" if w != "i32" else "  %parts = add i32 %wide, 0",
            "  tail call void %f(ptr %user, ptr %step, ptr %frame, i32 %parts)",
            "  ret void",
            "}",
            "",
        ]

    def _thunk(self, i: int, step: Step) -> list[str]:
        return [
            f"define internal void @step_{i}(ptr %frame, i32 %part, i32 %parts) #0 {{",
            *self._bases((step,)),
            *self._call(i, step, "i32 %part, i32 %parts"),
            "  ret void",
            "}",
            "",
        ]

    def _bases(self, steps: Sequence[Step]) -> list[str]:
        """Loads of the base pointers that `steps` use, from %frame."""
        used = {_base(a) for step in steps for a in step.args}
        used |= {"ctx" for step in steps if step.variants}
        out: list[str] = []
        for name, index in _BASES:
            if name in used:
                out += [*self._field(f"%f_{name}", "%frame", index), f"  %{name} = load ptr, ptr %f_{name}"]
        return out

    def _steps(self) -> list[str]:
        """All steps, as part %part of %parts sees them: what the pool's threads run."""
        out = [
            'define internal void @steps(ptr %frame, i32 %part, i32 %parts) #1 section ".text.pool" {',
            *self._bases(self.p.steps),
            *self._field("%f_pool", "%frame", pool.FRAME_POOL),
            "  %pool = load ptr, ptr %f_pool",
            *self._field("%f_count", "%frame", pool.FRAME_COUNT),
            "  %base = load i32, ptr %f_count",
            "  %first = icmp eq i32 %part, 0",
        ]
        met = 0
        for i, step in enumerate(self.p.steps):
            if i in self.meetings:
                met += 1
                out.append(f"  %count_{i} = add i32 %base, {met}")
                out.append(f"  call void @pool_meet(ptr %pool, i32 %part, i32 %parts, i32 %count_{i})")
            if step.parallel:
                out += self._call(i, step, "i32 %part, i32 %parts")
            else:
                out += [f"  br i1 %first, label %do_{i}, label %go_{i}", f"do_{i}:"]
                out += [*self._call(i, step, "i32 0, i32 1"), f"  br label %go_{i}", f"go_{i}:"]
        return [*out, "  ret void", "}", ""]

    def _call(self, i: int, step: Step, parts: str) -> list[str]:
        """The only place that calls kernels: step `i`, with its base pointers in %weights, %workspace, %inputs and
        %outputs. `parts` are the last two arguments."""
        out: list[str] = []
        values = [self._pointer(f"%s{i}_{j}", arg, out) for j, arg in enumerate(step.args)]
        args = ", ".join([f"ptr {v}" for v in values] + ([parts] if self.threads else []))
        kernel = _at(step.symbol)
        if step.variants:
            kernel = f"%k{i}"
            out += levels.kernel_pointer(self.p, step, kernel)
        return [*out, f"  tail call void {kernel}({args})"]

    def _pointer(self, name: str, arg: Arg, out: list[str]) -> str:
        """Appends the code that computes the pointer; gives its LLVM name."""
        base = f"%{_base(arg)}"
        if arg.space in ("input", "output"):
            out += self._field(f"{name}p", base, arg.index)
            base = f"{name}b"
            out.append(f"  {base} = load ptr, ptr {name}p")
        if not arg.offset:
            return base
        out.append(f"  {name} = getelementptr inbounds i8, ptr {base}, {self.word} {arg.offset}")
        return name

    # NAME_run

    def _run(self) -> list[str]:
        p = self.p
        out = [
            self._define("run", "ptr %ctx, ptr %inputs, ptr %outputs, ptr %workspace"),
        ]
        framed = any(s.parallel for s in p.steps)
        if framed:
            out.append(f"  %frame = alloca [{pool.FRAME_WORDS} x ptr], align {self.word_bytes}")
        out += self._check_ctx()
        null_checks: list[str] = []
        if p.workspace_bytes:
            null_checks.append("%workspace")
        null_checks += [f"%{k}" for k, ports in (("inputs", p.inputs), ("outputs", p.outputs)) if ports]
        out += self._refuse_null(null_checks, "tables")
        pointers: list[str] = []
        for which, ports in (("inputs", p.inputs), ("outputs", p.outputs)):
            for i, port in enumerate(ports):
                if port.nbytes:
                    out += self._field(f"%p_{which}{i}", f"%{which}", i)
                    out.append(f"  %v_{which}{i} = load ptr, ptr %p_{which}{i}")
                    pointers.append(f"%v_{which}{i}")
        out += self._refuse_null(pointers, "ports")
        if p.workspace_bytes and p.alignment > 1:
            out += [
                f"  %address = ptrtoint ptr %workspace to {self.word}",
                f"  %rest = and {self.word} %address, {p.alignment - 1}",
                f"  %aligned = icmp eq {self.word} %rest, 0",
                "  br i1 %aligned, label %go, label %misaligned",
                "misaligned:",
                f"  ret i32 {abi.ERROR_ALIGN}",
                "go:",
            ]
        if p.coded is not None or not self.is_module:
            out += [*self._field("%f_weights", "%ctx", abi.CTX_WEIGHTS), "  %weights = load ptr, ptr %f_weights"]
        elif p.weights_bytes:
            out.append(f"  %weights = getelementptr inbounds i8, ptr @{weights_symbol(p)}, {self.word} 0")
        else:
            out.append(f"  %weights = inttoptr {self.word} 0 to ptr")
        if framed:
            for name, i in _BASES:
                out += [*self._field(f"%frame{i}", "%frame", i), f"  store ptr %{name}, ptr %frame{i}"]
        if framed and p.worth_threads and pool.has_pool(p.target):
            out += self._try_pool()
        for i, step in enumerate(p.steps):
            if step.parallel:
                out.append(f"  call void @dispatch(ptr %ctx, ptr %frame, ptr @step_{i})")
            else:
                out += self._call(i, step, "i32 0, i32 1")
        return [*out, f"  ret i32 {abi.OK}", "}", ""]

    def _try_pool(self) -> list[str]:
        """Hands the run to the pool where there is one and the caller gave no parallel-for; goes on where it was not
        done."""
        return [
            *self._field("%pool_at", "%ctx", abi.CTX_POOL),
            "  %pool = load ptr, ptr %pool_at",
            "  %single = icmp eq ptr %pool, null",
            "  br i1 %single, label %alone, label %several",
            "several:",
            *self._field("%own_at", "%ctx", abi.CTX_PARALLEL_FOR),
            "  %own = load ptr, ptr %own_at",
            "  %theirs = icmp eq ptr %own, null",
            "  br i1 %theirs, label %together, label %alone",
            "together:",
            f"  %enter_at = getelementptr inbounds i8, ptr %pool, i64 {pool.RUN}",
            "  %enter = load ptr, ptr %enter_at",
            "  %code = call i32 %enter(ptr %pool, ptr %frame)",
            "  %finished = icmp ne i32 %code, 0",
            "  br i1 %finished, label %complete, label %alone",
            "complete:",
            f"  ret i32 {abi.OK}",
            "alone:",
        ]

    def _refuse_null(self, pointers: list[str], label: str) -> list[str]:
        if not pointers:
            return []
        out, any_null = [], ""
        for i, pointer in enumerate(pointers):
            out.append(f"  %{label}_n{i} = icmp eq ptr {pointer}, null")
            if any_null:
                out.append(f"  %{label}_o{i} = or i1 {any_null}, %{label}_n{i}")
            any_null = f"%{label}_o{i}" if any_null else f"%{label}_n{i}"
        return [
            *out,
            f"  br i1 {any_null}, label %{label}_bad, label %{label}_good",
            f"{label}_bad:",
            f"  ret i32 {abi.ERROR_NULL}",
            f"{label}_good:",
        ]


def data_layout(target: Target) -> str:
    """LLVM's, as its TargetParser computes them; kernels' texts carry their own."""
    if target.arch == "x86-64":
        return _DATALAYOUT["x86-64"].replace("m:e", "m:w" if target.object_format == "coff" else "m:e")
    if target.object_format == "macho":
        return "e-m:o-p270:32:32-p271:32:32-p272:64:64-i64:64-i128:128-n32:64-S128-Fn32"
    return _DATALAYOUT[target.arch]


def _base(arg: Arg) -> str:
    return {"input": "inputs", "output": "outputs"}.get(arg.space, arg.space)


def _at(name: str) -> str:
    """An LLVM global name, quoted so that any character may occur."""
    return '@"' + _escape(name) + '"'


def _escape(text: str) -> str:
    plain = (chr(b) if 32 <= b < 127 and b not in (34, 92) else f"\\{b:02X}" for b in text.encode())
    return "".join(plain)


def _string(name: str, text: str) -> str:
    size = len(text.encode()) + 1
    return f'@{name} = private unnamed_addr constant [{size} x i8] c"{_escape(text)}\\00"'


def _signed(n: int) -> int:
    """A 32-bit pattern as LLVM's i32 literal."""
    return n - (1 << 32) if n >> 31 else n


def _float(x: float) -> str:
    """A float32 value as LLVM writes it: the bits of the double that equals it."""
    single: float = struct.unpack("<f", struct.pack("<f", x))[0]
    return f"0x{struct.unpack('<Q', struct.pack('<d', single))[0]:016X}"
