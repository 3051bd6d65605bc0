"""Times of single kernels on a terminal (rich): the rows and totals of `Layers.to_json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from irc.report.model import bytes_text, count_text

_COLUMNS = ("us", "share", "MACs", "GOP/s", "of peak", "weights", "read", "written", "GB/s")


def layers_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line for every kernel. Kernels without multiply-adds have no share of the peak."""
    table = Table(box=None, header_style="bold")
    table.add_column("", justify="right", style="dim")
    table.add_column("kernel", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    table.add_column("bound by")
    for row in rows:
        sizes = (bytes_text(row[k]) if row[k] else "" for k in ("weights_bytes", "read_bytes", "written_bytes"))
        macs = (
            (count_text(row["macs"]), f"{row['gops']:.0f}", f"{row['fraction']:.0%}") if row["macs"] else ("", "", "")
        )
        times = (f"{row['us']:.1f}", f"{row['share']:.1%}")
        table.add_row(str(row["number"]), row["kernel"], *times, *macs, *sizes, f"{row['gb_per_s']:.1f}", row["bound"])
    return table


def layers_totals(found: Mapping[str, Any]) -> Table:
    """Sums, the machine's limits, and how near the multiply-adds came to them."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("kernels", f"{found['kernels_us']:.1f} us, {count_text(found['macs'])} multiply-adds")
    table.add_row("call", f"{found['call_us']:.1f} us from Python, untimed kernels included")
    peaks = ", ".join(f"{name} {rate:.0f} GOP/s" for name, rate in found["peak"].items())
    table.add_row("machine", f"{peaks}, copies {found['copy_gb_per_s']:.1f} GB/s (one core, measured now)")
    if found["weighted_fraction"] is not None:
        each = ", ".join(f"{k} {v:.1%}" for k, v in found["weighted_fraction_by_type"].items())
        table.add_row("of peak", f"{found['weighted_fraction']:.1%} weighted by multiply-adds ({each})")
    if found["note"]:
        table.add_row("note", found["note"])
    return table
