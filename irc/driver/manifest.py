"""manifest.json: everything about an artifact that a program may want to know. No times, no paths: two runs on the
same input give the same bytes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import irc
from irc.driver.options import Data, json_safe

if TYPE_CHECKING:
    from irc.driver.compilation import Compilation

FORMAT = 1


def make_manifest(done: Compilation) -> dict[str, Any]:
    """The driver's part; the artifact writer adds the interface, the files, their sizes and hashes."""
    options, report = done.options, done.report
    manifest = {
        "format": FORMAT,
        "irc": irc.__version__,
        "model": _source(done),
        "pipeline": report.pipeline,
        "seed": options.seed,
        "weights": options.weights,
        "shapes": {k: list(v) for k, v in sorted(options.shapes.items())},
        "dims": dict(sorted(options.dims.items())),
        "calibration": data_facts(options.calibration),
        "statistics": data_facts(options.statistics),
        "passes": [p.to_json() for p in report.passes],
        "before": report.before.to_json() if report.before else None,
        "after": report.after.to_json() if report.after else None,
        "verification": report.verification,
        "instructions": report.instructions,
        "accuracy": (report.accuracy | {"data": data_facts(options.evaluation)}) if report.accuracy else None,
        "steps": len(report.steps),
        "notes": report.notes,
    }
    return dict(json_safe(manifest))


def _source(done: Compilation) -> dict[str, Any]:
    source = done.options.model
    if isinstance(source, Path):
        return dict(data_facts(source) or {})
    return {"file": done.original.name, "sha256": None}


def data_facts(path: Data | None) -> dict[str, Any] | None:
    """Name and hash, not the folder: that differs between machines. Arrays in memory have a hash only."""
    if path is None:
        return None
    if not isinstance(path, Path):
        total = hashlib.sha256()
        for name, array in sorted(path.items()):
            total.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return {"file": None, "sha256": total.hexdigest()}
    with path.open("rb") as file:
        return {"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
