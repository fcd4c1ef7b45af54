"""Weights of few bits rounded layer after layer: what layers in front lost, those behind make good."""

from __future__ import annotations

import numpy as np
import pytest

from tests.numpy_calibration import NumpyNetwork
from tests.quantization.calibrated import calibrated
from tests.quantization.test_learned_weights import body, floats, module
from tests.quantization.test_second_moments import convolution, patches
from tvm_int8.quantization import paired_moments, weights_in_order
from tvm_int8.quantization.learned_weights import learn_weights
from tvm_int8.quantization.paired_moments import PairedMoments
from tvm_int8.quantization.second_moments import SecondMoments
from tvm_int8.quantization.weights_in_order import learn_weights_in_order


def paired(call, seed=0, lost=0.3):
    """Moments of data that lost some of themselves, the patches, and the weights by group."""
    rng = np.random.default_rng(seed)
    exact = [rng.standard_normal((1, 6, 7, 7)).astype(np.float32) + 0.5 for _ in range(4)]
    exact = [(x + np.roll(x, 1, 2)).astype(np.float32) for x in exact]
    data = [(x * (1 - lost) + 0.1 * np.roll(x, 1, 1) + 0.2).astype(np.float32) for x in exact]
    moments = PairedMoments(call, len(data))
    for own, wanted in zip(data, exact, strict=True):
        moments.update_both(own, wanted)
    read, meant = (np.concatenate([patches(call, x) for x in both]) for both in (data, exact))
    weight = rng.standard_normal((read.shape[1], 3, read.shape[2])).astype(np.float32)
    return moments, read, meant, weight


@pytest.fixture(params=[1, 3])
def call(request):
    return convolution((1, 6, 7, 7), (9, 6 // request.param, 3, 3), groups=request.param, padding=1)


@pytest.mark.parametrize("central", [False, True])
def test_it_aims_at_the_float_networks_results(call, central, monkeypatch):
    """Undamped, that is least squares, which NumPy solves from the patches themselves."""
    monkeypatch.setattr(paired_moments, "DAMPINGS", (0.0,))
    moments, read, meant, weight = paired(call)
    found = moments.aim(weight, central)
    for group, rows in enumerate(weight):
        x, wanted = read[:, group], meant[:, group] @ rows.T
        if central:
            x, wanted = x - x.mean(0), wanted - wanted.mean(0)
        expected = np.linalg.lstsq(x, wanted, rcond=None)[0].T
        np.testing.assert_allclose(found[group], expected, atol=2e-2)


def test_as_it_is_it_comes_nearer_on_new_data(call):
    moments, _, _, weight = paired(call)
    _, read, meant, _ = paired(call, seed=1)
    found = moments.aim(weight, True)

    def lost(rows):
        error = np.einsum("pgk,gok->pgo", read, rows) - np.einsum("pgk,gok->pgo", meant, weight)
        return error.var(0).mean()

    assert lost(found) < 0.5 * lost(weight)


def test_the_less_data_tell_the_more_corrections_are_damped(call):
    rng = np.random.default_rng(0)

    def damping(count, noise):
        moments = PairedMoments(call, count)
        for _ in range(count):
            x = rng.standard_normal((1, 6, 7, 7)).astype(np.float32)
            moments.update_both(x, (1.1 * x + noise * rng.standard_normal(x.shape)).astype(np.float32))
        return moments.damping(np.ones((int(call.attrs.groups), 3, 54 // int(call.attrs.groups))), True)

    assert damping(16, 0.0) == min(paired_moments.DAMPINGS)
    assert damping(4, 3.0) > damping(16, 0.1)
    assert damping(1, 0.0) == max(paired_moments.DAMPINGS), "nothing to tell by"


def test_where_nothing_was_lost_nothing_is_corrected(call):
    _, _, _, weight = paired(call)
    same = PairedMoments(call, 1)
    x = np.random.default_rng(0).standard_normal((1, 6, 7, 7)).astype(np.float32)
    same.update_both(x, x)
    np.testing.assert_array_equal(same.aim(weight, True), weight)
    np.testing.assert_allclose(same.mean, same.exact_mean)
    plain = SecondMoments(call, 1)
    plain.update(x)
    np.testing.assert_array_equal(plain.products, same.products)


def test_a_channel_that_is_always_zero(call):
    silent = PairedMoments(call, 1)
    silent.update_both(np.zeros((1, 6, 7, 7), np.float32), np.ones((1, 6, 7, 7), np.float32))
    weight = np.ones((int(call.attrs.groups), 3, 54 // int(call.attrs.groups)), np.float32)
    np.testing.assert_array_equal(silent.aim(weight, True), weight)


class Case:
    """A network of few bits, rounded to the nearest."""

    def __init__(self, bits=3, **options):
        self.batches, self.new = floats(48, 0), floats(16, 100)
        self.network = calibrated(module(body, x=(1, 3, 7, 7)), self.batches, bits={"weights": {"*": bits}}, **options)
        flow = self.network.choice.flow
        weights = self.network.quantizers.weights
        reads = [b.value.args[0].name for b in flow.bindings if b.var.name in weights]
        self.look = NumpyNetwork(self.network.mod, list(dict.fromkeys(reads)))

    def learn(self, how, **options):
        return how(self.network.mod, self.network.quantizers, self.look, self.batches, progress=False, **options)


@pytest.fixture(scope="module")
def case():
    return Case()


def test_outputs_have_less_noise_on_new_inputs(case):
    alone, in_order = (
        case.network.integer_db(case.new, case.learn(how)) for how in (learn_weights, learn_weights_in_order)
    )
    nearest = case.network.integer_db(case.new)
    assert in_order > alone + 0.5
    assert in_order > nearest + 1


def test_the_first_layer_has_nothing_to_make_good(case):
    """But for what rounding the image to 8 bits lost."""
    first = case.learn(learn_weights_in_order, names=["stem"]).weights
    alone = case.learn(learn_weights, names=["stem"]).weights
    assert [name for name, w in first.items() if w is not case.network.quantizers.weights[name]] == ["stem"]
    assert (first["stem"].values == alone["stem"].values).mean() > 0.9
    later = case.learn(learn_weights_in_order).weights
    assert (later["grouped"].values == case.learn(learn_weights).weights["grouped"].values).mean() < 0.9


def test_what_is_kept(case):
    found, before = case.learn(learn_weights_in_order), case.network.quantizers
    assert list(found.weights) == list(before.weights)
    assert found.weights["up"] is before.weights["up"]
    assert found.activations == before.activations
    for name, weight in found.weights.items():
        assert weight.exact is before.weights[name].exact
        assert weight.bits == before.weights[name].bits
        levels = np.unique(np.moveaxis(weight.values, weight.axis, 0)[0])
        assert len(levels) <= 2**weight.bits


def test_without_corrections_of_the_bias(case):
    found = case.learn(learn_weights_in_order, correct_bias=False).weights
    assert all(weight.correction is None for name, weight in found.items() if name != "up")


def test_where_it_takes_too_long_all_are_rounded_at_once(case, monkeypatch):
    monkeypatch.setattr(weights_in_order, "affordable", lambda network, batches, runs: batches[:31])
    found, alone = case.learn(learn_weights_in_order).weights, case.learn(learn_weights).weights
    for name, weight in alone.items():
        np.testing.assert_array_equal(found[name].values, weight.values)


def test_few_inputs_are_all_there_is(case, monkeypatch):
    monkeypatch.setattr(case, "batches", case.batches[:4])
    found, alone = case.learn(learn_weights_in_order).weights, case.learn(learn_weights).weights
    assert any((found[name].values != weight.values).any() for name, weight in alone.items())


def test_the_less_noisy_of_both_counts(case, monkeypatch):
    monkeypatch.setattr(PairedMoments, "aim", lambda moments, weight, central: 3 * weight)
    found, alone = case.learn(learn_weights_in_order).weights, case.learn(learn_weights).weights
    for name, weight in alone.items():
        np.testing.assert_array_equal(found[name].values, weight.values)
