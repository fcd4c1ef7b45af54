"""Relax passes of the compiler, one per file; tvm_int8/pipeline.py lists them in the order they run."""

if __name__ != "tvm_int8.passes":
    raise ImportError("there is no top-level module called passes; import tvm_int8.passes", name=__name__)
