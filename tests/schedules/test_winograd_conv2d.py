"""WinogradConv2dRule: tiles, channels, borders, positions of 16 bits and epilogues, to the last bit."""

from dataclasses import replace

import numpy as np
import pytest

from tests.schedules.kernel_testing import CASCADELAKE, NATIVE, assembly, assert_exact, random_array
from tests.schedules.winograd_testing import winograd_constants, winograd_spec
from tvm_int8 import winograd
from tvm_int8.reference.winograd_conv2d import accumulate, quantized_data
from tvm_int8.schedules.cpu import Cpu
from tvm_int8.schedules.registry import applicable
from tvm_int8.schedules.value_range import winograd_accumulator_range
from tvm_int8.schedules.winograd_conv2d import WinogradConv2dRule
from tvm_int8.specs import Operand, Output
from tvm_int8.target import missing_features, parse_target, required_cpu_features

RULE = WinogradConv2dRule()
CASES = {
    "4x4": {},
    "2x2": {"tile": (2, 2)},
    "4x2": {"tile": (4, 2), "hw": (9, 11), "c": 40, "o": 56},
    "2x4": {"tile": (2, 4), "hw": (6, 6)},
    "words": {"wide": "all"},
    "words 2x2": {"wide": "all", "tile": (2, 2), "hw": (7, 7)},
    "mixed 2x2": {"tile": (2, 2), "wide": (3, 10), "pad_value": 100},
    "mixed": {"wide": (1, 5, 7), "c": 64, "o": 96, "hw": (14, 14)},
    "all but one": {"wide": tuple(range(35))},
    "one tile": {"hw": (3, 2)},
    "odd borders": {"hw": (7, 13)},
    "no padding": {"padding": (0, 0, 0, 0), "hw": (10, 9)},
    "uneven padding": {"padding": (2, 0, 1, 3), "hw": (9, 6)},
    "batch": {"n": 3, "hw": (6, 5), "c": 32},
    "odd channels": {"c": 17, "o": 33},
    "zero point 0": {"pad_value": 0},
    "zero point 255": {"pad_value": 255},
    "many tiles": {"hw": (40, 36), "o": 48},
    "many groups": {"o": 112, "tile": (2, 2)},
    "residual": {"operands": (Operand("tensor", "uint8", 2),), "steps": (("fma", "%0", "%1", "%2"),), "hw": (7, 7)},
    "float output": {"output": Output("float32")},
    "float32": {"dtype": "float32", "output": Output("float32"), "c": 32},
    "few tiles of many channels": {"c": 256, "o": 256, "hw": (7, 7), "wide": (0, 1)},
    "float32 2x2": {"dtype": "float32", "output": Output("float32"), "tile": (2, 2), "hw": (5, 7)},
}


@pytest.mark.parametrize("case", CASES)
def test_exact(case):
    spec = winograd_spec(**CASES[case])
    assert applicable(spec, NATIVE)[0].template == RULE.template
    assert_exact(RULE, spec, winograd_constants(spec), cpu=NATIVE)


@pytest.mark.parametrize("case", ["mixed", "uneven padding", "batch", "many tiles", "float32"])
def test_one_thread(case):
    """Padding is a copy of all data there; on the two threads of the other tests, of what a block reads."""
    spec = winograd_spec(**CASES[case])
    assert_exact(RULE, spec, winograd_constants(spec), cpu=replace(NATIVE, threads=1))


@pytest.mark.parametrize("mcpu", ["skylake-avx512", "haswell", "alderlake"])
@pytest.mark.parametrize("case", ["4x4", "mixed", "float32"])
def test_other_instruction_sets(case, mcpu):
    if missing := missing_features(required_cpu_features(mcpu)):
        pytest.skip(f"this CPU cannot run code for {mcpu}: no {', '.join(missing)}")
    spec = winograd_spec(**CASES[case])
    assert_exact(RULE, spec, winograd_constants(spec), cpu=parse_target(f"llvm -mcpu={mcpu} -num-cores=2").cpu)


@pytest.mark.parametrize("knobs", [
    {"tiles": 1, "tile_width": 1, "oc_tile": 1},
    {"tiles": 5, "tile_width": 3, "oc_tile": 2, "prefetch": "next"},
    {"tiles": 7, "tile_width": 7, "oc_tile": 3},
    {"tiles": 16, "tile_width": 5, "oc_tile": 5, "prefetch": "next"},
    {"tiles": 16, "tile_width": 5, "oc_tile": 3, "parallel": "outputs"},
    {"tiles": 6, "tile_width": 3, "oc_tile": 5, "prefetch": "next", "parallel": "outputs"},
])  # fmt: skip
def test_knobs_change_nothing(knobs):
    spec = winograd_spec(hw=(16, 15), o=80, c=32, wide=(0, 35))
    assert_exact(RULE, spec, winograd_constants(spec), cpu=NATIVE, knobs=knobs)


@pytest.mark.parametrize("wide", [(), (2, 14)])
def test_tiles_of_every_loudness(wide, rng):
    """Silent ones, ones of a single step, and the loudest there can be; the largest value of each becomes 127."""
    spec = winograd_spec(c=64, hw=(12, 24), wide=wide, pad_value=100)
    constants = winograd_constants(spec)
    constants.input_scale[...] = 32767
    data = random_array(spec.inputs[0], rng)
    data[..., :6] = 100
    data[:, 0, 3, 8] = 101
    data[..., 8:14] = 100
    data[..., 18:] = np.where(rng.random(data[..., 18:].shape) < 0.5, 0, 255)
    narrow, _, multiplier = quantized_data(spec, data, constants)
    assert set(np.abs(narrow).max((0, 2)).ravel()) <= {0, *range(2, 20), 127, 128} and 0 in multiplier // 32767
    assert multiplier.max() == 32767 and multiplier.min() < 300
    assert_exact(RULE, spec, constants, [data], cpu=NATIVE)


@pytest.mark.parametrize("wide", [(), (3, 4, 20), "all"])
def test_accumulators_lie_within_their_range(wide, rng):
    spec = winograd_spec(c=32, hw=(9, 9), wide=wide, pad_value=9)
    constants = winograd_constants(spec)
    low, high = winograd_accumulator_range(spec, constants)
    found = accumulate(spec, random_array(spec.inputs[0], rng), constants)
    assert (found.min((0, 2, 3)) >= low).all() and (found.max((0, 2, 3)) <= high).all()


@pytest.mark.parametrize("case", ["4x4", "2x2"])
def test_no_register_is_spilled_between_products(case):
    """Loads of weights, broadcasts of data and products: nothing else in the innermost loop."""
    spec = winograd_spec(c=64, o=64, hw=(28, 28), tile=CASES[case].get("tile", (4, 4)))
    code = assembly(RULE.build(spec, winograd_constants(spec), CASCADELAKE), "cascadelake").splitlines()
    products = [i for i, line in enumerate(code) if "vpdpbusd" in line]
    loop = [line for line in code[products[0] : products[-1]] if "zmm" in line]
    assert len(products) >= 80
    assert not [line for line in loop if "(%rsp)" in line or "(%rbp)" in line]


def test_estimates_prefer_what_fits():
    """The heuristic of every case is valid and keeps a block within half of L2, or takes one of the least blocks."""
    for options in CASES.values():
        spec = winograd_spec(**options)
        for cpu in (CASCADELAKE, Cpu("haswell", "avx2", 256, 16)):
            space = RULE.knob_space(spec, cpu)
            assert space.objection(space.heuristic) is None
            features = space.features(space.heuristic)
            assert features["block_bytes"] <= cpu.l2_bytes // 2
            assert features["accumulators"] <= cpu.vector_registers


def test_names_say_what_is_multiplied():
    specs = {case: winograd_spec(**CASES[case]) for case in ("2x2", "words", "mixed", "float32")}
    kernels = {case: RULE.build(spec, winograd_constants(spec), CASCADELAKE) for case, spec in specs.items()}
    assert {case: kernel.name for case, kernel in kernels.items()} == {
        "2x2": "winograd_2x2_u8s8_avx512vnni",
        "words": "winograd_4x4_s16_avx512vnni",
        "mixed": "winograd_4x4_u8s8_avx512vnni_3s16",
        "float32": "winograd_4x4_f32",
    }
    assert winograd.positions((4, 4)) == 36
