"""The polynomials against float64."""

from __future__ import annotations

import ctypes
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from library_harness import HOST, aligned
from tvm import te

from irc.backends.tvm.library import approximations
from irc.backends.tvm.library.emit import Call, LibraryKernel, Ref, object_bytes, object_text
from irc.backends.tvm.library.lower import lower_tensors

N = 1 << 18
GENERATOR = np.random.default_rng(3)
X = np.concatenate([GENERATOR.uniform(-110, 95, N // 2), GENERATOR.uniform(-9, 9, N // 2)]).astype(np.float32)
X[:6] = [np.inf, -np.inf, np.nan, 0.0, -0.0, 88.7]


def kernel(function: Callable) -> LibraryKernel:
    x = te.placeholder((N,), "float32", name="x")
    y = te.compute((N,), lambda i: function(x(i)), name="y")
    call = Call(lower_tensors("stage", [x], [y]), (Ref("input", 0), Ref("output", 0)))
    port = ("float32", (N,))
    return LibraryKernel((call,), (port,), (port,))


def applied(function: Callable, folder: Path) -> np.ndarray:
    (folder / "k.o").write_bytes(object_bytes(kernel(function), HOST, "kernel"))
    subprocess.run(["gcc", "-shared", "-o", folder / "k.so", folder / "k.o"], check=True)
    out = aligned(4 * N).view(np.float32)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (X, out, out)]
    ctypes.CDLL(str(folder / "k.so")).kernel(*pointers, 0, 1)
    return out.copy()


def test_exp(tmp_path: Path) -> None:
    got = applied(approximations.exp, tmp_path)
    exact = np.exp(X.astype(np.float64))
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(X))
    np.testing.assert_array_equal(np.isinf(got), np.isinf(rounded))
    assert got[1] == 0
    finite = np.isfinite(rounded)
    units = np.abs(got[finite] - exact[finite]) / np.spacing(rounded[finite])
    assert units.max() < 1.5  # measured: 1.01


@pytest.mark.parametrize(
    ("name", "exact"),
    [("tanh", np.tanh), ("erf", np.vectorize(math.erf)), ("sigmoid", lambda x: 1 / (1 + np.exp(-x)))],
)
def test_absolute_error(name: str, exact: Callable, tmp_path: Path) -> None:
    got = applied(getattr(approximations, name), tmp_path)
    with np.errstate(over="ignore"):
        wanted = exact(X.astype(np.float64))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(X))
    assert np.nanmax(np.abs(got - wanted)) < 5e-7  # measured: 3.4e-7


@pytest.mark.parametrize("name", ["exp", "tanh", "erf", "sigmoid"])
def test_vectorized_without_calls(name: str) -> None:
    text = object_text(kernel(getattr(approximations, name)), HOST, "kernel")
    assert "<8 x float>" in text
    assert "declare float @llvm.exp" not in text
    assert "call float" not in text.replace("call float @llvm.", "")
