"""Verifications that were done before on this machine, with the same bits everywhere, are not done again.

What a verification finds is determined by the program, the model that it is compared with, the inputs, and the code
that compares. All of them are hashed; the figures lie in the kernel cache beside the kernels. Only what passed is kept.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import irc
from irc.backends.program import Program
from irc.driver.checks import Twin, verify
from irc.driver.compilation import Compilation
from irc.driver.lower import cache_folder
from irc.driver.manifest import data_facts
from irc.targets import runs_here
from irc.targets.catalogue import host_features

_LARGE = 1 << 29
"""Bytes of weights above which a second copy of the model in memory is too much."""
_SOURCES = ("driver", "evaluation", "export", "ir", "frontend", "backends")


def verification(done: Compilation, twin: Twin, data: Any) -> dict[str, Any]:
    """`verify(...).to_json()`, from the cache where it can be. Notes of the verification join the report's."""
    from irc.backends.tvm.cache import Cache, Compiled

    cache, key = Cache(cache_folder(done.options)), _key(done)
    known = cache.get(key) if key is not None else None
    if known is not None:
        figures, notes = json.loads(known.data)
        done.report.notes.extend(notes)
        return dict(figures)
    before = len(done.report.notes)
    found = verify(done, twin, data).to_json()
    if key is not None:
        cache.put(key, Compiled(json.dumps([found, done.report.notes[before:]]).encode()))
    return found


def _key(done: Compilation) -> str | None:
    """None where the verification depends on more than can be hashed here (emulators, external weights), and for very
    large models."""
    from irc.export import to_bytes

    options, program = done.options, done.program
    if program is None or not isinstance(options.model, Path) or not runs_here(options.target):
        return None
    if done.report.before is None or options.model.stat().st_size < done.report.before.bytes:
        return None  # some of its weights lie in other files
    total = hashlib.sha256()
    facts = {
        "irc": irc.__version__,
        "sources": sources_digest(),
        "versions": [importlib.metadata.version(name) for name in ("onnxruntime", "numpy", "onnx")],
        "machine": sorted(host_features()),
        "model": data_facts(options.model),
        "data": data_facts(options.calibration),
        "passes": done.report.pipeline,
        "shapes": sorted((name, tuple(shape)) for name, shape in options.shapes.items()),
        "dims": sorted(options.dims.items()),
        "seed": options.seed,
        "threads": options.threads,
    }
    total.update(repr(facts).encode())
    if done.report.after is None or done.report.after.bytes > _LARGE:
        return None
    done.exported = to_bytes(done.model)
    total.update(hashlib.sha256(done.exported).digest())
    total.update(program_digest(program))
    return total.hexdigest()


def program_digest(program: Program) -> bytes:
    """A hash of everything that a library of `program` would do."""
    total = hashlib.sha256()
    levels = [asdict(level) for level in program.levels]
    ports = (program.inputs, program.outputs)
    sizes = (program.weights_bytes, program.workspace_bytes, program.alignment, program.threads)
    total.update(repr((program.name, asdict(program.target), levels, ports, sizes, program.steps)).encode())
    for symbol, data in sorted(program.kernels.items()):
        total.update(symbol.encode() + b"\0" + hashlib.sha256(data).digest())
    if program.coded is not None:
        total.update(program.coded.data)
    for blob in program.weights:
        array = np.ascontiguousarray(blob.data)
        total.update(f"{blob.offset} {array.dtype} {array.shape}".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.digest()


def sources_digest() -> str:
    """A hash of the code that compiles, runs and compares."""
    total = hashlib.sha256()
    for name in _SOURCES:
        folder = Path(importlib.import_module(f"irc.{name}").__path__[0])
        for path in sorted(folder.rglob("*.py")):
            total.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()
