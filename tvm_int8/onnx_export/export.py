"""Translate a canonical module, float or QDQ, into an ONNX model, binding by binding.

Every operator has a rule in `registry`. Rules also look back over several bindings where ONNX has one operator for them
(a convolution and its bias, a dense layer, HardSwish, DepthToSpace); what then nobody reads is left out.
"""

from __future__ import annotations

import onnx
import tvm

from tvm_int8.errors import ModelError
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import Var, const_value, op_name

from . import activation, arithmetic, convolution, pool, quantize, reduce, resize, shape  # noqa: F401  (their rules)
from .registry import RULES
from .writer import OnnxWriter

_LARGEST_BYTES = 2**31 - 1  # of a protobuf message


def export_onnx(mod: tvm.IRModule) -> onnx.ModelProto:
    """Write a module as ONNX.

    Parameters
    ----------
    mod : IRModule
        Canonical: one function ``main``, NCHW, static shapes, with the attributes that the frontend gives it.

    Returns
    -------
    onnx.ModelProto
        Checked, of opset `writer.OPSET`; inputs, outputs and layers have the names of the user's model.

    Raises
    ------
    ModelError
        A layer's operator has no ONNX form here, or the model is larger than ONNX's 2 GiB.
    """
    out = OnnxWriter(Dataflow(mod))
    for binding in out.flow.bindings:
        if binding.var in out.absorbed:
            continue
        out.begin(binding.var)
        value = binding.value
        if isinstance(value, Var) or const_value(value) is not None:
            out.emit("Identity", value)
        elif (rule := RULES.get(op_name(value))) is not None:
            rule(out, value)
        else:
            found = f"operator {op_name(value) or type(value).__name__} has no ONNX form here"
            raise out.error(found, "operators of a convolutional network", "compile the model here, or leave it out")
    model = out.finish()
    _check(model)
    return model


def _check(model: onnx.ModelProto) -> None:
    if (size := model.ByteSize()) > _LARGEST_BYTES:
        raise ModelError("exported model", f"has {size / 2**30:.1f} GiB", "at most 2 GiB", "export a smaller network")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        found = f"is no valid ONNX ({' '.join(str(error).split())})"
        raise ModelError("exported model", found, "a valid model", "report it together with the network") from error
