"""RecognizeLrn: arithmetic on shifted channels becomes one operator."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import call_named, f32, module, ops, transformed
from tvm_int8 import pipeline
from tvm_int8.frontend import load_model
from tvm_int8.frontend.onnx_normalization import channel_window_sum
from tvm_int8.passes.fold_constants import FoldConstants
from tvm_int8.passes.recognize_lrn import RecognizeLrn
from tvm_int8.reference.network import run_network

op = relax.op
SHAPE = (2, 12, 3, 5)


def number(value):
    return relax.const(value, "float32")


class Emits:
    """What the frontend's helpers ask of an import context."""

    def __init__(self, emit):
        self.emit = lambda expr, _suffix="": emit(expr)

    def shape(self, expr):
        return tuple(int(dim) for dim in expr.ty.shape)


def written(size, before, factor=0.1, beta=0.75, bias=1.5, square=lambda x: op.multiply(x, x), shape=SHAPE):
    def body(emit, x):
        total = channel_window_sum(Emits(emit), emit(square(x)), size, before, size - 1 - before)
        base = emit(op.add(emit(op.multiply(total, number(factor))), number(bias)))
        return emit(op.nn.relu(emit(op.divide(x, emit(op.power(base, number(beta)))), "normalised")))

    return module(body, {"normalised": "/norm1"}, x=shape)


def parameters(mod):
    attrs = call_named(mod, "tvm_int8.lrn").attrs
    return [attrs[name] for name in ("size", "before", "alpha", "beta", "bias")]


@pytest.mark.parametrize(("size", "before"), [(5, 2), (4, 1), (4, 2), (3, 0), (2, 1), (17, 16)])
def test_windows(size, before):
    after = transformed(RecognizeLrn(), written(size, before))
    assert ops(after) == ["tvm_int8.lrn", "nn.relu"]
    assert parameters(after) == pytest.approx([size, before, 0.1 * size, 0.75, 1.5])
    assert dict(after["main"].attrs["layer_names"])["normalised"] == "/norm1"


def test_a_window_of_one():
    after = transformed(RecognizeLrn(), FoldConstants()(written(1, 0)))
    assert parameters(after) == pytest.approx([1, 0, 0.1, 0.75, 1.5])


@pytest.mark.parametrize("square", [op.square, lambda x: op.power(x, number(2.0))])
def test_squares(square):
    assert ops(transformed(RecognizeLrn(), written(5, 2, square=square))) == ["tvm_int8.lrn", "nn.relu"]


def test_the_numbers():
    """The operator's kernel against float64."""
    x = f32(*SHAPE, low=-4.0, high=4.0)
    (found,) = run_network(pipeline.order()(RecognizeLrn()(written(4, 1, beta=0.6))), x)
    sums = np.stack([(x[:, max(0, c - 1) : c + 3].astype(np.float64) ** 2).sum(1) for c in range(12)], axis=1)
    np.testing.assert_allclose(found, np.maximum(x / (1.5 + 0.1 * sums) ** 0.6, 0), rtol=1e-6)


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_other_spellings_of_the_power(exponent):
    def body(emit, x):
        total = channel_window_sum(Emits(emit), emit(op.multiply(x, x)), 3, 1, 1)
        base = emit(op.add(emit(op.multiply(emit(op.multiply(total, number(0.5))), number(0.2))), number(2.0)))
        return emit(op.divide(x, emit(op.sqrt(base)) if exponent == 0.5 else base))

    after = transformed(RecognizeLrn(), module(body, x=SHAPE))
    assert parameters(after) == pytest.approx([3, 1, 0.3, exponent, 2.0])


def as_torch_exports_it(size, alpha=0.3, beta=0.6, bias=1.2):
    """`torch.nn.functional.local_response_norm` of a 4-D tensor."""

    def body(emit, x):
        n, c, h, w = SHAPE
        volume = emit(op.reshape(emit(op.multiply(x, x)), (n, 1, c, h, w)))
        padded = emit(op.nn.pad(volume, [0, 0, 0, 0, size // 2, (size - 1) // 2, 0, 0, 0, 0]))
        pooled = emit(op.nn.avg_pool3d(padded, (size, 1, 1), (1, 1, 1), count_include_pad=True))
        mean = emit(op.reshape(emit(op.squeeze(pooled, [1])), SHAPE))
        base = emit(op.add(emit(op.multiply(mean, number(alpha))), number(bias)))
        return emit(op.divide(x, emit(op.power(base, number(beta)))))

    return module(body, x=SHAPE)


@pytest.mark.parametrize("size", [5, 4, 3])
def test_pools_over_channels(size):
    after = pipeline.canonical_float()(load_model(as_torch_exports_it(size)))
    assert ops(after) == ["tvm_int8.lrn"]
    assert parameters(after) == pytest.approx([size, size // 2, 0.3, 0.6, 1.2])


@pytest.mark.parametrize(
    "before",
    [
        written(5, 2, bias=0.0),
        written(5, 2, factor=-0.1),
        written(18, 17, shape=(1, 40, 2, 2)),
    ],
    ids=["base of zero", "falling base", "window too long"],
)
def test_what_stays(before):
    assert "tvm_int8.lrn" not in ops(transformed(RecognizeLrn(), before))


def others():
    """Nearly normalisations: the operands of each differ from one in a single place."""

    def of(make):
        def body(emit, x, y):
            return make(emit, x, y, lambda t: emit(op.power(emit(op.add(t, number(1.0))), number(0.75))))

        return module(body, x=SHAPE, y=SHAPE)

    def total(emit, x, size=3, before=1, after=1):
        return channel_window_sum(Emits(emit), x, size, before, after)

    def gap(emit, x, y, p):
        padded = emit(op.nn.pad(emit(op.multiply(x, x)), [0, 0, 2, 2, 0, 0, 0, 0]))
        first, last = (emit(op.strided_slice(padded, [1], [i], [i + 12])) for i in (0, 4))
        return emit(op.divide(x, p(emit(op.add(first, last)))))

    def rows(emit, x, y, p):
        padded = emit(op.nn.pad(emit(op.multiply(x, x)), [0, 0, 0, 0, 1, 0, 0, 0]))
        first, last = (emit(op.strided_slice(padded, [2], [i], [i + 3])) for i in (0, 1))
        return emit(op.divide(x, p(emit(op.add(first, last)))))

    return {
        "another numerator": of(lambda emit, x, y, p: emit(op.divide(y, p(total(emit, emit(op.multiply(x, x))))))),
        "a product": of(lambda emit, x, y, p: emit(op.divide(x, p(total(emit, emit(op.multiply(x, y))))))),
        "no square": of(lambda emit, x, y, p: emit(op.divide(x, p(total(emit, x))))),
        "a gap": of(gap),
        "rows": of(rows),
    }


@pytest.mark.parametrize("name", others())
def test_what_only_looks_like_it_stays(name):
    before = others()[name]
    assert "tvm_int8.lrn" not in ops(transformed(RecognizeLrn(), before))
