"""Kernels of other processors, run one by one: under qemu's user mode, or as a WebAssembly module by node.

One program holds the kernels of all cases of a target. A driver reads, for each call, which kernel to call and its
arrays, and writes what the kernel wrote. Under qemu the arrays lie against pages that must not be touched.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from kernel_harness import SENTINEL, Case, compiled, symbol_of

from irc.targets.target import Target

PARTS = (1, 3)

_MAIN = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096
@DECLARATIONS@
typedef void (*kernel)(void);
static const kernel kernels[] = {@TABLE@};

static uint32_t word(void)
{
    uint32_t w;
    if (fread(&w, 1, 4, stdin) != 4) exit(0);
    return w;
}

/* An array between forbidden pages, against the later (at_end) or the earlier one. */
static char *fenced(size_t bytes, int at_end)
{
    size_t pages = (bytes + PAGE - 1) / PAGE * PAGE;
    char *base = mmap(NULL, pages + 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED || mprotect(base, PAGE, PROT_NONE) || mprotect(base + PAGE + pages, PAGE, PROT_NONE))
        exit(90);
    return base + PAGE + (at_end ? pages - bytes : 0);
}

static void call(kernel f, char **p, int count@PARTS_PARAMETERS@)
{
    switch (count) {
@CALLS@
    default: exit(91);
    }
}

int main(void)
{
    char *p[16];
    for (;;) {
        uint32_t number = word(), at_end = word(), parts = word(), count = word(), bytes = 0, i;
        for (i = 0; i < count; i++) {
            bytes = word();
            p[i] = fenced(bytes, (int)at_end);
            if (i + 1 < count && fread(p[i], 1, bytes, stdin) != bytes) return 92;
        }
        memset(p[count - 1], @SENTINEL@, bytes);
        for (i = parts; i-- > 0;) call(kernels[number], p, (int)count@PARTS_VALUES@);
        if (fwrite(p[count - 1], 1, bytes, stdout) != bytes) return 93;
    }
}
"""

_NODE = r"""
const fs = require('fs');
const bytes = fs.readFileSync(process.argv[2]), calls = fs.readFileSync(process.argv[3]);
const names = JSON.parse(process.argv[4]), shared = process.argv[5] === '1';
const module_ = new WebAssembly.Module(bytes);
const env = {};
for (const i of WebAssembly.Module.imports(module_)) env[i.name] = (x) => Math[i.name.replace(/f$/, '')](x);
const code = new WebAssembly.Instance(module_, {env}).exports;
const base = code.__heap_base.value;
let at = 0;
const word = () => { at += 4; return calls.readUInt32LE(at - 4); };
const out = [];
while (at < calls.length) {
  const name = names[word()], atEnd = word(), parts = word(), count = word(), pointers = [];
  let size = 0, next = base;
  for (let i = 0; i < count; i++) {
    size = word();
    next = next + 63 & ~63;
    while (next + size + 64 > code.memory.buffer.byteLength) code.memory.grow(16);
    pointers.push(next);
    if (i + 1 < count) {
      new Uint8Array(code.memory.buffer, next, size).set(calls.subarray(at, at + size));
      at += size;
    }
    next += size;
  }
  const last = pointers[count - 1];
  new Uint8Array(code.memory.buffer, last, size).fill(@SENTINEL@);
  for (let part = parts - 1; part >= 0; part--) code[name](...pointers, ...(shared ? [part, parts] : []));
  out.push(Buffer.from(code.memory.buffer.slice(last, last + size)));
}
fs.writeFileSync(process.argv[6], Buffer.concat(out));
"""


def missing(target: Target) -> str:
    """What is not installed of that which runs `target`'s kernels; empty when all is there."""
    tools = ["wasm-ld", "node"] if target.arch == "wasm32" else [target.qemu, target.linker]
    absent = [t for t in tools if not t or not shutil.which(t)]
    return "not found: " + ", ".join(t or "a tool" for t in absent) if absent else ""


def shares_work(target: Target) -> bool:
    """Whether kernels take (part, parts)."""
    return bool(getattr(target, "threads", True))


def run_foreign(cases: Sequence[Case], target: Target) -> list[np.ndarray]:
    """The output of each case: the same bits for all splits, and wherever arrays lie, or AssertionError."""
    wasm = target.arch == "wasm32"
    runs = [(end, parts) for end in ((1,) if wasm else (1, 0)) for parts in (PARTS if shares_work(target) else (1,))]
    data = b"".join(_request(n, case, end, parts) for n, case in enumerate(cases) for end, parts in runs)
    with tempfile.TemporaryDirectory(prefix="irc-kernels-") as name:
        folder = Path(name)
        symbols = [symbol_of(c.spec) for c in cases]
        objects = []
        for symbol, case in {symbol_of(c.spec): c for c in cases}.items():
            objects.append(folder / f"{symbol}.o")
            objects[-1].write_bytes(compiled(case.spec, target))
        run = _run_node if wasm else _run_qemu
        out = run(folder, objects, symbols, [len(c.arrays) + 1 for c in cases], data, target)
    found, at = [], 0
    for case in cases:
        results = []
        for end, parts in runs:
            results.append((f"parts={parts} end={end}", out[at : at + case.expected.nbytes]))
            at += case.expected.nbytes
        for what, got in results[1:]:
            assert got == results[0][1], f"{case.name}, {target.name}: {what} gives other bits than {results[0][0]}"
        found.append(np.frombuffer(results[0][1], case.expected.dtype))
    assert at == len(out)
    return found


def _request(number: int, case: Case, end: int, parts: int) -> bytes:
    made = [struct.pack("<4I", number, end, parts, len(case.arrays) + 1)]
    for array in case.arrays:
        made += [struct.pack("<I", array.nbytes), np.ascontiguousarray(array).tobytes()]
    return b"".join([*made, struct.pack("<I", case.expected.nbytes)])


def _run_qemu(
    folder: Path, objects: list[Path], symbols: list[str], counts: list[int], data: bytes, target: Target
) -> bytes:
    shared = shares_work(target)
    tail = ["int", "int"] if shared else []
    types = {n: ", ".join(["char *"] * n + tail) for n in sorted(set(counts))}
    calls = []
    for n in types:
        values = ", ".join([*(f"p[{i}]" for i in range(n)), *(["part", "parts"] if shared else [])])
        calls.append(f"    case {n}: ((void (*)({types[n]}))f)({values}); break;")
    text = _MAIN
    for key, value in {
        "DECLARATIONS": "\n".join(f"void {s}(void);" for s in dict.fromkeys(symbols)),
        "TABLE": ", ".join(symbols),
        "CALLS": "\n".join(calls),
        "SENTINEL": str(SENTINEL),
        "PARTS_PARAMETERS": ", int part, int parts" if shared else "",
        "PARTS_VALUES": ", (int)i, (int)parts" if shared else "",
    }.items():
        text = text.replace(f"@{key}@", value)
    (folder / "main.c").write_text(text)
    program = folder / "program"
    _execute([target.linker, "-static", "-O1", "-o", str(program), str(folder / "main.c"), *map(str, objects), "-lm"])
    cpu = ["-cpu", target.qemu_cpu] if target.qemu_cpu else []
    done = subprocess.run([target.qemu, *cpu, str(program)], input=data, capture_output=True, timeout=300)
    assert done.returncode == 0, f"the program for {target.name} ended with {done.returncode}: {done.stderr[-300:]!r}"
    return done.stdout


def _run_node(
    folder: Path, objects: list[Path], symbols: list[str], counts: list[int], data: bytes, target: Target
) -> bytes:
    import json

    program, calls, driver, out = (folder / n for n in ("m.wasm", "calls", "driver.js", "out"))
    exports = [f"--export={s}" for s in dict.fromkeys(symbols)]
    _execute(
        ["wasm-ld", "--no-entry", "--allow-undefined", "--export=__heap_base", *exports, "-o", str(program)]
        + [str(o) for o in objects]
    )
    calls.write_bytes(data)
    driver.write_text(_NODE.replace("@SENTINEL@", str(SENTINEL)))
    shared = "1" if shares_work(target) else "0"
    _execute(["node", str(driver), str(program), str(calls), json.dumps(symbols), shared, str(out)])
    return out.read_bytes()


def _execute(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, timeout=300)
    assert done.returncode == 0, f"{command[0]}: {done.stderr.decode(errors='replace')[-2000:]}"
