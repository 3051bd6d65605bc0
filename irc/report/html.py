"""The report as one HTML file that needs nothing else: no scripts, no fonts, no network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

from irc.report.model import Report, bytes_text, count_text, plain, verification_lines

_STYLE = """
:root{--ink:#1c2430;--dim:#667085;--line:#e4e7ec;--bar:#3b82f6;--bg:#fff;--bad:#dc2626}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ee;--dim:#98a2b3;--line:#344054;--bar:#60a5fa;--bg:#12161c}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--bg);max-width:64rem;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}p.sub{color:var(--dim);margin:.2rem 0 1.5rem}
.cards{display:flex;flex-wrap:wrap;gap:.75rem}.card{border:1px solid var(--line);border-radius:.6rem;padding:.7rem 1rem}
.card b{display:block;font-size:1.2rem;font-variant-numeric:tabular-nums}.card span{color:var(--dim);font-size:.85rem}
table{border-collapse:collapse;width:100%;font-size:.9rem}th{text-align:left;color:var(--dim);font-weight:500}
th,td{border-bottom:1px solid var(--line);padding:.3rem .6rem .3rem 0;vertical-align:top;overflow-wrap:anywhere}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.bar{background:var(--bar);height:.6rem;border-radius:.2rem;min-width:1px}td.b{width:25%}code{font-size:.9em}
"""


def html(report: Report) -> str:
    """A complete HTML5 document."""
    body = "\n".join(_body(report))
    title = escape(f"{report.model} for {report.target}")
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _body(report: Report) -> Iterator[str]:
    yield f"<h1>{escape(report.name)}</h1>"
    yield f'<p class="sub">{escape(report.model)} for {escape(report.target)}, by irc {escape(report.version)}</p>'
    yield (
        '<div class="cards">'
        + "".join(f"<div class=card><b>{v}</b><span>{k}</span></div>" for k, v in _cards(report))
        + "</div>"
    )
    yield f"<h2>Passes</h2><p><code>{escape(report.pipeline or 'none')}</code></p>"
    if report.passes:
        rows = ([escape(p.text), p.runs, p.changes, escape(plain(p.statistics))] for p in report.passes)
        yield _table(["pass", "runs", "changed", "what it did"], rows, numbers={1, 2})
    yield "<h2>Verification</h2>"
    yield "".join(f"<p>{escape(line)}</p>" for line in verification_lines(report.verification))
    yield from _differences(report)
    yield from _damage(report)
    yield from _steps(report)
    if report.notes:
        yield "<h2>Notes</h2><ul>" + "".join(f"<li>{escape(n)}</li>" for n in report.notes) + "</ul>"


def _cards(report: Report) -> Iterator[tuple[str, str]]:
    if report.before and report.after:
        yield "weights", f"{bytes_text(report.before.bytes)} &rarr; {bytes_text(report.after.bytes)}"
        yield "multiply-adds", f"{count_text(report.before.macs)} &rarr; {count_text(report.after.macs)}"
    for name, size in report.sizes.items():
        yield escape(name), bytes_text(size)
    for name, count in report.instructions.items():
        yield f"instructions a run, {name}", count_text(count)
    if report.accuracy:
        accuracy = report.accuracy
        yield escape(str(accuracy["metric"])), escape(str(accuracy.get("shown", accuracy["score"])))
        if "drop" in accuracy:
            yield "drop in points", f"{accuracy['drop']:.2f}"
        if "agreement" in accuracy:
            yield "agreement with the original", f"{accuracy['agreement']:.2%}"


def _differences(report: Report) -> Iterator[str]:
    rows = [
        [escape(name), escape(d["name"]), d["max_abs"], d["relative"], f"{d['within_one_step']:.2%}", d["snr_db"]]
        for name, found in report.verification.get("against", {}).items()
        for d in found
    ]
    if rows:
        head = ["against", "output", "largest difference", "of the largest output", "within a step", "SNR dB"]
        yield _table(head, rows, numbers={2, 3, 4, 5})


def _damage(report: Report) -> Iterator[str]:
    if not report.damage:
        return
    yield "<h2>Damage by layer</h2>"
    rows = [
        [
            escape(d["name"]),
            d["op_type"],
            d["snr_db"],
            f"{d['share']:.1%}",
            _bar(d["share"], _largest(report.damage, "share")),
        ]
        for d in report.damage
    ]
    yield _table(["layer", "operator", "SNR dB", "share", ""], rows, numbers={2, 3}, bars={4})


def _steps(report: Report) -> Iterator[str]:
    if not report.steps:
        return
    top = max(s.macs for s in report.steps)
    yield f"<h2>Kernel calls ({len(report.steps)})</h2>"
    rows = [[escape(s.label), escape(", ".join(s.nodes)), count_text(s.macs), _bar(s.macs, top)] for s in report.steps]
    yield _table(["kernel", "nodes", "multiply-adds", ""], rows, numbers={2}, bars={3})


def _largest(rows: Sequence[dict[str, Any]], key: str) -> float:
    return max(float(r[key]) for r in rows)


def _bar(value: float, top: float) -> str:
    return f'<div class="bar" style="width:{100 * value / top:.1f}%"></div>' if value and top else ""


def _table(
    head: Sequence[str], rows: Iterable[Sequence[Any]], numbers: Iterable[int] = (), bars: Iterable[int] = ()
) -> str:
    """Cells are HTML already: text from outside is escaped by the caller."""
    kind = {**dict.fromkeys(numbers, ' class="n"'), **dict.fromkeys(bars, ' class="b"')}
    top = "".join(f"<th{kind.get(i, '')}>{h}</th>" for i, h in enumerate(head))
    lines = ("<tr>" + "".join(f"<td{kind.get(i, '')}>{c}</td>" for i, c in enumerate(row)) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>\n" + "\n".join(lines) + "\n</table>"
