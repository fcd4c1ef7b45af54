"""From the QDQ module to ONNX: the way out of `tvm_int8.frontend`'s way in."""

from .export import export_onnx

__all__ = ["export_onnx"]
