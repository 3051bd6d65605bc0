"""Register tiles on 64-bit Arm, where a load brings several steps of a place (`kernels/elements.py`).

The model counts instructions. Two multiply-adds start in a cycle, and about three instructions of any kind; loads are
instructions like others on small cores, so of tiles that keep the multipliers equally busy the one with the fewest
instructions is the cheapest.
"""

from __future__ import annotations

from dataclasses import dataclass

_WIDTH = 3.0  # instructions a cycle
_PIPES = 2.0  # multiply-adds a cycle
_LATENCY = 4.0  # cycles until a sum can be added to again
_COUNTED = 0.1  # cycles of an instruction, whatever runs beside it
_PAIRED = 0.5  # of a load: neighbours come two at a time
_LOOP = 3.0  # instructions of a turn of the loop
_VECTOR = 4.0  # instructions of a vector that is written, its epilogue aside: to integers, and to a quarter of the bits
_OPERANDS = 2.0  # for each vector of channels of a tile: first sums and factors
_TILE = 25.0  # addresses and loops
_PIECE = 1.0  # where a place has fewer vectors than are stored together
_EPILOGUE = 3.0  # instructions that take a cycle of the model for x86


@dataclass(frozen=True)
class Kind:
    """`steps` of the reduction; of `chunk` of them a load brings the data of a place. `pairs`: places are multiplied
    two at a time. `sums`: the data are summed, too. `fields`: steps whose weights share bytes."""

    steps: float
    pairs: bool = False
    sums: bool = False
    fields: int = 1
    real: bool = False

    @property
    def chunk(self) -> int:
        return 2 if self.pairs else 4


def registers(kind: Kind, places: int, vectors: int) -> int:
    """Registers of a tile: sums, data of its places, the weights of a step and one that the scheduler wants."""
    even = places + places % 2 if kind.pairs else places
    unpacked = vectors + 1 if kind.fields > 1 else 0
    weights = 3 if kind.pairs else vectors
    return even * vectors + places * kind.sums + places + weights + unpacked + 1


def step_cycles(places: int, vectors: int) -> float:
    """Of a step of reals."""
    return cycles(Kind(1.0, real=True), places, vectors, 0.0)[0] - cycles(Kind(0.0, real=True), places, vectors, 0.0)[0]


def cycles(kind: Kind, places: int, vectors: int, epilogue: float) -> tuple[float, dict[str, float]]:
    """Of one tile, and what each resource would take alone. `epilogue`: of a vector of results, as for x86."""
    written = places * vectors
    if kind.pairs:
        pairs = (places + 1) // 2
        products = pairs * (2 * vectors + kind.sums)
        loads = 2.0 * pairs + 2 * vectors * _PAIRED / kind.fields
        order = written + 2 * vectors
    else:
        products = places * (vectors + kind.sums)
        loads = places / kind.chunk + vectors * _PAIRED / kind.fields
        order = 0
    unpack = vectors * (2 if kind.pairs else 1) * (kind.fields > 1)
    instructions = products + loads + unpack + _LOOP / kind.chunk
    latency = _LATENCY if products < _LATENCY * _PIPES else 0.0
    step = max(products / _PIPES, instructions / _WIDTH, latency) + _COUNTED * instructions
    narrow = _PIECE * places * (vectors % 4 != 0) * (not kind.real)
    ending = _TILE + vectors * _OPERANDS + order + narrow + written * (_VECTOR * (not kind.real) + _EPILOGUE * epilogue)
    ending *= 1 / _WIDTH + _COUNTED
    bound = {
        "multiply-adds": kind.steps * products / _PIPES,
        "loads": kind.steps * loads / _WIDTH,
        "latency": kind.steps * latency,
        "caches": 0.0,
        "epilogue": ending,
    }
    return kind.steps * step + ending, bound
