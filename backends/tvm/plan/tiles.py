"""The analytic model that picks register tiles: cycles of a whole layer under a simple machine.

Two multiply-adds and two loads per cycle, multiply-add latency 4; a tile costs per reduction step the largest of the
three, and per tile a fixed overhead for its epilogue. Remainder tiles are counted as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from irc.backends.tvm.specs import Order
from irc.targets.target import Target

_LATENCY = 4.0
_EPILOGUE = 6.0  # cycles per vector that is written


@dataclass(frozen=True)
class TileChoice:
    rows: int
    columns: int
    vectors: int
    cycles: float


def _parts(total: int, tile: int) -> list[tuple[int, int]]:
    whole, rest = divmod(total, tile)
    return [(n, size) for n, size in ((whole, tile), (1 if rest else 0, rest)) if n]


def choose_tile(
    target: Target, out: tuple[int, int], vectors: int, steps: int, *, sums: bool = False, uops: float = 1.0
) -> TileChoice:
    """The cheapest (rows, columns, vectors) for `out` places, `vectors` of channels, `steps` reduction steps.

    `sums`: one more accumulator per place. `uops`: instructions per multiply-add (widening ways need more).
    """
    best: TileChoice | None = None
    free = target.vector_registers - 1 - (2 if uops > 1 else 0)
    for v in range(1, min(vectors, 8) + 1):
        for r in (1, 2, 3, 4):
            if r > out[0]:
                break
            for c in range(1, min(out[1], 28) + 1):
                if r > 1 and c < out[1]:
                    continue  # several rows only where a row is narrower than a tile
                places = r * c
                if places * (v + sums) + v > free:
                    break
                choice = TileChoice(r, c, v, _cycles(out, vectors, steps, r, c, v, sums, uops))
                if best is None or choice.cycles < best.cycles * 0.999:
                    best = choice
    assert best is not None
    return best


def _cycles(
    out: tuple[int, int], vectors: int, steps: int, rows: int, columns: int, v: int, sums: bool, uops: float
) -> float:
    total = 0.0
    for n_r, r in _parts(out[0], rows):
        for n_c, c in _parts(out[1], columns):
            for n_v, size in _parts(vectors, v):
                places = r * c
                work = places * (size + sums) * uops / 2
                loads = (places + size) / 2
                step = max(work, loads, _LATENCY if places * size < 8 else 0.0)
                total += n_r * n_c * n_v * (steps * step + _EPILOGUE * places * size + 8)
    return total


def choose_order(target: Target, weight_bytes: int, activation_bytes: int, rows: int) -> Order:
    """ "rows": all weights pass once per row of the image, activations stay; "channels": the other way round."""
    if rows == 1:
        return "channels"
    if weight_bytes <= target.l2_bytes // 2:
        return "rows"
    return "channels" if activation_bytes <= target.l2_bytes // 2 or weight_bytes > activation_bytes else "rows"
