"""`tvm_int8.finetune`: what is trained is what is compiled; trainings go on where they stopped."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import tvm_int8  # noqa: E402
from tests.finetuning.trained import CLASSES, classifier, inputs, quantized, run_all  # noqa: E402
from tvm_int8.errors import ArtifactError, CalibrationError, ConfigError, ModelError  # noqa: E402
from tvm_int8.finetuning import checkpoint as checkpoints  # noqa: E402
from tvm_int8.finetuning.losses import Loss  # noqa: E402
from tvm_int8.finetuning.torch_network import TorchNetwork  # noqa: E402
from tvm_int8.finetuning.training import Training  # noqa: E402
from tvm_int8.passes.dataflow import Dataflow  # noqa: E402
from tvm_int8.quantization.sqnr import sqnr_db  # noqa: E402

OPTIONS = dict(epochs=10, batch_size=16, learning_rate=3e-3, progress=False)


@functools.cache
def tuned():
    return tvm_int8.finetune(quantized(), inputs(128, 1), **OPTIONS)


def in_torch(quantizers, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return TorchNetwork(quantized().float_mod, quantizers)(torch.from_numpy(images))[0].numpy()


def same_integers(one, other) -> bool:
    return all(np.array_equal(w.values, other.quantizers.weights[n].values) for n, w in one.quantizers.weights.items())


def test_gets_closer_to_the_float_network():
    images = inputs(256, 2)
    wanted = [torch.from_numpy(in_torch(None, images))]
    loss = Loss(Dataflow(quantized().float_mod), 1.0)
    outputs = ([torch.from_numpy(in_torch(q.quantizers, images))] for q in (quantized(), tuned().quantized))
    before, after = (float(loss(out, wanted, None)) for out in outputs)
    assert after < 0.9 * before
    assert len(tuned().losses) == OPTIONS["epochs"] and min(tuned().losses) < tuned().losses[0]


def test_keeps_scales_and_bits():
    for name, weight in tuned().quantized.quantizers.weights.items():
        began = quantized().quantizers.weights[name]
        np.testing.assert_array_equal(weight.scale, began.scale)
        np.testing.assert_array_equal(weight.lowest, began.lowest)
        assert weight.bits == began.bits
    assert tuned().quantized.quantizers.activations == quantized().quantizers.activations
    assert not same_integers(tuned().quantized, quantized())


def test_compiled_module_computes_what_was_trained(tmp_path):
    images = inputs(200, 2)
    trained = in_torch(tuned().quantized.quantizers, images)
    compiled = run_all(tuned().quantized, images)
    assert sqnr_db(trained, compiled) > 35
    assert (trained.argmax(1) == compiled.argmax(1)).mean() >= 0.99
    tuned().to_onnx(tmp_path / "tuned.onnx")
    np.testing.assert_array_equal(run_all(str(tmp_path / "tuned.onnx"), images), compiled)
    assert {node.op_type for node in tuned().model.graph.node} >= {"QuantizeLinear", "DequantizeLinear"}


def test_float_model_is_the_network_without_rounded_activations():
    onnxruntime = pytest.importorskip("onnxruntime")
    model, images = tuned().float_model(), inputs(64, 2)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    out = np.concatenate([session.run(None, {"x": image[None]})[0] for image in images])
    assert sqnr_db(in_torch(tuned().quantized.quantizers, images), out) > 15


def test_labels_and_augmentation():
    images = inputs(64, 1)
    labels = in_torch(None, images).argmax(1)
    labels[:3] = 255

    def flip(batch, rng):
        return {"x": batch["x"][..., ::-1].copy() if rng.random() < 0.5 else batch["x"]}

    options = OPTIONS | dict(augment=flip, distillation=0.0)
    found = tvm_int8.finetune(quantized(), images, labels, **options)
    assert found.losses[-1] < found.losses[0]
    assert same_integers(tvm_int8.finetune(quantized(), images, labels, **options).quantized, found.quantized)


class Killed(Exception):
    pass


@pytest.mark.parametrize("steps", [5, 8])
def test_goes_on_where_it_was_stopped(tmp_path, monkeypatch, steps):
    path, train_on = tmp_path / "state", Training._train_on

    def dies(self, *arguments):
        if self._step == steps:
            raise Killed
        train_on(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Training, "_train_on", dies)
        patched.setattr("tvm_int8.finetuning.training.SAVE_EVERY_S", 0.0)
        with pytest.raises(Killed):
            tvm_int8.finetune(quantized(), inputs(128, 1), **OPTIONS, checkpoint=path)
    assert torch.load(path, weights_only=True)["step"] == steps
    again = tvm_int8.finetune(quantized(), inputs(128, 1), **OPTIONS, checkpoint=path)
    assert again.losses == tuned().losses
    assert same_integers(again.quantized, tuned().quantized)
    monkeypatch.setattr(Training, "_train_on", None)  # there is nothing left to do
    done = tvm_int8.finetune(quantized(), inputs(128, 1), **OPTIONS, checkpoint=path)
    assert same_integers(done.quantized, tuned().quantized)


def test_refuses_checkpoints_of_other_trainings(tmp_path):
    path, data = tmp_path / "state", inputs(32, 1)
    options = OPTIONS | dict(epochs=1, checkpoint=path)
    tvm_int8.finetune(quantized(), data, **options)
    with pytest.raises(ArtifactError, match="its options differ"):
        tvm_int8.finetune(quantized(), data, **options | dict(learning_rate=1e-4))
    with pytest.raises(ArtifactError, match="its data differ"):
        tvm_int8.finetune(quantized(), data[:-1], **options)
    with pytest.raises(ArtifactError, match="its quantisation differ"):
        tvm_int8.finetune(quantized(4), data, **options)
    tvm_int8.finetune(quantized(4), data, **options, resume=False)
    assert checkpoints.Checkpoint(path, {}).load()["step"] == 2
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="cannot be read"):
        tvm_int8.finetune(quantized(), data, **options)
    with pytest.raises(ArtifactError, match="cannot be written"):
        tvm_int8.finetune(quantized(), data, **options | dict(checkpoint=tmp_path / "no" / "state"))


def test_errors(monkeypatch):
    data = inputs(4)
    with pytest.raises(ModelError, match="expected a QuantizedModel"):
        tvm_int8.finetune(classifier(), data)
    with pytest.raises(ModelError, match="came quantised"):
        tvm_int8.finetune(tvm_int8.quantize(quantized().to_onnx()), data)
    with pytest.raises(CalibrationError, match="training data, input 'x'"):
        tvm_int8.finetune(quantized(), data[:, :2])
    with pytest.raises(CalibrationError, match="labels: float64"):
        tvm_int8.finetune(quantized(), data, np.zeros(4))
    with pytest.raises(CalibrationError, match=f"classes 0 to {CLASSES - 1}"):
        tvm_int8.finetune(quantized(), data, np.array([0, 1, 2, CLASSES]))
    for option in (dict(epochs=0), dict(learning_rate=-1.0), dict(batch_size=2.5), dict(distillation=2)):
        with pytest.raises(ConfigError, match=next(iter(option))):
            tvm_int8.finetune(quantized(), data, **option)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install tvm_int8\[finetune\]"):
        tvm_int8.finetune(quantized(), data)
