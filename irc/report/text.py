"""The report on a terminal (rich)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from irc.evaluation.cost import Costs
from irc.evaluation.kinds import KindCost
from irc.evaluation.latency import Latency
from irc.pipeline.contract import Refusal
from irc.report.model import (
    Report,
    Size,
    StepRow,
    bytes_text,
    count_text,
    instruction_lines,
    plain,
    shortened,
    verification_lines,
)

WORST = 20
"""Layers shown of a damage table; the report file has them all."""


def show(report: Report, console: Console, directory: str = "") -> None:
    """The summary of a compilation."""
    for part in _parts(report, directory):
        console.print(part, soft_wrap=isinstance(part, Text))


def _parts(report: Report, directory: str) -> Iterator[RenderableType]:
    yield Text.assemble((report.model, "bold"), " for ", (report.target, "bold"))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    if report.before and report.after:
        table.add_row("weights", _change(report.before, report.after))
        table.add_row("multiply-adds", f"{count_text(report.before.macs)} -> {count_text(report.after.macs)}")
    table.add_row("passes", report.pipeline or "none")
    if report.sizes:
        table.add_row("sizes", ", ".join(f"{name} {bytes_text(n)}" for name, n in report.sizes.items()))
    if report.interface.get("threads", 1) > 1:
        table.add_row("threads", f"a pool of {report.interface['threads']}")
    for i, line in enumerate(instruction_lines(report.instructions)):
        table.add_row("instructions" if i == 0 else "", line)
    for i, line in enumerate(verification_lines(report.verification)):
        table.add_row("verified" if i == 0 else "", line)
    if report.accuracy:
        table.add_row("accuracy", accuracy_text(report.accuracy))
    for i, note in enumerate(report.notes):
        table.add_row("notes" if i == 0 else "", note)
    if report.seconds:
        table.add_row("seconds", ", ".join(f"{name} {value:.1f}" for name, value in report.seconds.items()))
    if directory:
        table.add_row("written", directory)
    yield table


def _change(before: Size, after: Size) -> str:
    text = f"{bytes_text(before.bytes)} -> {bytes_text(after.bytes)}"
    if after.sparsity > 0.05:
        text += f", {after.sparsity:.0%} zeros"
    return text


def accuracy_text(accuracy: Mapping[str, Any]) -> str:
    """One line: the score, the original's, the drop and the agreement."""
    text = f"{accuracy['metric']} {accuracy.get('shown', accuracy['score'])}"
    if accuracy["metric"] == "agreement":
        return f"{text} with the original ({accuracy['samples']} samples)"
    if "original" in accuracy:
        text += f", original {accuracy.get('shown_original', accuracy['original'])}, drop {accuracy['drop']:.2f}"
    if "agreement" in accuracy:
        text += f", agreement {100 * accuracy['agreement']:.2f} %"
    return f"{text} ({accuracy['samples']} samples)"


def damage_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The layers that cost most accuracy, worst first."""
    table = Table(title="damage by layer", title_justify="left", box=None, header_style="bold")
    table.add_column("layer", overflow="fold")
    table.add_column("operator")
    table.add_column("SNR dB", justify="right")
    table.add_column("share", justify="right")
    table.add_column("passes", overflow="fold")
    for row in sorted(rows, key=lambda r: -float(r["share"]))[:WORST]:
        table.add_row(
            row["name"], row["op_type"], f"{row['snr_db']:.1f}", f"{row['share']:.1%}", ", ".join(row["passes"])
        )
    return table


def passes_table(report: Report) -> Table:
    """What each pass did."""
    table = Table(box=None, header_style="bold")
    table.add_column("pass", overflow="fold")
    table.add_column("runs", justify="right")
    table.add_column("changed", justify="right")
    table.add_column("what it did", overflow="fold")
    for p in report.passes:
        table.add_row(p.text, str(p.runs), str(p.changes), plain(p.statistics))
    return table


def steps_table(steps: Sequence[StepRow]) -> Table:
    """The kernel calls of a program."""
    table = Table(box=None, header_style="bold")
    table.add_column("kernel", overflow="fold")
    table.add_column("nodes", overflow="fold")
    table.add_column("multiply-adds", justify="right")
    for step in steps:
        table.add_row(step.label, ", ".join(step.nodes), count_text(step.macs))
    return table


def costs_tables(costs: Costs, *, layers: bool = True) -> Iterator[RenderableType]:
    """Operators, totals and layers of a model."""
    summary = Table.grid(padding=(0, 2))
    summary.add_column(style="dim", no_wrap=True)
    summary.add_column(overflow="fold")
    for name, kind in costs.inputs.items():
        summary.add_row("input", f"{name}: {kind}")
    for name, kind in costs.outputs.items():
        summary.add_row("output", f"{name}: {kind}")
    summary.add_row(
        "parameters", f"{count_text(costs.parameters)}, {bytes_text(costs.bytes)}, {costs.sparsity:.1%} zeros"
    )
    summary.add_row("multiply-adds", count_text(costs.macs))
    summary.add_row("operators", ", ".join(f"{name} {n}" for name, n in costs.operators.items()))
    yield summary
    if not layers:
        return
    table = Table(box=None, header_style="bold")
    for name in ("layer", "operator", "output"):
        table.add_column(name, overflow="fold")
    for name in ("parameters", "bytes", "zeros", "multiply-adds"):
        table.add_column(name, justify="right")
    for layer in costs.layers:
        table.add_row(
            layer.name,
            layer.op_type,
            layer.output,
            count_text(layer.parameters),
            bytes_text(layer.bytes),
            f"{layer.sparsity:.0%}",
            count_text(layer.macs),
        )
    yield table


def kinds_table(before: Sequence[KindCost], after: Sequence[KindCost]) -> Table:
    """What the weights of each kind of layer took and take."""
    table = Table(box=None, header_style="bold")
    table.add_column("layers", overflow="fold")
    for name in ("number", "bytes", "zeros", "multiply-adds"):
        table.add_column(name, justify="right")
    old, new = ({k.kind: k for k in rows} for rows in (before, after))
    for kind in dict.fromkeys((*old, *new)):
        pair = old.get(kind, KindCost(kind)), new.get(kind, KindCost(kind))
        table.add_row(
            kind,
            _pair(*(str(k.layers) for k in pair)),
            _pair(*(bytes_text(k.bytes) for k in pair)),
            _pair(*(f"{k.sparsity:.0%}" for k in pair)),
            _pair(*(count_text(k.macs) for k in pair)),
        )
    return table


def _pair(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def refusals_table(refusals: Sequence[Refusal]) -> Table:
    """What was left alone, and why; nodes with the same reason together."""
    alike: dict[tuple[str, str], list[str]] = {}
    for refusal in refusals:
        alike.setdefault((refusal.rule, refusal.reason), []).append(refusal.node.removeprefix("node "))
    table = Table(title="left alone", title_justify="left", box=None, header_style="bold")
    for name in ("rule", "reason", "nodes"):
        table.add_column(name, overflow="fold", justify="left")
    for (rule, reason), nodes in alike.items():
        table.add_row(rule, reason, shortened(nodes))
    return table


def latency_table(rows: Sequence[Latency]) -> Table:
    """Medians with their spread, and how many times irc's median each is."""
    table = Table(box=None, header_style="bold")
    table.add_column("runtime")
    for name in ("median ms", "10 % .. 90 %", "best", "runs", "times irc"):
        table.add_column(name, justify="right")
    for row in rows:
        spread = f"{row.low:.3f} .. {row.high:.3f}"
        ratio = f"{row.median / rows[0].median:.2f}"
        table.add_row(row.name, f"{row.median:.3f}", spread, f"{row.best:.3f}", str(row.runs), ratio)
    return table


def manifest_table(manifest: Mapping[str, Any], here: Sequence[str] = ()) -> Table:
    """An artifact in short; its manifest.json has the rest. `here`: its levels that this machine runs, best last."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, lines in _manifest_lines(manifest, here):
        for i, line in enumerate(lines):
            table.add_row(name if i == 0 else "", line)
    return table


def _manifest_lines(manifest: Mapping[str, Any], here: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    interface, target = manifest["interface"], manifest["target"]
    yield "name", [manifest["name"]]
    yield "model", [str(manifest.get("model", {}).get("file", "?"))]
    yield "target", [", ".join(filter(None, [target["name"], target["triple"], target["cpu"], *target["features"]]))]
    yield "levels", _level_lines(target, here)
    yield "inputs", [_port(p) for p in interface["inputs"]]
    yield "outputs", [_port(p) for p in interface["outputs"]]
    weights, workspace = (bytes_text(interface[k]) for k in ("weights_bytes", "workspace_bytes"))
    yield "memory", _memory_lines(manifest) or [f"weights {weights}, workspace {workspace}"]
    yield "threads", [f"a pool of {interface['threads']}"] if interface.get("threads", 1) > 1 else []
    yield "pipeline", [manifest.get("pipeline") or "none"]
    yield "instructions", instruction_lines(manifest.get("instructions") or {})
    yield "verified", verification_lines(manifest.get("verification") or {})
    yield "accuracy", [accuracy_text(manifest["accuracy"])] if manifest.get("accuracy") else []
    yield "notes", list(manifest.get("notes", []))
    yield "files", [f"{name}, {bytes_text(facts['bytes'])}" for name, facts in manifest["files"].items()]


def _memory_lines(manifest: Mapping[str, Any]) -> list[str]:
    """Flash and RAM in bytes, part by part, where the manifest has them."""
    memory = manifest.get("memory")
    if not memory:
        return []
    flash, ram = memory["flash"], memory["ram"]
    parts = ", ".join(f"{name} {size}" for name, size in flash.items() if name != "total" and size)
    lines = [f"flash {bytes_text(flash['total'])}: {parts}"]
    names = {"init_ram": "NAME_init", "workspace": "workspace"}
    sizes = {k: v for k, v in ram.items() if k not in ("total", "holds_inputs_and_outputs")}
    parts = ", ".join(f"{names.get(k, k)} {'not known' if v is None else v}" for k, v in sizes.items() if v != 0)
    inside = ", inputs and outputs in it" if ram["holds_inputs_and_outputs"] else ""
    lines.append(f"RAM {bytes_text(ram['total'])}: {parts or 'none'}{inside}")
    bound = memory.get("workspace_lower_bound")
    if bound and bound < ram["workspace"]:
        lines.append(f"no order in memory needs less than {bound} bytes of workspace")
    return lines


def _level_lines(target: Mapping[str, Any], here: Sequence[str]) -> list[str]:
    """Targets that a library holds kernels for, where there are several."""
    notes = dict.fromkeys(here, "runs here") | dict.fromkeys(here[-1:], "taken here")
    return [f"{level['name']} ({notes.get(level['name'], 'not here')})" for level in target.get("levels", ())]


def _port(port: Mapping[str, Any]) -> str:
    text = f"{port['name']}: {port['dtype']}{port['shape']}"
    return text + (f", scale {port['scale']:.6g}, zero point {port['zero_point']}" if "scale" in port else "")
