"""IR -> Program: plan, compile the distinct kernels, place memory and weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from irc.backends.program import Arg, Blob, Port, Program, Step
from irc.backends.tvm import specs
from irc.backends.tvm.cache import Cache, Compiled, code_digest
from irc.backends.tvm.cpus import check_machine
from irc.backends.tvm.plan.following import ask_ahead
from irc.backends.tvm.plan.levels import planning_target, versions_of
from irc.backends.tvm.plan.make import Plan, make_plan
from irc.backends.tvm.plan.memory import align, peak, place_plan
from irc.backends.tvm.plan.patches import Patching, patched
from irc.backends.tvm.plan.planner import Call, Pointer
from irc.backends.tvm.plan.waits import waits, worth_sharing, worth_threads
from irc.backends.tvm.specs import LibrarySpec, Spec, key, to_json
from irc.backends.tvm.tune.apply import apply_records, tuned_versions
from irc.backends.tvm.tune.records import Records
from irc.backends.tvm.workers import Compiler, kernel_error
from irc.errors import ShapeError, UnsupportedError
from irc.ir.clone import clone
from irc.ir.graph import Graph, Model, Node, Value
from irc.ir.quantization import Quantization, of_input, of_output
from irc.ir.types import TensorType
from irc.targets.catalogue import levels_of
from irc.targets.target import Target

Progress = Callable[[str, int, int], None]


def _quiet(what: str, done: int, total: int) -> None:
    return None


def default_workers() -> int:
    return max(1, min(os.cpu_count() or 1, 8))


def build_program(
    model: Model,
    target: Target,
    *,
    name: str = "net",
    cache_dir: Path | None = None,
    workers: int | None = None,
    progress: Progress = _quiet,
    compiler: Compiler | None = None,
    tuning: Records | None = None,
    workspace_limit: int | None = None,
) -> Program:
    """Compile `model` (static shapes, cleaned) for `target`, with measured choices where `tuning` has them.

    `cache_dir` None compiles everything anew. `compiler`: running workers for the same target, to be used (with
    their cache) instead of new ones; they go on running. `workspace_limit`: where the plan of a small target needs
    more bytes, its first layers run in strips (`plan/patches.py`). Raises ShapeError for unknown shapes,
    UnsupportedError with every node that has no kernel, InternalError with a reproducer where a kernel cannot be
    compiled.
    """
    check_machine(target)
    check_model(model, target)
    ports = _ports(model.graph)
    progress("plan", 0, 1)
    patching = None
    if workspace_limit is not None and target.small:
        model, patching = _patched(model, target, workspace_limit)
    plan = make_plan(clone(model).graph, planning_target(target))
    tuned = None if tuning is None else apply_records(plan, target, tuning)
    ask_ahead(plan.planner, plan.calls, planning_target(target))
    progress("plan", 1, 1)
    kernels = _kernels(plan, target, tuning)
    with _running(compiler, target, cache_dir, workers or default_workers()) as running:
        compiled = _compile(plan, kernels, running, progress)
    program = _assemble(name, target, ports, plan, kernels, compiled)
    if tuned is not None:
        program.statistics["tuned"] = tuned
    if patching is not None:
        program.statistics["patched"] = {"exit": patching.exit, "strips": patching.strips}
        program.statistics["recomputed_macs"] = patching.recomputed
    return program


def _patched(model: Model, target: Target, limit: int) -> tuple[Model, Patching | None]:
    """The model in a form whose workspace is at most `limit`, as far as that can be had."""

    def workspace(tried: Model) -> int:
        plan = make_plan(clone(tried).graph, planning_target(target))
        return place_plan(plan.calls, plan.planner.storages, target.alignment, small=True).nbytes

    needed = workspace(model)
    return (model, None) if needed <= limit else patched(model, limit, workspace, needed)


@contextmanager
def _running(compiler: Compiler | None, target: Target, cache_dir: Path | None, workers: int) -> Iterator[Compiler]:
    if compiler is not None:
        yield compiler
        return
    with Compiler(target, Cache(cache_dir), workers) as made:
        yield made


def check_model(model: Model, target: Target) -> None:
    """Raises UnsupportedError for operators without a kernel, ShapeError for unknown shapes."""
    _refuse_unsupported(model.graph, target)
    _require_shapes(model, target)


def plan_of(model: Model, target: Target, tuning: Records | None = None) -> Plan:
    """The plan that `build_program` makes. Raises as it does."""
    check_model(model, target)
    plan = make_plan(clone(model).graph, planning_target(target))
    if tuning is not None:
        apply_records(plan, target, tuning)
    return plan


def compile_kernel(spec: Spec, target: Target, symbol: str, *, cache_dir: Path | None = None) -> bytes:
    """The object of one kernel that belongs to no network, compiled in a worker, cached."""
    kernel_key = key(spec, target, code_digest())
    with _running(None, target, cache_dir, 1) as running:
        request = {"kind": "kernel", "spec": to_json(spec), "symbol": symbol}
        done, failed = running.compile({kernel_key: request}, _quiet, lambda k: symbol)
        if failed:
            raise kernel_error(symbol, request, running.target_text, failed[kernel_key])
        return done[kernel_key].data


def assemble_glue(
    text: str, target: Target, *, cache_dir: Path | None = None, compiler: Compiler | None = None
) -> bytes:
    """LLVM IR text -> object, in a worker, cached. `compiler` as for `build_program`."""
    return assembled(text, target, cache_dir=cache_dir, compiler=compiler).data


def assembled(
    text: str, target: Target, *, cache_dir: Path | None = None, compiler: Compiler | None = None
) -> Compiled:
    """As `assemble_glue`. The facts are "stack_bytes" of the deepest public function and "outside", what it calls of
    the C library, where the text is all of a program and irc reads the target's assembly."""
    digest = hashlib.sha256("\n".join(("glue", target.key, code_digest(), text)).encode()).hexdigest()
    with _running(compiler, target, cache_dir, 1) as running:
        request = {"kind": "assemble", "text": text}
        done, failed = running.compile({digest: request}, _quiet, lambda k: "glue")
        if failed:
            raise kernel_error("entry points", request, running.target_text, failed[digest])
        return done[digest]


def _require_shapes(model: Model, target: Target) -> None:
    values = [(f"input '{v.name}'", v) for v in model.graph.inputs]
    values += [(n.label, v) for n in model.graph.nodes for v in n.outputs if v.uses or v.is_output]
    depends = [n for n in model.graph.nodes if all(map(_is_static, n.inputs)) and not all(map(_is_static, n.outputs))]
    _raise_unsupported([(n.label, "the shape of its result depends on data") for n in depends if _is_read(n)], target)
    for where, value in values:
        if _is_static(value):
            continue
        raise ShapeError(
            f"the shape of '{value.name}' is not known",
            where=f"{model.name}: {where}",
            expected="static shapes",
            got=str(value.type),
            hint="--shape INPUT=1x3x224x224 or --dim NAME=VALUE",
        )


def _is_static(value: Value | None) -> bool:
    """Also of what is no tensor, which is refused as such."""
    if value is None or not (value.type is None or isinstance(value.type, TensorType)):
        return True
    return value.type is not None and value.shape is not None and value.shape.is_static


def _is_read(node: Node) -> bool:
    return any(not _is_static(v) and (v.uses or v.is_output) for v in node.outputs)


def _refuse_unsupported(graph: Graph, target: Target) -> None:
    from irc.backends.tvm.plan.unsupported import unsupported_nodes

    _raise_unsupported(unsupported_nodes(graph), target)


def _raise_unsupported(problems: list[tuple[str, str]], target: Target) -> None:
    if problems:
        lines = "".join(f"\n  {label}: {reason}" for label, reason in problems)
        raise UnsupportedError(f"{len(problems)} operator(s) cannot be lowered for target {target.name}:{lines}")


def _ports(graph: Graph) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    def port(value: Value, numbers: Quantization | None) -> Port:
        known = (None, None) if numbers is None else (numbers.scale, numbers.zero_point)
        return Port(value.name, value.tensor.dtype.value, value.static_shape(), *known)

    inputs = tuple(port(v, of_input(v)) for v in graph.inputs)
    return inputs, tuple(port(v, of_output(v)) for v in graph.outputs)


@dataclass(frozen=True)
class _Kernel:
    """A kernel of a call for one level of the target, and its content address."""

    spec: Spec
    target: Target
    key: str


def _kernels(plan: Plan, target: Target, tuning: Records | None) -> list[tuple[_Kernel, ...]]:
    """The kernels of every call: one for each level of `target`, weakest first."""
    code = code_digest()
    known: dict[str, tuple[_Kernel, ...]] = {}
    found = []
    for call in plan.calls:
        text = to_json(call.spec)  # equal specifications may differ in the sign of a zero
        if text not in known:
            versions = versions_of(call.spec, target)
            if tuning is not None and target.upgrades:
                versions = tuned_versions(versions, tuning)
            known[text] = tuple(_Kernel(spec, level, key(spec, level, code)) for spec, level in versions)
        found.append(known[text])
    return found


def _symbol(kernel_key: str) -> str:
    return "irc_k_" + kernel_key[:24]


def _compile(
    plan: Plan, kernels: list[tuple[_Kernel, ...]], compiler: Compiler, progress: Progress
) -> dict[str, Compiled]:
    requests: dict[str, dict[str, Any]] = {}
    labels: dict[str, str] = {}
    for call, versions in zip(plan.calls, kernels, strict=True):
        for kernel in versions:
            if kernel.key in requests:
                continue
            request = {"kind": "kernel", "spec": to_json(kernel.spec), "symbol": _symbol(kernel.key)}
            if kernel.target != compiler.target:
                request["target"] = specs.target_json(kernel.target)
            requests[kernel.key] = request
            labels[kernel.key] = f"{', '.join(call.nodes[:3])} ({call.label})"
    done, failed = compiler.compile(requests, progress, lambda k: labels[k])
    failures = [(k, failed[k]) for k in requests if k in failed]  # in the network's order
    _raise_unsupported(
        [(labels[k], reply["error"]) for k, reply in failures if reply.get("unsupported")], compiler.target
    )
    for kernel_key, reply in failures:
        raise kernel_error(labels[kernel_key], requests[kernel_key], compiler.target_text, reply)
    return done


def _assemble(
    name: str,
    target: Target,
    ports: tuple[tuple[Port, ...], tuple[Port, ...]],
    plan: Plan,
    kernels: list[tuple[_Kernel, ...]],
    compiled: dict[str, Compiled],
) -> Program:
    planner = plan.planner
    calls = [
        _with_scratch(plan, call, [compiled[v.key] for v in versions])
        for call, versions in zip(plan.calls, kernels, strict=True)
    ]
    calls = [replace(call, parallel=target.threads and worth_sharing(call, plan)) for call in calls]
    placed = place_plan(calls, planner.storages, target.alignment, small=target.small)
    workspace = placed.nbytes
    if workspace and planner.target.vector_bytes > 4:
        # Vector loads of a computed second factor may reach one vector beyond its last row.
        workspace += planner.target.vector_bytes
    weights, total = _place_weights(plan, calls, target.alignment)
    steps = []
    for call, versions, wait in zip(calls, kernels, waits(calls, planner.storages), strict=True):
        args = tuple(_arg(plan, pointer) for pointer in call.args)
        symbols = tuple(_symbol(v.key) for v in versions)
        variants = symbols if len(symbols) > 1 else ()
        steps.append(Step(symbols[0], args, call.parallel, call.nodes, call.label, call.macs, wait, variants))
    return Program(
        name,
        target,
        ports[0],
        ports[1],
        tuple(steps),
        {_symbol(v.key): compiled[v.key].data for versions in kernels for v in versions},
        weights,
        total,
        align(workspace, target.alignment),
        target.alignment,
        {
            "workspace_lower_bound": placed.bound,
            "peak": peak(calls, planner.storages, ports=target.small),
            "kernels": len(compiled),
            "calls": len(calls),
            "macs": sum(c.macs for c in calls),
        },
        levels=levels_of(target) if target.upgrades else (),
        worth_threads=worth_threads(calls, plan),
        input_places=placed.inputs,
        output_places=placed.outputs,
        instructions=run_instructions([compiled[versions[-1].key].info.get("instructions") for versions in kernels]),
    )


_CALL = 20
"""Instructions that the entry function takes for one call of a kernel: its arguments, and what a call saves."""


def run_instructions(calls: Sequence[int | None]) -> int | None:
    """Of a run, from those of its calls (with the kernels of the strongest level); None where one is not known."""
    known = [count for count in calls if count is not None]
    return sum(known) + _CALL * len(known) if len(known) == len(calls) else None


def _with_scratch(plan: Plan, call: Call, versions: list[Compiled]) -> Call:
    """Library kernels get their scratch as the last pointer and are not shared out."""
    if not isinstance(call.spec, LibrarySpec):
        return call
    number = plan.planner.new_storage("uint8", max(1, *(int(c.info.get("scratch", 0)) for c in versions)))
    args = (*call.args, Pointer(number, 0))
    return Call(call.spec, args, (*call.writes, number), call.label, call.nodes, call.macs, parallel=False)


def _place_weights(plan: Plan, calls: list[Call], alignment: int) -> tuple[tuple[Blob, ...], int]:
    used = {pointer.storage for call in calls for pointer in call.args}
    blobs, offset = [], 0
    for number, data, name in plan.constants:
        if number not in used:
            continue
        plan.planner.storages[number].offset = offset
        blobs.append(Blob(offset, data, name))
        offset = align(offset + data.nbytes, alignment)
    return tuple(blobs), offset


def _arg(plan: Plan, pointer: Pointer) -> Arg:
    storage = plan.planner.storages[pointer.storage]
    if storage.kind in ("input", "output"):
        return Arg(storage.kind, pointer.offset, storage.port)
    return Arg(storage.kind, storage.offset + pointer.offset)
