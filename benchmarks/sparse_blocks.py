"""What zero blocks of 16 x 4 weights gain, by layer and share of blocks left: the table of docs/kernels.md.

    python benchmarks/sparse_blocks.py [--kind int8|float32] [--target NAME]

One network for each shape, with the same layer at several densities side by side, so that all are timed in turn.
Times are those of the kernels that irc chooses; a number in parentheses is a dense kernel's.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from irc.driver.layers import layers
from irc.export import save
from irc.ir.builder import GraphBuilder

DENSITIES = (1.0, 0.75, 0.6, 0.5, 0.375, 0.25, 0.125)
SHAPES = (  # kernel, input channels, output channels, height and width of the image
    (1, 64, 256, 56), (1, 256, 64, 56), (1, 512, 128, 28), (1, 256, 1024, 14), (1, 2048, 512, 7), (1, 64, 64, 14),
    (1, 1024, 1024, 1), (3, 64, 64, 56), (3, 256, 256, 14), (3, 512, 512, 7),
)  # fmt: skip


def pruned(rng: np.random.Generator, shape: tuple[int, int, int, int], density: float) -> np.ndarray:
    """Integers in [1, 127), in random blocks of 16 outputs x 4 inputs for each position of the kernel."""
    oc, ic, height, width = shape
    blocks = (-(-oc // 16), -(-ic // 4), height, width)
    kept = np.zeros(np.prod(blocks), bool)
    kept[rng.permutation(kept.size)[: round(density * kept.size)]] = True
    kept = kept.reshape(blocks).repeat(16, 0)[:oc].repeat(4, 1)[:, :ic]
    return rng.integers(1, 127, shape) * kept


def write(path: Path, kind: str, kernel: int, ic: int, oc: int, size: int) -> None:
    """Convolutions named by their density, all of the same data."""
    b, rng = GraphBuilder("blocks"), np.random.default_rng(0)
    x = b.input("x", "float32", [1, ic, size, size])
    if kind == "int8":
        x = b.dequantize(b.quantize(x, 0.02, np.array(128, np.uint8)), 0.02, np.array(128, np.uint8))
    for name, density in (("first", 1.0), *((str(d), d) for d in DENSITIES)):  # the first finds its data near
        w = pruned(rng, (oc, ic, kernel, kernel), density)
        pads = [kernel // 2] * 4
        if kind == "int8":
            value = b.dequantize(w.astype(np.int8), np.full(oc, 0.01, np.float32), np.zeros(oc, np.int8), axis=0)
            made = b.quantize(b.conv(x, value, pads=pads, name=name), 9.0, np.array(128, np.uint8))
        else:
            made = b.op("Relu", b.conv(x, w.astype(np.float32), pads=pads, name=name))
        b.output(made, name=f"y_{name}")
    save(b.build(), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("int8", "float32"), default="int8")
    parser.add_argument("--target", default="native")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each shape")
    options = parser.parse_args()
    print("| layer | dense us |" + "".join(f" {d:g} |" for d in DENSITIES[1:]))
    print("| --- | ---: |" + " ---: |" * len(DENSITIES[1:]))
    with tempfile.TemporaryDirectory() as folder:
        for kernel, ic, oc, size in SHAPES:
            path = Path(folder) / "model.onnx"
            write(path, options.kind, kernel, ic, oc, size)
            times, sparse = dict.fromkeys(map(str, DENSITIES), 0.0), set()
            for row in layers(path, target=options.target, seconds=options.seconds).rows:
                named = [node for node in row.nodes if node in times]
                if named and "elementwise" not in row.text:
                    times[named[0]] += row.seconds
                    sparse |= {named[0]} if row.text.startswith("sparse") else set()
            dense = times["1.0"]
            gains = [f"{dense / times[str(d)]:.2f}" for d in DENSITIES[1:]]
            cells = [g if str(d) in sparse else f"({g})" for d, g in zip(DENSITIES[1:], gains, strict=True)]
            print(
                f"| {kernel}x{kernel} {ic}->{oc} at {size}x{size} | {dense * 1e6:.1f} | {' | '.join(cells)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
