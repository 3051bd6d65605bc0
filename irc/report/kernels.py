"""Kernels on a terminal: what was chosen for each, and what tuning made of it (rich)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from rich.table import Table


class Measured(Protocol):
    """A tuning record, as far as reports know it."""

    @property
    def text(self) -> str: ...
    @property
    def choice(self) -> Mapping[str, Any]: ...
    @property
    def analytic(self) -> Mapping[str, Any]: ...
    @property
    def seconds(self) -> float: ...
    @property
    def analytic_seconds(self) -> float: ...


class Summary(Protocol):
    """What a tuning run came to, as far as reports know it."""

    @property
    def records(self) -> Sequence[Measured]: ...
    @property
    def kept(self) -> str: ...
    @property
    def analytic_ms(self) -> float | None: ...
    @property
    def tuned_ms(self) -> float | None: ...
    @property
    def notes(self) -> Sequence[str]: ...


def choice_text(choice: Mapping[str, Any]) -> str:
    """ "1x14x2 rows"."""
    tile = "x".join(map(str, choice.get("tile", ())))
    return f"{tile} {choice['order']}" if "order" in choice else tile


def tuned_table(records: Iterable[Measured]) -> Table:
    """One row for each kernel that was measured."""
    table = Table(box=None, header_style="bold")
    table.add_column("kernel", overflow="fold")
    table.add_column("analytic")
    table.add_column("us", justify="right")
    table.add_column("best")
    table.add_column("us", justify="right")
    table.add_column("gain", justify="right")
    for r in records:
        better = r.choice != r.analytic
        table.add_row(
            r.text,
            choice_text(r.analytic),
            f"{r.analytic_seconds * 1e6:.1f}",
            choice_text(r.choice) if better else "the same",
            f"{r.seconds * 1e6:.1f}" if better else "",
            f"{r.analytic_seconds / r.seconds - 1:.1%}" if better else "",
        )
    return table


def tuned_lines(done: Summary, path: str) -> Iterator[str]:
    """The outcome in words."""
    better = sum(r.choice != r.analytic for r in done.records)
    yield f"{len(done.records)} kernels measured, {better} with a better choice than the analytic one"
    if done.analytic_ms is not None and done.tuned_ms is not None:
        ratio = done.analytic_ms / done.tuned_ms - 1
        yield f"network: {done.analytic_ms:.3f} ms, tuned {done.tuned_ms:.3f} ms ({ratio:+.1%} speed)"
    if done.kept == "none":
        yield "the whole network did not become faster: the analytic choices stay"
    elif done.kept == "strong":
        yield "only the large gains made the whole network faster: the small ones are dropped"
    yield from done.notes
    if done.records:
        yield f"written to {path}; use it with --tuning {path}"
