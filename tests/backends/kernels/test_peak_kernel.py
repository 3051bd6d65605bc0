"""The kernel that measures the machine does all the multiply-adds that it counts."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_harness import native_targets

from irc.backends.artifact.function import Function
from irc.backends.artifact.load import aligned_empty
from irc.backends.tvm.codegen import compile_object
from irc.backends.tvm.kernels.peak import build
from irc.backends.tvm.peak import peak_macs, peak_sizes
from irc.backends.tvm.specs import PeakSpec, from_json, to_json


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("target", native_targets(), ids=lambda t: t.name)
def test_every_multiply_add_is_done(target, dtype):
    spec = PeakSpec(dtype, 3)
    assert from_json(to_json(spec)) == spec
    sizes = peak_sizes(spec, target)
    types = ("float32",) * 3 if dtype == "float32" else ("uint8", "int8", "int32")
    buffers = [aligned_empty(n * np.dtype(t).itemsize, 64).view(t) for n, t in zip(sizes, types, strict=True)]
    for buffer in buffers[:2]:
        buffer[:] = 1
    with Function(compile_object(build("peak", spec, target), target), "peak", target) as function:
        function(function.bind([b.ctypes.data for b in buffers]))
    # Ones everywhere: the sums count the products.
    assert len(set(buffers[2].tolist())) == 1
    assert buffers[2].sum() == peak_macs(spec, target)
