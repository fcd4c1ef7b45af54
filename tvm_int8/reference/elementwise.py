"""Elementwise, and the operands of any program."""

from __future__ import annotations

import numpy as np

from tvm_int8.quantization import arithmetic


def operand_values(spec, tensors, constants, accumulator=None) -> list[np.ndarray]:
    """float32 arrays of a program's operands: `tensors` and channel constants in the order the program names them."""
    tensors, channels = iter(tensors), iter(constants.channels)
    values = []
    for operand in spec.program.operands:
        if operand.kind == "acc":
            values.append(np.asarray(accumulator).astype(np.float32))
        elif operand.kind == "channel":
            values.append(np.asarray(next(channels), np.float32).reshape(1, -1, 1, 1))
        else:
            value = next(tensors)
            if operand.dtype != "float32":
                value = value.astype(np.int32) - np.int32(operand.zero_point)
            values.append(value.astype(np.float32))
    return values


def finish(spec, tensors, constants, accumulator=None) -> np.ndarray:
    """Run the program and store its result in the spec's output dtype and shape."""
    value = arithmetic.run_program(spec.program, operand_values(spec, tensors, constants, accumulator))
    return np.broadcast_to(arithmetic.store(value, spec.output), spec.result.shape)


def evaluate(spec, inputs, constants) -> np.ndarray:
    """The program alone."""
    return finish(spec, inputs, constants)
