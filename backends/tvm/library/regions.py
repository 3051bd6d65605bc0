"""Pooling over regions of interest: RoiAlign (He et al., arXiv:1703.06870) and MaxRoiPool."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from irc.backends.tvm.library.elementwise import Definition
from irc.backends.tvm.library.gather import loops
from irc.backends.tvm.library.op import (
    Expr,
    Op,
    Refused,
    Tensor,
    cast,
    const,
    dtype_of,
    lowest,
    sequential,
    shape_of,
    wrap,
)


def roi_align(op: Op) -> list[Tensor]:
    """Mean or maximum of bilinear samples on a grid in each bin; `max` takes the maximum of weighted corners."""
    from tvm.script.ir_builder import tirx as T

    x, rois, batches = op.tensor(0), op.tensor(1), op.tensor(2)
    planes, channels, height, width = shape_of(x)
    count = shape_of(rois)[0]
    rows, columns = op.attr("output_height", 1), op.attr("output_width", 1)
    dtype = dtype_of(x)
    if dtype not in ("float32", "float64"):
        raise Refused(f"element type {dtype}")
    half = op.attr("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    maximum, ratio = op.attr("mode", "avg") == "max", op.attr("sampling_ratio", 0)

    def number(v: float) -> Expr:
        return const(v, dtype)

    def body(ins: list[Any], outs: list[Any]) -> None:
        image, boxes, owner = ins
        out, total = outs

        def edge(n: Expr, k: int) -> Expr:
            return boxes[n, k] * number(op.attr("spatial_scale", 1.0)) - number(0.5 if half else 0.0)

        def one(i: list[Expr]) -> None:
            n, c, ph, pw = i
            tall, wide = edge(n, 3) - edge(n, 1), edge(n, 2) - edge(n, 0)
            if not half:
                tall, wide = tirx.max(tall, number(1)), tirx.max(wide, number(1))
            bin_h, bin_w = tall / number(rows), wide / number(columns)
            grid_h = cast(tirx.ceil(bin_h), "int32") if ratio <= 0 else tirx.const(ratio, "int32")
            grid_w = cast(tirx.ceil(bin_w), "int32") if ratio <= 0 else tirx.const(ratio, "int32")
            total[0] = number(lowest(dtype) if maximum else 0)
            with T.serial(0, grid_h) as iy, T.serial(0, grid_w) as ix:
                y = edge(n, 1) + cast(ph, dtype) * bin_h
                y = y + (cast(iy, dtype) + number(0.5)) * bin_h / cast(grid_h, dtype)
                z = edge(n, 0) + cast(pw, dtype) * bin_w
                z = z + (cast(ix, dtype) + number(0.5)) * bin_w / cast(grid_w, dtype)
                outside = tirx.any(y < number(-1), y > number(height), z < number(-1), z > number(width))
                y0, y1, wy = split(y, height)
                z0, z1, wz = split(z, width)
                plane = wrap(owner[n], planes)
                corners = [
                    (number(1) - wy) * (number(1) - wz) * image[plane, c, y0, z0],
                    (number(1) - wy) * wz * image[plane, c, y0, z1],
                    wy * (number(1) - wz) * image[plane, c, y1, z0],
                    wy * wz * image[plane, c, y1, z1],
                ]
                a, b, d, e = (tirx.Select(outside, number(0), v) for v in corners)
                if maximum:
                    total[0] = tirx.max(total[0], tirx.max(tirx.max(a, b), tirx.max(d, e)))
                else:
                    total[0] = total[0] + (a + b + d + e)
            points = tirx.max(grid_h * grid_w, 1)
            empty = tirx.any(grid_h <= 0, grid_w <= 0)
            value = total[0] if maximum else total[0] / cast(points, dtype)
            out[n, c, ph, pw] = tirx.Select(empty, number(0), value)

        def split(v: Expr, extent: int) -> tuple[Expr, Expr, Expr]:
            v = tirx.max(tirx.min(v, number(extent)), number(0))
            low = tirx.min(cast(v, "int32"), extent - 1)
            high = tirx.min(low + 1, extent - 1)
            return low, high, tirx.Select(low >= extent - 1, number(0), v - cast(low, dtype))

        loops([count, channels, rows, columns], one)

    made = sequential([(count, channels, rows, columns), (1,)], [dtype, dtype], [x, rois, batches], body, op.kind)
    return made[:1]


def max_roi_pool(op: Op) -> list[Tensor]:
    """The maximum in each bin of regions given in whole pixels; an empty bin gives 0 (Girshick, arXiv:1504.08083)."""
    from tvm.script.ir_builder import tirx as T

    x, rois = op.tensor(0), op.tensor(1)
    planes, channels, height, width = shape_of(x)
    count = shape_of(rois)[0]
    rows, columns = op.attr("pooled_shape")
    dtype = dtype_of(x)
    if dtype not in ("float32", "float64"):
        raise Refused(f"element type {dtype}")

    def number(v: float) -> Expr:
        return const(v, dtype)

    def body(ins: list[Any], outs: list[Any]) -> None:
        image, boxes = ins
        out, total = outs

        def corner(n: Expr, k: int) -> Expr:
            """Rounded half away from zero, as C's round."""
            v = boxes[n, k] * number(op.attr("spatial_scale", 1.0))
            return cast(tirx.Select(v < number(0), tirx.ceil(v - number(0.5)), tirx.floor(v + number(0.5))), "int32")

        def bounds(low: Expr, high: Expr, part: Expr, parts: int, extent: int) -> tuple[Expr, Expr]:
            size = cast(tirx.max(high - low + 1, 1), dtype) / number(parts)
            start = cast(tirx.floor(cast(part, dtype) * size), "int32") + low
            end = cast(tirx.ceil(cast(part + 1, dtype) * size), "int32") + low
            return tuple(tirx.max(tirx.min(v, extent), 0) for v in (start, end))

        def one(i: list[Expr]) -> None:
            n, c, ph, pw = i
            h0, h1 = bounds(corner(n, 2), corner(n, 4), ph, rows, height)
            w0, w1 = bounds(corner(n, 1), corner(n, 3), pw, columns, width)
            plane = wrap(cast(boxes[n, 0], "int32"), planes)
            empty = tirx.any(h1 <= h0, w1 <= w0)
            total[0] = tirx.Select(empty, number(0), number(lowest(dtype)))
            with T.serial(0, tirx.max(h1 - h0, 0)) as y, T.serial(0, tirx.max(w1 - w0, 0)) as z:
                total[0] = tirx.max(total[0], image[plane, c, h0 + y, w0 + z])
            out[n, c, ph, pw] = total[0]

        loops([count, channels, rows, columns], one)

    return sequential([(count, channels, rows, columns), (1,)], [dtype, dtype], [x, rois], body, op.kind)[:1]


OPERATORS: dict[str, Definition] = {"MaxRoiPool": max_roi_pool, "RoiAlign": roi_align}
