"""--weights coded through the command line: compile, verify, evaluate, bench, inspect, and the same bits as plain."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import irc
from irc.backends.artifact.machines import missing_tools
from irc.backends.artifact.qemu import open_artifact
from irc.cli import main as cli
from irc.export import save
from irc.ir.builder import GraphBuilder, weights
from irc.targets import get_target, runs_here

BATCH = np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, kernel_cache: Path) -> Path:
    """tiny.onnx, data.npz, and artifacts "plain" and "coded" of it for this machine."""
    folder = tmp_path_factory.mktemp("work")
    b = GraphBuilder("tiny")
    x = b.input("x", "float32", [1, 3, 8, 8])
    y = b.op("Relu", b.conv(x, weights(8, 3, 3, 3), weights(8, seed=1), pads=[1, 1, 1, 1], name="conv"), name="relu")
    b.output(b.gemm(b.op("Flatten", y), weights(512, 5, seed=2), weights(5, seed=3), name="fc"), name="y")
    save(b.build(), folder / "tiny.onnx")
    np.savez(folder / "data.npz", x=BATCH, labels=np.zeros(20, np.int64))
    for kind in ("plain", "coded"):
        compile_for("native", kind, folder, kernel_cache)
    return folder


def compile_for(target: str, kind: str, folder: Path, cache: Path, *more: str) -> Path:
    out = folder / (kind if target == "native" else f"{kind}-{target}")
    arguments = ["compile", folder / "tiny.onnx", "--target", target, "--weights", kind, "-o", out, "-q"]
    arguments += ["--passes", "none,quantize", "--calibration", folder / "data.npz", *more]
    assert cli.main([str(a) for a in [*arguments, "--cache-dir", cache, "--jobs", "1"]]) == 0
    return out


def outputs(folder: Path) -> np.ndarray:
    net = open_artifact(folder)
    try:
        return np.concatenate([net.run({"x": x[None]})["y"] for x in BATCH[:3]])
    finally:
        net.close()


@pytest.mark.parametrize(
    ("target", "kind"),
    [("native", "coded"), ("x86-64", "coded"), ("arm", "coded"), ("cortex-m4", "coded"), ("cortex-m4", "huffman")],
)
def test_the_same_bits_as_plain_weights(target, kind, work, kernel_cache):
    machine = get_target(target)
    if not runs_here(machine) and missing_tools(machine):
        pytest.skip(missing_tools(machine))
    more = () if target == "native" or not machine.threads else ("--threads", "2")
    coded = compile_for(target, kind, work, kernel_cache, *more)
    plain = compile_for(target, "plain", work, kernel_cache, *more)
    np.testing.assert_array_equal(outputs(coded), outputs(plain))


def test_fewer_bytes_and_ram(work):
    storage = {kind: irc.Artifact.open(work / kind).manifest["storage"] for kind in ("plain", "coded")}
    assert storage["coded"]["raw_bytes"] == storage["plain"]["raw_bytes"] == storage["plain"]["stored_bytes"]
    assert storage["coded"]["stored_bytes"] < storage["plain"]["stored_bytes"]
    assert storage["coded"]["entropy_bytes"] == storage["plain"]["entropy_bytes"]
    assert "decoder" not in storage["plain"]
    assert "coding" not in storage["plain"]
    assert storage["coded"]["coding"] == "rans"
    assert irc.Artifact.open(work / "coded").manifest["weights"] == "coded"
    layers = storage["coded"]["layers"]
    assert {node for layer in layers for node in layer["nodes"]} >= {"conv", "fc"}
    assert sum(layer["raw_bytes"] for layer in layers) == storage["coded"]["raw_bytes"]


@pytest.mark.parametrize(
    "command",
    [
        ["verify", "coded"],
        ["evaluate", "coded", "--data", "data.npz", "--metric", "agreement", "--original", "tiny.onnx"],
        ["bench", "coded", "--seconds", "0.05"],
        ["inspect", "coded", "--layers"],
        ["inspect", "plain", "--layers"],
    ],
)
def test_other_commands(command, work, capfd):
    assert cli.main([str(work / a) if (work / a).exists() else a for a in command]) == 0
    text = capfd.readouterr().out
    if command[0] == "inspect":
        assert "multipliers" in text
        assert "conv" in text
        assert ("decoding" in text) == (command[1] == "coded")
        assert ("by rans" in text) == (command[1] == "coded")


def test_huffman_codes_where_they_are_asked_for(work, kernel_cache):
    out = compile_for("native", "huffman", work, kernel_cache)
    manifest = irc.Artifact.open(out).manifest
    assert manifest["weights"] == manifest["storage"]["coding"] == "huffman"
    np.testing.assert_array_equal(outputs(out), outputs(work / "plain"))


def test_inspect_gives_json(work, capfd):
    assert cli.main(["inspect", str(work / "coded"), "--json"]) == 0
    kinds = json.loads(capfd.readouterr().out)["storage"]["kinds"]
    assert [k["kind"] for k in kinds][:3] == ["weights", "multipliers", "biases"]


def test_a_misspelt_kind_is_refused(work, capfd):
    assert cli.main(["compile", str(work / "tiny.onnx"), "--weights", "code"]) == 2
    assert "coded" in capfd.readouterr().err
    with pytest.raises(irc.errors.OptionError, match="plain or coded or huffman"):
        irc.compile(work / "tiny.onnx", weights="zip")
