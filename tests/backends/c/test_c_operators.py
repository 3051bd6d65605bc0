"""C source of random small networks of all operator families, against onnxruntime."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from in_process import program_of
from lowering_harness import float_difference, quantized_difference
from random_graphs import float_graph
from random_quantized import quantized_graph

from irc.backends.artifact.header import header_text
from irc.backends.artifact.load import Network
from irc.backends.c.source import source_text
from irc.evaluation.oracle import Oracle
from irc.ir.clone import clone
from irc.targets.catalogue import TARGETS

FLAGS = ("-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-pedantic")
CHECKED = ("-fsanitize=undefined", "-fno-sanitize-recover=undefined")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["float", "quantized"])
def test_as_onnxruntime(kind: str, seed: int, tmp_path: Path, need_tool: Callable[..., str]) -> None:
    """Compiled so that undefined behaviour ends the process."""
    compiler = need_tool("gcc")
    model, feeds = (float_graph if kind == "float" else quantized_graph)(seed)
    program = program_of(clone(model), TARGETS["c"], name="net")
    (tmp_path / "net.h").write_text(header_text(program))
    (tmp_path / "net.c").write_text(source_text(program))
    command = [compiler, *FLAGS, *CHECKED, "-shared", "-fPIC", "-o", "libnet.so", "net.c", "-lm"]
    subprocess.run(command, check=True, cwd=tmp_path)
    wanted = Oracle(model).run(dict(zip((v.name for v in model.graph.inputs), feeds, strict=True)))
    network = Network(tmp_path / "libnet.so", "net")
    network.poison = True
    got = network.run({p.name: np.array(f) for p, f in zip(program.inputs, feeds, strict=True)})
    difference = float_difference if kind == "float" else quantized_difference
    for port in program.outputs:
        assert not difference(got[port.name], wanted[port.name]), port.name
    network.close()
