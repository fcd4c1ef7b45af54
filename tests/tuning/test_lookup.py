import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tvm_int8
from tests.small_networks import Network, draw
from tvm_int8.errors import ArtifactError, ConfigError
from tvm_int8.frontend import load_model
from tvm_int8.schedules.registry import rule_of
from tvm_int8.specs import Output, Pool2d, Program, Tensor
from tvm_int8.target import parse_target, supported_mcpus
from tvm_int8.tuning.log_file import append, write_log
from tvm_int8.tuning.lookup import SHIPPED, lookup, nearest
from tvm_int8.tuning.record import Record
from tvm_int8.tuning.tasks import workloads_of
from tvm_int8.tuning.workload import Workload

TARGET = parse_target("llvm -mcpu=cascadelake -num-cores=1")
SIMILAR, LESS_SIMILAR = "znver5", "icelake-server"  # the same instructions, larger caches
DTYPES = ("uint8", "int8", "uint8")
SHAPES = (1, 64, 14, 14), (1, 64, 14, 14), (3, 3)
WORKLOAD = Workload("conv2d", *SHAPES, (1, 1), (1, 1, 1, 1), (1, 1), 1, 16, DTYPES, threads=1)
SPEC = WORKLOAD.spec()
RULE = rule_of("conv2d")
SPACE = RULE.knob_space(SPEC, TARGET.cpu)
HEURISTIC, *OTHERS = SPACE.points()


def tuned(time_us=6.0, knobs=0, target=TARGET.mcpu, **changes):
    """A record that counts: twice as fast as the heuristic, with one of the other points' knobs."""
    record = Record(WORKLOAD, "conv2d", RULE.version, OTHERS[knobs], target, time_us, 12.0)
    return replace(record, **changes)


@pytest.fixture(autouse=True)
def shipped(monkeypatch, tmp_path):
    """An empty directory in the place of the package's logs."""
    directory = tmp_path / "shipped"
    directory.mkdir()
    monkeypatch.setattr("tvm_int8.tuning.lookup.shipped_directory", lambda: directory)
    return directory


@pytest.fixture
def mine(tmp_path):
    return tmp_path / "mine.jsonl"


def ship(directory, *records, name="net.jsonl"):
    for record in records:
        append(directory / record.target / name, [record])


def found(tuning_logs=SHIPPED, spec=SPEC, target=TARGET):
    """(origin, knobs), or None for the heuristic."""
    choice = lookup(tuning_logs, target)(spec)
    return choice and (choice.origin, choice.knobs)


def test_order_of_sources(mine, shipped):
    assert found() is None
    ship(shipped, tuned(knobs=0, target=LESS_SIMILAR))
    assert found() == (f"tuned: {LESS_SIMILAR}", OTHERS[0])
    ship(shipped, tuned(knobs=1, target=SIMILAR))
    assert found() == (f"tuned: {SIMILAR}", OTHERS[1])
    ship(shipped, tuned(11, knobs=2))
    assert found() == ("tuned: cascadelake", OTHERS[2])
    write_log(mine, [tuned(7, knobs=3, target=SIMILAR)])
    assert found(mine) == (f"tuned: mine.jsonl ({SIMILAR})", OTHERS[3])
    append(mine, [tuned(11.5, knobs=4)])
    assert found(mine) == ("tuned: mine.jsonl", OTHERS[4])
    assert found() == ("tuned: cascadelake", OTHERS[2])
    assert found(None) is None


def test_logs_are_asked_in_the_order_given(mine, tmp_path):
    other = tmp_path / "other.jsonl"
    write_log(mine, [tuned(11, knobs=0)])
    write_log(other, [tuned(3, knobs=1)])
    assert found([mine, other]) == ("tuned: mine.jsonl", OTHERS[0])
    assert found((str(other), str(mine))) == ("tuned: other.jsonl", OTHERS[1])


def test_a_log_without_the_workload_leaves_it_to_the_next(mine, shipped):
    ship(shipped, tuned(knobs=1, workload=replace(WORKLOAD, strides=(2, 2), out=(1, 64, 7, 7))))
    ship(shipped, tuned(knobs=2, target=SIMILAR))
    write_log(mine, [tuned(workload=replace(WORKLOAD, data=(2, 64, 14, 14), out=(2, 64, 14, 14)))])
    assert found(mine) == (f"tuned: {SIMILAR}", OTHERS[2])


def test_only_one_cpu_beside_the_own_is_asked(shipped):
    elsewhere = tuned(workload=replace(WORKLOAD, kernel=(1, 1), padding=(0, 0, 0, 0)))
    ship(shipped, elsewhere, replace(elsewhere, target=SIMILAR), tuned(target=LESS_SIMILAR))
    assert found() is None


def test_cpus_with_other_instructions_are_not_asked(mine, shipped):
    others = [tuned(target=name) for name in ("haswell", "skylake-avx512", "alderlake", "sapphirerapids", "z80")]
    ship(shipped, *others)
    write_log(mine, others)
    assert found(mine) is None


def test_records_in_another_cpus_directory_do_not_count(shipped):
    append(shipped / "cascadelake" / "net.jsonl", [tuned(target=SIMILAR)])
    (shipped / "README.md").write_text("no log")
    assert found() is None


def test_a_cpus_files_are_one_log(shipped):
    ship(shipped, tuned(9, knobs=0), name="a.jsonl")
    ship(shipped, tuned(8, knobs=1), name="b.jsonl")
    ship(shipped, tuned(10, knobs=2), name="c.jsonl")
    assert found() == ("tuned: cascadelake", OTHERS[1])


def test_the_record_that_counts_comes_first(mine):
    write_log(mine, [tuned(9, knobs=0), tuned(8, knobs=1), tuned(8.5, knobs=2)])
    assert found(mine)[1] == OTHERS[1]
    append(mine, [tuned(9.5, knobs=3, final=True)])
    assert found(mine)[1] == OTHERS[3]


@pytest.mark.parametrize(
    "unusable",
    [
        tuned(knobs=0, workload=replace(WORKLOAD, threads=4)),
        tuned(time_us=11.9),
        tuned(time_us=12.5),
        tuned(error="wrong result", final=True),
        replace(tuned(), knobs={}),
        replace(tuned(), knobs={**OTHERS[0], "colour": "red"}),
        replace(tuned(), knobs={**OTHERS[0], "ow_tile": 1000}),
        replace(tuned(), knobs={**OTHERS[0], "ow_tile": "14"}),
        replace(tuned(), knobs={**OTHERS[0], "ow_tile": 14.0}),
        replace(tuned(), knobs={**OTHERS[0], "unroll": True}),
        replace(tuned(), knobs={**OTHERS[0], "oc_tile": None}),
        replace(tuned(), knobs={**OTHERS[0], "oc_tile": [1, 2]}),
        replace(tuned(), knobs={**OTHERS[0], "ow_tile": 14, "oc_tile": 4}),
        replace(tuned(), template="depthwise_conv2d", knobs={"body": "plain", "chunks": 1, "rows": 1}),
        replace(tuned(), template="conv2d_amx", knobs={}),
    ],
    ids=[
        "threads", "hardly faster", "slower", "failed", "no knobs", "unknown knob", "value", "type", "float", "bool",
        "null", "list", "too many registers", "depthwise", "without AMX",
    ],
)  # fmt: skip
def test_records_that_cannot_be_used_are_passed_over(mine, shipped, unusable):
    write_log(mine, [unusable])
    assert found(mine) is None
    append(mine, [tuned(11.5, knobs=1)])
    assert found(mine) == ("tuned: mine.jsonl", OTHERS[1])
    write_log(mine, [replace(unusable, final=True)] if unusable.workload != WORKLOAD else [unusable])
    ship(shipped, tuned(knobs=2, target=SIMILAR))
    assert found(mine) == (f"tuned: {SIMILAR}", OTHERS[2])


def test_a_final_record_need_not_be_faster(mine, shipped):
    """The search ended with the heuristic: then no other log is asked."""
    ship(shipped, tuned(knobs=1))
    write_log(mine, [replace(tuned(12.0), knobs=HEURISTIC, final=True)])
    assert found(mine) == ("tuned: mine.jsonl", HEURISTIC)


def test_threads_of_the_target_decide(mine):
    four = parse_target("llvm -mcpu=cascadelake -num-cores=4")
    write_log(mine, [tuned(knobs=0, workload=replace(WORKLOAD, threads=4)), tuned(knobs=1)])
    assert found(mine, target=four)[1] == OTHERS[0]
    assert found(mine)[1] == OTHERS[1]


def test_kernels_without_knobs_have_no_choice(mine):
    write_log(mine, [tuned()])
    tensor = Tensor((1, 64, 14, 14), "uint8")
    assert found(mine, Pool2d("pool", (tensor,), tensor, Program(()), Output("uint8"))) is None


def test_the_choice_names_its_template(mine):
    write_log(mine, [tuned()])
    choice = lookup(mine, TARGET)(replace(SPEC, layer="another name"))
    assert choice.template == "conv2d"
    assert RULE.knob_space(SPEC, TARGET.cpu).objection(choice.knobs) is None


def test_directories_of_logs(mine, tmp_path):
    append(tmp_path / "logs" / "deep" / "net.jsonl", [tuned(knobs=1)])
    assert found(tmp_path / "logs") == ("tuned: logs", OTHERS[1])


def test_broken_lines_are_warned_of(mine):
    write_log(mine, [tuned(knobs=1)])
    with open(mine, "a") as file:
        file.write("<<<<<<< HEAD\n" + json.dumps([0, [[], [1e-4]]]) + "\n")
    with pytest.warns(UserWarning, match="skipped") as caught:
        assert found(mine) == ("tuned: mine.jsonl", OTHERS[1])
    first, second = (str(warning.message) for warning in caught)
    assert first.startswith(f"{mine}, line 2: not JSON")
    assert second.startswith(f"{mine}, line 3: not a record of this project")


def test_many_broken_lines_are_few_warnings(mine):
    mine.write_text("rubbish\n" * 50)
    with pytest.warns(UserWarning, match="skipped") as caught:
        assert found(mine) is None
    assert len(caught) == 4
    assert str(caught[-1].message) == f"{mine}: 47 more lines that are no records; skipped"
    mine.write_text("rubbish\n" * 3)
    with pytest.warns(UserWarning, match="skipped") as caught:
        lookup(mine, TARGET)
    assert len(caught) == 3


def test_shipped_logs_are_read_without_warnings(shipped):
    ship(shipped, tuned(knobs=1))
    with open(shipped / "cascadelake" / "net.jsonl", "a") as file:
        file.write("rubbish\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found()[1] == OTHERS[1]


@pytest.mark.parametrize(
    "bad", [True, False, 3, 1.5, {}, {"a.jsonl"}, b"a.jsonl", [None], ["a.jsonl", 3], [["a.jsonl"]], object], ids=str
)
def test_bad_options(bad):
    with pytest.raises(ConfigError, match=r"option 'tuning_logs'.*expected a path, a list of paths, 'shipped'"):
        lookup(bad, TARGET)


def test_shipped_may_stand_among_paths(mine, shipped):
    ship(shipped, tuned(knobs=1))
    write_log(mine, [])
    for tuning_logs in ("shipped", ["shipped"], [], (), [mine, "shipped"]):
        assert found(tuning_logs) == ("tuned: cascadelake", OTHERS[1])


def test_missing_logs_are_errors(mine, tmp_path):
    write_log(mine, [tuned()])
    for missing in (tmp_path / "none.jsonl", str(tmp_path / "none.jsonl"), [mine, tmp_path / "none.jsonl"]):
        with pytest.raises(ArtifactError, match=r"none\.jsonl: cannot be read \(No such file"):
            lookup(missing, TARGET)


@pytest.mark.parametrize(
    ("mcpu", "others", "wanted"),
    [
        ("cascadelake", ["icelake-server", "znver5", "cooperlake"], ["cooperlake", "znver5", "icelake-server"]),
        ("icelake-server", ["rocketlake", "cascadelake", "tigerlake"], ["tigerlake", "cascadelake", "rocketlake"]),
        ("cascadelake", ["sapphirerapids", "skylake-avx512", "alderlake", "haswell"], []),
        ("sapphirerapids", ["icelake-server", "graniterapids", "znver5"], ["graniterapids"]),
        ("haswell", ["znver3", "alderlake", "skylake"], ["skylake", "znver3"]),
        ("alderlake", ["sierraforest", "raptorlake", "skylake"], ["raptorlake", "sierraforest"]),
        ("skylake-avx512", ["cascadelake", "x86-64-v4", "znver4"], ["x86-64-v4"]),
        ("znver4", [], []),
    ],
)
def test_nearest_has_the_same_instructions_and_similar_caches(mcpu, others, wanted):
    assert nearest(mcpu, others) == wanted


def test_nearest_of_all():
    for mcpu in ("cascadelake", "znver4", "sapphirerapids", "haswell"):
        ranked = nearest(mcpu, reversed(supported_mcpus()))
        assert ranked[0] == mcpu
        assert ranked == nearest(mcpu, supported_mcpus())
        assert nearest(mcpu, supported_mcpus(), limit=3) == ranked[:3]
        own = parse_target(mcpu).cpu
        cpus = [parse_target(name).cpu for name in ranked]
        assert {(cpu.dot, cpu.vector_bits, cpu.vector_registers, cpu.amx) for cpu in cpus} == {
            (own.dot, own.vector_bits, own.vector_registers, own.amx)
        }


DIRECT = tvm_int8.QuantizationConfig(winograd="off")


def small_network():
    net = Network(x=(1, 3, 7, 9))
    return net.finish(net.conv(net.relu(net.conv("x", 20)), 40))


def write_log_for(model, path: Path) -> Record:
    """A log with a record for the second layer: the last point of the direct convolution's space."""
    native = parse_target("native")
    cpu = replace(native.cpu, threads=1)
    (workload,) = (w for w in workloads_of(load_model(model), cpu, DIRECT) if w.data[1] == 20)
    space = RULE.knob_space(workload.spec(), cpu)
    knobs = space.points()[-1]
    assert knobs != space.heuristic
    record = Record(workload, "conv2d", RULE.version, knobs, native.mcpu, 5.0, 10.0, final=True)
    write_log(path, [record], ["a test"])
    return record


def test_compiling_with_a_log(mine, monkeypatch):
    model = small_network()
    record = write_log_for(model, mine)
    calibration = draw(model, 2, seed=0)
    built = []
    build = type(RULE).build
    monkeypatch.setattr(type(RULE), "build", lambda *a: (built.append(a[4] if len(a) > 4 else None), build(*a))[1])
    options = dict(calibration=calibration, quantization=DIRECT, num_threads=1, progress=False)
    plain = tvm_int8.compile(model, tuning_logs=None, **options)
    assert record.knobs not in built
    module = tvm_int8.compile(model, tuning_logs=mine, **options)
    assert record.knobs in built
    origins = [row.origin for row in module.report if row.op == "conv2d"]
    assert origins == ["heuristic", "tuned: mine.jsonl"]
    assert "tuned 1/2" in module.report.summary
    assert "tuned: mine.jsonl" in str(module.report)
    assert "tuned 0/2" in plain.report.summary
    for inputs in draw(model, 2, seed=1):
        for found, wanted in zip(module(*inputs.values()), plain(*inputs.values()), strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_measured_times_are_those_of_this_target(mine):
    """Of the layer as it is before layouts are assigned, too."""
    write_log(mine, [tuned(7, cpu="A"), tuned(3, target=SIMILAR, cpu="A"), tuned(9, cpu="B"), tuned(8, cpu="B")])
    choose = lookup(mine, TARGET)
    plain = replace(SPEC, inputs=tuple(replace(tensor, block=0) for tensor in SPEC.inputs))
    assert choose.times_us(SPEC) == choose.times_us(plain) == {"A": 7, "B": 8}
    assert choose.times_us(replace(SPEC, kernel=(5, 5))) == {}
    assert lookup(mine, parse_target("llvm -mcpu=icelake-server -num-cores=1")).times_us(SPEC) == {}
