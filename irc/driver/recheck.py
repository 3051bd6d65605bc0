"""Verification of an artifact that was written earlier, perhaps elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from irc.driver.options import check_file
from irc.driver.samples import count_feeds, has_quantized_activations, output_steps, verification_feeds
from irc.driver.subject import artifact_model, real_run
from irc.driver.verification import ORIGINAL_SHARE, Reference, Verification, check, measure
from irc.errors import OptionError, VerificationError
from irc.evaluation.oracle import Oracle
from irc.frontend import load_model
from irc.ir.quantization import Ports


def verify_artifact(
    directory: Path, *, original: Path | None = None, data: Path | None = None, seed: int = 0
) -> Verification:
    """Raises VerificationError where a file has changed or results are too far off, OptionError where the artifact is
    none or cannot run here.
    """
    from irc.backends.artifact.manifest import read_manifest
    from irc.backends.artifact.qemu import Emulated, open_artifact
    from irc.calibrate.dataset import Dataset

    check_file(original)
    check_file(data)
    manifest = read_manifest(directory)
    check_hashes(directory, manifest["files"])
    network = open_artifact(directory)
    emulated = isinstance(network, Emulated)
    model = artifact_model(directory)
    ports = Ports.of(model.graph)
    samples = None if data is None else Dataset.load(data, model, ports)
    quantized = has_quantized_activations(model)
    macs = int((manifest.get("after") or {}).get("macs") or 0)
    given = verification_feeds(model, samples, count_feeds(model, macs, quantized=quantized, slow=emulated), seed)
    feeds = [ports.feed(f) for f in given]
    # Layers cannot be looked at one by one any more, so grown roundings have to be let through here.
    exported = Reference("the exported IR", Oracle(model).run, quantized, output_steps(model), share=ORIGINAL_SHARE)
    result = Verification(
        "target",
        network.target.qemu if isinstance(network, Emulated) else "in process",
        samples=len(feeds),
        data="random" if data is None else "given",
    )
    result.quantized = quantized
    found = result.against[exported.name] = measure(network.run, exported, feeds)
    check(found, exported, directory.name, lambda: "unknown (compile again to find it)")
    if original is not None:
        theirs = Reference("the original", Oracle(original).run, quantized, {}, binding=False)
        changed = Ports.between(load_model(original).graph, model.graph)
        real = [changed.real_feed(f) for f in given]
        result.against[theirs.name] = measure(real_run(network.run, changed), theirs, real)
    return result


def check_hashes(directory: Path, files: Mapping[str, Any]) -> None:
    """Raises VerificationError for a file that is missing or has other contents than when it was written."""
    for name, facts in files.items():
        path = directory / name
        if not path.resolve().is_relative_to(directory.resolve()):
            raise OptionError("the manifest names a file outside the artifact", where=name)
        if not path.is_file():
            raise VerificationError("a file of the artifact is missing", where=str(path))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != facts["sha256"]:
            raise VerificationError("a file of the artifact has been changed", where=str(path))
