"""How many instructions one run of a network takes on Arm, counted by the emulator.

qemu runs the network with a plugin that adds up the instructions of every block it enters. The difference between
three runs and one is that of two runs, without the start of the process.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from common import Array

from irc.backends.artifact.qemu import Emulated

# The interface of qemu's plugins (docs/devel/tcg-plugins in its sources), as far as it is used: its header is not
# installed everywhere. 0 is QEMU_PLUGIN_INLINE_ADD_U64.
_PLUGIN = r"""
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
typedef uint64_t id_t_;
__attribute__((visibility("default"))) int qemu_plugin_version = 1;
extern void qemu_plugin_register_vcpu_tb_trans_cb(id_t_, void (*)(id_t_, void *));
extern size_t qemu_plugin_tb_n_insns(const void *);
extern void qemu_plugin_register_vcpu_tb_exec_inline(void *, int, void *, uint64_t);
extern void qemu_plugin_register_atexit_cb(id_t_, void (*)(id_t_, void *), void *);
static uint64_t count;
static void translated(id_t_ id, void *block) {
  qemu_plugin_register_vcpu_tb_exec_inline(block, 0, &count, qemu_plugin_tb_n_insns(block));
}
static void ended(id_t_ id, void *data) { fprintf(stderr, "instructions: %" PRIu64 "\n", count); }
__attribute__((visibility("default")))
int qemu_plugin_install(id_t_ id, const void *info, int argc, char **argv) {
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, ended, NULL);
  return 0;
}
"""


def missing() -> str:
    """What counting lacks on this machine; empty where it can be done."""
    for tool in ("qemu-aarch64", "gcc", "aarch64-linux-gnu-gcc"):
        if shutil.which(tool) is None:
            return f"{tool} was not found"
    return ""


def count(artifact: Path, feed: Mapping[str, Array], folder: Path) -> float:
    """Instructions of one run of an artifact for arm. `feed`: one sample; `folder`: for the plugin."""
    plugin = folder / "libcount.so"
    if not plugin.is_file():
        source = folder / "count.c"
        source.write_text(_PLUGIN)
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", str(plugin), str(source)], check=True)
    with Emulated.artifact(artifact) as network:
        command = [network.target.qemu, "-cpu", network.target.qemu_cpu, "-plugin", str(plugin)]
        sample = b"\0" + network._pack({k: np.ascontiguousarray(v) for k, v in feed.items()})
        one, three = (_run([*command, str(network._executable)], sample * n) for n in (1, 3))
    return (three - one) / 2


def _run(command: list[str], data: bytes) -> int:
    done = subprocess.run(command, input=data, capture_output=True, check=True)
    found = re.search(rb"instructions: (\d+)", done.stderr)
    assert found is not None, done.stderr
    return int(found.group(1))
