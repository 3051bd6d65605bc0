"""Networks with coded weights: RAM, errors, threads, both processors, the example in C, the account of their bytes."""

from __future__ import annotations

import ctypes
import dataclasses

import numpy as np
import pytest
import toy

from irc.backends.artifact import interface as abi
from irc.backends.artifact.coder.choose import coded_program
from irc.backends.artifact.coder.encode import encode
from irc.backends.artifact.coder.huffman import encode_huffman
from irc.backends.artifact.link import link_object
from irc.backends.artifact.load import Network, aligned_empty, load_artifact, load_program
from irc.backends.artifact.machines import missing_tools
from irc.backends.artifact.pool import ram_bytes
from irc.backends.artifact.qemu import run_under_qemu
from irc.backends.artifact.shared import shared_library
from irc.backends.artifact.write import write_artifact
from irc.backends.program import Blob
from irc.errors import InternalError, IrcError

pytestmark = pytest.mark.skipif(not toy.runs_natively(), reason="runs x86-64 code")


def network(arch="x86-64", threads=1):
    return coded_program(dataclasses.replace(toy.toy(arch), threads=threads), "rans")


def check(outputs, inputs):
    for got, want in zip(outputs, toy.toy_expected(*inputs), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)  # roundings of libm


def test_runs_in_process():
    program = network()
    with load_program(program, toy.assembled(program)) as net:
        inputs = toy.toy_inputs()
        check(net(*inputs), inputs)


def test_runs_on_arm():
    reason = missing_tools(toy.ARM)
    if reason:
        pytest.skip(reason)
    program = network("aarch64", threads=3)
    a, b = toy.toy_inputs()
    found = run_under_qemu(program, toy.assembled(program), {"a": a, "b:0": b})
    check(found.values(), (a, b))


@pytest.mark.parametrize("threads", [1, 2])
def test_ram_is_asked_for_and_checked(threads, tmp_path):
    program = network(threads=threads)
    needed = abi.init_ram_bytes(program)
    assert needed >= program.coded.out_bytes + program.coded.scratch_bytes
    path = tmp_path / "net.so"
    path.write_bytes(shared_library(link_object(program, toy.assembled(program), threads=True), program.target))
    init = ctypes.CDLL(str(path)).toy_init
    init.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    ctx = (ctypes.c_void_p * abi.CTX_WORDS)()
    ram = aligned_empty(needed + 64, 64)
    address = ram.ctypes.data
    assert init(ctx, None, needed) == abi.ERROR_RAM
    assert init(ctx, address, needed - 1) == abi.ERROR_RAM
    assert init(ctx, address + 8, needed) == abi.ERROR_ALIGN
    ram[needed:] = 0x5A
    assert init(ctx, address, needed) == abi.OK
    assert (ram[needed:] == 0x5A).all()


def test_damaged_weights_are_an_error_of_init():
    program = network()
    damaged = bytearray(program.coded.data)
    damaged[-3] ^= 0x10
    program = dataclasses.replace(program, coded=dataclasses.replace(program.coded, data=bytes(damaged)))
    with pytest.raises(IrcError, match="damaged"):
        load_program(program, toy.assembled(program))


def test_the_pool_in_the_ram_of_init_leaves_the_weights(tmp_path):
    program = network(threads=4)
    path = tmp_path / "net.so"
    path.write_bytes(shared_library(link_object(program, toy.assembled(program)), program.target))
    inputs = toy.toy_inputs()
    with Network(path, "toy") as net:
        check(net(*inputs), inputs)
        set_threads = net._set_threads
        for threads, code in ((2, abi.OK), (4, abi.OK), (1, abi.OK), (400, abi.ERROR_RAM)):
            assert set_threads(net._ctx, net._ram.ctypes.data, net._ram.nbytes, threads) == code
            check(net(*inputs), inputs)
        net.use_threads(3)
        check(net(*inputs), inputs)
        assert net._pool_ram.nbytes >= ram_bytes(3)


def test_contexts_have_weights_of_their_own():
    program = network()
    with load_program(program, toy.assembled(program)) as net:
        inputs = toy.toy_inputs()
        before = net(*inputs)
        assert net.init_seconds() > 0  # another context comes and goes
        for got, want in zip(net(*inputs), before, strict=True):
            np.testing.assert_array_equal(got, want)


def test_artifact_and_example_program(tmp_path, tool):
    program = network()
    manifest = write_artifact(program, tmp_path / "net", manifest={}, glue_object=toy.assembled(program))
    inputs = toy.toy_inputs()
    with load_artifact(tmp_path / "net") as net:
        check(net(*inputs), inputs)
    header = (tmp_path / "net" / "include" / "toy.h").read_text()
    assert f"#define TOY_INIT_RAM_BYTES {abi.init_ram_bytes(program)}" in header
    assert "IRC_ERROR_DATA" in header
    for x, name in zip(inputs, "ab", strict=True):
        x.tofile(tmp_path / name)
    from test_artifact_c import MAIN, STRICT, _flags

    flags = ["-std=c89", *STRICT, "-DNETWORK=toy", MAIN, *_flags(tmp_path / "net"), "-ltoy", "-lm"]
    tool("gcc", *flags, "-o", tmp_path / "run")
    y = tool(str(tmp_path / "run"), tmp_path / "a", tmp_path / "b").splitlines()[0]
    want = toy.toy_expected(*inputs)[0]
    np.testing.assert_allclose(np.array(y.split(": ")[1].split(), float), want, rtol=1e-5)  # nine digits of text
    storage = manifest["storage"]
    assert storage["stored_bytes"] == len(program.coded.data) == storage["sections"]["weights"]
    assert sum(row["stored_bytes"] for row in storage["kinds"]) == pytest.approx(storage["stored_bytes"], abs=0.5)
    assert sum(storage["sections"].values()) == manifest["files"]["lib/libtoy.a"]["bytes"]
    assert storage["decoder"]["ram_bytes"] == abi.init_ram_bytes(program)


def test_plain_weights_are_counted():
    from irc.backends.artifact.storage import blob_rows

    program = toy.toy()
    rows = blob_rows(program)
    assert [r.raw for r in rows] == [8, 4 * toy.N]
    assert [r.stored for r in rows] == [8, 4 * toy.N]
    assert rows[0].bound == pytest.approx(3)  # eight different symbols: three bits each
    assert (rows[0].zeros, rows[0].distinct) == (1, 8)


def test_no_weights_no_ram():
    program = coded_program(toy.chain("exp"))
    assert program.coded is None
    assert abi.init_ram_bytes(program) == 0


@pytest.mark.parametrize("coder", [encode, encode_huffman])
def test_blobs_lie_at_blocks(coder):
    with pytest.raises(InternalError, match="64"):
        coder([Blob(8, np.ones(8, np.int8))], 64)


def test_the_interface_changes_with_the_ram():
    program = toy.toy()
    assert abi.interface_hash(program) != abi.interface_hash(coded_program(program))
