import ctypes
import dataclasses
import os
import stat
import subprocess
import sys

import numpy as np
import pytest

from tests.runtime_module import SHAPE, build_module
from tvm_int8 import ArtifactError
from tvm_int8.runtime import artifact, load, read_metadata

F32, U8 = np.ones(SHAPE, np.float32), np.ones(SHAPE, np.uint8)


@pytest.fixture(scope="module")
def module():
    return build_module()


@pytest.fixture(scope="module")
def exported(module, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "net.so"
    module.export(path)
    return path


def test_a_loaded_module_is_the_same(module, exported):
    loaded = load(str(exported))
    assert loaded.metadata == module.metadata
    assert str(loaded.report) == str(module.report)
    for mine, theirs in zip(loaded(F32, U8), module(F32, U8), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert [row.layer for row in loaded.profile(repeat=1).rows] == [row.layer for row in module.profile(repeat=1).rows]
    for mine, theirs in zip(loaded.capture([F32, U8]), module.capture([F32, U8]), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_loads_in_a_fresh_process_and_writes_nothing_to_stderr(exported):
    code = "import sys, numpy, tvm_int8; print(tvm_int8.runtime.load(sys.argv[1])(*eval(sys.argv[2]))[0].sum())"
    inputs = f"(numpy.ones({SHAPE}), numpy.ones({SHAPE}, numpy.uint8))"
    code = code.replace("tvm_int8;", "tvm_int8.runtime;")
    result = subprocess.run([sys.executable, "-c", code, exported, inputs], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == (str(3.0 * F32.size), "")


def test_is_a_shared_library_for_anybody(exported):
    ctypes.CDLL(str(exported))
    assert exported.read_bytes().startswith(b"\x7fELF")
    assert os.listdir(exported.parent) == [exported.name]
    assert exported.stat().st_mode & stat.S_IRUSR


def test_a_loaded_module_exports_again(exported, tmp_path):
    loaded = load(exported)
    loaded.export(tmp_path / "copy.so")
    assert (tmp_path / "copy.so").read_bytes() == exported.read_bytes()
    loaded.num_threads = 1
    loaded.export(tmp_path / "single.so")
    assert load(tmp_path / "single.so").num_threads == 1


def test_exports_over_the_file_it_was_loaded_from(module, tmp_path):
    path = tmp_path / "net.so"
    module.export(path)
    loaded = load(path)
    loaded.export(path)
    build_module(np.full(SHAPE, 5, np.float32)).export(path)
    assert (loaded(F32, U8)[0] == 3).all()
    assert (load(path)(F32, U8)[0] == 6).all()
    with pytest.raises(ArtifactError, match="changed since it was loaded"):
        loaded.export(path)
    assert os.listdir(tmp_path) == ["net.so"]


@pytest.mark.parametrize("name", ["net", "net.bin", "with space.so", "ünï.so", "net.o", "net.tar"])
def test_any_name_will_do(module, tmp_path, name):
    module.export(tmp_path / name)
    assert (load(tmp_path / name)(F32, U8)[0] == 3).all()
    assert os.listdir(tmp_path) == [name]


def test_relative_paths(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module.export("net.so")
    loaded = load("net.so")
    monkeypatch.chdir("/")
    loaded.export(tmp_path / "again.so")
    assert (loaded(F32, U8)[0] == 3).all()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (lambda data: b"", "empty"),
        (lambda data: b"PK\x03\x04 something else", "not a shared library"),
        (lambda data: data[:20], "truncated: only 20 bytes"),
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: data[:-1], "without tvm_int8's metadata: truncated"),
        (lambda data: data[:-200], "without tvm_int8's metadata: truncated"),
        (lambda data: data[:5000] + data[5001:], "corrupted"),
        (lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:], "corrupted: wrong checksum"),
        (lambda data: data.replace(b"x86-64-v4", b"x86-64-v9"), "corrupted: wrong checksum"),
        (lambda data: data + b"\n", "without tvm_int8's metadata"),
    ],
)
def test_damaged_files(exported, tmp_path, content, found):
    path = tmp_path / "net.so"
    path.write_bytes(content(exported.read_bytes()))
    for read in (load, read_metadata):
        with pytest.raises(ArtifactError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert found in str(caught.value)


def test_every_flipped_byte_is_noticed(exported, tmp_path, rng):
    data, path = exported.read_bytes(), tmp_path / "net.so"
    for position in [*rng.integers(0, len(data), 20), *range(len(data) - 90, len(data))]:
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        with pytest.raises(ArtifactError):
            load(path)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ArtifactError, match=r"none\.so: cannot be read \(No such file"):
        load(tmp_path / "none.so")
    with pytest.raises(ArtifactError, match="a directory"):
        load(tmp_path)


def export_with(tmp_path, **changes):
    path = tmp_path / "net.so"
    build_module(**changes).export(path)
    return path


def test_another_cpu_is_refused_before_its_code_is_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "open_library", lambda path: pytest.fail("mapped"))
    path = export_with(tmp_path, cpu_features=["sse2", "avx1024", "amx_fp4"])
    with pytest.raises(ArtifactError, match=r"net\.so: this CPU has no amx_fp4, avx1024"):
        load(path)
    assert read_metadata(path).cpu_features == ("sse2", "avx1024", "amx_fp4")


@pytest.mark.parametrize(
    ("package", "version", "refused"),
    [("tvm", "0.26.0", True), ("tvm_ffi", "0.1.15", True), ("tvm", None, True), ("tvm_int8", "9.9", False)],
)
def test_versions(module, tmp_path, package, version, refused):
    path = export_with(tmp_path, versions={**module.metadata.versions, package: version})
    if not refused:
        load(path)
        return
    with pytest.raises(ArtifactError, match=rf"compiled with apache-{package.replace('_', '-')} {version}"):
        load(path)


def test_another_format_version(module, tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "FORMAT_VERSION", 2)
    module.export(tmp_path / "net.so")
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="format version 2; expected version 1"):
        load(tmp_path / "net.so")


def test_metadata_that_does_not_fit(module, tmp_path, monkeypatch):
    monkeypatch.setattr(type(module.metadata), "to_json", lambda self: '{"inputs": []}')
    module.export(tmp_path / "net.so")
    with pytest.raises(ArtifactError, match="metadata that does not fit"):
        load(tmp_path / "net.so")


@pytest.mark.parametrize("path", ["", "{tmp}", "{tmp}/none/net.so", "{tmp}/file/net.so", "/proc/net.so"])
def test_places_that_cannot_be_written(module, tmp_path, path):
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="export to"):
        module.export(path.format(tmp=tmp_path))
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("compiler", ["/bin/false", "/no/such/compiler"])
def test_a_compiler_that_fails_leaves_the_old_file(module, tmp_path, monkeypatch, compiler):
    path = tmp_path / "net.so"
    path.write_bytes(b"old")
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(ArtifactError, match=f"{compiler} failed"):
        module.export(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["net.so"]


def test_no_compiler(module, tmp_path, monkeypatch):
    for name in ("CXX", "CC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ArtifactError, match="no C compiler"):
        module.export(tmp_path / "net.so")


def test_another_cpus_module_can_be_exported(tmp_path):
    module = build_module(cpu_features=["sse9"])
    module.export(tmp_path / "net.so")
    assert dataclasses.replace(module.metadata) == read_metadata(tmp_path / "net.so")
