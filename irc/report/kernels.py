"""Kernels on a terminal: what was chosen for each, and what tuning made of it (rich)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from rich.table import Table

from irc.report.model import count_text, shortened


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
    def layers(self) -> int: ...
    @property
    def kept(self) -> str: ...
    @property
    def analytic_ms(self) -> float | None: ...
    @property
    def tuned_ms(self) -> float | None: ...
    @property
    def notes(self) -> Sequence[str]: ...


class Explained(Protocol):
    """A kernel and its choice, as far as reports know it."""

    @property
    def text(self) -> str: ...
    @property
    def nodes(self) -> Sequence[str]: ...
    @property
    def calls(self) -> int: ...
    @property
    def choice(self) -> Mapping[str, Any]: ...
    @property
    def cycles(self) -> float | None: ...
    @property
    def bound(self) -> Mapping[str, float]: ...
    @property
    def others(self) -> Sequence[tuple[Mapping[str, Any], float]]: ...
    @property
    def tuned(self) -> tuple[float, float] | None: ...


def kernels_table(rows: Sequence[Explained]) -> Table:
    """One row for each kernel: its choice, the cycles predicted, what bounds it, what else there was."""
    table = Table(title="kernels", title_justify="left", box=None, header_style="bold")
    table.add_column("kernel", overflow="fold")
    table.add_column("calls", justify="right")
    table.add_column("choice")
    table.add_column("cycles", justify="right")
    table.add_column("bound by", overflow="fold")
    table.add_column("next best", overflow="fold")
    if any(row.tuned for row in rows):
        table.add_column("measured", overflow="fold")
    table.add_column("nodes", overflow="fold")
    for row in rows:
        others = ", ".join(f"{choice_text(c)} {count_text(round(cycles))}" for c, cycles in row.others)
        cells = [
            row.text,
            str(row.calls),
            choice_text(row.choice),
            "" if row.cycles is None else count_text(round(row.cycles)),
            bound_text(row.bound),
            others,
        ]
        if any(r.tuned for r in rows):
            cells.append("" if row.tuned is None else tuned_text(*row.tuned))
        table.add_row(*cells, shortened(row.nodes, 2))
    return table


def bound_text(bound: Mapping[str, float]) -> str:
    """What takes most, and how much of that the next would take: "multiply-adds, loads 57 %"."""
    named = sorted(((cost, name) for name, cost in bound.items() if cost > 0), reverse=True)
    if not named:
        return ""
    most = named[0][0]
    return ", ".join([named[0][1], *(f"{name} {cost / most:.0%}" for cost, name in named[1:3])])


def tuned_text(us: float, analytic_us: float) -> str:
    """ "tuned: 3.1 us instead of 3.6"."""
    if us == analytic_us:
        return f"{us:.1f} us, nothing better found"
    return f"tuned: {us:.1f} us instead of {analytic_us:.1f}"


def choice_text(choice: Mapping[str, Any]) -> str:
    """ "1x14x2 rows"."""
    tiles = ["x".join(map(str, v)) for v in choice.values() if not isinstance(v, str)]
    return " ".join([*tiles, *(v for v in choice.values() if isinstance(v, str))])


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
    if not done.layers:
        yield "no kernel of this model leaves anything to choose"
        return
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
