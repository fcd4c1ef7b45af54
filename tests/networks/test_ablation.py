"""The ablation: which variants it tries, and its table on a small network."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from benchmarks import ablation
from benchmarks.judge import Case
from tests.small_networks import Network, draw


def test_variants_differ_from_their_base_in_one_option():
    bases = {"plain": ablation.PLAIN, "full": ablation.FULL}
    found = list(ablation.variants())
    assert [variant.name for variant in found[:3]] == ["plain", "full", "default"]
    assert len({variant.config for variant in found}) >= len(found) - 1
    for variant in found[3:]:
        base, _, changed = variant.name.partition(", ")
        options = variant.config.to_dict()
        expected = {**ablation.QuantizationConfig(**bases[base]).to_dict()}
        different = [name for name in expected if options[name] != expected[name]]
        assert different == [changed.partition("=")[0]]
        assert str(options[different[0]]) == changed.partition("=")[2]


def test_every_option_has_a_plain_and_a_full_value():
    assert set(ablation.PLAIN) == set(ablation.FULL) == set(ablation.CHOICES) - {"weight_bits"}


@pytest.fixture
def files(tmp_path):
    """Paths of a small classifier, inputs to calibrate and to test with, and labels."""
    net = Network(x=(1, 3, 8, 8))
    y = net.relu(net.norm(net.conv("x", 16)))
    y = net.relu(net.norm(net.conv(y, 16, groups=16)))
    y = net.add("Flatten", net.add("GlobalAveragePool", net.conv(y, 8)))
    model = net.finish(net.add("Softmax", net.dense(y, 8, 4)))
    paths = [tmp_path / name for name in ("net.onnx", "calibration.npz", "test.npy", "labels.npy")]
    onnx.save(model, paths[0])
    inputs = np.concatenate([batch["x"] for batch in draw(model, 12, seed=0)])
    np.savez(paths[1], x=inputs[:8])
    np.save(paths[2], inputs[8:])
    np.save(paths[3], np.arange(4))
    return [str(path) for path in paths]


def test_the_table(files, capsys):
    model, calibration, test, labels = files
    arguments = ["--calibration", calibration, "--test", test, "--labels", labels, "--only", "per_channel_weights"]
    assert ablation.main([model, *arguments]) == 0
    header, rule, *rows = capsys.readouterr().out.splitlines()
    assert header == "|  | SQNR dB | as FP32 | accuracy |"
    assert rule.count("---") == 4
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]
    assert [name for name, *_ in cells] == [
        "FP32", "plain", "full", "default", "default, weights alone", "default, activations alone",
        "plain, per_channel_weights=True", "full, per_channel_weights=False",
    ]  # fmt: skip
    assert cells[0][1:3] == ["inf", "100.00%"]
    assert all(15 < float(sqnr) < 80 for _, sqnr, *_ in cells[1:])
    assert all(accuracy.endswith("%") for *_, accuracy in cells)
    both, weights, activations = (10 ** (-float(sqnr) / 10) for _, sqnr, *_ in cells[3:6])
    assert max(weights, activations) < both < 1.5 * (weights + activations)


def test_labels_are_optional(files):
    image = {"x": np.ones((1, 3, 8, 8), np.float32)}
    judge = ablation.Judge(Case("a network", onnx.load(files[0]), [image], [image]))
    assert judge.fp32() == ablation.Result(float("inf"), 1.0, None)
    assert ablation.row("FP32", judge.fp32()) == "| FP32 | inf | 100.00% |"
