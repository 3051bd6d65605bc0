"""What the pass reports: a line for each layer and each tensor, plain JSON values."""

from __future__ import annotations

from typing import Any

import numpy as np

from irc.calibrate.layers import to_rows
from irc.calibrate.observers import Histogram
from irc.ir.graph import Node, Value
from irc.ir.types import Array
from irc.passes.quantize.affine import Affine
from irc.passes.quantize.ranges import decibel, saturation, signal_to_noise
from irc.passes.quantize.regions import NO_KERNEL, Regions
from irc.passes.quantize.weights import LayerWeights, Moments


def tensor_line(value: Value, affine: Affine, histogram: Histogram) -> dict[str, Any]:
    """Of an activation that is held in few bits."""
    return {
        "value": value.name,
        "observed": [histogram.low, histogram.high] if histogram.exponent is not None else [0.0, 0.0],
        "range": [round(r, 6) for r in affine.range],
        "scale": affine.scale,
        "zero_point": affine.zero_point,
        "type": affine.dtype,
        "snr_db": round(signal_to_noise(histogram, affine), 2),
        "saturated": round(saturation(histogram, affine), 6),
    }


def layer_line(
    node: Node, weight: Array, stored: LayerWeights, moments: Moments | None, entry: Affine | None
) -> dict[str, Any]:
    """Of a layer. `weight`: what was asked for; `saturated`: share of the weights beyond the levels."""
    exact, real = weight.astype(np.float64), stored.real().astype(np.float64)
    snr = decibel(float(np.square(exact).sum()), float(np.square(exact - real).sum()))
    line: dict[str, Any] = {
        "node": node.name,
        "op": node.op_type,
        "weights": int(weight.size),
        "type": stored.levels.dtype.value,
        "weight_snr_db": round(snr, 2),
        "range": [float(real.min()), float(real.max())],
        "saturated": round(float((stored.overshoot(exact) > 0.5).mean()), 6),
    }
    if moments is not None:
        line["output_snr_db"] = round(_output_snr(node, exact, real, moments), 2)
    if entry is not None:
        line["input"] = {"scale": entry.scale, "zero_point": entry.zero_point, "type": entry.dtype}
    return line


def _output_snr(node: Node, weight: Array, real: Array, moments: Moments) -> float:
    """Power of the layer's output over that of the error that rounded weights make, dB (bias correction included)."""
    exact, error = (to_rows(node, w, moments.groups) for w in (weight, weight - real))
    signal = np.einsum("gok,gok->", exact @ moments.moment, exact)
    noise = np.einsum("gok,gok->", error @ moments.covariance, error)
    return decibel(float(signal), float(noise))


def share_damage(layers: list[dict[str, Any]], tensors: dict[str, float]) -> None:
    """Give each line its share of the damage: noise over signal at its output, from its weights and from what it reads,
    over the sum of all layers. `tensors`: name of a layer -> dB of what it reads.

    As if the noise of all layers reached the network's output alike.
    """
    ratios = []
    for line in layers:
        parts = [line.get("output_snr_db", line["weight_snr_db"]), tensors.get(line["node"], 200.0)]
        ratios.append(sum(10 ** (-db / 10) for db in parts))
    total = sum(ratios) or 1.0
    for line, ratio in zip(layers, ratios, strict=True):
        line["damage_share"] = round(ratio / total, 4)


def floating(regions: Regions) -> list[str]:
    """Layers whose weights nobody would expect to stay as they are."""
    return [f"{r.node} stays in floating point: {r.reason}" for r in regions.refusals if r.reason.endswith(NO_KERNEL)]


def summary(layers: list[dict[str, Any]], tensors: list[dict[str, Any]], notes: list[str]) -> dict[str, Any]:
    return {"layers": layers, "tensors": tensors, "notes": notes}
