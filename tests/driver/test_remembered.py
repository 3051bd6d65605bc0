"""What was verified once with the same bits is not verified again; whatever differs is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from irc.driver import remembered
from irc.driver.compile import compile_model
from irc.driver.options import CompileOptions
from irc.errors import VerificationError
from irc.targets import get_target

Compile = Callable[..., dict[str, Any] | None]


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with every verification that really runs."""
    runs: list[str] = []
    real = remembered.verify

    def counted(done: Any, *arguments: Any) -> Any:
        runs.append(done.options.name)
        found = real(done, *arguments)
        done.report.notes.append("a note of the verification")
        return found

    monkeypatch.setattr(remembered, "verify", counted)
    return runs


@pytest.fixture
def compiled(backend: Any, model_file: Path, tmp_path: Path) -> Compile:
    count = itertools.count()

    def run(**options: Any) -> dict[str, Any] | None:
        settings = {"target": get_target("native"), "output": tmp_path / f"out{next(count)}", **options}
        done = compile_model(CompileOptions(model_file, **settings))
        assert "a note of the verification" in done.report.notes
        return done.report.verification

    return run


def test_the_second_time_nothing_runs_and_the_figures_are_the_same(compiled: Compile, verified: list[str]) -> None:
    first = compiled()
    assert first is not None
    assert first["against"]
    assert compiled() == first
    assert len(verified) == 1


@pytest.mark.parametrize("change", [{"seed": 1}, {"name": "other"}, {"threads": 2}, {"dims": {"n": 2}}])
def test_another_question_is_asked_anew(compiled: Compile, verified: list[str], change: dict[str, Any]) -> None:
    compiled()
    compiled(**change)
    assert len(verified) == 2


def test_other_code_is_verified(compiled: Compile, verified: list[str], backend: Any) -> None:
    compiled()
    backend.spoil = "conv1"
    with pytest.raises(VerificationError):
        compiled()
    with pytest.raises(VerificationError):  # failures are not remembered
        compiled()
    assert len(verified) == 3


def test_other_data_and_another_compiler_are_new(
    compiled: Compile, verified: list[str], labelled: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled()
    compiled(calibration=labelled(3))
    assert len(verified) == 2
    monkeypatch.setattr(remembered, "sources_digest", lambda: "other sources")
    compiled()
    assert len(verified) == 3


def test_the_digest_sees_weights_and_kernels() -> None:
    from dataclasses import replace

    from irc.backends.program import Blob, Program

    weights = np.arange(6, dtype=np.int8)
    program = Program("p", get_target("native"), (), (), (), {"k": b"code"}, (Blob(0, weights),), 64, 0)
    others = [
        replace(program, kernels={"k": b"Code"}),
        replace(program, weights=(Blob(0, weights[::-1]),)),
        replace(program, weights=(Blob(0, weights.reshape(2, 3)),)),
        replace(program, workspace_bytes=64),
        replace(program, target=get_target("arm")),
    ]
    digests = [remembered.program_digest(p) for p in (program, *others)]
    assert len(set(digests)) == len(digests)
    assert remembered.program_digest(replace(program, weights=(Blob(0, weights.copy()),))) == digests[0]
