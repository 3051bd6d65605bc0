"""What all tests share: where data and models are, which tools there are, and when a test may be skipped.

Evaluation data is not part of this repository. Its folder is given by IRC_DATA (default: ../shared/data beside the
checkout), that of larger models with random weights by IRC_ZOO. Tests that need them skip where they are missing.
`--no-tool-skips` turns other skips into failures: a machine that says it has all tools must run all tests.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED_REASONS = ("IRC_DATA", "IRC_ZOO", "superuser", "this CPU")
"""A skip whose reason names one of these is always allowed: missing data, or what no package could change."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-tool-skips",
        action="store_true",
        help="fail tests that would be skipped because a tool or a package is missing",
    )


def _forbidden_skip(report: pytest.TestReport | pytest.CollectReport, config: pytest.Config) -> bool:
    if not report.skipped or hasattr(report, "wasxfail") or not config.getoption("--no-tool-skips"):
        return False
    return not any(reason in str(report.longrepr) for reason in ALLOWED_REASONS)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if _forbidden_skip(report, item.config):
        report.outcome, report.longrepr = "failed", f"skipped, but --no-tool-skips: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if _forbidden_skip(report, collector.config):
        report.outcome, report.longrepr = "failed", f"skipped, but --no-tool-skips: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of evaluation data and real models; skips where there is none."""
    path = Path(os.environ.get("IRC_DATA", ROOT.parent / "shared" / "data"))
    if not (path / "models").is_dir():
        pytest.skip(f"no evaluation data in {path}; set IRC_DATA")
    return path


@pytest.fixture(scope="session")
def zoo_dir() -> Path:
    """The folder of larger models with random weights; skips where there is none."""
    path = Path(os.environ.get("IRC_ZOO", ""))
    if "IRC_ZOO" not in os.environ or not path.is_dir():
        pytest.skip("no larger models; set IRC_ZOO to their folder")
    return path


@pytest.fixture(scope="session")
def digits_dir() -> Path:
    """The example: digits.onnx, digits_eval.npz, digits_calibration.npz."""
    return ROOT / "examples" / "digits"


PACKAGES = {
    "qemu-aarch64": "qemu-user",
    "qemu-arm": "qemu-user",
    "qemu-riscv64": "qemu-user",
    "qemu-riscv32": "qemu-user",
    "qemu-system-arm": "qemu-system-arm",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    "arm-linux-gnueabihf-gcc": "gcc-arm-linux-gnueabihf libc6-dev-armhf-cross",
    "riscv64-linux-gnu-gcc": "gcc-riscv64-linux-gnu libc6-dev-riscv64-cross",
    "riscv64-unknown-elf-gcc": "gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf",
    "arm-none-eabi-gcc": "gcc-arm-none-eabi libnewlib-arm-none-eabi",
    "x86_64-w64-mingw32-gcc": "gcc-mingw-w64-x86-64",
    "node": "nodejs",
    "wasm-ld": "lld",
    "gcc": "gcc",
    "g++": "g++",
    "cc": "gcc",
    "ninja": "ninja-build",
}
"""Debian packages of the tools that tests ask for, where they have another name."""


@pytest.fixture(scope="session")
def need_tool() -> Callable[..., str]:
    """`need_tool(name, ...)`: the path of the first of these programs that exists; skips where none does."""

    def find(*names: str) -> str:
        for name in names:
            path = shutil.which(name)
            if path:
                return path
        hint = PACKAGES.get(names[0], names[0])
        pytest.skip(f"needs {' or '.join(names)} (Debian: apt-get install {hint})")

    return find


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One kernel cache for the whole run (also of parallel test processes): a model compiles slowly only once."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    path = base / "kernel-cache"
    path.mkdir(exist_ok=True)
    return path
