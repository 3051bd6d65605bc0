"""Specification -> C text of its kernel. Runs in a worker."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx

from irc.backends.c.arrays import array_text
from irc.backends.c.numbers import ctype
from irc.backends.tvm.small import SOURCE_NARROW, WINOGRAD, is_real
from irc.backends.tvm.source.printer import Printer
from irc.backends.tvm.specs import LibrarySpec, SmallConvSpec, SmallDepthwiseSpec, Spec
from irc.targets.target import Target


def kernel_source(spec: Spec, target: Target, symbol: str) -> tuple[str, dict[str, Any]]:
    """Definitions of static functions, the last of which is `symbol`, and facts of them. Raises UnsupportedError."""
    if isinstance(spec, LibrarySpec):
        return _library(spec, symbol)
    from irc.backends.tvm.kernels.table import build
    from irc.backends.tvm.source.depthwise import depthwise_source
    from irc.backends.tvm.source.narrow import NarrowSource
    from irc.backends.tvm.source.real import RealConv, RealDepthwise
    from irc.backends.tvm.source.window import conv_source
    from irc.backends.tvm.source.winograd import WinogradConv

    if isinstance(spec, SmallConvSpec) and spec.way.startswith(WINOGRAD):
        return WinogradConv(symbol, spec, target).build(), {}
    if isinstance(spec, SmallConvSpec) and is_real(spec):
        return RealConv(symbol, spec, target).build(), {}
    if isinstance(spec, SmallDepthwiseSpec) and is_real(spec):
        return RealDepthwise(symbol, spec, target).build(), {}
    if isinstance(spec, SmallConvSpec) and spec.way == SOURCE_NARROW:
        return NarrowSource(symbol, spec, target).build(), {}
    if isinstance(spec, SmallConvSpec):
        return conv_source(symbol, spec, target), {}
    if isinstance(spec, SmallDepthwiseSpec):
        return depthwise_source(symbol, spec, target), {}
    return _built(build(symbol, spec, target), symbol), {}


def _built(function: Any, symbol: str) -> str:
    """A function of `KernelBuilder`: flat buffers, explicit vectors."""
    made = tvm.target.Target("c")
    made = made.with_host(made)
    passes = [tirx.transform.BindTarget(made), tirx.transform.LowerIntrin()]
    module = tvm.ir.transform.Sequential(passes)(tvm.IRModule({symbol: function}))
    return Printer(symbol).function(module[symbol])


def _library(spec: LibrarySpec, symbol: str) -> tuple[str, dict[str, Any]]:
    """`symbol(inputs..., outputs..., scratch)`: calls of tensor expressions, one after the other."""
    from irc.backends.tvm.library.emit import ALIGNMENT, scratch_of
    from irc.backends.tvm.library.lower import finish
    from irc.backends.tvm.library.region import lower_region

    kernel = lower_region(spec.model)
    functions = {c.function.name: c.function for c in kernel.calls}
    made = tvm.target.Target("c")
    made = made.with_host(made)
    module = finish(list(functions.values()), made, vectors=False)
    out = []
    kinds: dict[str, list[str]] = {}
    for i, name in enumerate(functions):
        text = Printer(f"{symbol}_{i}").function(module[name])
        out.append(text)
        kinds[name] = _parameters(text)
    numbers = {name: i for i, name in enumerate(functions)}
    for i, array in enumerate(kernel.constants):
        out.insert(0, array_text(f"{symbol}_c{i}", array))
    parameters = [f"const {ctype(d)} *in{i}" for i, (d, _) in enumerate(kernel.inputs)]
    parameters += [f"{ctype(d)} *out{i}" for i, (d, _) in enumerate(kernel.outputs)]
    body = []
    used = set()
    for call in kernel.calls:
        args = [_operand(symbol, ref) for ref in call.args]
        used |= set(args)
        offset = 0
        wanted = kinds[call.function.name]
        for size in call.function.scratch:
            args.append(f"({wanted[len(args)]})(void *)(scratch + {offset})")
            used.add("scratch")
            offset += -(-size // ALIGNMENT) * ALIGNMENT
        body.append(f"    {symbol}_{numbers[call.function.name]}({', '.join(args)});")
    names = [p.rsplit("*", 1)[1] for p in (*parameters, "uint8_t *scratch")]
    unused = [f"    (void){n};" for n in names if n not in used]
    head = f"static void {symbol}({', '.join([*parameters, 'uint8_t *scratch'])})"
    out.append("\n".join([head, "{", *unused, *body, "}", ""]))
    return "\n".join(out), {"scratch": scratch_of(kernel)}


def _parameters(text: str) -> list[str]:
    """The pointer types that a printed function takes."""
    head = text[text.index("(") + 1 : text.index(")")]
    return [p.rsplit("*", 1)[0].strip() + " *" for p in head.split(",")]


def _operand(symbol: str, ref: Any) -> str:
    if ref.space == "input":
        return f"in{ref.index}"
    return f"out{ref.index}" if ref.space == "output" else f"{symbol}_c{ref.index}"
