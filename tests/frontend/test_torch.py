"""Exported PyTorch programs."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from tests.frontend.running import assert_canonical, calls, layer_names, op_counts, run_relax  # noqa: E402
from tests.passes.qdq_testing import orders  # noqa: E402
from tvm_int8 import pipeline  # noqa: E402
from tvm_int8.errors import ModelError  # noqa: E402
from tvm_int8.frontend import load_model  # noqa: E402
from tvm_int8.frontend.torch_quantize import register_quantization  # noqa: E402
from tvm_int8.reference.network import run_network  # noqa: E402
from tvm_int8.specs import Conv2d  # noqa: E402

nn, functional = torch.nn, torch.nn.functional
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.relu(self.conv2(self.relu(self.bn1(self.conv1(x)))) + x)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Hardswish(), nn.MaxPool2d(2))
        self.layer1 = nn.Sequential(Block(8), Block(8))
        self.dropout = nn.Dropout()
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = functional.adaptive_avg_pool2d(self.layer1(self.stem(x)), 1)
        return self.fc(self.dropout(torch.flatten(x, 1)))


class Signals(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm1d(8)
        self.pool = nn.MaxPool1d(2)
        self.up = nn.ConvTranspose1d(8, 4, 2, stride=2)

    def forward(self, x):
        return self.up(self.pool(torch.relu(self.bn(self.conv(x)))))


def export(model, *example, **options):
    torch.manual_seed(0)
    for buffer in model.buffers():
        if buffer.dtype.is_floating_point:
            buffer.data.uniform_(0.5, 1.5)
    return torch.export.export(model.eval(), example, **options)


def check(model, *example):
    module = load_model(export(model, *example))
    assert_canonical(module)
    expected = model(*example)
    expected = expected if isinstance(expected, list | tuple) else [expected]
    results = run_relax(module, [value.numpy() for value in example])
    for result, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, wanted.detach().numpy(), atol=1e-4, rtol=1e-4)
    return module


def test_network():
    module = check(Network(), torch.randn(1, 3, 32, 32))
    counts = op_counts(module)
    assert (counts["nn.conv2d"], counts["matmul"], counts["nn.adaptive_avg_pool2d"]) == (5, 1, 1)
    assert [parameter.name for parameter in module["main"].params] == ["x"]
    assert list(module["main"].attrs["input_names"]) == ["x"]
    names = layer_names(module)
    assert names["layer1_0_conv1"] == "layer1.0.conv1"
    assert names["layer1_0_bn1"] == "layer1.0.bn1"
    assert names["fc"] == "fc"
    assert "layer1.1/add_2" in names.values() or any(name.startswith("layer1.1/add") for name in names.values())


def test_signals():
    counts = op_counts(check(Signals(), torch.randn(2, 3, 16)))
    assert counts["nn.conv2d"] == counts["nn.batch_norm"] == counts["nn.max_pool2d"] == 1
    assert counts["reshape"] == 2


def test_saved_program(tmp_path):
    model, x = Network(), torch.randn(1, 3, 32, 32)
    torch.export.save(export(model, x), tmp_path / "net.pt2")
    result = run_relax(load_model(tmp_path / "net.pt2"), [x.numpy()])[0]
    np.testing.assert_allclose(result, model(x).detach().numpy(), atol=1e-4)


def test_dynamic_batch():
    program = export(Network(), torch.randn(2, 3, 32, 32), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    with pytest.raises(ModelError, match=r"input 'x': dimension 0 .*symbolic.*input_shapes"):
        load_model(program)
    module = load_model(program, {"x": (4, 3, 32, 32)})
    assert [int(dim) for dim in module["main"].params[0].ty.shape] == [4, 3, 32, 32]
    with pytest.raises(ModelError, match="input_shapes names 'z'"):
        load_model(program, {"z": (4, 3, 32, 32)})


class Everything(nn.Module):
    def forward(self, x):
        f = functional
        activations = [f.relu6(4 * x), f.hardtanh(x), f.hardsigmoid(x), f.elu(x), f.gelu(x), f.mish(x), f.selu(x)]
        activations += [f.celu(x), f.softplus(x), f.silu(x), f.leaky_relu(x, 0.2), torch.clamp(x, min=0)]
        pools = [f.max_pool2d(x, 3, 2, ceil_mode=True), f.avg_pool2d(x, 3, 2, padding=1), f.adaptive_avg_pool2d(x, 4)]
        pools += [f.avg_pool2d(x, 3, 2, padding=1, count_include_pad=False), x.mean((2, 3))]
        resized = [f.interpolate(x, scale_factor=scale, mode="nearest") for scale in (2, 1.5)]
        resized += [f.interpolate(x, scale_factor=2, mode="bilinear"), f.pixel_shuffle(x, 2)]
        moved = [f.pad(x, (1, 2, 0, 1)), f.pad(x, (1, 2, 2, 1), mode="reflect"), x.chunk(2, 1)[1], x[:, ::2, 1:]]
        return [*activations, *pools, *resized, *moved, f.instance_norm(x), f.local_response_norm(x, 3)]


def test_operators():
    module = check(Everything(), torch.randn(1, 4, 8, 8))
    assert not calls(module, "nn.avg_pool3d")


class Quantised(nn.Module):
    """What `convert_pt2e` leaves: integer weights per channel, uint8 activations per tensor, float biases."""

    def __init__(self, low=0, high=255):
        super().__init__()
        self.low, self.high = low, high
        generator = torch.Generator().manual_seed(0)
        for name, shape in {"conv": (8, 3, 3, 3), "fc": (5, 8)}.items():
            weight = torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator)
            self.register_buffer(f"{name}_weight", weight)
            self.register_buffer(f"{name}_scale", torch.rand(shape[0], generator=generator) * 0.01 + 0.001)
            self.register_buffer(f"{name}_zero", torch.zeros(shape[0], dtype=torch.int64))
        self.bias = nn.Parameter(torch.randn(8, generator=generator))
        self.register_buffer("scale", torch.tensor([0.02]))
        self.register_buffer("zero", torch.tensor([3]))

    def weight(self, name):
        values = [getattr(self, f"{name}_{part}") for part in ("weight", "scale", "zero")]
        return torch.ops.quantized_decomposed.dequantize_per_channel(*values, 0, -128, 127, torch.int8)

    def rounded(self, x, scale, zero_point):
        ops, bounds = torch.ops.quantized_decomposed, (self.low, self.high, torch.uint8)
        if isinstance(scale, float):
            return ops.dequantize_per_tensor(
                ops.quantize_per_tensor(x, scale, zero_point, *bounds), scale, zero_point, *bounds
            )
        stored = ops.quantize_per_tensor.tensor(x, scale, zero_point, *bounds)
        return ops.dequantize_per_tensor.tensor(stored, scale, zero_point, *bounds)

    def forward(self, x):
        x = functional.conv2d(self.rounded(x, 0.03, 60), self.weight("conv"), self.bias, padding=1)
        x = self.rounded(functional.relu(x), self.scale, self.zero)
        x = torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1)
        return functional.linear(self.rounded(x, 0.011, 0), self.weight("fc"))


@pytest.mark.parametrize("bounds", [(0, 255), (0, 127)], ids=["8 bits", "7 bits"])
@pytest.mark.parametrize("saved", [False, True])
def test_quantised_program(saved, bounds, tmp_path):
    register_quantization()
    model, x = Quantised(*bounds), torch.randn(1, 3, 16, 16)
    program = torch.export.export(model.eval(), (x,))
    if saved:
        torch.export.save(program, tmp_path / "net.pt2")
    module = load_model(tmp_path / "net.pt2" if saved else program)
    counts = op_counts(module)
    assert (counts["quantize"], counts["dequantize"], counts["nn.conv2d"]) == (3, 5, 1)
    assert ("maximum" in counts) == (bounds != (0, 255))
    ordered = pipeline.order()(pipeline.canonical_float()(module))
    convolutions = [spec for spec in orders(ordered) if isinstance(spec, Conv2d)]
    assert [spec.inputs[0].dtype for spec in convolutions] == ["uint8", "uint8"]
    (result,), wanted = run_network(ordered, x.numpy()), model(x).detach().numpy()
    np.testing.assert_allclose(result, wanted, atol=0.02)  # one unit of a rounded tensor, behind the last weights
    assert np.abs(wanted).max() > 0.1


def test_errors(tmp_path):
    with pytest.raises(ModelError, match=r"torch\.export\.export"):
        load_model(Network())
    (tmp_path / "bad.pt2").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="holds no exported program"):
        load_model(tmp_path / "bad.pt2")
    with pytest.raises(ModelError, match="no such file"):
        load_model(tmp_path / "missing.pt2")
