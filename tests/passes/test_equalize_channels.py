"""EqualizeChannels: channels divided by their factors, readers multiplied, the network's function unchanged."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import const, f32, module, names, run
from tests.passes.qdq_testing import random_inputs
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.equalize_channels import EqualizeChannels, equalizable, incoming_weights
from tvm_int8.passes.groups import fusion_groups
from tvm_int8.passes.observe import Observe

op = relax.op
FACTOR = f32(6, seed=3, low=0.05, high=1.0)


def conv(emit, x, out=6, name="first", **options):
    weight = const(out, x.ty.shape[1].value // options.get("groups", 1), 3, 3, seed=8)
    return emit(op.nn.conv2d(x, weight, padding=1, **options), name)


def last(emit, y):
    return emit(op.nn.conv2d(y, const(4, 6, 1, 1)), "last")


BETWEEN = {
    "nothing": lambda emit, y: y,
    "bias and relu": lambda emit, y: emit(op.nn.relu(emit(op.add(y, const(1, 6, 1, 1))))),
    "scalar subtracted": lambda emit, y: emit(op.subtract(y, relax.const(0.7, "float32"))),
    "scale": lambda emit, y: emit(op.multiply(emit(op.divide(y, const(1, 6, 1, 1, low=1, high=2))), const(6, 1, 1))),
    "relu6": lambda emit, y: emit(op.clip(y, 0.0, 1.5)),
    "clip": lambda emit, y: emit(op.clip(y, -1.0, 1.5)),
    "maximum": lambda emit, y: emit(op.maximum(y, const(1, 6, 1, 1))),
    "leaky": lambda emit, y: emit(op.nn.leakyrelu(y, 0.1)),
    "prelu": lambda emit, y: emit(op.nn.prelu(y, const(6, low=0.1))),
}
READERS = {
    "convolution": last,
    "depthwise": lambda emit, y: conv(emit, y, 6, "last", groups=6),
    "grouped": lambda emit, y: conv(emit, y, 8, "last", groups=2),
    "transposed": lambda emit, y: emit(op.nn.conv2d_transpose(y, const(6, 4, 2, 2), strides=2), "last"),
    "two": lambda emit, y: [last(emit, y), conv(emit, y, 3, "other")],
}


def tensor(mod):
    """The group that delivers what the layers called "last" read."""
    flow = Dataflow(mod)
    (found,) = [g for g in fusion_groups(flow) if any(b.var.name == "last" for b in flow.consumers[g.exit])]
    return flow, found


def assert_divided(mod):
    """The function stays, the tensor between is divided by the factors."""
    flow, group = tensor(mod)
    assert equalizable(flow, group)
    text, name = mod.script(), group.exit.name
    after = EqualizeChannels({name: FACTOR}, {name: group})(mod)
    assert mod.script() == text
    relax.analysis.well_formed(after)
    assert {binding.var.name for binding in group.bindings} <= set(names(after))
    inputs = random_inputs(mod, 2.0)
    expected, found = (run(Observe([name])(m), *inputs) for m in (mod, after))
    np.testing.assert_allclose(found.pop(), expected.pop() / FACTOR.reshape(1, 6, 1, 1), rtol=1e-3, atol=1e-4)
    for wanted, actual in zip(expected, found, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("name", BETWEEN)
def test_epilogues_follow(name):
    assert_divided(module(lambda emit, x: last(emit, BETWEEN[name](emit, conv(emit, x))), x=(2, 3, 5, 5)))


@pytest.mark.parametrize("name", READERS)
def test_readers_follow(name):
    body = BETWEEN["bias and relu"]
    assert_divided(module(lambda emit, x: READERS[name](emit, body(emit, conv(emit, x))), x=(2, 3, 5, 5)))


@pytest.mark.parametrize("kind", ["depthwise", "transposed", "batch norm in front"])
def test_producers(kind):
    def body(emit, x):
        if kind == "depthwise":
            y = conv(emit, x, groups=6)
        elif kind == "transposed":
            y = emit(op.nn.conv2d_transpose(x, const(6, 6, 3, 3)), "first")
        else:
            y = emit(op.add(emit(op.multiply(x, const(1, 6, 1, 1, low=0.5))), const(1, 6, 1, 1)))
        return last(emit, emit(op.nn.relu(y)))

    assert_divided(module(body, x=(2, 6, 5, 5)))


NOT = {
    "sigmoid": lambda emit, x: last(emit, emit(op.sigmoid(conv(emit, x)))),
    "silu": lambda emit, x: last(emit, emit(op.nn.silu(conv(emit, x)))),
    "residual": lambda emit, x: last(emit, emit(op.add(conv(emit, x), x))),
    "an output": lambda emit, x: [y := emit(op.nn.relu(conv(emit, x))), last(emit, y)],
    "read by a pool": lambda emit, x: [last(emit, y := conv(emit, x)), emit(op.nn.max_pool2d(y, (2, 2)))],
    "read by an island": lambda emit, x: [last(emit, y := conv(emit, x)), emit(op.nn.softmax(y))],
    "delivered by a pool": lambda emit, x: last(emit, emit(op.nn.max_pool2d(x, (2, 2)))),
}


@pytest.mark.parametrize("name", NOT)
def test_tensors_that_cannot_be_divided(name):
    assert not equalizable(*tensor(module(NOT[name], x=(2, 6, 5, 5))))


@pytest.mark.parametrize(("groups", "shape"), [(1, (6, 8, 9)), (2, (6, 4, 9)), (6, (6, 12, 9))])
def test_weights_by_input_channel(groups, shape):
    out = 8 if groups < 6 else 72
    mod = module(lambda emit, x: conv(emit, x, out, groups=groups), x=(1, 6, 5, 5))
    call = Dataflow(mod).bindings[0].value
    found = incoming_weights(call)
    assert found.shape == shape
    assert np.abs(found).sum() == pytest.approx(np.abs(call.args[1].value.numpy()).sum(), rel=1e-5)
