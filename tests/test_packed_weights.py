"""Weights of few bits: codes, levels and layouts come back bit by bit, whatever kernel reads them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.schedules.kernel_testing import CASCADELAKE, SAPPHIRERAPIDS
from tests.schedules.test_conv2d import HASWELL, SHAPES, SKYLAKE, constants_for, conv_spec
from tests.schedules.test_depthwise_conv2d import spec_of as depthwise_spec
from tvm_int8.bit_codes import pack_codes, unpack_codes
from tvm_int8.packed_weights import Layout, PackedWeight, levels
from tvm_int8.quantization.few_bits import quantize_few_bits
from tvm_int8.schedules.registry import applicable
from tvm_int8.weight_archive import BROKEN, decode, encode, saved_bytes


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_codes_come_back(bits, count, rng):
    codes = rng.integers(0, 2**bits, count).astype(np.uint8)
    packed = pack_codes(codes, bits)
    assert len(packed) == -(-count * bits // 8)
    np.testing.assert_array_equal(unpack_codes(packed, bits, count), codes)


@pytest.mark.parametrize(("bits", "count", "size"), [(0, 8, 0), (9, 8, 9), (4, 8, 3), (4, 8, 5), (4, -8, 0)])
def test_codes_that_do_not_fit(bits, count, size):
    with pytest.raises(ValueError, match=f"{count} codes of {bits} bits in {size} bytes"):
        unpack_codes(np.zeros(size, np.uint8), bits, count)


@pytest.mark.parametrize("bits", range(1, 7))
def test_levels_of_few_bits_are_recognised(bits, rng):
    values, _, lowest = quantize_few_bits(rng.standard_normal((24, 300)), 0, bits)
    values[3] = 0
    found, step, least = levels(values)
    used = np.delete(np.arange(24), 3)
    assert set(found[used]) == {bits}
    assert set(step) == {2}
    assert (least[used] <= values[used].min(1)).all()
    assert ((least - lowest)[used] % 2 == 0).all()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[-63, 0, 63]], (7, 1, [-64])),
        ([[-64, 0, 63]], (7, 1, [-64])),
        ([[-128, 127]], (8, 1, [-128])),
        ([[-127, 126, 0]], (8, 1, [-128])),
        ([[0, 0], [0, 0]], (1, 2, [0, 0])),
        ([[100, 101, 103]], (2, 1, [100])),
        ([[-127, -125, 127]], (7, 2, [-127])),
    ],
)
def test_levels_of_any_integers(rows, expected):
    bits, step, lowest = levels(np.array(rows, np.int8))
    assert (bits[0], step[0], lowest.tolist()) == expected
    assert len(set(bits)) == len(set(step)) == 1
    codes = (np.array(rows) - lowest[:, None]) // step[:, None]
    assert 0 <= codes.min() <= codes.max() < 2 ** int(bits[0])


def test_channels_of_different_widths(rng):
    """Have their own where that pays."""
    rows = np.concatenate([rng.integers(-128, 128, (4, 300)), 2 * rng.integers(0, 4, (12, 300)) - 3]).astype(np.int8)
    bits, step, lowest = levels(rows)
    assert bits.tolist() == [8] * 4 + [2] * 12
    assert step.tolist() == [1] * 4 + [2] * 12
    assert set(lowest[4:]) == {-3}


CPUS = [CASCADELAKE, SAPPHIRERAPIDS, SKYLAKE, HASWELL]
SPECS = {name: conv_spec(**options) for name, options in SHAPES.items()}
SPECS |= {f"depthwise {k}x{k}": depthwise_spec(c=40, kernel=k, hw=(12, 12)) for k in (3, 5)}


@pytest.mark.parametrize("name", ["channel tails", "transposed 3x3", "groups of 3"])
def test_channels_of_every_width(name):
    """Every code at its width, and each array comes back."""
    spec = SPECS[name]
    weight = mixed_weight(constants_for(spec).weight.shape, 1 if spec.transposed else 0)
    for rule in applicable(spec, CASCADELAKE):
        kernel = rule.build(spec, replace(constants_for(spec), weight=weight), CASCADELAKE)
        packed = PackedWeight.of(weight, spec.groups, spec.transposed, kernel.pack_weight)
        assert packed.expanded().tobytes() == kernel.constants[0].tobytes()
        _, (loaded,) = decode(encode([packed]))
        assert loaded.expanded().tobytes() == kernel.constants[0].tobytes()
        assert PackedWeight.from_bytes(packed.to_bytes()).expanded().tobytes() == kernel.constants[0].tobytes()


def mixed_weight(shape, axis: int) -> np.ndarray:
    """Channel after channel of 1, 2, ... 8 bits; all levels are used where weights are enough."""
    rng, weight = np.random.default_rng(0), np.zeros(shape, np.int8)
    for channel, row in enumerate(np.moveaxis(weight, axis, 0)):
        bits = 1 + channel % 8
        few = bits <= 6
        row[...] = rng.integers(0, 2**bits, row.shape) * (2 if few else 1) - (2**bits - 1 if few else 2 ** (bits - 1))
    return weight


def test_the_size_of_mixed_weights():
    weight = mixed_weight((32, 64, 3, 3), 0)
    packed = PackedWeight.of(weight, 1, False, np.ravel)
    assert packed.bits == 4.5
    assert len(packed.codes) == 32 * 64 * 9 * 4.5 / 8
    assert packed.expanded().tobytes() == weight.tobytes()


def few_bit_weight(spec, bits: int) -> np.ndarray:
    """Every channel with levels of its own."""
    shape = constants_for(spec).weight.shape
    rng = np.random.default_rng(bits)
    axis = 1 if spec.transposed else 0
    lowest = rng.integers(-(2**bits), 3 - 2**bits, shape[axis]).reshape([-1 if i == axis else 1 for i in range(4)])
    return (lowest + 2 * rng.integers(0, 2**bits, shape)).astype(np.int8)


@pytest.mark.parametrize("cpu", CPUS, ids=lambda cpu: cpu.name)
@pytest.mark.parametrize("name", SPECS)
def test_every_kernel_gets_its_array_back(name, cpu):
    """And padding, repetition and wider integers take no bits."""
    spec = SPECS[name]
    constants = replace(constants_for(spec), weight=few_bit_weight(spec, 3))
    for rule in applicable(spec, cpu):
        kernel = rule.build(spec, constants, cpu)
        packed = PackedWeight.of(constants.weight, spec.groups, spec.transposed, kernel.pack_weight)
        assert (packed.bits, set(packed.steps), packed.count) == (3, {2}, constants.weight.size)
        assert packed.expanded().tobytes() == kernel.constants[0].tobytes()
        assert packed.array_bytes == kernel.constants[0].nbytes
        assert len(packed.codes) == -(-3 * constants.weight.size // 8)
        again = PackedWeight.from_bytes(packed.to_bytes())
        assert again.expanded().tobytes() == kernel.constants[0].tobytes()


def test_a_layout_is_small_and_shared():
    """Of two layers that one kernel reads."""
    spec = conv_spec(c=256, o=256)
    kernels = [applicable(spec, CASCADELAKE)[-1].build(spec, constants_for(spec), CASCADELAKE)]
    pack, weights = kernels[0].pack_weight, [few_bit_weight(spec, bits) for bits in (4, 5)]
    first = PackedWeight.of(weights[0], 1, False, pack)
    second = PackedWeight.of(weights[1], 1, False, pack, first.layout)
    codes = len(first.codes) + len(second.codes)
    assert (first.bits, second.bits, codes) == (4, 5, 9 * spec.kernel[0] * spec.kernel[1] * 256 * 256 // 8)
    assert codes < len(encode([first, second])) < codes + 1000
    assert saved_bytes([first, second]) == 2 * first.array_bytes - len(encode([first, second]))
    _, loaded = decode(encode([first, second]))
    for weight, packed in zip(weights, loaded, strict=True):
        assert packed.expanded().tobytes() == pack(weight).tobytes()


def test_what_would_not_be_smaller_is_left_alone(rng):
    weight = rng.integers(-128, 128, (32, 32, 3, 3)).astype(np.int8)
    assert PackedWeight.of(weight, 1, False, np.ravel) is None
    assert PackedWeight.of(weight // 64, 1, False, np.ravel).bits == 2
    assert PackedWeight.of(weight, 1, False, lambda w: w.astype(np.int16)).bits == 8
    assert PackedWeight.of(weight[:4, :2] // 64, 1, False, np.ravel) is None


def test_what_is_more_than_an_arrangement_is_left_alone(rng):
    weight = rng.integers(-2, 2, (32, 32, 3, 3)).astype(np.int8)
    assert PackedWeight.of(weight, 1, False, lambda w: w + w[::-1]) is None
    scattered = rng.permutation(weight.size)
    assert PackedWeight.of(weight, 1, False, lambda w: w.ravel()[scattered]).expanded().size == weight.size
    assert Layout.of(np.arange(10**6), lambda w: w[np.random.default_rng(0).permutation(10**6)]) is None


def test_archives_of_other_bytes(rng):
    weight = rng.integers(-2, 2, (32, 32, 3, 3)).astype(np.int8)
    archive = encode([PackedWeight.of(weight, 1, False, np.ravel)], {"answer": 42})
    assert decode(archive)[0] == {"answer": 42}
    for broken in (b"", archive[:7], archive[:50], archive[:-1], archive + b"x", b"\xff" * 100, bytes(1000)):
        with pytest.raises(BROKEN):
            decode(broken)
