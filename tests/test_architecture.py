"""Rules of the architecture: who imports whom, every pass has its place, every function is scheduled."""

from __future__ import annotations

import ast
import importlib
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import tvm
import tvm_ffi
from tvm import relax, tirx

from tests.small_networks import NETWORKS, Network, with_islands
from tvm_int8 import api, pipeline
from tvm_int8.build import kernel_rows
from tvm_int8.config import QuantizationConfig
from tvm_int8.frontend import load_model
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.quantization_plan import plan_quantization
from tvm_int8.quantization.calibration_table import CalibrationTable, TensorRange
from tvm_int8.schedules.cpu import Cpu
from tvm_int8.schedules.lanes import PARALLEL_ELEMENTS

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"tvm_int8": "tvm_int8", "passes": "tvm_int8.passes", "schedules": "tvm_int8.schedules"}


def modules() -> dict[str, Path]:
    """Every module of the package by its name."""
    found = {}
    for directory, package in PACKAGES.items():
        for path in (ROOT / directory).rglob("*.py"):
            parts = path.relative_to(ROOT / directory).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def import_nodes(statements: list[ast.stmt], inside_functions: bool) -> Iterator[ast.stmt]:
    """Import statements; those that only type checkers follow are left out."""
    for statement in statements:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            yield statement
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            continue
        elif inside_functions or not isinstance(statement, ast.FunctionDef):
            for name in ("body", "orelse", "handlers", "finalbody"):
                yield from import_nodes(getattr(statement, name, []), inside_functions)


def imported(name: str, inside_functions: bool = True) -> set[str]:
    """Modules of this package that a module imports."""
    path = MODULES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in import_nodes(ast.parse(path.read_text()).body, inside_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            base = [] if not node.level else package[: len(package) - node.level + 1]
            source = ".".join([*base, *([node.module] if node.module else [])])
            members = {f"{source}.{alias.name}" for alias in node.names}
            found |= {member if member in MODULES else source for member in members}
    return {module for module in found if module in MODULES}


def part(module: str) -> str:
    """The package, or single module, of tvm_int8 that something belongs to: "passes", "api"."""
    return module.split(".")[1] if "." in module else module


# Imports


@pytest.mark.parametrize("name", ["passes", "schedules"])
def test_mapped_packages_have_no_second_name(name):
    with pytest.raises(ImportError, match=f"import tvm_int8.{name}"):
        importlib.import_module(name)


TOP = {"api", "cli", "__main__", "build", "describe", "pipeline", "report"}
FORBIDDEN = {
    "frontend": {*TOP, "passes", "schedules", "runtime", "quantization", "reference", "target"},
    "passes": {*TOP, "frontend", "runtime", "reference", "target"},
    "onnx_export": {*TOP, "frontend", "schedules", "runtime", "quantization", "reference", "target"},
    "schedules": {*TOP, "frontend", "passes", "runtime", "target", "kernel_op"},
    "runtime": {*TOP - {"report"}, "frontend", "passes", "schedules", "quantization", "reference"},
    "quantization": {"api", "cli", "frontend", "reference"},
    "specs": {part(name) for name in MODULES} - {"specs"},
    "errors": {part(name) for name in MODULES} - {"errors"},
}
"""Data flows frontend -> passes -> schedules -> build -> runtime; nobody knows who comes after."""


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_follow_the_flow_of_data(package):
    inside = [name for name in MODULES if part(name) == package]
    assert inside
    wrong = [
        f"{name} imports {other}" for name in inside for other in imported(name) if part(other) in FORBIDDEN[package]
    ]
    assert wrong == []


def test_schedules_are_reached_through_two_passes():
    """The others only order kernels; what an order says is in tvm_int8.specs."""
    inside = [name for name in MODULES if part(name) == "passes"]
    users = {name for name in inside for other in imported(name) if part(other) == "schedules"}
    assert users == {"tvm_int8.passes.schedule_islands", "tvm_int8.passes.schedule_kernels"}


def test_arithmetic_and_reference_know_no_schedule_details():
    """Both sides of a comparison may share the vocabulary, not the code that is compared."""
    for name in [name for name in MODULES if part(name) == "reference"]:
        assert {m for m in imported(name) if part(m) == "schedules"} <= {"tvm_int8.schedules.rule"}
    assert imported("tvm_int8.quantization.arithmetic") == set()


def test_no_modules_import_each_other():
    """Apart from packages' own __init__, which lists what is inside."""
    edges = {name: imported(name, inside_functions=False) - {name} for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in sorted(MODULES):
        visit(name, ())


def test_no_star_imports_and_no_utils():
    for name, path in MODULES.items():
        assert path.stem not in ("utils", "util", "helpers", "common", "misc"), name
        stars = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.alias) and node.name == "*"
        ]
        assert not stars, name


# Passes


def pass_classes() -> dict[str, str]:
    """Class name -> module of every Relax pass in passes/."""
    found = {}
    for name, path in MODULES.items():
        if part(name) == "passes":
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and any("module_pass" in ast.dump(d) for d in node.decorator_list):
                    found[node.name] = name
    return found


def test_every_pass_is_in_the_pipeline():
    tree = ast.parse((ROOT / "tvm_int8" / "pipeline.py").read_text())
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert set(pass_classes()) <= called


def test_a_file_has_one_pass_and_its_name():
    classes = pass_classes()
    assert len(set(classes.values())) == len(classes)
    for name, module in classes.items():
        assert "".join(word.capitalize() for word in module.rpartition(".")[2].split("_")) == name
        assert ast.get_docstring(ast.parse(MODULES[module].read_text())).startswith(f"{name}: ")


def test_every_pass_has_tests_of_its_own():
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "passes").glob("test_*.py")}
    assert {module.rpartition(".")[2] for module in pass_classes().values()} - tested == set()


# Schedules


CPU = Cpu("znver4", "avx512vnni", 512, 32, threads=2)


def large():
    """Big enough for two threads everywhere."""
    net = Network(x=(1, 3, 64, 64))
    y = net.relu(net.conv("x", 32))
    z = net.add("MaxPool", net.conv(y, 32, groups=32), kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    y = net.add("Add", net.add("Sigmoid", y), z)
    up = net.resize(net.concat(y, z), 2, mode="linear", coordinate_transformation_mode="half_pixel")
    y = net.add("Softmax", net.conv(net.add("LRN", up, size=5), 32, stride=2), axis=1)
    return net.finish(net.dense(net.add("Flatten", net.add("GlobalAveragePool", net.conv(y, 64))), 64, 1000), y)


def lowered(model, quantized: bool) -> tvm.IRModule:
    """The module as the code generator gets it; ranges are made up."""
    mod = pipeline.canonical_float()(load_model(model))
    if quantized:
        points = plan_quantization(Dataflow(mod), QuantizationConfig()).points()
        table = CalibrationTable({var.name: TensorRange(-4.0, 4.0, "minmax", 1) for var in points})
        graphs = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(api, "lower_and_build", lambda graph, *_: graphs.append(graph) or (None, [], None))
            patch.setattr(api, "layer_sqnr", lambda *_: [])
            patch.setattr(api, "memory_of", lambda *_: None)
            api.compile(model, calibration=table)
        (mod,) = graphs
    return pipeline.lower(CPU)(mod)


def loops_and_vectors(func: tirx.PrimFunc) -> tuple[list[int], bool]:
    """(iterations of the parallel loops, whether memory is accessed in vectors)."""
    parallel, vectors = [], []

    def loop(node: tirx.For) -> None:
        if node.kind == tirx.ForKind.PARALLEL:
            parallel.append(int(node.extent))
        elif node.kind == tirx.ForKind.VECTORIZED:
            vectors.append(node)

    tvm_ffi.structural_walk(func.body, [(tirx.For, loop), (tirx.Ramp, vectors.append)], order="post")
    return parallel, bool(vectors)


MAKERS = {**NETWORKS, "with_islands": with_islands, "large": large}
CASES = [(name, False) for name in MAKERS] + [(name, True) for name in ("mobile", "decoder", "large")]


@pytest.mark.parametrize(("name", "quantized"), CASES)
def test_every_function_is_scheduled_for_threads_and_vectors(name, quantized):
    """Or says why not (`tvm_int8.unscheduled`); kernels of less than PARALLEL_ELEMENTS are better off on one thread."""
    mod = lowered(MAKERS[name](), quantized)
    rows = {row["function"]: row for row in kernel_rows(mod)}
    functions = {v.name_hint: f for v, f in mod.functions.items() if isinstance(f, tirx.PrimFunc)}
    assert functions
    assert set(functions) == set(rows)
    for function, func in functions.items():
        if "tvm_int8.unscheduled" in func.attrs:
            assert str(func.attrs["tvm_int8.unscheduled"])
            continue
        parallel, vectors = loops_and_vectors(func)
        elements = math.prod(rows[function]["result"]["shape"])
        assert vectors, f"{function} of {name} accesses memory element by element"
        assert parallel or elements < PARALLEL_ELEMENTS, f"{function} of {name} has no parallel loop"
        if elements >= 4 * PARALLEL_ELEMENTS:
            assert max(parallel) >= CPU.threads, f"{function} of {name} has too few tasks"


def test_common_networks_leave_nothing_unscheduled():
    for make in MAKERS.values():
        mod = lowered(make(), quantized=False)
        assert not [v.name_hint for v, f in mod.functions.items() if "tvm_int8.unscheduled" in (f.attrs or {})]


def test_what_tvm_alone_delivers_would_be_found():
    mod = relax.transform.LegalizeOps()(pipeline.canonical_float()(load_model(with_islands())))
    functions = [func for func in mod.functions.values() if isinstance(func, tirx.PrimFunc)]
    assert [loops_and_vectors(func) for func in functions] == [([], False)] * len(functions) != []
