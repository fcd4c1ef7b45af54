"""Weights in training: the integers they have, the levels they keep, the gradients they get."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from tests.finetuning.trained import quantized  # noqa: E402
from tvm_int8.finetuning.fake_quantizers import TrainedWeight, rounded  # noqa: E402
from tvm_int8.passes.dataflow import Dataflow  # noqa: E402
from tvm_int8.passes.quantizers import ActivationQuantizer  # noqa: E402

STEP = np.array(0.02)


def convolutions(bits: int):
    model = quantized(bits, 8)
    producers = {var.name: binding.value for var, binding in Dataflow(model.float_mod).producer.items()}
    return [(producers[name], weight, model.quantizers.divisor(producers[name]))
            for name, weight in model.quantizers.weights.items()]  # fmt: skip


@pytest.mark.parametrize("bits", [1, 3, 7, 8])
def test_begins_with_the_integers_it_is_given(bits):
    for call, weight, divisor in convolutions(bits):
        trained = TrainedWeight(call, weight, divisor, STEP)
        found = trained.quantizer()
        np.testing.assert_array_equal(found.values, weight.values)
        np.testing.assert_array_equal(found.scale, weight.scale)
        np.testing.assert_allclose(found.exact, weight.real, rtol=1e-6)
        if weight.correction is not None:
            np.testing.assert_allclose(found.correction, weight.correction, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_keeps_its_levels(bits):
    for call, weight, divisor in convolutions(bits):
        trained = TrainedWeight(call, weight, divisor, STEP)
        with torch.no_grad():
            trained.share += torch.randn(trained.share.shape, generator=torch.Generator().manual_seed(0))
        trained.keep_within_range()
        values = trained.quantizer().values.astype(int)
        if weight.lowest is None:
            assert np.abs(values).max() <= 127
        else:
            lowest = weight.lowest.reshape([-1 if i == weight.axis else 1 for i in range(4)]).astype(int)
            assert ((values - lowest) % 2 == 0).all()
            assert (values >= lowest).all() and (values <= lowest + 2 * (2**bits - 1)).all()


def test_channel_of_zeros_stays():
    call, weight, divisor = convolutions(3)[0]
    values, lowest = weight.values.copy(), weight.lowest.copy()
    values[0], lowest[0] = 0, -(2**3)
    dead = replace(weight, values=values, lowest=lowest, exact=np.where(values, weight.exact, 0).astype(np.float32))
    trained = TrainedWeight(call, dead, divisor, STEP)
    with torch.no_grad():
        trained.share += 0.5
    trained.keep_within_range()
    assert not trained.quantizer().values[0].any()


def test_gradients_pass_straight_through():
    call, weight, divisor = convolutions(3)[0]
    trained = TrainedWeight(call, weight, divisor, STEP)
    real, bias = trained()
    units = bias.detach().numpy() / (STEP * weight.scale)
    np.testing.assert_allclose(units, np.rint(units), atol=1e-3)
    (real.sum() + bias.sum()).backward()
    step = trained.step * trained.scale * trained.factor * trained.reach
    torch.testing.assert_close(trained.share.grad, step.expand_as(trained.share))
    torch.testing.assert_close(trained.shift.grad, trained.unit)


@pytest.mark.parametrize("per_channel", [False, True])
def test_activations_are_rounded_as_elsewhere(per_channel, rng):
    scale = np.array([0.5, 0.25, 0.1], np.float32) if per_channel else np.array(0.25, np.float32)
    zero_point = np.array([1, 2, 3]) if per_channel else np.array(2)
    quantizer = ActivationQuantizer(scale, zero_point, bits=4)
    values = np.concatenate([rng.uniform(-3, 6, (2, 3, 4, 4)), np.full((1, 3, 4, 4), 0.125)]).astype(np.float32)
    x = torch.from_numpy(values).requires_grad_()
    out = rounded(x, quantizer)
    np.testing.assert_allclose(out.detach().numpy(), quantizer.rounded(values), rtol=1e-6)
    out.sum().backward()
    spread = [1, -1, 1, 1] if per_channel else []
    integers = np.rint(values / scale.reshape(spread)) + zero_point.reshape(spread)
    np.testing.assert_array_equal(x.grad.numpy(), (integers >= 0) & (integers <= 15))
