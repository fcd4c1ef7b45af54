"""The package is the same one from a checkout, an editable install and a wheel, and refuses a broken TVM pair."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

from tvm_int8 import _environment

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAPPED = {"passes": "tvm_int8.passes", "schedules": "tvm_int8.schedules", "tuning_logs": "tvm_int8.tuning_logs"}

PROBE = """
import importlib, sys
import tvm_int8, tvm_int8.passes, tvm_int8.schedules
from tvm_int8._environment import tuning_logs_dir
for name in ("passes", "schedules"):
    try:
        importlib.import_module(name)
    except ImportError:
        continue
    sys.exit(f"import {name} works")
assert "tvm" not in sys.modules, "import tvm_int8 imports tvm, which takes a second"
assert (tuning_logs_dir() / "README.md").is_file(), tuning_logs_dir()
print(tvm_int8.__file__, tvm_int8.passes.__file__)
"""


def run_python(code: str, path: Path | None, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run code in this interpreter with `path` first on its module path and `cwd` as its working directory."""
    environment = {**os.environ, "PYTHONPATH": str(path or "")}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)


def copy_sources(target: Path) -> Path:
    """Copy what a build reads, so that building leaves nothing behind in the checkout."""
    import shutil

    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("tvm_int8", *MAPPED):
        shutil.copytree(ROOT / name, target / name, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built through an sdist, as an index would build it."""
    pytest.importorskip("setuptools", minversion="77")
    source, out = copy_sources(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("dist")
    build = "from setuptools import build_meta as b; import sys; print(getattr(b, sys.argv[1])(sys.argv[2]))"

    def run(kind: str, cwd: Path) -> Path:
        command = [sys.executable, "-c", build, f"build_{kind}", str(out)]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return out / done.stdout.split()[-1]

    sdist = run("sdist", source)
    import tarfile

    with tarfile.open(sdist) as archive:
        archive.extractall(out, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return run("wheel", out / sdist.name.removesuffix(".tar.gz"))


def test_every_package_directory_is_listed() -> None:
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "tvm_int8").rglob("__init__.py")}
    for directory, package in MAPPED.items():
        inits = (ROOT / directory).rglob("__init__.py")
        found |= {".".join((package, *path.parent.relative_to(ROOT / directory).parts)) for path in inits}
    assert found | {"tvm_int8.tuning_logs"} == set(PYPROJECT["tool"]["setuptools"]["packages"])


def test_every_directory_with_modules_is_a_package() -> None:
    roots = [ROOT / name for name in ("tvm_int8", "passes", "schedules")]
    directories = {path.parent for root in roots for path in root.rglob("*.py")}
    assert [str(path) for path in sorted(directories) if not (path / "__init__.py").is_file()] == []


def test_wheel_holds_every_source_and_nothing_else(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "tvm_int8").rglob("*.py")} | {"tvm_int8/py.typed"}
    for directory in MAPPED:
        sources = [path for path in (ROOT / directory).rglob("*") if path.suffix in (".py", ".jsonl", ".md")]
        expected |= {f"tvm_int8/{path.relative_to(ROOT)}" for path in sources}
    assert packed == expected


def test_wheel_imports_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    done = run_python(PROBE, tmp_path / "site", tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(path.startswith(str(tmp_path)) for path in done.stdout.split()), done.stdout


def test_checkout_works_as_working_directory() -> None:
    done = run_python(PROBE, None, ROOT)
    assert done.returncode == 0, done.stderr


def test_checkout_works_from_elsewhere(tmp_path: Path) -> None:
    done = run_python(PROBE, ROOT, tmp_path)
    assert done.returncode == 0, done.stderr


def test_public_names_are_found_without_importing_them() -> None:
    import tvm_int8

    assert set(tvm_int8.__all__) <= set(dir(tvm_int8))
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = tvm_int8.quantise


@pytest.mark.parametrize("name", ["calibrate", "compile", "load"])
def test_public_functions_exist(name: str) -> None:
    import tvm_int8

    assert callable(getattr(tvm_int8, name))


@pytest.mark.parametrize("name", ["CalibrationTable", "CompiledModule", "QuantizationConfig"])
def test_public_classes_exist(name: str) -> None:
    import tvm_int8

    assert isinstance(getattr(tvm_int8, name), type)


@pytest.mark.parametrize(
    ("tvm", "ffi"),
    [
        ("0.27.0.post1", "0.1.15"),
        ("0.27.0.post1", "0.1.14"),
        ("0.27.0.post1", "0.1.13.post3"),
        ("0.27.0.post1", None),
        ("0.27.0", "0.1.14.post1"),
        ("0.26.0", "0.1.14.post1"),
        (None, None),
    ],
)
def test_broken_pair_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, tvm: str | None, ffi: str | None) -> None:
    versions = {"apache-tvm": tvm, "apache-tvm-ffi": ffi}
    monkeypatch.setattr(_environment, "_installed", versions.get)
    with pytest.raises(ImportError) as caught:
        _environment.check_tvm()
    message = str(caught.value)
    assert "\n" not in message
    assert (tvm or "not installed") in message
    assert (ffi or "not installed") in message
    assert _environment.INSTALL in message


@pytest.mark.parametrize("ffi", ["0.1.14.post0", "0.1.14.post1", "0.1.14.post12"])
def test_working_pair_is_accepted(monkeypatch: pytest.MonkeyPatch, ffi: str) -> None:
    monkeypatch.setattr(_environment, "_installed", {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": ffi}.get)
    _environment.check_tvm()


def test_import_itself_refuses(tmp_path: Path) -> None:
    """A newer ffi in front of the installed one, as `pip install apache-tvm` alone would leave it."""
    metadata = tmp_path / "apache_tvm_ffi-0.1.15.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: apache-tvm-ffi\nVersion: 0.1.15\n")
    done = run_python("import tvm_int8", tmp_path, ROOT)
    assert done.returncode == 1
    assert re.search(r"EnvironmentMismatchError: .* apache-tvm-ffi 0\.1\.15; .* run: pip install", done.stderr)


def test_code_and_metadata_pin_the_same_pair() -> None:
    pinned = [requirement for requirement in PYPROJECT["project"]["dependencies"] if "apache-tvm" in requirement]
    assert re.findall(r"'([^']*)'", _environment.INSTALL) == pinned
