"""Where the bytes of a network are: by section of the library, by kind of weight, by layer. Counted, not estimated.

The entropy bound is the order-0 entropy of the symbols of each blob (its bytes, or 4-bit numbers where it is packed of
them); of words (multipliers, biases, tables) that of the first, second, ... bytes of all small blobs of one type, as
one blob alone has too few of them to tell. Coders with other models can be below it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from irc.backends.artifact.coder.models import looks_packed
from irc.backends.artifact.coder.runs import byte_view, counts_of, entropy_bits, halves_of
from irc.backends.artifact.coder.words import POOLED
from irc.backends.artifact.link import Linked
from irc.backends.program import Blob, Program, Step
from irc.ir.types import Array

_DECODED_PER_MS, _TABLES_MS = {"rans": 400_000, "huffman": 200_000}, 0.05
"""Bytes of weights that a core of x86-64 decodes in a millisecond, at least, and about what its tables take."""


@dataclass(frozen=True)
class BlobRow:
    """Bytes of one blob: in memory, in the file, and by its entropy. `elements` of its type, or 4-bit numbers."""

    offset: int
    kind: str
    raw: int
    stored: float
    bound: float
    elements: int
    zeros: int
    distinct: int


def storage(program: Program, obj: Linked, file_bytes: int) -> dict[str, Any]:
    """The "storage" of a manifest. `file_bytes`: of the static library that holds `obj`."""
    rows = blob_rows(program)
    kinds = _kinds(program, rows)
    raw, bound = sum(r.raw for r in rows), sum(r.bound for r in rows)
    stored = sum(row["stored_bytes"] for row in kinds)
    found: dict[str, Any] = {
        "weights": "plain" if program.coded is None else "coded",
        "raw_bytes": raw,
        "stored_bytes": round(stored),
        "entropy_bytes": round(bound),
        "over_entropy": round(stored / bound - 1, 4) if bound else 0.0,
        "kinds": kinds,
        "sections": _sections(program, obj, file_bytes),
        "layers": _layers(program, rows),
    }
    if program.coded is not None:
        coded = program.coded
        found["coding"] = coded.coding
        found["decoder"] = {
            "ram_bytes": coded.out_bytes + coded.scratch_bytes,
            "decoded_bytes": coded.out_bytes,
            "x86_64_ms": round(coded.out_bytes / _DECODED_PER_MS[coded.coding] + _TABLES_MS, 3),
        }
    return found


def blob_rows(program: Program) -> list[BlobRow]:
    """One for each blob, by offset."""
    blobs = sorted((b for b in program.weights if b.data.nbytes), key=lambda b: b.offset)
    kinds = _kind_of_each(program, blobs)
    stored = dict(program.coded.blob_bytes) if program.coded is not None else {}
    rows = []
    for blob, bound in zip(blobs, bounds(blobs), strict=True):
        raw = byte_view(blob.data)
        elements, zeros, distinct = _symbols(blob, raw)
        takes = stored.get(blob.offset, 0.0) if program.coded is not None else float(raw.size)
        rows.append(BlobRow(blob.offset, kinds[blob.offset], raw.size, takes, bound, elements, zeros, distinct))
    return rows


def bounds(blobs: Sequence[Blob]) -> list[float]:
    """Entropy bound of each blob, in bytes."""
    pooled: dict[str, list[Array]] = {}
    for blob in blobs:
        if _is_small(blob):
            pooled.setdefault(str(blob.data.dtype), []).append(byte_view(blob.data).reshape(-1, blob.data.itemsize))
    prices = {}
    for kind, parts in pooled.items():
        columns = np.concatenate(parts)
        prices[kind] = [_price(counts_of(np.ascontiguousarray(c))) for c in columns.T]
    found = []
    for blob in blobs:
        raw = byte_view(blob.data)
        columns = raw.reshape(-1, blob.data.itemsize)
        if _is_small(blob):
            price = prices[str(blob.data.dtype)]
            bits = sum(float(p[columns[:, i]].sum()) for i, p in enumerate(price))
        elif blob.data.itemsize == 1:
            counts = counts_of(raw)
            bits = entropy_bits(halves_of(counts)) if looks_packed(counts) else entropy_bits(counts)
        else:
            bits = sum(entropy_bits(counts_of(np.ascontiguousarray(c))) for c in columns.T)
        found.append(bits / 8)
    return found


def _is_small(blob: Blob) -> bool:
    return blob.data.itemsize > 1 and blob.data.nbytes <= POOLED


def _price(counts: Array) -> Array:
    """Bits of each symbol under its own frequencies; 0 for symbols that do not occur."""
    return np.where(counts > 0, -np.log2(np.maximum(counts, 1) / max(1, int(counts.sum()))), 0.0)


def _symbols(blob: Blob, raw: Array) -> tuple[int, int, int]:
    """How many numbers, zeros and different numbers."""
    if blob.data.itemsize > 1:
        flat = np.ascontiguousarray(blob.data).reshape(-1)
        distinct = np.unique(flat.view(f"u{flat.itemsize}")).size
        return flat.size, int(flat.size - np.count_nonzero(flat)), int(distinct)
    counts = counts_of(raw)
    counts = halves_of(counts) if looks_packed(counts) else counts
    return int(counts.sum()), int(counts[0]), int((counts > 0).sum())


# What the blobs are


def _kind_of_each(program: Program, blobs: Sequence[Blob]) -> dict[int, str]:
    readers = _readers(program, blobs)
    kinds = {}
    for blob in blobs:
        beside = {b.data.dtype.kind + str(b.data.itemsize) for s in readers[blob.offset] for b in _read(s, blobs)}
        kinds[blob.offset] = _kind(blob, integer=bool(beside & {"i1", "u1"}))
    return kinds


def _kind(blob: Blob, *, integer: bool) -> str:
    """`integer`: whether 8-bit constants are read beside it."""
    dtype, name = blob.data.dtype, blob.name
    if name.endswith(("_offsets", "_starts")) or name == "places" or (dtype.kind in "iu" and dtype.itemsize in (2, 8)):
        return "indices"
    if dtype.itemsize == 1:
        return "weights" if name or blob.data.size != 256 else "tables"
    if dtype.kind in "iu" and not name:
        return "biases" if dtype.itemsize == 4 else "indices"
    if not name or name.endswith("_scale"):
        return "multipliers" if integer or name else "biases"
    return "biases" if name == "bias" else "weights"


def _readers(program: Program, blobs: Sequence[Blob]) -> dict[int, list[Step]]:
    """The steps that read each blob, by its offset."""
    offsets = np.array([b.offset for b in blobs])
    found: dict[int, list[Step]] = {b.offset: [] for b in blobs}
    for step in program.steps:
        for arg in step.args:
            if arg.space == "weights" and len(offsets):
                at = int(offsets[max(0, int(np.searchsorted(offsets, arg.offset, side="right")) - 1)])
                if step not in found[at]:
                    found[at].append(step)
    return found


def _read(step: Step, blobs: Sequence[Blob]) -> list[Blob]:
    offsets = {arg.offset for arg in step.args if arg.space == "weights"}
    return [b for b in blobs if b.offset in offsets]


# Sums


def _kinds(program: Program, rows: Sequence[BlobRow]) -> list[dict[str, Any]]:
    """By kind of constant, largest first; then what coding itself takes."""
    found = []
    for kind in ("weights", "multipliers", "biases", "indices", "tables"):
        mine = [r for r in rows if r.kind == kind]
        if mine:
            found.append({"kind": kind, **_sums(mine)})
    for name, size in program.coded.other_bytes if program.coded is not None else ():
        names = {"tables": "frequency tables", "palettes": "codebooks"}
        found.append({"kind": names.get(name, name), "raw_bytes": 0, "stored_bytes": round(size, 1)})
    return found


def _sums(rows: Sequence[BlobRow]) -> dict[str, Any]:
    elements = sum(r.elements for r in rows)
    return {
        "raw_bytes": sum(r.raw for r in rows),
        "stored_bytes": round(sum(r.stored for r in rows), 1),
        "entropy_bytes": round(sum(r.bound for r in rows), 1),
        "elements": elements,
        "zeros": round(sum(r.zeros for r in rows) / elements, 4) if elements else 0.0,
    }


def _sections(program: Program, obj: Linked, file_bytes: int) -> dict[str, int]:
    """Of the static library. "others": headers, symbols, relocations, names."""
    sizes: dict[str, int] = {}
    for section in obj.sections:
        name = "weights" if section.name.startswith(".rodata.") else _SECTIONS.get(section.name, "others")
        sizes[name] = sizes.get(name, 0) + section.size
    sizes["others"] = file_bytes - sum(size for name, size in sizes.items() if name != "others")
    return sizes


_SECTIONS: Mapping[str, str] = {".text": "code", ".rodata": "constants of code", ".data.rel.ro": "descriptions"}


def _layers(program: Program, rows: Sequence[BlobRow]) -> list[dict[str, Any]]:
    """Steps that read constants. What several read counts for the first of them."""
    blobs = [Blob(r.offset, np.zeros(0, np.uint8)) for r in rows]
    readers = _readers(program, blobs)
    by_offset = {r.offset: r for r in rows}
    owner = {offset: id(steps[0]) for offset, steps in readers.items() if steps}
    found = []
    for step in program.steps:
        mine = [by_offset[offset] for offset, who in owner.items() if who == id(step)]
        if not mine:
            continue
        weights = max(mine, key=lambda r: r.raw)
        sums = _sums(mine)
        found.append(
            {
                "kernel": step.label or step.symbol,
                "nodes": list(step.nodes),
                "macs": step.macs,
                "raw_bytes": sums["raw_bytes"],
                "stored_bytes": sums["stored_bytes"],
                "entropy_bytes": sums["entropy_bytes"],
                "weights": weights.elements,
                "zeros": round(weights.zeros / weights.elements, 4),
                "distinct": weights.distinct,
            }
        )
    return found
