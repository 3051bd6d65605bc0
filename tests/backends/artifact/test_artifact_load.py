"""Networks in this process: calls, checks, threads, artifacts of other machines."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import toy

from irc.backends.artifact.features import check_host, required_flags, target_facts
from irc.backends.artifact.load import load_artifact, load_program
from irc.backends.artifact.manifest import check_unchanged, read_manifest
from irc.backends.artifact.write import write_artifact
from irc.backends.tvm.assemble import assemble
from irc.errors import DataError, InternalError, OptionError
from irc.targets.catalogue import TARGETS

pytestmark = pytest.mark.skipif(not toy.runs_natively(), reason="the toy kernels are x86-64 code")


@pytest.fixture
def net():
    with load_program(toy.toy(), toy.glue()) as network:
        yield network


def _check(outputs, inputs):
    for got, want in zip(outputs, toy.toy_expected(*inputs), strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=2e-6)  # float32 roundings of three steps


def test_positional_and_named_calls(net):
    a, b = toy.toy_inputs()
    _check(net(a, b), (a, b))
    named = net.run({"b:0": b, "a": a})
    assert list(named) == ["y", 'odd "name" */ %']
    _check(named.values(), (a, b))
    assert "toy" in repr(net)


def test_results_are_the_callers_own(net):
    first = net(*toy.toy_inputs(1))
    kept = [f.copy() for f in first]
    net(*toy.toy_inputs(2))
    for f, k in zip(first, kept, strict=True):
        np.testing.assert_array_equal(f, k)


def test_one_output_comes_alone_and_lists_are_taken():
    program = toy.chain("copy")
    with load_program(program, toy.assembled(program)) as net:
        out = net([float(i) for i in range(toy.N)])
        np.testing.assert_array_equal(out, np.arange(toy.N, dtype=np.float32))


def test_views_that_are_not_contiguous(net):
    a, b = toy.toy_inputs()
    wide = np.repeat(b, 2)
    _check(net(np.asfortranarray(a), wide[::2]), (a, b))
    shifted = np.frombuffer(b"\0" + b.tobytes(), np.uint8)[1:].view(np.float32)  # not even aligned
    _check(net(a, shifted), (a, b))


def test_arrays_that_cannot_be_written_and_subclasses(net):
    a, b = toy.toy_inputs()
    a.flags.writeable = False
    _check(net(a, np.frombuffer(b.tobytes(), b.dtype)), (a, b))
    _check(net.run({"a": a, "b:0": b.view(np.recarray)}).values(), (a, b))
    assert not a.flags.writeable


def test_a_call_inside_a_call_has_memory_of_its_own(net):
    """An array that calls the network when it is looked at: the outer call has its tables already."""
    a, b = toy.toy_inputs(1)
    c, d = toy.toy_inputs(2)

    class Late:
        def __array__(self, dtype=None, copy=None):
            _check(net(c, d), (c, d))
            return b

    for _ in range(3):
        _check(net(a, Late()), (a, b))


def test_misfit_arrays(net):
    a, b = toy.toy_inputs()
    with pytest.raises(DataError, match=r"wrong number of inputs; expected 2 \(a, b:0\); got 1"):
        net(a)
    with pytest.raises(DataError, match=r"input 'a': wrong shape; expected \[1, 37\]; got \[37\]"):
        net(a[0], b)
    with pytest.raises(DataError, match="input 'b:0': wrong element type; expected float32; got float64"):
        net(a, b.astype(np.float64))
    with pytest.raises(DataError, match="input 'a': not an array"):
        net([["text"]], b)
    with pytest.raises(DataError, match="missing input 'b:0'"):
        net.run({"a": a})
    with pytest.raises(DataError, match="missing input 'a'"):
        net.run({"b:0": b, "c": b})
    with pytest.raises(DataError, match="unknown input 'c'"):
        net.run({"a": a, "b:0": b, "c": b})
    _check(net.run({"b:0": b, "a": a}).values(), (a, b))  # errors leave nothing behind


def test_a_closed_network_says_so():
    net = load_program(toy.toy(), toy.glue())
    net.close()
    net.close()
    with pytest.raises(OptionError, match="closed"):
        net(*toy.toy_inputs())


def test_many_threads_share_one_network(net):
    failures = []

    def work(seed):
        try:
            for i in range(20):
                inputs = toy.toy_inputs(100 * seed + i)
                _check(net(*inputs), inputs)
        except AssertionError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


@pytest.mark.parametrize("threads", [2, 5])
def test_parallel_steps_on_several_threads_give_the_same_bits(net, threads):
    with load_program(toy.toy(), toy.glue(), threads=threads) as many:
        for seed in range(20):
            inputs = toy.toy_inputs(seed)
            for one, other in zip(net(*inputs), many(*inputs), strict=True):
                np.testing.assert_array_equal(one, other)
    with pytest.raises(OptionError, match="at least 1"):
        load_program(toy.toy(), toy.glue(), threads=0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("  call void @llvm.trap()\n", "Illegal instruction"),
        ("  store volatile i32 1, ptr null\n", "Segmentation fault"),
    ],
)
def test_a_crash_does_not_end_this_process(body, message):
    program = toy.chain("copy")
    text = (
        f'target triple = "{toy.X86.triple}"\ndeclare void @llvm.trap()\n'
        f"define void @k_copy(ptr %x, ptr %y, i32 %p, i32 %n) null_pointer_is_valid {{\n{body}  ret void\n}}"
    )
    program.kernels["k_copy"] = assemble(text, toy.X86)
    with pytest.raises(InternalError, match=f"net: the compiled network crashes: {message}"):
        load_program(program, toy.assembled(program))


def test_reading_the_workspace_too_early_and_unwritten_outputs_show():
    program = toy.chain("copy", "copy")
    lazy = dataclasses.replace(program, steps=program.steps[1:])  # nobody writes what it reads
    with load_program(lazy, toy.assembled(lazy)) as net:
        assert np.isnan(net(np.zeros(toy.N, np.float32))).all()
    lazy = dataclasses.replace(program, steps=program.steps[:1])  # nobody writes the output
    with load_program(lazy, toy.assembled(lazy)) as net:
        assert np.isnan(net(np.zeros(toy.N, np.float32))).all()


def test_threads_can_be_changed(net):
    inputs = toy.toy_inputs()
    for threads in (3, 1, 2, 1):
        net.use_threads(threads)
        _check(net(*inputs), inputs)


def test_a_number_of_a_file_that_is_given_twice_opens_the_right_network(tmp_path):
    """The loader gives two openings of one file one library, which keeps the paths of both."""
    for name in ("toy", "other"):
        write_artifact(toy.toy(name=name), tmp_path / name, manifest={}, glue_object=toy.glue(name))
    first, second = load_artifact(tmp_path / "toy"), load_artifact(tmp_path / "toy")
    first.close()
    with load_artifact(tmp_path / "other") as other:
        _check(other(*toy.toy_inputs()), toy.toy_inputs())
    second.close()


def test_networks_of_one_name_do_not_meet():
    program = toy.chain("copy")
    other = toy.chain("exp")
    with load_program(program, toy.assembled(program)) as a, load_program(other, toy.assembled(other)) as b:
        x = np.linspace(-1, 1, toy.N, dtype=np.float32)
        np.testing.assert_array_equal(a(x), x)
        np.testing.assert_allclose(b(x), np.exp(x), rtol=1e-6)


def test_an_artifact_replaced_while_open(tmp_path):
    """The system's loader knows libraries by path: the new one must not be mistaken for the old one."""
    x = np.linspace(-1, 1, toy.N, dtype=np.float32)
    first, second = toy.chain("copy"), toy.chain("exp")
    write_artifact(first, tmp_path / "a", manifest={}, glue_object=toy.assembled(first))
    with load_artifact(tmp_path / "a") as old:
        write_artifact(second, tmp_path / "a", manifest={}, glue_object=toy.assembled(second))
        with load_artifact(tmp_path / "a") as new:
            np.testing.assert_array_equal(old(x), x)
            np.testing.assert_allclose(new(x), np.exp(x), rtol=1e-6)


def test_artifacts_open_without_tvm_or_compiler(tmp_path):
    write_artifact(toy.toy(), tmp_path / "a", manifest={}, glue_object=toy.glue())
    code = (
        "import sys, numpy as np\n"
        "from irc.backends.artifact.load import load_artifact\n"
        f"net = load_artifact({str(tmp_path / 'a')!r})\n"
        "y, z = net(np.ones((1, 37), np.float32), np.ones(37, np.float32))\n"
        "assert not {'tvm', 'tvm_ffi', 'onnxruntime', 'onnx'} & set(sys.modules), sorted(sys.modules)\n"
        "print(y.shape, z.shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PATH": ""})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(37,) (1, 37, 1)"


def test_folders_that_are_no_artifacts(tmp_path):
    with pytest.raises(OptionError, match="no such folder"):
        load_artifact(tmp_path / "absent")
    with pytest.raises(OptionError, match="it has no manifest"):
        load_artifact(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(OptionError, match="cannot read the manifest"):
        load_artifact(tmp_path)
    (tmp_path / "manifest.json").write_text('{"name": "app"}')
    with pytest.raises(OptionError, match="not an artifact of irc"):
        load_artifact(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../../evil"}, "names no network"),
        ({"name": None}, "names no network"),
        ({"target": "x86"}, "lacks 'target'"),
        ({"files": None}, "lacks 'files'"),
    ],
)
def test_damaged_manifests(tmp_path, change, message):
    write_artifact(toy.toy(), tmp_path / "x", manifest={}, glue_object=toy.glue())
    path = tmp_path / "x" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(OptionError, match=message):
        load_artifact(tmp_path / "x")


def test_artifacts_of_other_machines_and_incomplete_ones(tmp_path):
    arm = toy.toy("aarch64")
    write_artifact(arm, tmp_path / "arm", manifest={}, glue_object=toy.glue("toy", "aarch64"))
    with pytest.raises(OptionError, match="which this machine cannot run: it is for aarch64, this machine is x86-64"):
        load_artifact(tmp_path / "arm")
    with pytest.raises(OptionError, match="cannot run"):
        load_program(arm, toy.glue("toy", "aarch64"))
    write_artifact(toy.toy(), tmp_path / "h", manifest={}, glue_object=toy.glue(), emit={"header"})
    with pytest.raises(OptionError, match="no shared library"):
        load_artifact(tmp_path / "h")
    write_artifact(toy.toy(), tmp_path / "x", manifest={}, glue_object=toy.glue())
    library = tmp_path / "x" / "lib" / "shared" / "libtoy.so"
    library.write_bytes(b"not a library")
    _change_files(tmp_path / "x", {"lib/shared/libtoy.so": b"not a library"})
    with pytest.raises(OptionError, match="cannot load the library"):
        load_artifact(tmp_path / "x")


def _change_files(folder, contents):
    """Makes the manifest say that the files were written like this."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] |= {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()
    }
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("size", [0, 5000])
def test_a_damaged_library_is_refused_before_it_can_crash(tmp_path, size):
    write_artifact(toy.toy(), tmp_path / "x", manifest={}, glue_object=toy.glue())
    library = tmp_path / "x" / "lib" / "shared" / "libtoy.so"
    library.write_bytes(library.read_bytes()[:size])
    with pytest.raises(OptionError, match="damaged"):
        load_artifact(tmp_path / "x")


def test_changed_code_is_refused_and_weights_are_not_read(tmp_path):
    write_artifact(toy.toy(), tmp_path / "x", manifest={}, glue_object=toy.glue())
    facts = json.loads((tmp_path / "x" / "manifest.json").read_text())["files"]["lib/shared/libtoy.so"]
    library = tmp_path / "x" / "lib" / "shared" / "libtoy.so"
    whole = bytearray(library.read_bytes())
    code = facts["code"]["bytes"]
    assert 64 < code < facts["bytes"] == len(whole)
    assert hashlib.sha256(whole[:code]).hexdigest() == facts["code"]["sha256"]
    weights = toy.weights().tobytes()
    assert code <= whole.find(weights) < len(whole)
    whole[code - 1] ^= 1
    library.write_bytes(whole)
    with pytest.raises(OptionError, match="damaged"):
        load_artifact(tmp_path / "x")
    whole[code - 1] ^= 1
    whole[whole.find(weights) + 2] ^= 1
    library.write_bytes(whole)
    load_artifact(tmp_path / "x").close()
    with pytest.raises(OptionError, match="damaged"):
        check_unchanged(tmp_path / "x", read_manifest(tmp_path / "x"), "lib/shared/libtoy.so")


def test_a_library_with_another_name_than_the_manifest(tmp_path):
    write_artifact(toy.toy(), tmp_path / "x", manifest={}, glue_object=toy.glue())
    manifest = json.loads((tmp_path / "x" / "manifest.json").read_text())
    manifest["name"] = "other"
    (tmp_path / "x" / "manifest.json").write_text(json.dumps(manifest))
    library = tmp_path / "x" / "lib" / "shared" / "libtoy.so"
    _change_files(tmp_path / "x", {"lib/shared/libother.so": library.read_bytes()})
    library.rename(library.with_name("libother.so"))
    with pytest.raises(OptionError, match="does not hold network other"):
        load_artifact(tmp_path / "x")


def test_missing_cpu_features_are_named(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags : fpu sse4_2 avx avx2\n\nprocessor : 1\nflags : fpu sse4_2 avx avx2\n")
    facts = target_facts(TARGETS["x86-64-v4-vnni"])
    with pytest.raises(OptionError, match=r"lacks .*avx512_vnni.*; try --target native"):
        check_host(facts, where="a", cpuinfo=cpuinfo)
    check_host(target_facts(TARGETS["x86-64"]), where="a", cpuinfo=cpuinfo)
    assert required_flags(TARGETS["arm"]) == ("asimd", "asimddp")
    assert "avx2" in required_flags(TARGETS["x86-64-v3"])
    newer = dataclasses.replace(TARGETS["x86-64"], features=("+avxvnni", "-prefer-256-bit"))
    assert required_flags(newer) == ("avx_vnni",)
