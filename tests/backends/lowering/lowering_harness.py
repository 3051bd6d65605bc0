"""Models through the whole lowering into this process: plan, compile, link, load, run."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np

from irc.backends.artifact.glue import glue_ll
from irc.backends.artifact.link import link
from irc.backends.artifact.load import Network, load_program
from irc.backends.artifact.qemu import Emulated
from irc.backends.program import Program
from irc.backends.tvm.build import assemble_glue, build_program
from irc.backends.tvm.cache import Cache
from irc.backends.tvm.workers import Compiler
from irc.ir.graph import Model
from irc.targets.catalogue import get_target


class Lowering:
    """One pool of compiling processes and one cache for many models."""

    def __init__(self, target: str, cache: Path | None, workers: int = 2) -> None:
        self.target = get_target(target)
        self.compiler = Compiler(self.target, Cache(cache), workers)

    def __enter__(self) -> Lowering:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.compiler.__exit__(kind, error, trace)

    def build(self, model: Model) -> tuple[Program, bytes]:
        """(program, object of its entry points)."""
        program = build_program(model, self.target, compiler=self.compiler)
        return program, assemble_glue(glue_ll(program), self.target, compiler=self.compiler)

    def run(self, model: Model, feeds: list[np.ndarray]) -> list[np.ndarray]:
        """Outputs of the compiled model, in this process or emulated. The inputs must come out as they went in."""
        program, glue = self.build(model)
        copies = {p.name: np.array(f) for p, f in zip(program.inputs, feeds, strict=True)}
        with self._open(program, glue) as network:
            results = network.run(copies)
        for before, after in zip(feeds, copies.values(), strict=True):
            assert before.tobytes() == after.tobytes(), "the network wrote to its input"
        return [results[p.name] for p in program.outputs]

    def _open(self, program: Program, glue: bytes) -> Network | Emulated:
        return Emulated(program, link(program, glue)) if self.target.qemu else load_program(program, glue)


FLOAT_TOLERANCE = 1e-4
"""Of the largest output: sums of up to a few thousand products in another order, through a chain of operators."""


def float_difference(got: np.ndarray, wanted: np.ndarray) -> str:
    """ "" where a float model's output is right, otherwise what is wrong. Integers have to be equal."""
    problem = _kind_difference(got, wanted)
    if problem or not wanted.size:
        return problem
    if wanted.dtype.kind != "f":
        return "" if np.array_equal(got, wanted) else f"{np.mean(got != wanted):.1%} of the elements differ"
    finite = np.isfinite(wanted)
    got, wanted = got[finite], wanted[finite]
    error = np.abs(got.astype(np.float64) - wanted).max(initial=0) / max(np.abs(wanted).max(initial=0), 1e-3)
    return "" if error < FLOAT_TOLERANCE else f"differs by {error:.1e} of the largest"


def quantized_difference(got: np.ndarray, wanted: np.ndarray) -> str:
    """The same for quantized models.

    A value that lies on the middle between two steps may fall to either side (x * (1 / scale) here, x / scale there),
    and what is computed of it differs with it: a step, of few elements (a few more where a float output sums them).
    A bias rounded to an accumulator's steps moves floats by less than 4e-3 of the largest.
    """
    problem = _kind_difference(got, wanted)
    if problem or not wanted.size:
        return problem
    error = np.abs(got.astype(np.float64) - wanted)
    if np.isnan(error).any():
        return "NaN"
    real = wanted.dtype.kind == "f"
    unit = 4e-3 * float(max(np.abs(wanted).max(), 1e-3)) if real else 1.0
    limit, off = (max(12 * unit, 0.05), error > unit) if real else (unit, error > 0)
    if error.max() > limit or off.sum() > max(4, (0.1 if real else 0.02) * wanted.size):
        return f"differs by up to {error.max() / unit:.1f} units, {off.mean():.1%} of the elements"
    return ""


def _kind_difference(got: np.ndarray, wanted: np.ndarray) -> str:
    if (got.dtype, got.shape) != (wanted.dtype, wanted.shape):
        return f"is {got.dtype}{list(got.shape)}, not {wanted.dtype}{list(wanted.shape)}"
    if wanted.dtype.kind == "f" and not _same_specials(got, wanted):
        return "other places are infinite or NaN"
    return ""


def _same_specials(got: np.ndarray, wanted: np.ndarray) -> bool:
    there = ~np.isfinite(wanted)
    places = np.array_equal(there, ~np.isfinite(got))
    return places and np.array_equal(got[there], wanted[there], equal_nan=True)
