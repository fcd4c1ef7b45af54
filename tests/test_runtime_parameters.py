"""Exported libraries with packed weights: smaller by what was predicted, the same to the last bit, and checked."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import tvm_int8
from tests.small_networks import NETWORKS, Network, draw
from tvm_int8 import ArtifactError, QuantizationConfig
from tvm_int8.packed_weights import PackedWeight
from tvm_int8.report import is_multiplying
from tvm_int8.runtime import CompiledModule, artifact, load, parameters, read_metadata


@functools.cache
def wide() -> onnx.ModelProto:
    """All kinds of convolutions, with enough weights to matter."""
    net = Network(x=(1, 3, 12, 12))
    y = net.relu(net.conv("x", 32, stride=2))
    y = net.relu(net.conv(y, 32, groups=32))
    y = net.relu(net.conv(y, 96, kernel=1))
    y = net.relu(net.conv(y, 96, groups=4))
    y = net.relu(net.conv(y, 64))
    weight = net.normal(64, 48, 2, 2, scale=0.1)
    y = net.relu(net.add("ConvTranspose", y, weight, channels=48, kernel_shape=[2, 2], strides=[2, 2]))
    y = net.add("Flatten", net.add("GlobalAveragePool", y))
    return net.finish(net.dense(y, 48, 100))


WEIGHTS = 32 * 27 + 32 * 9 + 96 * 32 + 96 * 24 * 9 + 64 * 96 * 9 + 64 * 48 * 4 + 48 * 100


@functools.cache
def compiled(bits: int, target: str = "native", model=wide) -> CompiledModule:
    config = QuantizationConfig(bits={"*": bits}, rounding="nearest", winograd="off")
    return tvm_int8.compile(
        model(), target, draw(model(), 4, 0), config, num_threads=1, progress=False, tuning_logs=None
    )


def exported(module: CompiledModule, directory, **options) -> tuple[str, int]:
    path = str(directory / f"net{len(os.listdir(directory))}.so")
    module.export(path, **options)
    return path, os.path.getsize(path)


@pytest.mark.parametrize("bits", [2, 4, 7])
def test_files_are_smaller_by_the_bits(bits, tmp_path):
    """Against 8 bits: a layer's weights take their bits, whatever its kernel."""
    _, eight = exported(compiled(8), tmp_path)
    _, fewer = exported(compiled(bits), tmp_path)
    assert eight - fewer == pytest.approx(WEIGHTS * (8 - bits) / 8, rel=0.02, abs=300)


@pytest.mark.parametrize("bits", [2, 4, 7])
def test_loaded_modules_are_the_same(bits, tmp_path):
    module = compiled(bits)
    path, size = exported(module, tmp_path)
    plain_path, plain_size = exported(module, tmp_path, pack_weights=False)
    assert size < plain_size
    loaded, plain = load(path), load(plain_path)
    assert loaded.metadata == module.metadata
    for inputs in draw(wide(), 3, 1):
        expected = module.run(inputs)
        for other in (loaded, plain):
            for name, values in other.run(inputs).items():
                np.testing.assert_array_equal(values, expected[name])
    assert [row.layer for row in loaded.profile(repeat=1).rows] == [row.layer for row in module.profile(repeat=1).rows]
    loaded.export(tmp_path / "copy.so")
    assert (tmp_path / "copy.so").read_bytes() == Path(path).read_bytes()


@pytest.mark.parametrize("target", ["cascadelake", "sapphirerapids", "skylake-avx512", "haswell"])
def test_executables_come_back_byte_for_byte(target, tmp_path):
    """Of any CPU: kernels of each arrange weights in their own way."""
    module = compiled(3, target)
    heavy = [row for row in module.report if is_multiplying(row.op) and row.precision == "int8"]
    assert {row.weight_bits for row in heavy} == {3}
    saved = tmp_path / "executable"
    module._executable.mod.write_to_file(str(saved), module._executable.mod.kind)
    section = parameters.separated(saved.read_bytes(), module._packed)
    assert parameters.joined(section) == saved.read_bytes()
    memory = module.metadata.memory
    assert len(section) == pytest.approx(saved.stat().st_size - (memory.constants - memory.stored), abs=200)


@pytest.mark.parametrize("name", ["mobile", "inception", "decoder", "shuffle"])
def test_other_networks(name, tmp_path):
    module = compiled(4, "native", NETWORKS[name])
    loaded = load(exported(module, tmp_path)[0])
    (inputs,) = draw(NETWORKS[name](), 1, 1)
    for mine, theirs in zip(loaded.run(inputs).values(), module.run(inputs).values(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_widths_differ_by_layer_and_reports_say_so(tmp_path):
    model = wide()
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    widths = {convolutions[3]: 3, convolutions[4]: 5, convolutions[2]: 16}
    config = QuantizationConfig(bits=widths, rounding="nearest")
    module = tvm_int8.compile(model, calibration=draw(model, 4, 0), quantization=config, progress=False)
    path, _ = exported(module, tmp_path)
    rows = {row.layer: row for row in read_metadata(path).layers}
    assert (rows[convolutions[3]].weight_bits, rows[convolutions[4]].weight_bits) == (3, 5)
    assert (rows[convolutions[2]].weight_bits, rows[convolutions[2]].precision) == (None, "float32")
    assert rows[convolutions[2]].reason
    text = str(load(path).report)
    assert "bits stored" in text.splitlines()[0]
    assert "packed in a file" in text
    plain, _ = exported(module, tmp_path, pack_weights=False)
    assert "stored" not in str(load(plain).report)
    assert read_metadata(plain).memory.stored is None


def test_without_packing_tvm_alone_runs_the_library(tmp_path):
    module = compiled(4)
    path, _ = exported(module, tmp_path, pack_weights=False)
    code = (
        "import sys, numpy, tvm; from tvm import relax;"
        "main = relax.VirtualMachine(tvm.runtime.load_module(sys.argv[1]), tvm.cpu())['main'];"
        "x = tvm.runtime.tensor(numpy.ones((1, 3, 12, 12), numpy.float32)); print(float(main(x).numpy().sum()))"
    )
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert float(result.stdout) == pytest.approx(float(module(np.ones((1, 3, 12, 12), np.float32))[0].sum()))


def test_loading_writes_nothing_to_stderr(tmp_path):
    path, _ = exported(compiled(4), tmp_path)
    code = "import sys, tvm_int8.runtime; tvm_int8.runtime.load(sys.argv[1])"
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert result.stderr == ""


def forged(path: str, change, directory) -> str:
    """An exported file whose section of packed weights is changed, with a trailer that fits."""
    trailer = artifact.read_trailer(path)
    with open(path, "rb") as file:
        library = file.read(trailer.library_bytes)
    size = parameters.section_bytes(library[-parameters.FOOTER.size :])
    assert size
    changed = library[:-size] + change(library[-size:])
    forged_path = directory / "forged.so"
    artifact.write(forged_path, lambda name: Path(name).write_bytes(changed) and None, trailer.metadata)
    return str(forged_path)


def flipped(section: bytes, position: int) -> bytes:
    altered = bytearray(section)
    altered[position] ^= 0x11
    return bytes(altered)


def test_altered_weights_are_noticed(tmp_path, rng, monkeypatch):
    """Even where the file's own checksum is right; before any code is mapped."""
    path, _ = exported(compiled(3), tmp_path)
    monkeypatch.setattr(artifact, "open_library", lambda path: pytest.fail("mapped"))
    section = artifact._packed_section(path, artifact.read_trailer(path).library_bytes)
    rest, archive, _ = parameters.FOOTER.unpack(section[-parameters.FOOTER.size :])
    for position in [*rng.integers(0, rest + archive, 40), *range(rest, rest + 40)]:
        broken = forged(path, lambda section, at=position: flipped(section, at), tmp_path)
        with pytest.raises(ArtifactError, match=r"forged\.so: packed weights that do not fit \("):
            load(broken)
    for cut in (1, 100, archive // 2, archive):
        shorter = forged(path, lambda section, n=cut: section[: rest + archive - n] + section[-32:], tmp_path)
        with pytest.raises(ArtifactError, match="packed weights"):
            load(shorter)


def test_sizes_that_lead_out_of_the_file(tmp_path):
    path, _ = exported(compiled(3), tmp_path)
    huge = parameters.FOOTER.pack(1 << 40, 1 << 40, b"tvm_int8 weights")
    with pytest.raises(ArtifactError, match=r"packed weights of \d+ bytes; expected at most"):
        load(forged(path, lambda section: section[: -parameters.FOOTER.size] + huge, tmp_path))


def test_weights_that_are_not_in_the_executable_stay_out(rng):
    weight = rng.integers(-2, 2, (32, 32, 3, 3)).astype(np.int8)
    packed = PackedWeight.of(weight, 1, False, np.ravel)
    other = PackedWeight.of(weight[::-1].copy(), 1, False, np.ravel)
    executable = b"head" + other.expanded().tobytes() + b"middle" + other.expanded().tobytes() + b"tail"
    for given in ([packed], [packed, other], [other, other, packed, other], []):
        section = parameters.separated(executable, given)
        assert parameters.joined(section) == executable
        assert parameters.section_bytes(section[-parameters.FOOTER.size :]) == len(section)
    assert parameters.section_bytes(b"anything else") == 0


def test_metadata_of_older_files_is_read():
    """They know of no packed weights."""
    metadata = compiled(4).metadata
    old = metadata.to_dict()
    old["memory"].pop("stored")
    for row in old["layers"]:
        row.pop("weight_bits")
    read = type(metadata).from_json(json.dumps(old))
    assert read.memory == dataclasses.replace(metadata.memory, stored=None)
    assert {row.weight_bits for row in read.layers} == {None}
