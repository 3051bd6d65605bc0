"""The parser takes free layout and refuses everything else with line and column."""

from __future__ import annotations

import numpy as np
import pytest

from irc.errors import ModelError
from irc.ir.parser import parse_model
from irc.ir.printer import print_model
from irc.ir.types import Constant

HEAD = 'irc 1 opset "" 26 graph g(%x: float32[2]) {\n'


def test_layout_and_comments_do_not_matter() -> None:
    text = (
        'irc 1 // the version\nopset "" 26 graph "g" ( %"x":float32[ 2 ] ){%c=constant float32[][1.0]'
        "%y:float32[2]=Add(%x,%c){}@add return %y}"
    )
    model = parse_model(text)
    printed = print_model(model)
    assert printed.splitlines()[-4:] == [
        "  %c = constant float32[] [1.0]",
        "  %y: float32[2] = Add(%x, %c) @add",
        "  return %y",
        "}",
    ]
    assert print_model(parse_model(printed)) == printed


BAD = [
    ("", r"line 1, column 1: cannot read this; expected 'irc'; got 'the end'"),
    ("irc 2", "another version of the text form; expected 1; got 2"),
    ("irc 1 frob", "line 1, column 7: cannot read this; expected opset, metadata"),
    (HEAD + "return %x", "line 2, column 10: cannot read this; expected '}'; got 'the end'"),
    (HEAD + "return %y }", "line 2, column 8: value 'y' is not defined before its use"),
    (HEAD + "return %x } %", "line 2, column 13: text after the model"),
    (HEAD + "%y: float33[2] = Relu(%x) @r return %y }", "line 2, column 5: no such element type; got 'float33'"),
    (HEAD + "%y: float32[2] = Relu(%z) @r return %y }", "column 23: value 'z' is not defined"),
    (HEAD + "%x: float32[2] = Relu(%x) @r return %x }", "a value named 'x' exists already"),
    (HEAD + "%x = constant int64[] [1] return %x }", "a value named 'x' exists already"),
    (HEAD + "%a: ? = Relu(%x) @r %b: ? = Relu(%x) @r return %b }", "two nodes are called 'r'"),
    (HEAD + "%c = constant int64[2] [1] return %c }", "wrong number of elements; expected 2; got 1"),
    (HEAD + "%c = constant int8[1] [1.5, return %c }", "expected an element; got 'return'"),
    (HEAD + "%c = constant int64[N] [1] return %c }", "a constant must be a tensor of a static shape"),
    (HEAD + '%c = constant int64[] ["a"] return %c }', "elements that are not int64"),
    (HEAD + '%c = constant int64[1] x"00" return %c }', "as many bytes as the type has expected; got 1"),
    (HEAD + '%c = constant int64[1] x"000" return %c }', "odd number of hexadecimal digits"),
    (HEAD + "%c = constant int64[99] #sha256:ab return %c }", "no store of constants was given"),
    (HEAD + '%y: ? = Op(%x) {a="\\q"} @n return %y }', "not a JSON string"),
    (HEAD + "%y: ? = Op(%x) {a=type ?} @n return %y }", "cannot hold an unknown type"),
    (HEAD + "%y: ? = If(%x) {a=graph b() { return %x }} @n return %y }", "add an Identity"),
    (HEAD + "$", "line 2, column 1: unreadable character"),
    (HEAD + "%y: seq<?> = Op(%x) @n return %y }", "the element type must be known"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[m[:40] for _, m in BAD])
def test_errors_say_where(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse_model(text)


def test_constants_by_digest_are_asked_for_and_checked() -> None:
    data = Constant.of(np.arange(99))
    text = HEAD + f"%c = constant int64[99] #sha256:{data.digest()} return %c }}"
    read = parse_model(text, {data.digest(): data}.__getitem__)
    assert read.graph.constants["c"].constant is data
    with pytest.raises(ModelError, match="was not found"):
        parse_model(text, {}.__getitem__)
    with pytest.raises(ModelError, match=r"is another; expected int64\[99\]; got int64\[1\]"):
        parse_model(text, lambda digest: Constant.of(np.arange(1)))


def test_integers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match="elements that are not int64"):
        parse_model(HEAD + f"%c = constant int64[1] [{2**70}] return %c }}")
