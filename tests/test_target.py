import pytest
import tvm

from tvm_int8 import ArtifactError, TargetError, host, target
from tvm_int8.host import cache_bytes, default_num_threads, host_features, usable_cpus
from tvm_int8.target import check_host, parse_target, required_cpu_features, supported_mcpus


@pytest.mark.parametrize(
    "form",
    [
        "llvm -mcpu=cascadelake",
        "llvm -mcpu cascadelake",
        "  llvm   --mcpu=cascadelake ",
        "cascadelake",
        "CascadeLake",
        '{"kind": "llvm", "mcpu": "cascadelake"}',
        {"kind": "llvm", "mcpu": "cascadelake"},
        {"mcpu": "cascadelake"},
        tvm.target.Target({"kind": "llvm", "mcpu": "cascadelake"}),
    ],
    ids=str,
)
def test_all_forms_mean_the_same(form):
    resolved = parse_target(form)
    assert resolved.mcpu == resolved.cpu.name == "cascadelake"
    assert (resolved.cpu.dot, resolved.cpu.vector_bits, resolved.cpu.vector_registers) == ("avx512vnni", 512, 32)
    assert resolved.tvm_target.kind.name == "llvm"
    assert dict(resolved.tvm_target.attrs) == {"mcpu": "cascadelake"}


def test_a_resolved_target_resolves_to_itself():
    first = parse_target("llvm -mcpu=znver4 -mattr=-avx512vnni -num-cores=3 -mtriple=x86_64-linux-gnu")
    for form in (first.tvm_target, str(first.tvm_target), dict(first.tvm_target.export())):
        again = parse_target(form)
        assert (str(again.tvm_target), again.cpu, again.features) == (str(first.tvm_target), first.cpu, first.features)


@pytest.mark.parametrize(
    ("text", "dot"),
    [
        ("skylake-avx512", "avx512bw"),
        ("skx", "avx512bw"),
        ("alderlake", "avxvnni"),
        ("haswell", "avx2"),
        ("x86-64-v3", "avx2"),
        ("znver3", "avx2"),
        ("llvm -mcpu=znver4 -mattr=-avx512bw", "avx2"),
        ("llvm -mcpu=haswell -mattr=+avxvnni", "avxvnni"),
        ("x86-64-v4", "avx512bw"),
        ("icelake_server", "avx512vnni"),
        ("sapphirerapids", "avx512vnni"),
        ("znver5", "avx512vnni"),
        ("llvm -mcpu=cascadelake -mattr=-avx512vnni", "avx512bw"),
        ("llvm -mcpu=skylake-avx512 -mattr=+avx512vnni,-avx512cd", "avx512vnni"),
    ],
)
def test_dot(text, dot):
    assert parse_target(text).cpu.dot == dot


def test_spellings_of_llvm_become_one():
    assert parse_target("skx").mcpu == parse_target("skylake_avx512").mcpu == "skylake-avx512"


def test_num_cores_and_caches():
    cpu = parse_target("llvm -mcpu=icelake-server -num-cores=12").cpu
    assert (cpu.threads, cpu.l1_bytes, cpu.l2_bytes) == (12, 48 << 10, 1280 << 10)
    assert parse_target("cascadelake").cpu.threads == default_num_threads()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("sandybridge", ["sandybridge lacks avx2, fma", "cascadelake"]),
        ("nehalem", ["lacks", "znver4"]),
        ("diamondrapids", ["avx10.2"]),
        ("generic", ["lacks"]),
        ("llvm", ["no -mcpu", "cascadelake"]),
        ("llvm -mcpu=", ["no -mcpu"]),
        ("llvm -mcpu=cascadelak", ["unknown CPU 'cascadelak'", "did you mean 'cascadelake'"]),
        ("cortex-a53", ["unknown CPU"]),
        ("llvm -mcpu=haswell -mattr=-fma", ["lacks fma"]),
        ("llvm -mcpu=znver4 -mattr=+avx512vnnj", ["'+avx512vnnj'", "avx512vnni"]),
        ("llvm -mcpu=znver4 -mattr=avx512vnni", ["+feature or -feature"]),
        ("llvm -mcpu=znver4 -mattr=-64bit", ["'-64bit'"]),
        ("llvm -mcpu=znver4 -num-cores=0", ["-num-cores=0"]),
        ("llvm -mcpu=znver4 -num-cores=two", ["whole number"]),
        ("llvm -mcpu=znver4 -num-core=2", ["unknown option 'num-core'", "did you mean 'num-cores'"]),
        ("llvm -mcpu=znver4 znver5", ["not options"]),
        ("llvm -mcpu=znver4 -mtriple=aarch64-linux-gnu", ["aarch64-linux-gnu", "x86-64 Linux"]),
        ("llvm -mcpu=znver4 -mtriple=garbage", ["garbage"]),
        ("llvm -mcpu='znver4", ["cannot be read"]),
        ("cuda", ["kind 'cuda'"]),
        ("cuda -arch=sm_80", ["kind 'cuda'"]),
        ("c", ["kind 'c'"]),
        ("nvidia/nvidia-a100", ["unknown CPU"]),
        ("", ["empty"]),
        ("{", ["TVM does not accept it"]),
        ("[]", ["unknown CPU"]),
        ({}, ["no -mcpu"]),
        ({"kind": "vulkan"}, ["kind 'vulkan'"]),
        ({"mcpu": "znver4", "fast-math": True}, ["unknown option 'fast-math'"]),
        ({"mcpu": "znver4", "mattr": 5}, ["TVM does not accept it"]),
        ({"mcpu": None}, ["unknown CPU 'None'"]),
        (None, ["NoneType"]),
        (17, ["a int"]),
        (tvm.target.Target("llvm"), ["no -mcpu"]),
        (tvm.target.Target("c"), ["kind 'c'"]),
    ],
    ids=str,
)
def test_what_cannot_be_compiled_for_is_refused(bad, words):
    with pytest.raises(TargetError) as caught:
        parse_target(bad)
    for word in words:
        assert word in str(caught.value)


def test_every_supported_cpu_resolves():
    names = supported_mcpus()
    assert {"cascadelake", "skylake-avx512", "icelake-server", "sapphirerapids", "znver4", "znver5"} <= set(names)
    assert {"haswell", "alderlake"} <= set(names) and "nehalem" not in names
    for name in names:
        assert parse_target(name).features


def test_required_features_have_the_kernels_names():
    features = required_cpu_features("cascadelake")
    assert {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "pni", "abm", "bmi1"} <= set(features)
    assert not {"amx_tile", "aes", "clwb"} & set(features)
    assert "avx512_vnni" not in required_cpu_features("cascadelake", ["-avx512vnni"])
    assert list(features) == sorted(features)


@pytest.mark.isa("avx512bw", "avx512dq", "avx512vl")
def test_native_runs_here():
    resolved = parse_target("native")
    assert resolved.mcpu in supported_mcpus()
    check_host(resolved.features, "test")
    assert resolved.cpu.l2_bytes == (cache_bytes(2) or resolved.cpu.l2_bytes)
    assert parse_target("llvm -mcpu=native -num-cores=7").cpu.threads == 7


def test_native_leaves_out_what_a_hypervisor_hides(monkeypatch):
    shown = set(required_cpu_features("znver4")) - {"avx512_bf16", "gfni"}
    monkeypatch.setattr(target, "host_features", lambda: frozenset(shown))
    monkeypatch.setattr(target.codegen, "llvm_get_system_cpu", lambda: "znver4")
    resolved = parse_target("native")
    assert resolved.mcpu == "znver4"
    assert list(resolved.tvm_target.attrs["mattr"]) == ["-avx512bf16", "-gfni"]
    assert set(resolved.features) == shown


@pytest.mark.parametrize(
    ("contains", "taken_for"), [(name, name) for name in ("cascadelake", "skylake-avx512", "alderlake", "haswell")]
)
def test_an_unknown_native_cpu_is_taken_for_one_it_contains(monkeypatch, contains, taken_for):
    monkeypatch.setattr(target, "host_features", lambda: frozenset(required_cpu_features(contains)))
    monkeypatch.setattr(target.codegen, "llvm_get_system_cpu", lambda: "znver9")
    assert parse_target("native").mcpu == taken_for


def test_tiles_where_the_cpu_has_them():
    assert parse_target("sapphirerapids").cpu.amx and not parse_target("icelake-server").cpu.amx
    assert {"amx_tile", "amx_int8"} <= set(parse_target("sapphirerapids").features)
    without = parse_target("llvm -mcpu=sapphirerapids -mattr=-amx-int8,-amx-tile")
    assert not without.cpu.amx and not {"amx_tile", "amx_int8"} & set(without.features)


@pytest.mark.parametrize(("tiles", "taken_for"), [(True, "sapphirerapids"), (False, "rocketlake")])
def test_native_is_what_it_can_do_and_not_the_model_it_claims_to_be(monkeypatch, tiles, taken_for):
    shown = set(required_cpu_features("sapphirerapids")) - (set() if tiles else {"amx_tile", "amx_int8"})
    monkeypatch.setattr(target, "host_features", lambda: frozenset(shown))
    monkeypatch.setattr(target.codegen, "llvm_get_system_cpu", lambda: "rocketlake")
    resolved = parse_target("native")
    assert resolved.mcpu == taken_for
    assert resolved.cpu.amx == tiles


def test_tiles_that_the_operating_system_withholds_are_no_feature(monkeypatch):
    monkeypatch.setattr(host, "_read", lambda path: "flags : fpu avx2 amx_tile amx_int8 amx_bf16\n")
    monkeypatch.setattr(host, "_may_use_tiles", lambda: False)
    assert host.host_features.__wrapped__() == {"fpu", "avx2"}


def test_native_without_avx2(monkeypatch):
    monkeypatch.setattr(target, "host_features", lambda: frozenset(required_cpu_features("sandybridge")))
    monkeypatch.setattr(target.codegen, "llvm_get_system_cpu", lambda: "sandybridge")
    with pytest.raises(TargetError, match=r"this machine's CPU \(sandybridge\) has no avx2, fma"):
        parse_target("native")


def test_check_host_names_what_is_missing():
    check_host(host_features(), "anything")
    with pytest.raises(TargetError, match="net: this CPU has no sse9, x87_2;"):
        check_host(["fpu", "x87_2", "sse9"], "net")
    with pytest.raises(ArtifactError, match="sse9"):
        check_host(["sse9"], "net", ArtifactError)


def test_threads_of_the_environment(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("TVM_NUM_THREADS", "1")
    assert default_num_threads() == 1
    monkeypatch.setenv("TVM_NUM_THREADS", "100000")
    assert default_num_threads() == len(usable_cpus())
    monkeypatch.setenv("TVM_NUM_THREADS", "many")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert default_num_threads() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert 1 <= default_num_threads() <= len(usable_cpus())
