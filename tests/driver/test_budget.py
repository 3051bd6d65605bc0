"""The hint of an exceeded budget is a pipeline to paste."""

from __future__ import annotations

from irc.driver.budget import _hint, with_skip
from irc.evaluation.damage import LayerDamage
from irc.pipeline import Pipeline


def row(name: str, share: float) -> LayerDamage:
    return LayerDamage(name, "Conv", name, 20.0, share)


def test_layers_are_added_to_what_is_skipped() -> None:
    pipeline = Pipeline.parse("simplify,quantize{skip=first}")
    changed = with_skip(pipeline, ["conv 2", "first"])
    assert str(changed) == 'simplify,quantize{skip=first,"conv 2"}'
    assert Pipeline.parse(str(changed)) == changed


def test_hint_names_the_layers_that_do_half_of_the_damage() -> None:
    hint = _hint([row("a", 0.3), row("b", 0.1), row("c", 0.4), row("d", 0.2)], Pipeline.parse("quantize"))
    assert hint == "leaving the worst layers alone: --passes 'quantize{skip=c,a}'"


def test_no_layer_can_be_left_alone() -> None:
    assert "milder" in _hint([row("a", 1.0)], Pipeline.parse("simplify"))
    assert "milder" in _hint([], Pipeline.parse("quantize"))
