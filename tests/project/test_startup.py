"""What the command line loads when it starts. Not timed: the modules that cost time are named."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SLOW = ("tvm", "tvm_ffi", "onnx", "onnxruntime", "openvino", "torch", "scipy", "networkx", "sklearn")

PROBE = """
import json, sys
try:
    {statement}
except SystemExit as end:
    assert not end.code, end.code
print("\\n" + json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
"""


@pytest.mark.parametrize(
    "statement",
    [
        "import irc",
        "from irc.cli.main import main; sys.argv = ['irc', '--help']; main()",
        "from irc.cli.main import main; sys.argv = ['irc', 'compile', '--help']; main()",
    ],
)
def test_startup_loads_nothing_slow(statement: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(statement=statement)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.strip().splitlines()[-1]))
    assert "irc" in loaded
    assert not loaded & set(SLOW)
