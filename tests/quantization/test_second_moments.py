"""Means and second moments of what convolutions read, against patches cut out one by one."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import const, f32, module
from tvm_int8.passes.dataflow import Dataflow, const_value
from tvm_int8.quantization import second_moments
from tvm_int8.quantization.second_moments import SecondMoments

op = relax.op


def convolution(data, weight, **options):
    mod = module(lambda emit, x: op.nn.conv2d(x, const(*weight), **options), x=data)
    return Dataflow(mod).bindings[0].value


def patches(call, data):
    """Float64 [P, G, K]: a loop over every pixel of every image."""
    attrs, weight = call.attrs, const_value(call.args[1])
    top, left, bottom, right = map(int, attrs.padding)
    padded = np.pad(data.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    (kh, kw), (sh, sw), (dh, dw) = weight.shape[2:], map(int, attrs.strides), map(int, attrs.dilation)
    height = (padded.shape[2] - dh * (kh - 1) - 1) // sh + 1
    width = (padded.shape[3] - dw * (kw - 1) - 1) // sw + 1
    found = [
        image[:, i * sh : i * sh + dh * kh : dh, j * sw : j * sw + dw * kw : dw][:, :kh, :kw]
        for image in padded
        for i in range(height)
        for j in range(width)
    ]
    return np.stack(found).reshape(len(found), int(attrs.groups), -1)


def measured(call, *batches):
    found = SecondMoments(call, len(batches))
    for batch in batches:
        found.update(batch)
    return found


def assert_moments(found, call, *batches):
    every = np.concatenate([patches(call, batch) for batch in batches])
    assert found.count == len(every)
    np.testing.assert_allclose(found.mean, every.mean(0), atol=1e-5)
    products = np.einsum("pgk,pgl->gkl", every, every) / len(every)
    np.testing.assert_allclose(found.products, products, atol=1e-5)
    central = products - np.einsum("gk,gl->gkl", every.mean(0), every.mean(0))
    np.testing.assert_allclose(found.central, central, atol=1e-4)


CASES = {
    "pointwise": dict(data=(2, 5, 4, 6), weight=(3, 5, 1, 1)),
    "padded": dict(data=(1, 3, 6, 5), weight=(4, 3, 3, 3), padding=1),
    "unevenly padded": dict(data=(1, 3, 6, 5), weight=(4, 3, 3, 2), padding=(0, 1, 2, 0)),
    "strided": dict(data=(2, 3, 9, 11), weight=(4, 3, 3, 3), strides=(2, 3), padding=1),
    "dilated": dict(data=(1, 2, 9, 8), weight=(4, 2, 3, 2), dilation=(2, 3)),
    "both": dict(data=(1, 2, 12, 13), weight=(4, 2, 3, 3), strides=2, dilation=2, padding=2),
    "groups": dict(data=(2, 6, 5, 5), weight=(9, 2, 3, 3), groups=3, padding=1),
    "depthwise": dict(data=(1, 6, 7, 7), weight=(6, 1, 3, 3), groups=6, padding=1, strides=2),
    "depth multiplier": dict(data=(1, 4, 6, 6), weight=(8, 1, 3, 3), groups=4),
    "dense": dict(data=(4, 7, 1, 1), weight=(5, 7, 1, 1)),
    "whole image": dict(data=(3, 4, 3, 3), weight=(5, 4, 3, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_of_all_patches(name):
    call = convolution(**CASES[name])
    batches = [f32(*CASES[name]["data"], seed=seed, low=-1, high=2) for seed in range(2)]
    assert_moments(measured(call, *batches), call, *batches)


def test_what_a_layer_delivers_follows_from_them():
    """E[(w x)^2] = w E[x x'] w' and E[w x] = w E[x]: checked on the patches' own products."""
    call = convolution((1, 3, 7, 7), (4, 3, 3, 3), padding=1)
    data = f32(1, 3, 7, 7, low=0)
    found, rows = measured(call, data), const_value(call.args[1]).reshape(4, -1)
    delivered = patches(call, data)[:, 0] @ rows.T
    np.testing.assert_allclose(rows @ found.mean[0], delivered.mean(0), atol=1e-5)
    power = np.einsum("ok,kl,ol->o", rows, found.products[0], rows)
    np.testing.assert_allclose(power, (delivered**2).mean(0), rtol=1e-4)


@pytest.mark.parametrize("spread", [0.0, 1e-5, 1e-2, 1.0])
def test_inputs_that_hardly_vary(spread):
    """What float32 makes of their variances has an inverse nevertheless."""
    call = convolution((1, 4, 6, 6), (2, 4, 3, 3))
    data = (100 + spread * np.random.default_rng(0).standard_normal((3, 1, 4, 6, 6))).astype(np.float32)
    central = measured(call, *data).central[0]
    assert np.linalg.eigvalsh(central.astype(np.float64)).min() > -1e-3 * central.diagonal().mean()
    assert central.diagonal().min() > 0


def test_large_images_are_sampled():
    call, shape = convolution((1, 3, 60, 60), (4, 3, 3, 3), padding=1), (1, 3, 60, 60)
    batches = [f32(*shape, seed=seed, low=-1, high=2) for seed in range(40)]
    found = measured(call, *batches)
    assert found.count == 40 * 64
    every = np.concatenate([patches(call, batch)[:, 0] for batch in batches[:4]])
    exact = every.T @ every / len(every)
    assert np.abs(found.products[0] - exact).max() < 0.1 * exact.diagonal().mean()
    assert np.abs(found.mean[0] - every.mean(0)).max() < 0.1


def test_there_are_enough_patches_for_weights_with_many_inputs():
    """Four times as many as a weight has inputs, however few the samples are."""
    call = convolution((1, 64, 40, 40), (2, 64, 3, 3), padding=1)
    found = measured(call, f32(1, 64, 40, 40), f32(1, 64, 40, 40, seed=2))
    assert found.count == 4 * 64 * 9
    assert np.linalg.matrix_rank(found.products[0]) == 64 * 9


def test_sampling_is_reproducible():
    call, data = convolution((1, 3, 60, 60), (4, 3, 3, 3)), f32(1, 3, 60, 60)
    np.testing.assert_array_equal(measured(call, data).products, measured(call, data).products)


def test_no_patch_is_taken_twice():
    """Images of a single bright pixel, one for each pixel."""
    call = convolution((1, 1, 9, 9), (1, 1, 1, 1))
    taken = [64 * measured(call, image.reshape(1, 1, 9, 9)).mean.item() for image in np.eye(81, dtype=np.float32)]
    assert sorted(taken) == [0] * 17 + [1] * 64


def test_before_anything_was_seen():
    found = SecondMoments(convolution((1, 3, 4, 4), (4, 3, 1, 1)), 3)
    assert not found.mean.any()
    assert not found.products.any()


def test_what_it_applies_to(monkeypatch):
    plain = convolution((1, 3, 4, 4), (4, 3, 3, 3))
    transposed = module(lambda emit, x: op.nn.conv2d_transpose(x, const(3, 4, 2, 2)), x=(1, 3, 4, 4))
    assert SecondMoments.applies(plain)
    assert not SecondMoments.applies(Dataflow(transposed).bindings[0].value)
    monkeypatch.setattr(second_moments, "LARGEST", 26)
    assert not SecondMoments.applies(plain)
