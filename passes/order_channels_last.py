"""OrderChannelsLast: a transpose to NHWC behind a kernel is a kernel itself.

    kernel -> permute_dims (0, 2, 3, 1)   ->   kernel -> tvm_int8.kernel(x; ChannelsLast spec)

Requires   OrderKernels.
Ensures    the heads of detectors and the outputs of networks that came from TensorFlow are written from the packed
           layout, where a pixel's channels lie together already, without a plain NCHW copy in between.
Not        tensors of integers; transposes of what no kernel delivers, which is plain anyway.
"""

from __future__ import annotations

import tvm

from tvm_int8.kernel_op import is_kernel, kernel_call
from tvm_int8.specs import ChannelsLast, Tensor

from .anchors import RAW, raw_output
from .dataflow import Dataflow, Rebuilder, rebuild
from .expressions import Expr, Var, dtype_of, op_name, shape_of
from .groups import logical_shape
from .order_kernels import layer_name


@tvm.transform.module_pass(opt_level=0, name="OrderChannelsLast")
class OrderChannelsLast:
    """Order a kernel for every transpose to NHWC."""

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module with these transposes ordered."""
        flow = Dataflow(mod)

        def rewrite(binding, _value: Expr, new: Rebuilder) -> Expr | None:
            call, var = binding.value, binding.var
            if op_name(call) != "permute_dims" or dtype_of(call) != "float32" or len(shape_of(call)) != 4:
                return None
            source, axes = call.args[0], call.attrs.axes
            if axes is None or [int(axis) for axis in axes] != [0, 2, 3, 1] or not isinstance(source, Var):
                return None
            if not is_kernel(flow.value(source)):
                return None
            data, result = (Tensor(logical_shape(shape_of(expr)), "float32", 0) for expr in (source, var))
            spec = ChannelsLast(layer_name(flow, var), (data,), result, RAW, raw_output("float32"))
            return kernel_call(spec, [new.translate(source)], [], var.name, shape_of(var))

        return rebuild(mod, rewrite)
