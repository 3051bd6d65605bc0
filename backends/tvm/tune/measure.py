"""Times of variants of one kernel, side by side, on memory as the network has it."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np

from irc.backends.artifact.function import Function
from irc.backends.artifact.load import aligned_empty
from irc.backends.tvm.geometry import fields_of
from irc.backends.tvm.plan.make import Plan
from irc.backends.tvm.plan.planner import Call
from irc.backends.tvm.specs import AttentionSpec, DepthwiseSpec, LinearSpec, Spec, WinogradSpec
from irc.backends.tvm.tune.apply import constant_of, needs_packing, packed_vectors, repack
from irc.ir.types import Array
from irc.targets.target import Target

_ALIGN = 64
_COPIES = 64
_CLOSE = 1e-4  # of the largest output: what sums of floats in another order may differ by


class Bench:
    """One call of a plan, in variants that compute the same. Use as a context manager.

    Weights lie in several copies that are read in turn, so that they come from where they come from in the network:
    `traffic` is how many bytes of weights an inference reads. Data and results stay where they are, as after the
    kernel before.
    """

    def __init__(self, plan: Plan, target: Target, call: Call, traffic: int) -> None:
        self._plan, self._target, self._call = plan, target, call
        self._stack = ExitStack()
        self._buffers = self._allocate()
        self._copies = 1
        if _has_weights(call.spec) and len(call.args) > 1:
            size = max(plan.planner.storages[call.args[1].storage].nbytes, 1)
            self._copies = max(1, min(_COPIES, -(-min(traffic, 4 * target.l2_bytes) // size)))
        self._weights: dict[int, list[int]] = {}
        self._kept: list[Array] = []
        self._variants: dict[Spec, tuple[Function, list[list[object]]]] = {}
        self._expected: Array | None = None
        self._turn = 0

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _allocate(self) -> dict[int, Array]:
        """A buffer for each storage, with numbers that are neither denormal nor NaN."""
        rng = np.random.default_rng(0)
        found: dict[int, Array] = {}
        for pointer, dtype in zip(self._call.args, _dtypes(self._call), strict=True):
            storage = self._plan.planner.storages[pointer.storage]
            if storage.number in found:
                continue
            buffer = aligned_empty(storage.nbytes + 4 * _ALIGN, _ALIGN)
            constant = next((d for n, d, _ in self._plan.constants if n == storage.number), None)
            if constant is not None:
                buffer[: constant.nbytes] = np.ascontiguousarray(constant).reshape(-1).view(np.uint8)
            elif dtype == "float32":
                numbers = buffer[: len(buffer) // 4 * 4].view(np.float32)
                numbers[:] = rng.uniform(-1, 1, len(numbers))
            else:
                buffer[:] = rng.integers(0, 256, len(buffer)) if dtype in ("int8", "uint8") else 0
            found[storage.number] = buffer
        return found

    def add(self, spec: Spec, data: bytes, symbol: str) -> bool:
        """A variant from its object. False, and it is left out, when it computes something else than the first."""
        function = self._stack.enter_context(Function(data, symbol, self._target))
        arguments = [function.bind(self._addresses(at)) for at in self._packed(spec)]
        output = self._buffers[self._call.args[-1].storage]
        output[:] = 0xFF
        function(arguments[0])
        if self._expected is None:
            self._expected = output.copy()
        elif not self._same(output):
            return False
        self._variants[spec] = (function, arguments)  # type: ignore[assignment]  # ctypes objects
        return True

    def _same(self, output: Array) -> bool:
        assert self._expected is not None
        if np.array_equal(output, self._expected):
            return True
        if getattr(self._call.spec, "y_dtype", "float32") != "float32":
            return False
        got, want = (v[: len(v) // 4 * 4].view(np.float32) for v in (output, self._expected))
        written = np.isfinite(want)
        if not np.array_equal(np.isfinite(got), written):
            return False
        largest = np.abs(want[written]).max(initial=0.0)
        return bool(np.abs(got[written] - want[written]).max(initial=0.0) <= _CLOSE * largest)

    def _packed(self, spec: Spec) -> list[int]:
        """Addresses of the copies of the weights for `spec`; [0] where the kernel has none."""
        if not _has_weights(self._call.spec):
            return [0]
        kind = packed_vectors(spec)
        if kind not in self._weights:
            pointer = self._call.args[1]
            constant = constant_of(self._plan, pointer)
            if constant is None:
                self._weights[kind] = [self._address(1)]
                return self._weights[kind]
            if needs_packing(self._call.spec, spec):
                constant = repack(constant, self._call.spec, spec, self._target)
            raw = np.ascontiguousarray(constant).reshape(-1).view(np.uint8)
            size = -(-(raw.nbytes + _ALIGN) // _ALIGN) * _ALIGN
            memory = aligned_empty(size * self._copies, _ALIGN)
            for i in range(self._copies):
                memory[i * size : i * size + raw.nbytes] = raw
            self._kept.append(memory)
            self._weights[kind] = [memory.ctypes.data + i * size for i in range(self._copies)]
        return self._weights[kind]

    def _address(self, index: int) -> int:
        pointer = self._call.args[index]
        return int(self._buffers[pointer.storage].ctypes.data) + pointer.offset

    def _addresses(self, weights: int) -> list[int]:
        found = [self._address(i) for i in range(len(self._call.args))]
        if weights:
            found[1] = weights
        return found

    def times(self, specs: Sequence[Spec], rounds: int, deadline: float) -> Mapping[Spec, list[float]]:
        """Seconds of each call, variants in turn; fewer than `rounds` when the time is over (but one at least)."""
        found: dict[Spec, list[float]] = {spec: [] for spec in specs}
        clock = time.perf_counter
        enabled = gc.isenabled()
        gc.disable()
        try:
            for _ in range(rounds):
                self._turn += 1
                for spec in specs:
                    function, arguments = self._variants[spec]
                    chosen = arguments[self._turn % len(arguments)]
                    start = clock()
                    function(chosen)  # type: ignore[arg-type]  # ctypes objects
                    found[spec].append(clock() - start)
                if clock() > deadline:
                    break
        finally:
            if enabled:
                gc.enable()
        return found


def _has_weights(spec: Spec) -> bool:
    return isinstance(spec, DepthwiseSpec | WinogradSpec) or (isinstance(spec, LinearSpec) and not spec.w_rows)


def _dtypes(call: Call) -> list[str]:
    """Element types of the arguments; "" for what is not known."""
    spec = call.spec
    known: list[str] = []
    if isinstance(spec, AttentionSpec):
        operands = [o.dtype for o in (*spec.score_operands, *spec.operands)]
        known = [spec.q_dtype, spec.k_dtype, spec.v_dtype, *operands, spec.y_dtype]
    elif isinstance(spec, WinogradSpec):
        known = ["float32", "float32", *(o.dtype for o in spec.operands), "float32"]
    elif isinstance(spec, LinearSpec | DepthwiseSpec):
        shared = isinstance(spec, LinearSpec) and fields_of(spec.w_dtype) > 1
        weights = "int8" if shared else spec.w_dtype or ("float32" if spec.x_dtype == "float32" else "int8")
        known = [spec.x_dtype, weights, *(o.dtype for o in spec.operands), spec.y_dtype]
    return known if len(known) == len(call.args) else [""] * len(call.args)
