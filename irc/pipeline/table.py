"""Where each pass lives: name -> "module:Class". Nothing is imported until a pipeline names it.

Third parties add passes through the entry point group `irc.passes` (entry name = pass name, object = the class).
irc's own names win, so that no installed package can change what a pipeline text means.
"""

from __future__ import annotations

import importlib
from importlib import metadata

from irc.errors import OptionError, suggest
from irc.pipeline.contract import Pass

GROUP = "irc.passes"

TABLE: dict[str, str] = {
    "canonicalize": "irc.passes.clean.canonicalize:Canonicalize",
    "fold-constants": "irc.passes.clean.fold_constants:FoldConstants",
    "simplify": "irc.passes.clean.simplify:Simplify",
    "eliminate-common": "irc.passes.clean.eliminate_common:EliminateCommon",
    "eliminate-dead": "irc.passes.clean.eliminate_dead:EliminateDead",
    "fold-batchnorm": "irc.passes.fuse.fold_batchnorm:FoldBatchNorm",
    "fold-affine": "irc.passes.fuse.fold_affine:FoldAffine",
    "fuse-functions": "irc.passes.fuse.fuse_functions:FuseFunctions",
    "prune": "irc.passes.prune.prune:Prune",
    "prune-channels": "irc.passes.prune.channels:PruneChannels",
    "factorize": "irc.passes.factorize.factorize:Factorize",
    "cluster": "irc.passes.cluster.cluster:Cluster",
    "quantize": "irc.passes.quantize.quantize:Quantize",
    "quantize-io": "irc.passes.quantize.quantize_io:QuantizeIO",
}


def entry_points() -> dict[str, metadata.EntryPoint]:
    """Passes of installed third-party distributions, by name."""
    return {e.name: e for e in metadata.entry_points(group=GROUP) if e.name not in TABLE}


def known_passes() -> list[str]:
    """Every pass name, sorted."""
    return sorted({*TABLE, *entry_points()})


def pass_class(name: str) -> type[Pass]:
    """The class of a pass. Raises OptionError for a name nobody provides or a class that cannot be loaded."""
    if name in TABLE:
        module, _, attribute = TABLE[name].partition(":")
        found: type[Pass] = getattr(importlib.import_module(module), attribute)
        return found
    entry = entry_points().get(name)
    if entry is None:
        raise OptionError(f"unknown pass '{name}'", hint=suggest(name, known_passes()))
    return _load(entry)


def _load(entry: metadata.EntryPoint) -> type[Pass]:
    where = f"entry point '{entry.name}' ({entry.value})"
    try:
        found = entry.load()
    except Exception as error:  # whatever a third-party module raises on import
        raise OptionError(
            f"cannot be loaded: {type(error).__name__}: {error}", where=where, hint="reinstalling the package"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise OptionError("is not a pass", where=where, expected="a subclass of irc.pipeline.Pass", got=repr(found))
    if found.name != entry.name:
        raise OptionError("has another name than its class", where=where, expected=found.name, got=entry.name)
    return found
