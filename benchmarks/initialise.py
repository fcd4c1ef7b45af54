"""Draw weights for an ONNX graph that has none, so that activations are as healthy as in a trained network.

Every node is run exactly once, in order, on a few images. A convolution or dense layer gets He weights (He et al.,
"Delving Deep into Rectifiers", 2015). A batch norm gets the mean and variance of what arrives there. A layer without
batch norm is normalised as if one had been folded into it (compare Mishkin and Matas, "All you need is a good init",
2016): this keeps the variance through any depth, LRN and pooling included, and keeps the outputs dependent on the
image, where plain He weights make all inputs look alike after a dozen layers.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

_FEW_SAMPLES = 64  # fewer per channel than this: the mean is still of use, a variance of its own is not
# A deep random network with zero-mean inputs to its ReLUs is chaotic: every layer amplifies a perturbation (batch norm
# at initialisation by 1.66 dB; Yang et al., "A Mean Field Theory of Batch Normalization", 2019), and rounding errors
# drown the output of any quantiser. Means of this many standard deviations keep most of a channel in the linear part.
_RELU_MEAN = 0.7
_PASS_THROUGH = ("Unsqueeze", "Reshape")  # parameters reach their layer through these


def initialise(model: onnx.ModelProto, images: list[np.ndarray], seed: int) -> onnx.ModelProto:
    """Return `model` with every stub parameter (ConstantOfShape or float initializer) drawn anew.

    Parameters
    ----------
    model : onnx.ModelProto
        Topologically ordered, one input.
    images : list of numpy.ndarray
        What the statistics are taken from, each of the input's shape.
    seed : int
        Of the random weights.

    Returns
    -------
    onnx.ModelProto
        The same nodes without the stubs; the weights are initializers and no longer listed as inputs.
    """
    return _Sweep(model, seed).run(images)


class _Sweep:
    """State of the one pass over the graph."""

    def __init__(self, model: onnx.ModelProto, seed: int):
        self.rng = np.random.default_rng(seed)
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        graph = self.model.graph
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        stubs = [node for node in graph.node if node.op_type == "ConstantOfShape"]
        self.params = {name: value for name, value in stored.items() if value.dtype == np.float32}
        self.params |= {node.output[0]: np.zeros(stored[node.input[0]], np.float32) for node in stubs}
        self.fixed = {name: value for name, value in stored.items() if value.dtype != np.float32}
        self.nodes = [node for node in graph.node if node.op_type != "ConstantOfShape"]
        self.consumers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in self.nodes:
            for index, name in enumerate(node.input):
                self.consumers.setdefault(name, []).append((node, index))
        self.params = {name: value for name, value in self.params.items() if name in self.consumers}
        self.input = next(value for value in graph.input if value.name not in stored)
        self.options = ort.SessionOptions()
        self.options.intra_op_num_threads = 1  # one order of summation, so the same weights on every call
        self.options.log_severity_level = 3

    def run(self, images: list[np.ndarray]) -> onnx.ModelProto:
        """Visit every node, then write the parameters into the model."""
        for name in self.params:
            self.params[name] = self._draw(name, self.params[name].shape)
        values: dict[str, list[np.ndarray]] = {self.input.name: images}
        left = Counter(name for node in self.nodes for name in node.input)
        for node in self.nodes:
            values[node.output[0]] = self._visit(node, values, len(images))
            for name in node.input:
                left[name] -= 1
                if left[name] == 0:
                    values.pop(name, None)
        return self._finish()

    def _draw(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Draw one parameter for the place it is used at."""
        node, index = self.consumers[name][0]
        while node.op_type in _PASS_THROUGH:
            node, index = self.consumers[node.output[0]][0]
        role = (node.op_type, index)
        if role == ("Conv", 1):
            return self._he(shape, int(np.prod(shape[1:])))
        if role == ("Gemm", 1):  # stored [out, in] (transB = 1) in all of these networks
            return self._he(shape, shape[-1])
        if role == ("BatchNormalization", 1):
            # In front of a scale/shift pair (Caffe) a batch norm only normalises.
            paired = self._next_is(node.output[0], "Mul")
            return np.ones(shape, np.float32) if paired else self._gain(node, shape)
        if role == ("BatchNormalization", 2) and self._next_is(node.output[0], "Mul"):
            return np.zeros(shape, np.float32)
        if role[0] == "Mul":
            return self._gain(node, shape)
        return self._shift(node, shape)

    def _gain(self, node: onnx.NodeProto, shape: tuple[int, ...]) -> np.ndarray:
        """Standard deviation per channel of a normalised output."""
        return (self._share(node) * self.rng.uniform(0.5, 1.5, shape)).astype(np.float32)

    def _shift(self, node: onnx.NodeProto, shape: tuple[int, ...]) -> np.ndarray:
        """Mean per channel of a normalised output, positive in front of a ReLU (see `_RELU_MEAN`)."""
        mean = _RELU_MEAN if self._next_is(node.output[0], "Relu", "Sum") else 0.0
        return (self._share(node) * self.rng.normal(mean, 0.5, shape)).astype(np.float32)

    def _share(self, node: onnx.NodeProto) -> float:
        """Keep small what a residual branch adds, or the trunk would grow with every block."""
        return 0.5 if self._next_is(node.output[0], "Sum") else 1.0

    def _he(self, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
        weight = self.rng.standard_normal(shape, np.float32)
        weight *= np.float32(np.sqrt(2.0 / fan_in))
        return weight

    def _next_is(self, name: str, *op_types: str) -> bool:
        return any(node.op_type in op_types for node, _ in self.consumers.get(name, []))

    def _visit(self, node: onnx.NodeProto, values: dict[str, list[np.ndarray]], count: int) -> list[np.ndarray]:
        """Set the node's statistics if it has any, and return its output for every image."""
        if node.op_type == "BatchNormalization":
            mean, variance = _moments(values[node.input[0]])
            self.params[node.input[3]], self.params[node.input[4]] = mean, variance
        outputs = self._evaluate(node, values, count)
        if node.op_type in ("Conv", "Gemm") and not self._next_is(node.output[0], "BatchNormalization"):
            outputs = self._normalise(node, outputs)
        return outputs

    def _normalise(self, node: onnx.NodeProto, outputs: list[np.ndarray]) -> list[np.ndarray]:
        """Fold unit variance and a small random mean per channel into the layer's weight and bias."""
        weight, bias = self._origin(node.input[1]), next(iter(node.input[2:]), None)
        mean, variance = _moments(outputs)
        gain = self._gain(node, mean.shape) / np.sqrt(variance)
        shift = self._shift(node, mean.shape) - mean * gain
        channel_axis = 0 if node.op_type == "Conv" else self.params[weight].ndim - 2
        self.params[weight] *= _along(gain, self.params[weight].ndim, channel_axis)
        if bias is None:
            shift[:] = 0
        else:
            self.params[bias] = self.params[bias] * gain + shift
        return [value * _along(gain, value.ndim, 1) + _along(shift, value.ndim, 1) for value in outputs]

    def _origin(self, name: str) -> str:
        """Return the parameter that reaches `name`, possibly through a reshape."""
        producers = {node.output[0]: node for node in self.nodes}
        while name not in self.params:
            name = producers[name].input[0]
        return name

    def _evaluate(self, node: onnx.NodeProto, values: dict[str, list[np.ndarray]], count: int) -> list[np.ndarray]:
        known = {**self.fixed, **self.params}
        constants = {name: known[name] for name in node.input if name not in values}
        kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in constants.items()}
        arguments = [
            helper.make_tensor_value_info(name, kinds.get(name, onnx.TensorProto.FLOAT), None)
            for name in dict.fromkeys(node.input)
        ]
        result = helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)
        single = helper.make_model(
            helper.make_graph([node], "node", arguments, [result]), opset_imports=self.model.opset_import, ir_version=8
        )
        session = ort.InferenceSession(single.SerializeToString(), self.options, providers=["CPUExecutionProvider"])
        feeds = [
            constants | {name: values[name][index] for name in node.input if name in values} for index in range(count)
        ]
        if all(name in constants for name in node.input):
            return session.run([node.output[0]], constants) * count
        return [session.run([node.output[0]], feed)[0] for feed in feeds]

    def _finish(self) -> onnx.ModelProto:
        graph = self.model.graph
        kept = [value for value in graph.input if value.name == self.input.name]
        arrays = {name: value for name, value in (self.params | self.fixed).items() if name in self.consumers}
        tensors = [numpy_helper.from_array(value, name) for name, value in arrays.items()]
        for field, items in ((graph.node, self.nodes), (graph.initializer, tensors), (graph.input, kept)):
            items = list(items)
            del field[:]
            field.extend(items)
        self.model.ir_version = 8  # from 4 on, initializers need not be listed as inputs
        return self.model


def _moments(values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance per channel (axis 1), float32; one shared variance where the samples are too few."""
    rows = np.concatenate([value.reshape(value.shape[0], value.shape[1], -1) for value in values])
    mean = rows.mean(axis=(0, 2), dtype=np.float64)
    variance = rows.var(axis=(0, 2), dtype=np.float64)
    if rows.shape[0] * rows.shape[2] < _FEW_SAMPLES:
        variance = np.full_like(variance, variance.mean())
    return mean.astype(np.float32), np.maximum(variance, 1e-6).astype(np.float32)


def _along(vector: np.ndarray, ndim: int, axis: int) -> np.ndarray:
    shape = [1] * ndim
    shape[axis] = -1
    return vector.reshape(shape)
