"""The mean error of rounded weights, and means of channels that batch norms tell."""

import math

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import const, f32, module, run
from tvm_int8 import pipeline
from tvm_int8.passes.dataflow import Dataflow, constant
from tvm_int8.passes.equalized_tensors import equalized_tensors
from tvm_int8.quantization.bias_correction import analytic_means, expected_error
from tvm_int8.quantization.weights import quantize_weight

op = relax.op

CHANNELS = 6
MEAN = np.array([-3.0, -1.0, 0.0, 0.5, 2.0, 6.5])
STD = np.array([1.0, 2.0, 0.5, 1.0, 0.3, 3.0])
SHAPE = (1, CHANNELS, 8, 8)


def batch_norm(emit, x, name="y", mean=MEAN, std=STD, of=None):
    """Output of mean `mean` and deviation `std`; `of` is the mean and variance of its input (0 and 1)."""
    center, variance = of or (np.zeros_like(mean), np.ones_like(std))
    parameters = [constant(np.asarray(array, np.float32)) for array in (std, mean, center, variance)]
    results = emit(op.nn.batch_norm(x, *parameters, axis=1, epsilon=0.0, training=False))
    return emit(relax.TupleGetItem(results, 0), name)


def means(body, shape=SHAPE, **inputs):
    imported = module(body, x=shape, **inputs)
    return analytic_means(imported, pipeline.canonical_float()(imported))


def mean_of(function):
    """The mean of what `function(emit, y)` makes of the batch norm's output."""
    return means(lambda emit, x: op.nn.softmax(emit(function(emit, batch_norm(emit, x)), "z")))["z"]


# The error of weights


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_error_on_even_images(groups, transposed):
    """On an image whose channels are constant the mean is exact, but for the border."""
    mean = f32(4, seed=2)
    error = f32(*((4, 6 // groups, 4, 4) if transposed else (6, 4 // groups, 3, 3)), seed=3)
    operator, options = (op.nn.conv2d_transpose, {"strides": 2}) if transposed else (op.nn.conv2d, {})
    mod = module(lambda emit, x: operator(x, constant(error), groups=groups, **options), x=(1, 4, 9, 9))
    image = np.broadcast_to(mean.reshape(1, 4, 1, 1), (1, 4, 9, 9)).copy()
    (delivered,) = run(mod, image)
    expected = expected_error(Dataflow(mod).bindings[0].value, error, mean)
    assert (expected.shape, expected.dtype) == ((1, 6, 1, 1), np.float32)
    inner = delivered[:, :, 4:-4, 4:-4] if transposed else delivered
    np.testing.assert_allclose(inner.mean((2, 3), keepdims=True), expected, rtol=1e-4, atol=1e-5)


# Means of channels


def density(z):
    return np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)


def distribution(z):
    return np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in z])


def clipped_normal(low, high):
    """Nagel et al. 2019, appendix C: the mean of a normal distribution whose values are clipped to [low, high]."""
    a, b = (low - MEAN) / STD, (high - MEAN) / STD
    inside = distribution(b) - distribution(a)
    return low * distribution(a) + high * (1 - distribution(b)) + MEAN * inside + STD * (density(a) - density(b))


def test_relu_as_in_the_paper():
    expected = MEAN * distribution(MEAN / STD) + STD * density(MEAN / STD)
    np.testing.assert_allclose(mean_of(lambda emit, y: op.nn.relu(y)), expected, atol=2e-4 * STD.max())


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.0, 1.0)])
def test_clip_as_in_the_paper(low, high):
    found = mean_of(lambda emit, y: op.clip(y, low, high))
    np.testing.assert_allclose(found, clipped_normal(low, high), atol=2e-4 * STD.max())


def hard_swish(emit, y):
    three, sixth = constant(np.float32(3)), constant(np.float32(1 / 6))
    return op.multiply(y, emit(op.multiply(emit(op.clip(emit(op.add(y, three)), 0, 6)), sixth)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


ACTIVATIONS = {
    "leaky": (lambda emit, y: op.nn.leakyrelu(y, 0.1), lambda x: np.where(x < 0, 0.1 * x, x)),
    "prelu": (
        lambda emit, y: op.nn.prelu(y, constant(np.float32([0.1, 0.2, 0.3, 0, -0.5, 1])), axis=1),
        lambda x: np.where(x < 0, x * np.array([0.1, 0.2, 0.3, 0, -0.5, 1])[:, None], x),
    ),
    "sigmoid": (lambda emit, y: op.sigmoid(y), sigmoid),
    "silu": (lambda emit, y: op.multiply(y, emit(op.sigmoid(y))), lambda x: x * sigmoid(x)),
    "hard_swish": (hard_swish, lambda x: x * np.clip(x + 3, 0, 6) / 6),
    "affine": (
        lambda emit, y: op.nn.relu(emit(op.multiply(emit(op.add(op.nn.relu(y), constant(np.float32(-1)))), y))),
        lambda x: np.maximum((np.maximum(x, 0) - 1) * x, 0),
    ),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_against_drawn_values(name):
    operators, function = ACTIVATIONS[name]
    drawn = MEAN[:, None] + STD[:, None] * np.random.default_rng(0).standard_normal((CHANNELS, 400_000))
    values = function(drawn)
    error = np.abs(mean_of(operators) - values.mean(1))
    assert (error < 5 * values.std(1) / math.sqrt(values.shape[1]) + 1e-4).all()


RELU_MEAN = clipped_normal(0.0, 1e9)
MOVED = {
    "average pool": (lambda emit, y: op.nn.avg_pool2d(emit(op.nn.relu(y)), (2, 2)), RELU_MEAN),
    "global pool": (lambda emit, y: op.nn.adaptive_avg_pool2d(emit(op.nn.relu(y)), (1, 1)), RELU_MEAN),
    "concat": (
        lambda emit, y: op.nn.relu(emit(op.concat([y, emit(op.nn.relu(y))], axis=1))),
        np.concatenate([RELU_MEAN, RELU_MEAN]),
    ),
    "slice": (lambda emit, y: op.strided_slice(emit(op.nn.relu(y)), [1], [1], [6], [2]), RELU_MEAN[1::2]),
    "shuffle": (lambda emit, y: op.take(y, constant(np.array([5, 3, 1, 0, 2, 4])), axis=1), MEAN[[5, 3, 1, 0, 2, 4]]),
    "pixels": (lambda emit, y: op.strided_slice(y, [2], [1], [6]), MEAN),
    "resize": (lambda emit, y: op.image.resize2d(y, (16, 16), layout="NCHW", method="nearest_neighbor"), MEAN),
}


@pytest.mark.parametrize("name", MOVED)
def test_movers_of_data(name):
    function, expected = MOVED[name]
    np.testing.assert_allclose(mean_of(function), expected, atol=2e-4 * STD.max())


UNKNOWN = {
    "max pool": lambda emit, y: op.nn.max_pool2d(y, (2, 2)),
    "softmax": lambda emit, y: op.nn.softmax(y, axis=1),
    "pixel map": lambda emit, y: op.multiply(y, const(1, 1, 8, 8)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known(name):
    assert list(means(lambda emit, x: emit(UNKNOWN[name](emit, batch_norm(emit, x)), "z"))) == ["y"]


def test_sums_of_independent_tensors():
    """And the ReLU behind: the sum is normal again, its variance the sum of theirs."""

    def body(emit, x, other):
        total = emit(op.add(batch_norm(emit, x), batch_norm(emit, other, "y2", MEAN[::-1].copy())), "sum")
        return op.nn.softmax(emit(op.nn.relu(total), "z"))

    found = means(body, other=SHAPE)
    mean, std = MEAN + MEAN[::-1], np.sqrt(2) * STD
    np.testing.assert_allclose(found["sum"], mean, atol=1e-6)
    expected = mean * distribution(mean / std) + std * density(mean / std)
    np.testing.assert_allclose(found["z"], expected, atol=2e-3)


# A network whose batch norms know its data


class Block:
    """A residual block on drawn data, in NumPy and as a module: its projection has no batch norm."""

    def __init__(self):
        x = np.random.default_rng(0).standard_normal((64, 3, 8, 8))
        self.weights = [f32(6, channels, 1, 1, seed=seed) for seed, channels in enumerate((3, 6, 6))]
        self.bias = f32(1, 6, 1, 1, seed=5)
        first, self.stats1 = self.normalised(self.convolved(x, 0), MEAN)
        relu1 = np.maximum(first, 0)
        second, self.stats2 = self.normalised(self.convolved(relu1, 1), MEAN[::-1])
        skip = self.convolved(relu1, 2) + self.bias
        self.tensors = {"relu1": relu1, "second": second, "skip": skip, "relu2": np.maximum(second + skip, 0)}

    def convolved(self, x, index):
        return np.einsum("nchw,oc->nohw", x, self.weights[index][..., 0, 0])

    def normalised(self, x, mean):
        stats = x.mean((0, 2, 3)), x.var((0, 2, 3))
        center, variance = (v.reshape(1, -1, 1, 1) for v in stats)
        return (x - center) / np.sqrt(variance) * STD.reshape(1, -1, 1, 1) + mean.reshape(1, -1, 1, 1), stats

    def body(self, emit, x):
        conv1, conv2, conv3 = (constant(weight) for weight in self.weights)
        y = emit(op.nn.relu(batch_norm(emit, emit(op.nn.conv2d(x, conv1)), "first", of=self.stats1)), "relu1")
        second = batch_norm(emit, emit(op.nn.conv2d(y, conv2), "conv2"), "second", MEAN[::-1].copy(), of=self.stats2)
        skip = emit(op.add(emit(op.nn.conv2d(y, conv3)), constant(self.bias)), "skip")
        return op.nn.softmax(emit(op.nn.relu(emit(op.add(second, skip))), "relu2"))


@pytest.fixture(scope="module")
def block():
    return Block()


@pytest.fixture(scope="module")
def imported(block):
    return module(block.body, x=(1, 3, 8, 8))


def test_a_residual_block(block, imported):
    """Exact behind batch norms and convolutions; nearly so behind a sum whose terms are not independent at all."""
    found = analytic_means(imported, pipeline.canonical_float()(imported))
    for name, tolerance in (("relu1", 0.01), ("second", 1e-5), ("skip", 0.02), ("relu2", 0.1)):
        values = block.tensors[name]
        off = np.abs(found[name] - values.mean((0, 2, 3))).max() / values.std()
        assert off <= tolerance, f"{name}: {off:.3f} standard deviations"


def test_means_of_an_equalised_network(imported):
    mod = pipeline.canonical_float()(imported)
    plain, equalised = analytic_means(imported, mod), pipeline.equalize(imported)(mod)
    found, moved = analytic_means(imported, equalised), equalized_tensors(equalised)
    assert moved
    for name, entry in moved.items():
        if name in found:
            np.testing.assert_allclose(entry.scale * found[name] + entry.shift, plain[entry.name], atol=2e-3)


def test_correction_takes_the_mean_error_out(block, imported):
    mod = pipeline.canonical_float()(imported)
    mean = analytic_means(imported, mod)["relu1"]
    weight = block.weights[1]
    quantized, scale = quantize_weight(weight)
    error = quantized * scale.reshape(-1, 1, 1, 1) - weight
    observed = np.einsum("nchw,oc->nohw", block.tensors["relu1"], error[..., 0, 0]).mean((0, 2, 3))
    (call,) = [b.value for b in Dataflow(mod).bindings if b.var.name == "conv2"]
    corrected = observed - expected_error(call, error, mean).ravel()
    assert np.abs(corrected).max() < 0.05 * np.abs(observed).max()
