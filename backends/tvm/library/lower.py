"""Tensor expressions -> one TIR function over raw pointers, its intermediate tensors handed in by the caller."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import s_tir, te, tirx
from tvm.s_tir.stmt import SBlock, SBlockRealize

COSTLY = frozenset(
    "exp log log1p pow tanh erf sqrt sin cos tan sinh cosh asin acos atan isnan reinterpret call_pure_extern".split()  # noqa: SIM905 - one line, not one for each
)
"""Functions that are not computed twice. `isnan` and `reinterpret` stand for the polynomials that use them."""


@dataclass(frozen=True)
class Lowered:
    """A function `name(params..., scratch...)`; `scratch` holds the sizes in bytes of its last parameters."""

    name: str
    function: Any
    scratch: tuple[int, ...]


def lower_tensors(name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> Lowered:
    """The function that computes `outputs` from `inputs` (te tensors; outputs are no placeholders, all different)."""
    function = te.create_prim_func([*inputs, *outputs])
    return lower_function(name, inline(function, protected(outputs)))


def protected(outputs: Sequence[Any]) -> set[str]:
    """Stages that must stay: results, and what a loop nest of its own reads (schedules do not see these reads)."""
    keep = {str(t.op.name) for t in outputs}
    for op in _operations(outputs):
        if isinstance(op, te.ExternOp):
            keep |= {str(t.op.name) for t in op.input_tensors} | {str(op.name)}
    return keep


def _operations(outputs: Sequence[Any]) -> list[Any]:
    seen: dict[Any, None] = {}
    todo = [t.op for t in outputs]
    while todo:
        op = todo.pop()
        if op in seen:
            continue
        seen[op] = None
        todo.extend(t.op for t in op.input_tensors)
    return list(seen)


def inline(function: Any, keep: set[str]) -> Any:
    """Stages that only move or cheaply combine elements are computed where they are read.

    A stage is inlined when it has no reduction and either it is cheap (no transcendental function) or it is read
    once per element. What remains is left as plain loops: LLVM vectorizes the innermost one.
    """
    schedule = s_tir.Schedule(function)
    if str(function.body.block.name_hint) != "root":  # a single loop nest of its own
        return function
    for block in list(schedule.get_child_blocks(schedule.get_sblock("root"))):
        body = schedule.get(block)
        if (
            str(body.name_hint) in keep
            or str(body.name_hint).startswith("keep")
            or any(int(v.iter_type) != 0 for v in body.iter_vars)
        ):
            continue
        if _is_costly(body.body) and not _read_once(schedule, block):
            continue
        try:
            schedule.compute_inline(block)
        except s_tir.ScheduleError:
            continue
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        if str(schedule.get(block).name_hint).startswith("spread"):
            _spread(schedule, block)
        else:
            _split_at_remainders(schedule, block)
    return schedule.mod["main"]


def _split_at_remainders(schedule: Any, block: Any) -> None:
    """Loops over i whose body reads i % n become loops over i / n and i % n, where n divides their extent.

    Not only for speed: LLVM 22 takes `i & 3` for a sequence that never wraps when it vectorizes a loop with such an
    index for AVX-512, and reads beyond (Tile by 4 in 16 was wrong).
    """
    body, loops = schedule.get(block), schedule.get_loops(block)
    if len(loops) != len(body.iter_vars):  # a loop nest of its own
        return
    text = str(body.body)
    for axis, loop in zip(body.iter_vars, loops, strict=True):
        name, extent = re.escape(str(axis.var.name)), int(axis.dom.extent)
        remainders = {int(n) for n in re.findall(rf"\b{name} % (\d+)", text)}
        if int(axis.iter_type) == 0 and len(remainders) == 1 and extent > (n := remainders.pop()) and not extent % n:
            schedule.split(loop, [None, n])


def _spread(schedule: Any, block: Any) -> None:
    """Sums over k of a(i, k) * b(k, j), where neighbouring j lie side by side in memory.

    Where the extents allow it, a tile of a few i and some vectors of j stays in registers while k runs: j is the
    last axis, i the second of a convolution (its output channels), else the one before j. At most 12 registers of
    8 lanes hold sums, so that AVX2 has 4 left. Elsewhere j becomes the innermost loop, for LLVM to vectorize.
    """
    loops = schedule.get_loops(block)
    body = schedule.get(block)
    kinds = [int(v.iter_type) for v in body.iter_vars]
    sums = [loop for loop, kind in zip(loops, kinds, strict=True) if kind != 0]
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 0]
    if not spatial or not sums or int(schedule.get(spatial[-1]).extent) < 4:
        return
    name = str(body.name_hint)
    lanes = next((n for n in (16, 8) if int(schedule.get(spatial[-1]).extent) % n == 0), 0)
    if "reduce" in name or "lanes" in name or len(spatial) < 2 or not lanes:
        schedule.reorder(*spatial[:-1], *sums, spatial[-1])
        schedule.decompose_reduction(block, sums[0])
        return
    rows = 1 if "conv" in name else len(spatial) - 2
    outer, inner = schedule.split(spatial.pop(), [None, lanes])
    few = max(n for n in range(1, 7) if int(schedule.get(spatial[rows]).extent) % n == 0)
    spatial[rows], part = schedule.split(spatial[rows], [None, few])
    schedule.reorder(*spatial, outer, *sums, part, inner)
    schedule.vectorize(inner)
    schedule.unroll(part)
    schedule.decompose_reduction(block, sums[0])


def _is_costly(body: Any) -> bool:
    """Whether the statement calls a transcendental function (looked up in its text: this TVM has no visitor)."""
    return any(name in COSTLY for name in re.findall(r"T\.(\w+)\(", str(body)))


def _read_once(schedule: Any, block: Any) -> bool:
    consumers = schedule.get_consumers(block)
    if len(consumers) != 1:
        return False
    reader, here = schedule.get(consumers[0]), schedule.get(block)
    name = str(here.writes[0]).split("[")[0]
    return _points(reader) <= _points(here) and str(reader.body).count(name + "[") == 1


def _points(block: Any) -> int:
    return int(np.prod([int(v.dom.extent) for v in block.iter_vars], dtype=np.int64))


def lower_function(name: str, function: Any) -> Lowered:
    """A scheduled TIR function with typed buffers -> one over pointers, ready for `emit.object_text`."""
    root = function.body.block
    scratch = list(root.alloc_buffers)
    bare = SBlock(
        root.iter_vars, root.reads, root.writes, root.name_hint, root.body, root.init, [], root.match_buffers,
        root.annotations,
    )  # fmt: skip
    body = SBlockRealize(function.body.iter_values, function.body.predicate, bare)
    hoisted = tirx.PrimFunc([*function.params, *scratch], body).with_attr("tirx.noalias", True).with_attr("s_tir", True)
    module = tvm.ir.transform.Sequential(
        [
            s_tir.transform.CanonicalizeLoop(),
            s_tir.transform.LowerInitBlock(),
            s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
            s_tir.transform.ConvertBlocksToOpaque(),
            s_tir.transform.CompactBufferAllocation(),
            s_tir.transform.LowerMatchBuffer(),
            s_tir.transform.StmtSimplify(),
            s_tir.transform.LowerOpaqueBlock(),
            tirx.transform.FlattenBuffer(),
        ]
    )(tvm.IRModule({name: hoisted.with_attr("global_symbol", name)}))
    plain = _raw_pointers(module[name]).with_attr("global_symbol", name)
    return Lowered(name, plain, tuple(_nbytes(b) for b in scratch))


def _raw_pointers(function: Any) -> Any:
    pointers = [tirx.Var(p.name + "_ptr", tvm.ir.PointerType(p.ty.dtype, "global")) for p in function.params]
    declared = [tirx.DeclBuffer(b, data=p) for b, p in zip(function.params, pointers, strict=True)]
    return tirx.PrimFunc(pointers, tirx.SeqStmt([*declared, function.body])).with_attr("tirx.noalias", True)


def _nbytes(buffer: Any) -> int:
    """Bytes of a buffer's elements (`bool` takes one)."""
    count = int(np.prod([int(d) for d in buffer.shape], dtype=np.int64))
    dtype = str(buffer.dtype)
    return count * (1 if dtype == "bool" else int(tvm.runtime.DataType(dtype).bits) // 8)


@tirx.transform.prim_func_pass(opt_level=0)  # type: ignore[untyped-decorator]  # TVM has no annotations
def _on_cpu(function: Any, module: Any, context: Any) -> Any:
    """LowerTVMBuiltin asks which device it lowers for."""
    zero, cpu = tirx.const(0, "int32"), tirx.const(1, "int32")
    body = tirx.AttrStmt(zero, "device_type", cpu, function.body)
    return function.with_body(tirx.AttrStmt(zero, "device_id", zero, body))


def finish(functions: Sequence[Lowered], target: Any, *, vectors: bool = True) -> Any:
    """The module of all functions, ready for `target.build.llvm`; `vectors` False: one element at a time."""
    module = tvm.IRModule({f.name: f.function.with_attr("target", target) for f in functions})
    return tvm.ir.transform.Sequential(
        [
            tirx.transform.NarrowDataType(32),
            s_tir.transform.LoopPartition(),
            tirx.transform.VectorizeLoop(vectors),
            tirx.transform.StorageRewrite(),
            tirx.transform.UnrollLoop(),
            tirx.transform.StmtSimplify(),
            tirx.transform.RemoveNoOp(),
            s_tir.transform.RewriteUnsafeSelect(),
            tirx.transform.CommonSubexprElim(),
            _on_cpu,
            tirx.transform.LowerTVMBuiltin(),
            tirx.transform.LowerIntrin(),
        ]
    )(module)
