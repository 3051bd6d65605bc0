"""Flash and RAM that a network may take: what the user says, or what the target has. Exceeded, nothing is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from irc.backends.program import Program
from irc.driver.options import CompileOptions
from irc.errors import LimitError

if TYPE_CHECKING:
    from irc.backends.artifact.footprint import Footprint

_NAMED = 4  # layers that an error names
_DECODER_BYTES = {"rans": 3000, "huffman": 900}


def ram_limit(options: CompileOptions) -> int | None:
    return options.ram or options.target.ram_bytes or None


def flash_limit(options: CompileOptions) -> int | None:
    return options.flash or options.target.flash_bytes or None


def check_limits(program: Program, options: CompileOptions, cache_dir: Path | None) -> None:
    """Raises LimitError where the finished network does not fit. Of C source only the weights are known to be in flash:
    `limit_notes` says so."""
    ram, flash = ram_limit(options), flash_limit(options)
    if ram is None and flash is None:
        return
    from irc.backends.artifact.footprint import footprint, ram_alone
    from irc.backends.artifact.link import link
    from irc.driver.runners import glue_object

    if program.target.linking == "source":
        found = replace(ram_alone(program), weights=program.weights_bytes)
    else:
        found = footprint(program, link(program, glue_object(program, cache_dir)))
    if ram is not None and found.ram > ram:
        raise _ram_error(program, found, ram)
    if flash is not None and found.flash > flash:
        raise _flash_error(program, found, flash)


def limit_notes(program: Program, options: CompileOptions) -> list[str]:
    """What was left out where limits were kept."""
    if program.target.linking != "source":
        return []
    notes = []
    if ram_limit(options) is not None:
        notes.append("the limit of RAM was held without the stack, which is the C compiler's")
    if flash_limit(options) is not None:
        weights = program.weights_bytes
        notes.append(f"the limit of flash was held for the {weights} bytes of weights alone: code is the C compiler's")
    return notes


def _ram_error(program: Program, found: Footprint, limit: int) -> LimitError:
    parts = [f"workspace {found.workspace}", f"context {found.context}"]
    parts += [f"stack {found.stack}"] if found.stack is not None else []
    parts += [f"decoded weights and threads {found.decoded}"] if found.decoded else []
    peak = sorted(program.statistics.get("peak", ()), key=lambda row: -int(row[1]))[:_NAMED]
    layers = "; ".join(f"{short_name(name)} {size}" for name, size in peak)
    patched = program.statistics.get("patched")
    strips = f"; the first layers run in {patched['strips']} strips already" if patched else ""
    return LimitError(
        f"the network needs more RAM than it may use ({', '.join(parts)}; most of it at one time: {layers or 'none'}"
        f"{strips})",
        where=program.name,
        expected=f"at most {limit} bytes",
        got=f"{found.ram} bytes, {found.ram - limit} too many",
        hint="; or ".join(_ram_hints(program, found, limit)),
    )


def _ram_hints(program: Program, found: Footprint, limit: int) -> list[str]:
    fixed = found.ram - found.workspace - found.decoded
    if fixed >= limit:
        return [f"a higher limit: context and stack alone take {fixed} bytes"]
    hints = []
    if program.coded is not None:
        hints.append(_estimate("--weights plain, which decodes nothing into RAM", found.ram - found.decoded, limit))
    if _bytes_of(program, "float32") > _bytes_of(program, "int8"):
        others = found.ram - found.workspace
        hints.append(_estimate("8 bits for data (--passes quantize)", others + found.workspace // 4, limit))
    elif found.holds_ports:
        real = max((p.nbytes for p in (*program.inputs, *program.outputs) if p.dtype == "float32"), default=0)
        if real:
            hints.append(f"inputs and outputs of 8 bits (--io int8): the largest takes {real} bytes of the workspace")
    share = max(0.0, limit - (found.ram - found.workspace)) / max(found.workspace, 1)
    hints.append(f"fewer channels (prune-channels, about {share:.0%} of them left) or a smaller input (--shape)")
    return hints


def _flash_error(program: Program, found: Footprint, limit: int) -> LimitError:
    code = found.flash - found.weights
    layers = "; ".join(f"{name} {size}" for name, size in _heaviest(program))
    return LimitError(
        f"the network needs more flash than it may use (code {found.code}, its constants "
        f"{found.constants + found.descriptions}, weights {found.weights}; largest: {layers or 'none'})",
        where=program.name,
        expected=f"at most {limit} bytes",
        got=f"{found.flash} bytes, {found.flash - limit} too many",
        hint="; or ".join(_flash_hints(program, found, limit, code)),
    )


def _flash_hints(program: Program, found: Footprint, limit: int, code: int) -> list[str]:
    from irc.backends.artifact.storage import blob_rows

    if code > limit:
        return [f"a network of fewer kinds of layers: its code alone takes {code} bytes"]
    hints = []
    real, bytes_ = _bytes_of(program, "float32"), _bytes_of(program, "int8")
    if real > bytes_:
        hints.append(_estimate("weights of 8 bits (--passes quantize)", found.flash - real * 3 // 4, limit))
    if program.coded is None:
        bound = round(sum(r.bound for r in blob_rows(program)) * 1.02)
        coded = code + bound + _DECODER_BYTES["rans"]
        if coded < found.flash:
            text = f"--weights coded, which takes {found.weights} bytes of RAM for them"
            hints.append(_estimate(text, coded, limit))
        if bytes_ > real:
            small = code + (found.weights - bytes_) + bytes_ // 2 + _DECODER_BYTES["rans"]
            hints.append(_estimate("weights of 4 bits (quantize{weights=int4}) with --weights coded", small, limit))
    share = (limit - code) / max(found.weights, 1)
    hints.append(f"fewer channels: prune-channels with {share:.0%} of the weights left")
    return hints


def short_name(name: str) -> str:
    """Converters join the names of all operators that they merge: the last of them says enough."""
    return name.rsplit(";", 1)[-1][-60:]


def _estimate(what: str, nbytes: int, limit: int) -> str:
    return f"{what}: about {nbytes} bytes{'' if nbytes <= limit else ', still too many'}"


def _bytes_of(program: Program, dtype: str) -> int:
    return sum(b.data.nbytes for b in program.weights if b.data.dtype == np.dtype(dtype))


def _heaviest(program: Program) -> list[tuple[str, int]]:
    """The steps with the most constants, each constant counted for the first that reads it."""
    offsets = {b.offset: b.data.nbytes for b in program.weights}
    found: dict[str, int] = {}
    for step in program.steps:
        mine = sum(offsets.pop(a.offset, 0) for a in step.args if a.space == "weights")
        if mine:
            name = short_name(", ".join(step.nodes[:1])) or step.label or step.symbol
            found[name] = found.get(name, 0) + mine
    return sorted(found.items(), key=lambda row: -row[1])[:_NAMED]
