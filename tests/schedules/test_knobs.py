"""Knob spaces: every point they offer can be built and computes the same, and what they object to cannot."""

import json
import math
import random

import numpy as np
import pytest

from tests.schedules.kernel_testing import assert_exact
from tests.schedules.test_conv2d import constants_for, conv_spec
from tests.schedules.winograd_testing import winograd_constants, winograd_spec
from tvm_int8.schedules.knobs import PLAUSIBLE, KnobSpace
from tvm_int8.schedules.registry import RULES, applicable, rule_of
from tvm_int8.specs import Output
from tvm_int8.target import parse_target


def depthwise_spec(c=32, **options):
    return conv_spec(c=c, o=c, groups=c, **options)


def float_spec(make=conv_spec, **options):
    return make(dtype="float32", output=Output("float32"), **options)


SPECS = {
    "3x3": conv_spec(c=64, o=96, hw=(14, 14)),
    "few pixels": conv_spec(c=32, o=48, hw=(2, 3)),
    "first layer": conv_spec(c=3, o=32, block=4, kernel=(7, 7), strides=(2, 2), hw=(56, 56)),
    "1x1": conv_spec(c=64, o=128, kernel=(1, 1), hw=(14, 14)),
    "dense": conv_spec(c=100, o=200, kernel=(1, 1), hw=(1, 1)),
    "groups of 32": conv_spec(c=64, o=64, groups=2),
    "groups of 3": conv_spec(c=27, o=18, groups=9),
    "strided": conv_spec(c=48, o=32, strides=(2, 2), hw=(15, 17)),
    "dilated": conv_spec(c=32, o=32, dilation=(2, 3), padding=(2, 3, 2, 3), hw=(11, 12)),
    "transposed": conv_spec(transposed=True, c=24, o=40, strides=(2, 2), padding=(1, 1, 1, 1), output_padding=(1, 1)),
    "batch": conv_spec(n=3, c=32, o=40, hw=(7, 7)),
    "large": conv_spec(c=256, o=256, hw=(28, 28)),
    "tiles": winograd_spec(c=64, o=96, hw=(14, 14)),
    "tiles of words": winograd_spec(c=48, o=64, hw=(9, 30), tile=(4, 2), wide="all"),
    "float32 tiles": winograd_spec(c=32, o=64, hw=(12, 12), dtype="float32", output=Output("float32")),
    "depthwise": depthwise_spec(hw=(14, 14)),
    "depthwise strided": depthwise_spec(strides=(2, 2), kernel=(5, 5), hw=(15, 15)),
    "float32": float_spec(c=64, o=96, hw=(14, 14)),
    "float32 dense": float_spec(c=100, o=200, kernel=(1, 1), hw=(1, 1)),
    "float32 transposed": float_spec(transposed=True, kernel=(2, 2), strides=(2, 2), padding=(0, 0, 0, 0)),
    "float32 depthwise": float_spec(depthwise_spec, strides=(2, 2), hw=(14, 14)),
}
CPUS = {
    f"{mcpu} {threads}t": parse_target(f"llvm -mcpu={mcpu} -num-cores={threads}").cpu
    for mcpu in ("cascadelake", "sapphirerapids", "skylake-avx512", "haswell")
    for threads in (1, 2)
}


def spaces(spec, cpu):
    found = {rule.template: rule.knob_space(spec, cpu) for rule in applicable(spec, cpu) if rule.template}
    assert found
    return found.values()


def test_the_table_reaches_every_template():
    reached = {rule.template for spec in SPECS.values() for cpu in CPUS.values() for rule in applicable(spec, cpu)}
    assert (
        reached
        == {"conv2d", "conv2d_amx", "depthwise_conv2d", "winograd_conv2d"}
        == {r.template for r in RULES if r.template}
    )


@pytest.mark.parametrize("cpu", CPUS.values(), ids=CPUS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_points(spec, cpu):
    """The heuristic first, none twice, all valid, also as a log keeps them."""
    for space in spaces(spec, cpu):
        points = space.points()
        assert points[0] == space.heuristic
        assert space.objection(space.heuristic) is None
        keys = [json.dumps(point, sort_keys=True) for point in points]
        assert len(set(keys)) == len(keys)
        assert [space.objection(json.loads(key)) for key in keys] == [None] * len(keys)
        estimates = [space.estimate(point) for point in points]
        assert estimates[1:] == sorted(estimates[1:])
        assert max(estimates) <= PLAUSIBLE * estimates[0]


def heuristics():
    for name, spec in SPECS.items():
        for cpu_name, cpu in CPUS.items():
            for rule in applicable(spec, cpu):
                if rule.template:
                    yield f"{rule.template}, {name}, {cpu_name}", rule.knob_space(spec, cpu)


def test_heuristics_are_valid_points():
    invalid = [name for name, space in heuristics() if not space.valid(space.heuristic)]
    assert invalid == []


@pytest.mark.parametrize("cpu", CPUS.values(), ids=CPUS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_features(spec, cpu):
    """Finite numbers that a logarithm can be taken of, under the same names everywhere."""
    for space in spaces(spec, cpu):
        names = list(space.features(space.heuristic))
        for point in space.points():
            features = space.features(point)
            assert list(features) == names
            assert all(math.isfinite(value) and value >= 0 for value in features.values()), (point, features)


@pytest.mark.parametrize("name", ["3x3", "dense", "depthwise", "large", "float32"])
def test_there_is_something_to_choose(name):
    for cpu in CPUS.values():
        assert len(next(iter(spaces(SPECS[name], cpu))).points()) > 1


@pytest.mark.parametrize("cpu", CPUS.values(), ids=CPUS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_objections(spec, cpu):
    for space in spaces(spec, cpu):
        good = space.heuristic
        assert "more" in space.objection({**good, "more": 1})
        for name in good:
            fewer = {key: value for key, value in good.items() if key != name}
            assert name in space.objection(fewer)
            assert name in space.objection({**fewer, f"{name}s": good[name]})
            for impossible in (-1, 10**6, "sideways", None, 2.5):
                assert space.objection({**good, name: impossible}).startswith(f"{name}={impossible!r}")
        assert space.objection({})


def test_combinations_that_cannot_be_built():
    conv2d = rule_of("conv2d").knob_space(SPECS["3x3"], CPUS["cascadelake 1t"])
    widest = {name: max(conv2d.choices[name]) for name in ("ow_tile", "oc_tile")}
    assert conv2d.objection({**conv2d.heuristic, **widest}) == "a combination of knobs that cannot be built"
    amx = rule_of("conv2d_amx").knob_space(SPECS["large"], CPUS["sapphirerapids 1t"])
    for strip, part in ((0, max(amx.choices["part"])), (2, 0)):
        assert amx.objection({**amx.heuristic, "strip": strip, "part": part})
    depthwise = rule_of("depthwise_conv2d").knob_space(SPECS["depthwise"], CPUS["cascadelake 1t"])
    assert depthwise.objection({"body": "plain", "chunks": 1, "rows": 2})


def test_rules_without_knobs():
    for rule in RULES:
        if not rule.template:
            space = rule.knob_space(None, CPUS["cascadelake 1t"])
            assert (space.heuristic, dict(space.choices), space.points()) == ({}, {}, [{}])
            assert space.objection({}) is None
            assert space.objection({"ow_tile": 4})
    assert rule_of("") is None
    assert rule_of("winograd") is None


def test_points_that_the_model_finds_implausible_are_left_out():
    costs = {1: 1.0, 2: PLAUSIBLE, 3: 1.01 * PLAUSIBLE, 4: 0.5}
    space = KnobSpace({"n": 1}, {"n": (1, 2, 3, 4)}, estimate=lambda knobs: costs[knobs["n"]])
    assert space.points() == [{"n": 1}, {"n": 4}, {"n": 2}]
    assert space.objection({"n": 3}) is None


def check_random_points(template, mcpu, spec, constants=None):
    """Six points, drawn from all that are valid, not only from those that are searched."""
    rule, cpu = rule_of(template), CPUS[f"{mcpu} 2t"]
    points = list(rule.knob_space(spec, cpu)._valid_points())
    inputs = None
    if spec.inputs[0].dtype == "float32":  # small whole numbers: sums are exact in any order
        inputs = [np.random.default_rng(1).integers(-8, 8, t.shape).astype(np.float32) for t in spec.inputs]
    for seed, knobs in enumerate(random.Random(0).sample(points, min(6, len(points)))):
        try:
            assert_exact(rule, spec, constants or constants_for(spec), inputs, cpu, knobs, seed)
        except Exception as error:
            raise AssertionError(f"{template} with {knobs}: {error}") from error


SMALL = {
    "3x3": conv_spec(c=40, o=72, hw=(6, 9)),
    "1x1": conv_spec(c=32, o=80, kernel=(1, 1), hw=(7, 6), n=2),
    "dense": conv_spec(c=70, o=100, kernel=(1, 1), hw=(1, 1)),
    "groups": conv_spec(c=48, o=96, groups=2, hw=(5, 7)),
    "transposed": SPECS["transposed"],
    "float32": float_spec(c=20, o=56, hw=(5, 9), strides=(2, 1)),
}


@pytest.mark.isa("avx512vnni")
@pytest.mark.parametrize("name", SMALL)
def test_random_points_of_conv2d(name):
    check_random_points("conv2d", "cascadelake", SMALL[name])


@pytest.mark.isa("avx2", "fma")
def test_random_points_of_conv2d_in_half_as_many_registers():
    check_random_points("conv2d", "haswell", conv_spec(c=3, o=24, block=4, kernel=(5, 5), strides=(2, 2), hw=(12, 15)))


@pytest.mark.isa("avx512vnni")
def test_random_points_of_winograd_conv2d():
    spec = winograd_spec(c=40, o=72, hw=(13, 18), wide=(0, 7))
    check_random_points("winograd_conv2d", "cascadelake", spec, winograd_constants(spec))


@pytest.mark.isa("avx512vnni", "amx_int8")
@pytest.mark.parametrize(
    "options",
    [dict(c=128, o=80, kernel=(1, 3), hw=(6, 11)), dict(c=128, o=96, kernel=(1, 1), hw=(7, 12), n=2)],
    ids=["1x3", "1x1"],
)
def test_random_points_of_conv2d_amx(options):
    check_random_points("conv2d_amx", "sapphirerapids", conv_spec(**options))


@pytest.mark.isa("avx512vnni")
@pytest.mark.parametrize(
    "spec",
    [depthwise_spec(20, hw=(9, 13)), depthwise_spec(16, kernel=(5, 5), strides=(2, 2), hw=(14, 11)),
     float_spec(depthwise_spec, hw=(9, 10))],
    ids=["3x3", "5x5 strided", "float32"],
)  # fmt: skip
def test_random_points_of_depthwise_conv2d(spec):
    check_random_points("depthwise_conv2d", "cascadelake", spec)
