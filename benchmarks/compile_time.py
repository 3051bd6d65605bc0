"""Compile time and memory: cold (empty kernel cache), then warm, in a process of its own each.

    python benchmarks/compile_time.py MODEL... [--target native] [--jobs 2] [--passes none] [--json FILE]

Memory is the highest sum over the compiler and its workers of what each holds alone plus its share of common pages
(Linux "Pss"), sampled ten times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine, models, table


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found, queue = [], [pid]
    while queue:
        current = queue.pop()
        found.append(current)
        for task in Path(f"/proc/{current}/task").glob("*/children"):
            try:
                queue += [int(child) for child in task.read_text().split()]
            except OSError:
                continue  # it ended meanwhile
    return found


def resident(pid: int) -> int:
    """Bytes held by a process and its children, common pages counted once."""
    total = 0
    for member in family(pid):
        try:
            text = Path(f"/proc/{member}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next((int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:")), 0)
    return total


def compile_once(command: list[str], environment: dict[str, str]) -> tuple[float, int]:
    """(seconds, peak bytes). Ends the benchmark with the compiler's message where it fails."""
    start = time.perf_counter()
    peak = 0
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True)
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.1)
        seconds = time.perf_counter() - start
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{log.read()}")
    return seconds, peak


def benchmark(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="irc-compile-time-") as folder:
        environment = {**os.environ, "XDG_CACHE_HOME": f"{folder}/cache"}
        command = [sys.executable, "-m", "irc.cli.main", "compile", str(model), "--target", options.target]
        command += ["--passes", options.passes, "-o", f"{folder}/out"]
        if options.jobs:
            command += ["--jobs", str(options.jobs)]
        if options.calibration:
            command += ["--calibration", str(options.calibration)]
        cold, cold_peak = compile_once(command, environment)
        warm, warm_peak = compile_once(command, environment)
    return {
        "model": model.stem,
        "file_bytes": model.stat().st_size,
        "cold_s": round(cold, 2),
        "cold_peak_bytes": cold_peak,
        "warm_s": round(warm, 2),
        "warm_peak_bytes": warm_peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help=".onnx files or folders of them")
    parser.add_argument("--target", default="native")
    parser.add_argument("--passes", default="none")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--jobs", type=int, default=0, help="kernel compilers (default: irc's own choice)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = [benchmark(model, options) for model in models(options.models)]
    rows = [
        [
            found["model"],
            f"{found['file_bytes'] / 1e6:.1f}",
            f"{found['cold_s']:.1f}",
            f"{found['cold_peak_bytes'] / 1e6:.0f}",
            f"{found['warm_s']:.1f}",
            f"{found['warm_peak_bytes'] / 1e6:.0f}",
            f"{(4 * found['file_bytes'] + 600e6) / 1e6:.0f}",
        ]
        for found in results
    ]
    print(f"{machine()}, target {options.target}, passes {options.passes}\n")
    print(table(["model", "file MB", "cold s", "peak MB", "warm s", "peak MB", "4 x file + 600 MB"], rows))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
