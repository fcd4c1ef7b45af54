"""The comparison's own parts: the drawn weights, the check of outputs, the figures of the report."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from benchmarks import compare, metrics, peers, report
from benchmarks.images import synthetic_images
from benchmarks.light_models import LIGHT_MODELS, light_inputs, light_model
from benchmarks.networks import Network, load_network
from benchmarks.onnx_graph import input_shapes, logits_model
from benchmarks.timing import interleave

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def squeezenet():
    return light_model("squeezenet")


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "inception_v2", "resnet50"])
def test_light_logits_are_healthy_and_depend_on_the_input(name, run_all):
    model = logits_model(light_model(name))
    logits = np.stack(run_all(peers.ort_fp32(model, [], 1).infer, light_inputs(name, 4, seed=3)))
    assert 0.1 < logits.std() < 10
    assert logits.std(axis=0).mean() > 0.1 * logits.std()


def test_light_model_keeps_the_graph_and_lists_one_input(squeezenet):
    assert len([node for node in squeezenet.graph.node if node.op_type == "Conv"]) == 26
    assert not [node for node in squeezenet.graph.node if node.op_type == "ConstantOfShape"]
    assert input_shapes(squeezenet) == {"data_0": (1, 3, 224, 224)}
    onnx.checker.check_model(squeezenet)


def test_light_model_is_the_same_on_every_call_and_from_the_cache(squeezenet, tmp_path):
    written, read = (light_model("squeezenet", tmp_path) for _ in range(2))
    assert written.SerializeToString() == squeezenet.SerializeToString() == read.SerializeToString()


def test_light_inputs_differ_by_network_and_seed():
    first = [light_inputs(name, 1, seed)[0] for name in list(LIGHT_MODELS)[:2] for seed in (0, 1)]
    assert len({x.tobytes() for x in first}) == 4


def test_synthetic_images_have_a_photographs_spectrum():
    x = np.concatenate(synthetic_images(8, (3, 64, 64)))
    neighbours = np.corrcoef(x[..., :-1].ravel(), x[..., 1:].ravel())[0, 1]
    assert neighbours > 0.7
    assert abs(x.mean()) < 0.5
    assert 0.5 < x.std() < 1.5


def test_logits_model_removes_only_a_last_softmax(squeezenet):
    logits = logits_model(squeezenet)
    assert squeezenet.graph.node[-1].op_type == "Softmax"
    assert logits.graph.output[0].name == squeezenet.graph.node[-1].input[0]
    assert len(logits.graph.node) == len(squeezenet.graph.node) - 1


def test_metrics_refuse_shapes_that_only_broadcast():
    with pytest.raises(ValueError, match="shapes"):
        metrics.relative_error([np.ones((2, 1))], [np.ones((2, 2))])


def test_relative_error_of_nan_passes_no_limit():
    assert not metrics.relative_error([np.ones(2)], [np.array([1.0, np.nan])]) <= 1e9


def test_interleave_takes_turns():
    order = []
    times = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2, runs_per_turn=1)
    assert order == ["a", "a", "b", "b"] * 2
    assert times["a"].runs == 2


@pytest.mark.parametrize("name", ["resnet51", "squeezenet@2", "espcn@", "espcn@0", "espcn@many"])
def test_unknown_network_is_told_the_known_ones(name):
    with pytest.raises(SystemExit, match=r"squeezenet.*espcn"):
        load_network(name)


def test_networks_of_the_zoo_come_in_batches():
    network = load_network("espcn@3")
    (shape,) = input_shapes(network.model).values()
    assert shape[0] == 3
    assert [x.shape for x in network.inputs(2, 0)] == [shape, shape]


def test_compare_checks_outputs_and_names_what_is_missing(squeezenet, tmp_path, monkeypatch):
    """A runner that is wrong and a runner that fails are both reported, and neither ends the comparison."""
    honest = compare.peers.ort_fp32

    def wrong(model, calibration, threads, target):
        runner = honest(model, calibration, threads)
        return peers.Runner("tvm_int8 FP32", lambda x: [value * 1.01 for value in runner.infer(x)], "0")

    def broken(model, calibration, threads, target):
        raise RuntimeError("no such kernel")

    runners = {"tvm_fp32": wrong, "tvm_int8": broken, "ort_fp32": honest}
    monkeypatch.setattr(compare, "RUNNERS", runners)
    network = Network("squeezenet", squeezenet, lambda count, seed: light_inputs("squeezenet", count, seed))
    options = compare.Options(tuple(runners), rounds=1, calibration=1, checks=2)
    results = [compare.compare(network, 1, options)]
    sentences = report.failures(results)
    assert len(sentences) == 2
    assert "1.0e-02" in sentences[0]
    assert "no such kernel" in sentences[1]
    report.write(results, tmp_path / "out")
    assert json.loads((tmp_path / "out.json").read_text())["results"][0]["ratios"].keys() == {"fp32_vs_ort_fp32"}
    assert "| squeezenet |" in (tmp_path / "out.md").read_text()
