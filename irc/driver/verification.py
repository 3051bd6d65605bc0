"""Is the compiled result right? Compared with onnxruntime on the exported IR, and on the original model.

What counts as right:
- float outputs: no element further off than TOLERANCE times the largest magnitude of that output (sums in another
  order differ in the last bits of float32; 1e-4 is some 800 units in the last place of the largest element);
- integer outputs of float models (class numbers): equal on 99 % of elements (ties may fall either way);
- outputs of quantized models: 99 % of elements within one quantization step. Where an output is no quantized value,
  a step is the 255th part of its range. A rounding may fall the other way where onnxruntime's float arithmetic and
  the integer arithmetic of a kernel meet a tie, so equality of all elements cannot be asked for. Where outputs are
  further off, every layer must be right on what the compiled layers before it gave (`divergence.amplified`).
The original must be met as well where the pipeline is lossless; otherwise the figures are only reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from irc.errors import IrcError, VerificationError
from irc.evaluation.compare import Difference
from irc.ir.types import Array

TOLERANCE: Mapping[str, float] = {"float64": 1e-4, "float32": 1e-4, "float16": 4e-3, "bfloat16": 3e-2}
"""By output type; the half types have 10 and 7 bits of mantissa, and this is four units in their last place."""
SHARE = 0.99
ORIGINAL_SHARE = 0.9
"""Of a quantized original: clean-up passes reassociate float arithmetic that onnxruntime then rounds, so ties fall
elsewhere and grow. What a wrong pass does is far below this; layers are compared on the exported IR."""

Run = Callable[[dict[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True)
class Reference:
    """Something to compare with. `binding`: whether a difference is an error."""

    name: str
    run: Run
    quantized: bool
    steps: Mapping[str, float]
    binding: bool = True
    share: float = SHARE


@dataclass
class Verification:
    """Figures of one verification. `where`: "target", "host-equivalent" or "none" (then `reason` says why).
    `instructions`: of one run, where the emulator tells."""

    where: str
    detail: str = ""
    reason: str = ""
    samples: int = 0
    data: str = ""
    quantized: bool = False
    against: dict[str, list[Difference]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    instructions: int | None = None

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"where": self.where}
        if self.where == "none":
            return data | {"reason": self.reason}
        figures = {name: [d.to_json() for d in found] for name, found in self.against.items()}
        data |= {"how": self.detail, "samples": self.samples, "data": self.data, "quantized": self.quantized}
        counted = {} if self.instructions is None else {"instructions": self.instructions}
        return data | counted | {"against": figures}


def measure(run: Run, reference: Reference, feeds: Sequence[dict[str, Array]]) -> list[Difference]:
    """Differences of every output over all feeds."""
    found: dict[str, Difference] = {}
    for feed in feeds:
        wanted, got = reference.run(feed), run(feed)
        for name, value in wanted.items():
            if name not in got:
                raise VerificationError(f"the compiled result has no output '{name}'", got=", ".join(got))
            if name not in found:
                found[name] = Difference(name, step=reference.steps.get(name), range_hint=_range(value))
            found[name].add(value, got[name])
    return list(found.values())


def _range(value: Array) -> float:
    """Span of the first sample, the scale for steps of outputs that are no quantized values."""
    if value.dtype.kind not in "fiu" or value.size == 0:
        return 0.0
    return float(value.max()) - float(value.min())


def failure(difference: Difference, reference: Reference) -> tuple[str, str] | None:
    """(expected, got) in words where `difference` is too large, None where it is fine."""
    if difference.broken:
        return "the same NaN, infinities and strings", f"{difference.broken} elements that differ in them"
    if reference.quantized:
        share = difference.share_within_step
        if share >= reference.share:
            return None
        return (
            f"{reference.share:.0%} of elements within one quantization step",
            f"{share:.2%}, largest difference {difference.max_abs:.4g} (a step is {difference.step_size:.4g})",
        )
    if difference.integer:
        share = difference.equal / max(difference.elements, 1)
        return None if share >= SHARE else (f"{SHARE:.0%} of elements equal", f"{share:.2%}")
    limit = TOLERANCE.get(difference.dtype, TOLERANCE["float32"])
    if difference.relative <= limit:
        return None
    return (
        f"at most {limit:g} of the largest output",
        f"{difference.relative:.3g} (largest difference {difference.max_abs:.4g})",
    )


def check(differences: Sequence[Difference], reference: Reference, where: str, find: Callable[[], str]) -> None:
    """Raises VerificationError for the first output that is too far off. `find` says what is at fault."""
    if not reference.binding:
        return
    for difference in differences:
        found = failure(difference, reference)
        if found is None:
            continue
        try:
            culprit = find()
        except IrcError as error:
            culprit = f"what is at fault could not be found: {error}"
        raise VerificationError(
            f"the compiled result differs from {reference.name}; {culprit}",
            where=f"{where}: output '{difference.name}'",
            expected=found[0],
            got=found[1],
        )
