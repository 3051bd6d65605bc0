"""Text, HTML and JSON from one report."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser

import pytest
from rich.console import Console

from irc.pipeline.contract import Refusal
from irc.report import text
from irc.report.html import html
from irc.report.model import (
    PassSummary,
    Report,
    Size,
    StepRow,
    bytes_text,
    count_text,
    plain,
    shortened,
    verification_lines,
)

DIFFERENCE = {
    "name": "y",
    "elements": 30,
    "max_abs": 1e-6,
    "relative": 2e-7,
    "within_one_step": 1.0,
    "equal": 0.5,
    "snr_db": 120.0,
}
VERIFICATION = {
    "where": "target",
    "how": "in process",
    "samples": 3,
    "data": "random",
    "against": {"onnxruntime on the original": [DIFFERENCE]},
}


@pytest.fixture
def report() -> Report:
    return Report(
        version="1.2",
        model="a<b>.onnx",
        name="a_b",
        target="arm",
        pipeline="none,quantize{weights=int8}",
        before=Size(10, 1000, 4000, 0.0, 2_000_000),
        after=Size(8, 1000, 1000, 0.5, 2_000_000),
        passes=[PassSummary("quantize{weights=int8}", 1, 1, {"quantized": 3, "kept": ["fc"]})],
        steps=[StepRow("conv <3x3>", ("c1", "r1"), 1_500_000, True), StepRow("gemm", ("fc",), 500_000, False)],
        sizes={"weights": 1000, "workspace": 2048},
        verification=VERIFICATION,
        accuracy={"metric": "top1", "score": 0.9, "original": 0.91, "drop": 1.0, "agreement": 0.98, "samples": 100},
        damage=[{"name": "c<1>", "op_type": "Conv", "snr_db": 20.0, "share": 0.75, "passes": ["quantize"]}],
        notes=["input 'x': batch is 1"],
        seconds={"import": 0.1},
    )


def shown(report: Report, width: int = 100) -> str:
    stream = io.StringIO()
    text.show(report, Console(file=stream, width=width, highlight=False), "out-irc")
    return stream.getvalue()


def test_text_has_what_matters(report: Report) -> None:
    found = shown(report)
    for wanted in (
        "a<b>.onnx",
        "arm",
        "4.00 kB -> 1.00 kB".replace(".00", ""),
        "50% zeros",
        "top1 0.9",
        "out-irc",
        "batch is 1",
    ):
        assert wanted in found, wanted


@pytest.mark.parametrize("width", [40, 80, 300])
def test_text_fits_the_terminal(report: Report, width: int) -> None:
    assert max(len(line.rstrip()) for line in shown(report, width).splitlines()) <= width


class _Checker(HTMLParser):
    """Tags must be closed in order; what would be loaded from elsewhere is noted."""

    VOID = ("meta", "br", "img", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not {"src", "href"} & {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_whole_and_alone(report: Report) -> None:
    checker = _Checker()
    document = html(report)
    checker.feed(document)
    assert checker.open == []
    assert "script" not in checker.tags
    assert "url(" not in document
    assert "http" not in document


def test_html_escapes_what_comes_from_outside(report: Report) -> None:
    document = html(report)
    assert "a<b>" not in document
    assert "c<1>" not in document
    assert "conv <3x3>" not in document
    assert "a&lt;b&gt;.onnx" in document


def test_html_and_json_have_no_times(report: Report) -> None:
    before = html(report), json.dumps(report.to_json())
    report.seconds = {"import": 99.0}
    assert (html(report), json.dumps(report.to_json())) == before


def test_html_of_an_empty_report() -> None:
    _Checker().feed(html(Report("1", "m.onnx")))


def test_a_report_with_an_infinite_difference() -> None:
    odd = VERIFICATION | {"against": {"x": [DIFFERENCE | {"relative": "infinite"}]}}
    assert "inf" in " ".join(verification_lines(odd))


def test_unverified_is_said() -> None:
    assert verification_lines({"where": "none", "reason": "refused"}) == ["not verified: refused"]


@pytest.mark.parametrize(
    ("count", "expected"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1536, "1.54 kB"), (250_000_000, "250 MB")]
)
def test_bytes(count: int, expected: str) -> None:
    assert bytes_text(count) == expected


@pytest.mark.parametrize(("count", "expected"), [(None, "?"), (0, "0"), (1_820_000_000, "1.82 G"), (12_345, "12.3 k")])
def test_counts(count: int | None, expected: str) -> None:
    assert count_text(count) == expected


def test_statistics_as_words() -> None:
    assert plain({"folded": 3, "share": 0.25, "names": ["a"], "none": 0}) == "folded 3, share 0.25, names 1"


def test_equal_reasons_stand_together() -> None:
    refusals = [Refusal(f"node 'n{i}' (Conv)", "quantize", "no kernel") for i in range(5)]
    refusals.append(Refusal("node 'last' (Gemm)", "quantize", "another reason"))
    stream = io.StringIO()
    Console(file=stream, width=200).print(text.refusals_table(refusals))
    lines = [" ".join(line.split()) for line in stream.getvalue().splitlines()]
    assert "quantize no kernel 'n0' (Conv), 'n1' (Conv), 'n2' (Conv) and 2 more" in lines
    assert "quantize another reason 'last' (Gemm)" in lines


def test_shortened() -> None:
    assert shortened([]) == ""
    assert shortened(["a", "b", "c"]) == "a, b, c"
    assert shortened(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


def test_agreement_is_said_once() -> None:
    facts = {"metric": "agreement", "shown": "99.00 %", "score": 0.99, "original": 1.0, "drop": 1.0, "agreement": 0.99}
    assert text.accuracy_text(facts | {"samples": 100}) == "agreement 99.00 % with the original (100 samples)"
