"""Kernels of the compiler, one kind per file: algorithm (TE compute), schedule (TensorIR), evidence."""

if __name__ != "tvm_int8.schedules":
    raise ImportError("there is no top-level module called schedules; import tvm_int8.schedules", name=__name__)
