"""Named pipelines. A preset name may stand in a pipeline text wherever a pass may."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from irc.errors import OptionError, suggest

# Lossless clean-up. The order inside one round:
#   canonicalize first, so that every later rule sees one form of each operator;
#   fold-constants next: it turns shape arithmetic into constants, which simplify and the folding passes need;
#   simplify then brings scales and shifts next to the linear operators they follow;
#   fold-batchnorm before fold-affine: what it cannot fold becomes Mul and Add, which fold-affine may move;
#   fuse-functions after both, or a scale inside a decomposed function would hide the weights before it;
#   eliminate-common late: merging earlier gives values second users, and most rules want a sole use;
#   eliminate-dead last removes what all of them left behind.
# A round can enable the next (a folded Reshape target lets two Transposes meet), hence the fixpoint.
CLEAN = (
    "(canonicalize,fold-constants,simplify,fold-batchnorm,fold-affine,fuse-functions,eliminate-common,eliminate-dead)*"
)

PRESETS: dict[str, str] = {
    "none": CLEAN,
    # Integer kernels are what measurably speeds networks up at next to no loss.
    "speed": f"{CLEAN},quantize",
    # Every layer 8 or 4 bits: less to store and to move, and no layer so coarse that it shows.
    "balanced": f"{CLEAN},quantize{{bits=auto drop=0.5}}",
    # Steps of any size, for the entropy coder: it wins more than clustering or low rank do at the same loss.
    "size": f"{CLEAN},quantize{{bits=free}}",
}

SUMMARIES: dict[str, str] = {
    "none": "lossless clean-up only",
    "speed": "8-bit weights and activations (needs calibration data)",
    "balanced": "8-bit activations, weights of 8 or 4 bits, about half a point of loss (needs calibration data)",
    "size": "the smallest library at about one point of loss, weights entropy-coded (needs calibration data)",
}

CODED = frozenset(("size",))
"""Presets whose weights are stored entropy-coded unless --weights says otherwise."""


IO_PASS = "quantize-io"
IO_TYPES = ("int8", "uint8", "float32")


def default_weights(passes: str) -> Literal["plain", "coded"]:
    """How the weights are stored where nobody says how. `passes`: a pipeline text, or the name of a preset."""
    return "coded" if passes.partition(f",{IO_PASS}")[0].strip() in CODED else "plain"


def with_io(passes: str, io: Sequence[str]) -> str:
    """The pipeline text `passes`, and behind it the pass that gives inputs and outputs these types.

    Each of `io` is a type, for all float32 inputs and outputs, or PORT=TYPE, where PORT is the name of one, `inputs` or
    `outputs`. Raises OptionError for what is no type.
    """
    rest: str | None = None
    named: dict[str, list[str]] = {}
    for text in io:
        name, sign, kind = text.rpartition("=")
        if kind not in IO_TYPES or bool(sign) != bool(name):
            raise OptionError(
                f"an input or output cannot be '{kind}'" if kind else "--io wants a type",
                where=f"--io {text}",
                expected=f"{', '.join(IO_TYPES)}, or PORT=TYPE",
                hint=suggest(kind, IO_TYPES),
            )
        if not sign and rest is not None:
            raise OptionError("two types are given for all inputs and outputs", got=f"{rest} and {kind}", where="--io")
        if sign:
            named.setdefault(kind, []).append(name)
        else:
            rest = kind
    if not named and rest in (None, "float32"):
        return passes
    options = [f"type={rest or 'float32'}"] + [f"{k}={','.join(map(json.dumps, named[k]))}" for k in sorted(named)]
    before = f"{passes}," if passes.strip() else ""
    return f"{before}{IO_PASS}{{{' '.join(options)}}}"
