"""Bytes of an artifact on a terminal (rich): the "storage" of a manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from irc.report.model import bytes_text, count_text, shortened


def storage_tables(storage: Mapping[str, Any], decoding_ms: float | None = None, *, layers: bool) -> Iterator[Table]:
    """By section, by kind of constant and, with `layers`, by layer. `decoding_ms`: measured on this machine."""
    yield _totals(storage, decoding_ms)
    yield _kinds(storage["kinds"])
    if layers:
        yield _layers(storage["layers"])


def _totals(storage: Mapping[str, Any], decoding_ms: float | None) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    sections = (f"{name} {bytes_text(size)}" for name, size in storage["sections"].items())
    table.add_row("library", ", ".join(sections))
    text = f"{storage['weights']}: {bytes_text(storage['raw_bytes'])}"
    if storage["weights"] == "coded":
        text += f" by {storage.get('coding', 'rans')} in {bytes_text(storage['stored_bytes'])}"
    text += f", entropy {bytes_text(storage['entropy_bytes'])} ({storage['over_entropy']:+.2%} over it)"
    table.add_row("stored", text)
    decoder = storage.get("decoder")
    if decoder:
        text = f"{bytes_text(decoder['ram_bytes'])} of RAM, about {decoder['x86_64_ms']:.3g} ms on x86-64"
        if decoding_ms is not None:
            speed = decoder["decoded_bytes"] / 1000 / max(decoding_ms, 1e-6)
            text += f"; {decoding_ms:.3g} ms here ({speed:.0f} MB/s)"
        table.add_row("decoding", text)
    return table


def _kinds(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("constants")
    for name in ("bytes", "stored", "entropy", "over it", "zeros"):
        table.add_column(name, justify="right")
    for row in rows:
        bound = row.get("entropy_bytes")
        table.add_row(
            row["kind"],
            bytes_text(row["raw_bytes"]),
            bytes_text(round(row["stored_bytes"])),
            "" if bound is None else bytes_text(round(bound)),
            f"{row['stored_bytes'] / bound - 1:+.1%}" if bound else "",
            f"{row['zeros']:.0%}" if "zeros" in row else "",
        )
    return table


def _layers(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("layer", overflow="fold")
    table.add_column("kernel", overflow="fold")
    for name in ("multiply-adds", "weights", "distinct", "zeros", "bytes", "stored", "entropy"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            shortened(row["nodes"], 2),
            row["kernel"],
            count_text(row["macs"]),
            count_text(row["weights"]),
            str(row["distinct"]),
            f"{row['zeros']:.0%}",
            bytes_text(row["raw_bytes"]),
            bytes_text(round(row["stored_bytes"])),
            bytes_text(round(row["entropy_bytes"])),
        )
    return table
