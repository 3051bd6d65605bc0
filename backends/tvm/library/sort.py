"""TopK, running sums and products: loop nests along one axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from irc.backends.tvm.library.elementwise import Definition
from irc.backends.tvm.library.gather import loops
from irc.backends.tvm.library.op import Expr, Op, Tensor, axis_of, cast, const, dtype_of, sequential, shape_of


def top_k(op: Op) -> list[Tensor]:
    """The k largest (or smallest), sorted; of equals the first comes first. Insertion into a list of k."""
    from tvm.script.ir_builder import tirx as T

    x = op.tensor(0)
    shape, dtype = shape_of(x), dtype_of(x)
    k = int(op.array(1, "k").reshape(-1)[0]) if op.since >= 10 else op.attr("k")
    axis = axis_of(op.attr("axis", -1), len(shape))
    largest = bool(op.attr("largest", 1))
    result = [k if a == axis else d for a, d in enumerate(shape)]

    def body(ins: list[Any], outs: list[Any]) -> None:
        data, (values, indices, place) = ins[0], outs

        def row(i: list[Expr]) -> None:
            def at(p: Expr) -> Any:
                full = [*i[:axis], p, *i[axis:]][: len(shape)]
                return tuple(full) if len(full) > 1 else full[0]

            with T.serial(0, shape[axis]) as n:
                new = data[at(n)]
                filled = tirx.min(n, k)
                place[0] = filled
                with T.serial(0, filled) as j:  # from the last of the list to the first
                    p = filled - 1 - j
                    old = values[at(p)]
                    with T.If(new > old if largest else new < old), T.Then():
                        with T.If(p + 1 < k), T.Then():
                            values[at(p + 1)] = values[at(p)]
                            indices[at(p + 1)] = indices[at(p)]
                        place[0] = p
                with T.If(place[0] < k), T.Then():
                    values[at(place[0])] = data[at(n)]
                    indices[at(place[0])] = cast(n, "int64")

        loops([d for a, d in enumerate(shape) if a != axis], row)

    made = sequential([result, result, (1,)], [dtype, "int64", "int32"], [x], body, op.kind)
    return made[:2]


def scan(combine: Callable[[Expr, Expr], Expr], identity: int) -> Definition:
    def definition(op: Op) -> list[Tensor]:
        from tvm.script.ir_builder import tirx as T

        x = op.tensor(0)
        shape, dtype = shape_of(x), dtype_of(x)
        axis = axis_of(int(op.array(1, "axis").reshape(-1)[0]), len(shape))
        exclusive, reverse = bool(op.attr("exclusive", 0)), bool(op.attr("reverse", 0))
        extent = shape[axis]

        def body(ins: list[Any], outs: list[Any]) -> None:
            total = outs[1]

            def row(i: list[Expr]) -> None:
                total[0] = const(identity, dtype)
                with T.serial(0, extent) as n:
                    p = extent - 1 - n if reverse else n
                    full = [*i[:axis], p, *i[axis:]][: len(shape)]
                    at = tuple(full) if len(full) > 1 else full[0]
                    if exclusive:
                        outs[0][at] = total[0]
                    total[0] = combine(total[0], ins[0][at])
                    if not exclusive:
                        outs[0][at] = total[0]

            loops([d for a, d in enumerate(shape) if a != axis], row)

        return sequential([shape, (1,)], [dtype, dtype], [x], body, op.kind)[:1]

    return definition


OPERATORS: dict[str, Definition] = {
    "CumProd": scan(lambda a, b: a * b, 1),
    "CumSum": scan(lambda a, b: a + b, 0),
    "TopK": top_k,
}
