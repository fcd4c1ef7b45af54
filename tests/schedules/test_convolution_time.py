"""The model that chooses between algorithms: orders it must get right, whatever its constants are."""

from dataclasses import replace

import pytest

from tests.schedules.test_conv2d import conv_spec
from tests.schedules.winograd_testing import winograd_spec
from tvm_int8.schedules.convolution_time import fastest, time_of
from tvm_int8.specs import Output
from tvm_int8.target import parse_target


def cpu(mcpu):
    return parse_target(f"llvm -mcpu={mcpu} -num-cores=1").cpu


def ways(c, hw, dtype="uint8"):
    output = Output("float32") if dtype == "float32" else Output("uint8", 0, 0, 255)
    direct = conv_spec(c=c, o=c, hw=hw, dtype=dtype, output=output)
    tiles = [winograd_spec(c=c, o=c, hw=hw, tile=tile, dtype=dtype, output=output) for tile in ((4, 4), (4, 2), (2, 2))]
    return [direct, *tiles]


@pytest.mark.parametrize("mcpu", ["cascadelake", "znver4"])
def test_large_layers_take_large_tiles_of_bytes(mcpu):
    times = [time_of(spec, cpu(mcpu)) for spec in ways(256, (56, 56))]
    assert times == sorted(times, reverse=True)[:1] + sorted(times[1:])
    assert times[0] > 2.5 * times[1]


def test_a_map_smaller_than_a_tile_is_direct():
    assert fastest(ways(512, (3, 3)), cpu("cascadelake")) != 1


def test_amx_needs_no_tiles():
    assert fastest(ways(256, (28, 28)), cpu("sapphirerapids")) == 0


def test_float_layers_take_them_on_amx_too():
    assert fastest(ways(128, (28, 28), "float32"), cpu("sapphirerapids")) > 0


def test_sixteen_bits_pay_where_they_are_as_fast():
    """Half the rate of bytes on Zen, a quarter on Intel's cores; without VNNI the same."""
    layers = ways(256, (56, 56))
    words = replace(layers[1], wide=tuple(range(36)))
    assert fastest([layers[0], words], cpu("znver4")) == 1
    assert fastest([layers[0], words], cpu("sapphirerapids")) == 0
    assert fastest([layers[0], words], cpu("skylake-avx512")) == 1
    assert fastest([layers[0], words], cpu("haswell")) == 1


def test_few_channels_leave_transforms_most_of_the_work():
    def gain(c):
        direct, largest, *_ = ways(c, (56, 56))
        return time_of(direct, cpu("cascadelake")) / time_of(largest, cpu("cascadelake"))

    assert gain(16) < gain(64) < gain(256)


def test_what_has_been_measured_counts():
    layers = ways(256, (56, 56))
    slow = dict(zip(layers, (10.0, 50.0, 9.0, 20.0), strict=True))
    assert best_of(layers, one_cpu=slow) == 2
    assert best_of(layers, one_cpu={**slow, layers[2]: None}) == 0
    assert best_of(layers, one_cpu={layers[0]: 10.0}) == 1
    assert best_of(layers, one_cpu={layers[2]: 9.0, layers[3]: 20.0}) == 1
    half = replace(layers[2], wide=tuple(range(12)))
    assert best_of([*layers[:2], half, layers[3]], one_cpu=slow) == 0


def test_times_of_different_cpus_do_not_compare():
    layers = ways(256, (56, 56))
    assert best_of(layers, slow={layers[0]: 1000.0}, fast={layers[3]: 10.0}) == 1
    assert best_of(layers, one={layers[0]: 10.0}, other={layers[0]: 20.0, layers[3]: 15.0}) == 3


def best_of(layers, **measurements):
    """The choice for cascadelake, given every measuring CPU's times."""

    def times(spec):
        return {name: us for name, found in measurements.items() if (us := found.get(spec))}

    return fastest(layers, cpu("cascadelake"), times)
