"""A program -> src/NAME.c: weights as constant arrays, kernels, and the entry functions of the header.

Entry functions check what those of libraries check (`backends/artifact/glue.py`); there are no threads.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator

import numpy as np

from irc.backends.artifact import interface as abi
from irc.backends.artifact.header import header_text
from irc.backends.c.arrays import array_chunks
from irc.backends.c.calls import Argument, KernelCall, call_lines
from irc.backends.c.helpers import preamble
from irc.backends.c.merge import Merged, merge
from irc.backends.c.small import chosen
from irc.backends.program import Arg, Port, Program, Step
from irc.errors import OptionError
from irc.ir.types import Array

_CHARACTERS = {ord(c) for c in " !#$%&'()*+,-./:;<=>@[]^_`{|}~"}


def check_source(program: Program) -> None:
    """Raises OptionError for what a C source cannot have."""
    if program.threads > 1:
        raise OptionError(
            "C source has no threads",
            where=f"--threads {program.threads}",
            expected="--threads 1",
            hint="a target that is a machine, for a library with a pool of threads",
        )
    if program.coded is not None:
        raise OptionError(
            "C source has its weights as plain arrays", where="--weights coded", expected="--weights plain"
        )


def source_text(program: Program) -> str:
    return "".join(source_chunks(program))


def source_chunks(program: Program) -> Iterator[str]:
    """The file in pieces."""
    abi.check_name(program.name)
    check_source(program)
    s = _Source(program)
    code = "\n".join(m.text for m in s.merged)
    yield f"/* The neural network {program.name}, compiled by irc. C99 and C++; needs libm. */\n\n"
    yield f'#include "{program.name}.h"\n\n'
    yield preamble(code)
    yield "\n"
    yield from s.weights()
    yield code
    yield "\n"
    yield "\n".join(s.glue())


class _Source:
    def __init__(self, program: Program) -> None:
        self.p = program
        self.n = program.name
        blobs = sorted((b for b in program.weights if b.data.nbytes), key=lambda b: b.offset)
        self.offsets = [b.offset for b in blobs]
        self.arrays: list[list[Array]] = []
        self.places: list[tuple[int, int]] = []  # of each blob: its array, and where it begins there
        for blob in blobs:
            if not self.arrays or self.arrays[-1][0].dtype != blob.data.dtype:
                self.arrays.append([])
            self.places.append((len(self.arrays) - 1, sum(a.size for a in self.arrays[-1])))
            self.arrays[-1].append(blob.data)
        kernels = {symbol: data.decode() for symbol, data in program.kernels.items()}
        short = {symbol: f"kernel_{i}" for i, symbol in enumerate(kernels)}
        texts = chosen({short[s]: text.replace(s, short[s]) for s, text in kernels.items()})
        self.nulls = {s: _nulls(text) for s, text in texts.items()}
        texts = {s: text.replace(_NULL, "") for s, text in texts.items()}
        self.short = short
        self.merged = merge(texts)
        self.of: dict[str, Merged] = {}
        for m in self.merged:
            self.of |= dict.fromkeys(m.symbols, m)
        self.parameters = {m.name: _parameters(m) for m in self.merged}

    def weights(self) -> Iterator[str]:
        """What follows each other and has one type is one array."""
        for i, parts in enumerate(self.arrays):
            yield from array_chunks(f"weights_{i}", np.concatenate([a.reshape(-1) for a in parts]))
        if self.arrays:
            yield "\n"

    def glue(self) -> list[str]:
        return [*self._tables(), *self._init(), *self._other(), *self._run(), ""]

    # Descriptions

    def _tables(self) -> list[str]:
        p, n = self.p, self.n
        out: list[str] = []
        for which, ports in (("inputs", p.inputs), ("outputs", p.outputs)):
            rows = []
            for i, port in enumerate(ports):
                dims = port.shape or (1,)
                values = ", ".join(map(str, dims))
                out.append(f"static const size_t {which}_{i}_dims[{len(dims)}] = {{{values}}};")
                rows.append(f"    {{{_row(f'{which}_{i}_dims', port)}}}")
            rows = rows or ["    {NULL, 0, 0, NULL, 0, 0, 0.0f, 0, 0}"]
            out += [f"const irc_tensor_info {n}_{which}[{len(rows)}] = {{", ",\n".join(rows), "};"]
        facts = [
            str(abi.ABI_VERSION),
            f"{n.upper()}_INTERFACE",
            quoted(n),
            f"sizeof({n}_ctx)",
            str(p.workspace_bytes),
            str(p.alignment),
            "0",
            str(len(p.inputs)),
            str(len(p.outputs)),
            f"{n}_inputs",
            f"{n}_outputs",
        ]
        return [*out, f"const irc_network_info {n}_info = {{", "    " + ", ".join(facts), "};", ""]

    # Entry functions

    def _init(self) -> list[str]:
        n = self.n
        return [
            f"#undef {n}_init",
            f"int {n}_init({n}_ctx *ctx, void *ram, size_t ram_bytes)",
            "{",
            "    (void)ram;",
            "    (void)ram_bytes;",
            "    if (ctx == NULL) return IRC_ERROR_NULL;",
            "    memset(ctx, 0, sizeof *ctx);",
            f"    ctx->reserved[0] = (void *)(uintptr_t){n.upper()}_INTERFACE;",
            "    return IRC_OK;",
            "}",
            "",
            f"int {n}_init_checked({n}_ctx *ctx, void *ram, size_t ram_bytes, unsigned int interface_hash)",
            "{",
            f"    return interface_hash == {n.upper()}_INTERFACE ? {n}_init(ctx, ram, ram_bytes) : IRC_ERROR_VERSION;",
            "}",
            "",
            f"static int check_ctx(const {n}_ctx *ctx)",
            "{",
            "    if (ctx == NULL) return IRC_ERROR_NULL;",
            f"    return ctx->reserved[0] == (void *)(uintptr_t){n.upper()}_INTERFACE ? IRC_OK "
            ": IRC_ERROR_UNINITIALISED;",
            "}",
            "",
        ]

    def _other(self) -> list[str]:
        n = self.n
        return [
            f"int {n}_deinit({n}_ctx *ctx)",
            "{",
            "    int code = check_ctx(ctx);",
            "    if (code == IRC_OK) ctx->reserved[0] = NULL;",
            "    return code;",
            "}",
            "",
            f"int {n}_set_parallel({n}_ctx *ctx, irc_parallel_for f, void *user, int parts)",
            "{",
            "    int code = check_ctx(ctx);",
            "    (void)user;",
            "    if (code != IRC_OK) return code;",
            "    return f == NULL && parts >= 1 ? IRC_OK : IRC_ERROR_ARGUMENT; /* it runs on the calling thread */",
            "}",
            "",
        ]

    def _run(self) -> list[str]:
        p, n = self.p, self.n
        head = [
            f"int {n}_run(const {n}_ctx *ctx, const void *const *inputs, void *const *outputs, void *workspace)",
            "{",
        ]
        out = ["    int code = check_ctx(ctx);"]
        body = ["    if (code != IRC_OK) return code;"]
        checks = ["workspace == NULL"] if p.workspace_bytes else []
        for which, ports in (("inputs", p.inputs), ("outputs", p.outputs)):
            if ports:
                checks.append(f"{which} == NULL")
            checks += [f"{which}[{i}] == NULL" for i, port in enumerate(ports) if port.nbytes]
        if checks:
            body.append(f"    if ({' || '.join(checks)}) return IRC_ERROR_NULL;")
        if p.workspace_bytes and p.alignment > 1:
            body.append(f"    if ((uintptr_t)workspace % {p.alignment} != 0) return IRC_ERROR_ALIGN;")
        tables: list[str] = []
        calls = call_lines([self._call(step, tables) for step in p.steps])
        spaces = {arg.space for step in p.steps for arg in step.args}
        if "workspace" in spaces:
            out.append("    char *const w = (char *)workspace;")
        unused = [f"    (void){name};" for name, space in _NAMES if space not in spaces and name not in str(checks)]
        return [*tables, *head, *out, *unused, *body, *calls, "    return IRC_OK;", "}"]

    def _call(self, step: Step, tables: list[str]) -> KernelCall:
        symbol = self.short[step.symbol]
        merged = self.of[symbol]
        kinds = self.parameters[merged.name]
        given = iter(step.args)
        count = len(step.args) + len(self.nulls[symbol])  # tables follow
        args = [
            Argument("NULL") if n in self.nulls[symbol] else self._argument(next(given), kind)
            for n, kind in enumerate(kinds[:count])
        ]
        for letter, ctype, table in (("q", merged.integer_type, merged.integers), ("r", "float", merged.reals)):
            if table:
                name = f"{letter}_{symbol.removeprefix('kernel_')}"
                row = f"static const {ctype} {name}[{len(table[symbol])}] = {{{', '.join(table[symbol])}}};"
                if row not in tables:
                    tables.append(row)
                args.append(Argument(name))
        return KernelCall(merged.name, tuple(args))

    def _argument(self, arg: Arg, kind: str) -> Argument:
        """The pointer as a parameter of type `kind` takes it."""
        constant = "const " if kind.startswith("const ") else ""
        if arg.space == "weights":
            number = bisect.bisect_right(self.offsets, arg.offset) - 1
            if number < 0:
                return Argument(f"({kind})NULL")
            array, begin = self.places[number]
            inside = (arg.offset - self.offsets[number]) // self.arrays[array][0].itemsize
            return Argument(f"({kind})(const void *)(weights_{array} + {{}})", begin + inside)
        if arg.space == "workspace":
            return Argument(f"({kind})({constant}void *)(w + {{}})", arg.offset)
        name = "inputs" if arg.space == "input" else "outputs"
        if not arg.offset:
            return Argument(f"({kind}){name}[{arg.index}]")
        pointer = f"(const char *){name}[{arg.index}]" if arg.space == "input" else f"(char *){name}[{arg.index}]"
        return Argument(f"({kind})({constant}void *)({pointer} + {{}})", arg.offset)


_NULL = " /* NULL */"
"""Stands behind a parameter of a kernel that the program has no argument for."""


def _nulls(text: str) -> set[int]:
    """Which parameters of a kernel are NULL."""
    if _NULL not in text:
        return set()
    head = next(line for line in text.split("\n") if _NULL in line)
    return {n for n, parameter in enumerate(head.split(",")) if _NULL in parameter}


_NAMES = (("workspace", "workspace"), ("inputs", "input"), ("outputs", "output"))


def _parameters(m: Merged) -> list[str]:
    """Types of the pointers that the (last) function of a text takes."""
    head = re.findall(rf"^static void {re.escape(m.name)}\((.*)\)$", m.text, re.MULTILINE)[-1]
    return [re.sub(r"\*.*", "*", p).strip() for p in head.split(",")]


def _row(dims: str, port: Port) -> str:
    scale = f"{port.scale:.9g}" if port.scale is not None else "0.0"
    scale = (scale if "." in scale or "e" in scale else scale + ".0") + "f"
    fields = [
        quoted(port.name),
        str(abi.dtype_number(port)),
        str(len(port.shape)),
        dims,
        str(port.nbytes),
        str(int(port.scale is not None)),
        scale,
        str(port.zero_point or 0),
        "0",
    ]
    return ", ".join(fields)


def quoted(text: str) -> str:
    """A C string of UTF-8 bytes; what is not a plain character is written in octal, three digits."""
    out = "".join(chr(b) if (chr(b).isalnum() and b < 128) or b in _CHARACTERS else f"\\{b:03o}" for b in text.encode())
    return f'"{out}"'


__all__ = ["check_source", "header_text", "source_chunks", "source_text"]
