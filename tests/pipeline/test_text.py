"""The pipeline grammar: both ways, typed options, and errors that help."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest

from irc.errors import OptionError
from irc.ir.graph import Model
from irc.pipeline import PRESETS, Pass, PassContext, PassResult, Pipeline, Repeat
from irc.pipeline import table as table_module
from irc.pipeline.options import pass_text
from irc.pipeline.table import known_passes


@dataclass(frozen=True)
class Everything(Pass):
    """Every kind of option."""

    name: ClassVar[str] = "everything"
    summary: ClassVar[str] = "for tests"

    count: int = 1
    share: float = 0.5
    hard: bool = False
    pattern: Literal["block", "2:4", "free"] = "block"
    label: str = ""
    limit: int | None = None
    threshold: float | str = "auto"
    layers: tuple[str, ...] = ()
    size: tuple[int, int] = (1, 1)
    two_words: int = 0

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count must not be negative")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        return PassResult(False)


@dataclass(frozen=True)
class Needy(Pass):
    """An option without a default."""

    name: ClassVar[str] = "needy"

    rank: int

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        return PassResult(False)


@pytest.fixture(autouse=True)
def more_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(table_module.TABLE, "everything", f"{__name__}:Everything")
    monkeypatch.setitem(table_module.TABLE, "needy", f"{__name__}:Needy")


def _one(text: str) -> Any:
    (found,) = Pipeline.parse(text).passes
    return found


@pytest.mark.parametrize(
    ("text", "option", "value"),
    [
        ("count=-0", "count", 0),
        ("share=1e-3", "share", 1e-3),
        ("share=1", "share", 1.0),
        ("hard=true", "hard", True),
        ("hard", "hard", True),
        ("pattern=2:4", "pattern", "2:4"),
        ("label=a/b.c-d", "label", "a/b.c-d"),
        ('label="with space, \\"quotes\\" and }"', "label", 'with space, "quotes" and }'),
        ("limit=3", "limit", 3),
        ("limit=none", "limit", None),
        ("threshold=0.25", "threshold", 0.25),
        ('threshold="0.25"', "threshold", "0.25"),
        ("threshold=mse", "threshold", "mse"),
        ("layers=a,b", "layers", ("a", "b")),
        ("layers=a", "layers", ("a",)),
        ("layers=()", "layers", ()),
        ("size=2,3", "size", (2, 3)),
        ("two-words=7", "two_words", 7),
        ("two_words=7", "two_words", 7),
    ],
)
def test_values(text: str, option: str, value: Any) -> None:
    found = getattr(_one(f"everything{{{text}}}"), option)
    assert found == value
    assert type(found) is type(value)


def test_only_what_differs_from_the_default_is_printed() -> None:
    assert str(Pipeline.parse("everything{count=1 share=0.25 pattern=free}")) == "everything{share=0.25 pattern=free}"
    assert pass_text(Everything()) == "everything"
    assert pass_text(Everything(two_words=2)) == "everything{two-words=2}"
    assert pass_text(Needy(3)) == "needy{rank=3}"


def test_white_space_does_not_matter() -> None:
    spaced = Pipeline.parse(" everything { count = 2\n share=0.1 } ,\n needy{rank=1}")
    assert str(spaced) == "everything{count=2 share=0.1},needy{rank=1}"


def _random_pass(rng: random.Random) -> Everything:
    """Options from an alphabet that holds every character with a meaning in the grammar."""

    def text() -> str:
        return "".join(rng.choices('ab1-._ ,=*{}()"\\\n\t\u00e9', k=rng.randrange(6)))

    def number() -> float:
        return rng.choice([0.0, -0.0, 1.0, math.inf, 1e-30, rng.random(), rng.gauss(0, 1e20)])

    return Everything(
        count=rng.randrange(10**12),
        share=number(),
        hard=rng.random() < 0.5,
        pattern=rng.choice(["block", "2:4", "free"]),
        label=rng.choice([text(), "none", "true", "1e3", "inf"]),
        limit=rng.choice([None, -3, 10**15]),
        threshold=rng.choice([text(), number(), "1"]),
        layers=tuple(text() for _ in range(rng.randrange(4))),
        size=(rng.randrange(9), -rng.randrange(9)),
    )


@pytest.mark.parametrize("seed", range(200))
def test_round_trip_of_options(seed: int) -> None:
    pipeline = Pipeline([_random_pass(random.Random(seed)), Needy(2)])
    again = Pipeline.parse(str(pipeline))
    assert again == pipeline
    assert str(again) == str(pipeline)


@pytest.mark.parametrize(
    "text", ["", "needy{rank=1}", "(everything,needy{rank=1})*,everything", "((everything)*)*", "()*"]
)
def test_round_trip_of_structure(text: str) -> None:
    assert str(Pipeline.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("everythin", "unknown pass or preset 'everythin'; did you mean 'everything'?"),
        ("everything{shar=1}", "pass 'everything': unknown option 'shar'; did you mean 'share'"),
        ("everything{count=many}", "option 'count' has a bad value; expected an integer; got 'many'"),
        ("everything{count=1.5}", "expected an integer; got '1.5'"),
        ('everything{count="1"}', "expected an integer"),
        ("everything{hard=yes}", "expected true or false; got 'yes'"),
        ("everything{pattern=blok}", "expected one of block, 2:4, free; got 'blok'; did you mean 'block'?"),
        ("everything{size=1}", "got '1'"),
        ("everything{size=1,2,3}", "got '1,2,3'"),
        ("everything{limit=x}", "expected an integer or none"),
        ("everything{count=1 count=2}", "option 'count' is given twice"),
        ("everything{count=-1}", "pass 'everything': count must not be negative"),
        ("needy", "pass 'needy': option 'rank' is required; try needy{rank=...}"),
        ("everything{", "an option name or '}'"),
        ("everything{count=}", "expected a value"),
        ("everything needy", "expected ',' between passes"),
        ("everything,", "expected the name of a pass"),
        ("(everything)", "expected '*'"),
        ("(everything", "expected ')'"),
        ("none{a=1}", "preset 'none' takes no options"),
        ('everything{label="x}', "cannot be read"),
    ],
)
def test_errors_say_what_and_where(text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        Pipeline.parse(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_name_known_passes(preset: str) -> None:
    """(Parsed only as far as their names: building a pass may need packages that a preset does not.)"""
    names = PRESETS[preset].replace("(", "").replace(")*", "").split(",")
    assert {n.partition("{")[0] for n in names} <= set(known_passes())


def test_a_preset_may_stand_among_passes() -> None:
    pipeline = Pipeline.parse("none,everything")
    assert isinstance(pipeline.passes[0], Repeat)
    assert str(pipeline) == f"{PRESETS['none']},everything"
