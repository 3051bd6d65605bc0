"""Geometry of sliding windows: convolutions and pooling."""

from __future__ import annotations

from dataclasses import dataclass

from irc.ir.graph import Node


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution with two spatial dimensions (a 1-D one has height 1)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int, int, int]  # top, left, bottom, right


def window(node: Node, spatial: tuple[int, ...], kernel: tuple[int, ...]) -> Window:
    rank = len(spatial)
    strides = node.get_ints("strides", (1,) * rank)
    dilations = node.get_ints("dilations", (1,) * rank)
    pads = node.get_ints("pads", (0,) * (2 * rank))
    auto = node.get_str("auto_pad", "NOTSET")
    if auto.startswith("SAME"):
        before, after = [], []
        for size, k, s, d in zip(spatial, kernel, strides, dilations, strict=True):
            total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            small = total // 2
            before.append(small if auto == "SAME_UPPER" else total - small)
            after.append(total - before[-1])
        pads = (*before, *after)
    elif auto == "VALID":
        pads = (0,) * (2 * rank)
    if rank == 1:
        return Window((1, kernel[0]), (1, strides[0]), (1, dilations[0]), (0, pads[0], 0, pads[1]))
    return Window(
        (kernel[0], kernel[1]),
        (strides[0], strides[1]),
        (dilations[0], dilations[1]),
        (pads[0], pads[1], pads[2], pads[3]),
    )


def two(spatial: tuple[int, ...]) -> tuple[int, int]:
    """Spatial extents as (height, width)."""
    return (1, spatial[0]) if len(spatial) == 1 else (spatial[0], spatial[1])


def reach(g: Window, axis: int, out: int) -> int:
    """The first place after the last window, counted from the first place of the image."""
    return (out - 1) * g.stride[axis] + (g.kernel[axis] - 1) * g.dilation[axis] + 1 - g.pads[axis]


def all_inside(g: Window, image: tuple[int, int], out: tuple[int, int]) -> bool:
    """Whether no window leaves the image."""
    return g.pads[:2] == (0, 0) and all(reach(g, i, out[i]) <= image[i] for i in range(2))


def all_inside_padding(g: Window, image: tuple[int, int], out: tuple[int, int]) -> bool:
    """Whether no window leaves the image and its padding (as the last one may with ceil_mode)."""
    return all(reach(g, i, out[i]) <= image[i] + g.pads[2 + i] for i in range(2))
