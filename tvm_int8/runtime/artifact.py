"""The one file a module is exported to: a shared library with a trailer that says what it is.

    [ shared library ][ executable with packed weights ][ metadata, JSON ][ footer ]

Loaders ignore what follows an ELF file. Without packed weights, the library has the executable inside, so any program
that hosts TVM's runtime can run it; else it has the kernels' code (see `parameters`). The footer holds the format's
version, both lengths (of all before the metadata, and theirs) and a SHA-256 of everything before it, so a file that is
truncated, corrupted, or for another CPU or TVM is refused before any of its code is mapped.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import struct
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import tvm_ffi
from tvm.support import cc

from ..errors import ArtifactError
from ..metadata import Metadata, installed_versions
from ..packed_weights import PackedWeight
from . import parameters

FORMAT_VERSION = 1
_MAGIC = b"tvm_int8 library"
_LENGTHS = struct.Struct("<IQQ")
_FOOTER = struct.Struct(f"<{_LENGTHS.size}s32s{len(_MAGIC)}s")
_ELF = b"\x7fELF"
_CHUNK = 1 << 20
_EXPORT_AGAIN = "export the module again"


class Trailer(NamedTuple):
    """What follows the library in a file: where it ends, packed weights included, the metadata, and the checksum."""

    library_bytes: int
    metadata: Metadata
    sha256: bytes


def write(path: str | os.PathLike[str], write_library: Callable[[str], None], metadata: Metadata) -> None:
    """Write a library and its trailer. `path` holds the old content or the new, never a part.

    Parameters
    ----------
    path : path
        Where to; an existing file is replaced.
    write_library : callable
        Writes the shared library to the path it is given.
    metadata : Metadata
        For the trailer.

    Raises
    ------
    ArtifactError
        The directory is missing or not writable, the disk is full, or the library cannot be linked.
    """
    where, target = f"export to {os.fspath(path)}", Path(path)
    if target.is_dir():
        raise ArtifactError(where, "a directory", "the name of a file", "add a name, like net.so")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.so")
    try:
        temporary.touch(exist_ok=False)  # before minutes of linking
        write_library(str(temporary))
        _append_trailer(temporary, metadata)
        os.replace(temporary, target)
    except OSError as error:
        action = "choose a path in an existing, writable directory with enough space"
        raise ArtifactError(where, f"cannot be written ({error.strerror or error})", "", action) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def link(executable: Any, path: str, packed: Sequence[PackedWeight] = ()) -> None:
    """Write an executable as a shared library, with these of its weights packed behind the code.

    Raises
    ------
    ArtifactError
        There is no C compiler, or it fails.
    """
    where, action = "linking the library", "install gcc (apt install gcc), or set CXX to a compiler"
    if cc.get_cc() is None:
        raise ArtifactError(where, "no C compiler", "gcc or clang in PATH", action)
    try:
        with tempfile.TemporaryDirectory(prefix="tvm_int8-") as workspace, _without_scope_messages():
            if packed:
                _link_packed(executable.mod, path, packed, workspace)
            else:
                executable.export_library(path, workspace_dir=workspace)
    except (RuntimeError, FileNotFoundError, PermissionError, subprocess.SubprocessError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        found = f"{cc.get_cc()} failed ({next((line for line in lines if 'error' in line.lower()), lines[0])[:300]})"
        expected = "a working C compiler and space in the temporary directory"
        raise ArtifactError(where, found, expected, action) from error


def _link_packed(executable: Any, path: str, packed: Sequence[PackedWeight], workspace: str) -> None:
    """The code alone as a library, and behind it the executable, which imports it."""
    (code,) = executable.imports
    code.export_library(path, workspace_dir=workspace)
    saved = Path(workspace) / "executable"
    executable.write_to_file(str(saved), executable.kind)
    with open(path, "ab") as file:
        file.write(parameters.separated(saved.read_bytes(), packed))


def copy_library(source: Path, trailer: Trailer, path: str) -> None:
    """Copy the library out of an exported file, which must still be the one whose trailer was read."""
    if read_trailer(source).sha256 != trailer.sha256:
        raise ArtifactError(str(source), "changed since it was loaded", "the same file", "load it again")
    with open(source, "rb") as file, open(path, "wb") as copy:
        _for_chunks(file, trailer.library_bytes, copy.write)


def read_metadata(path: str | os.PathLike[str]) -> Metadata:
    """Return an exported file's metadata without loading its code, wherever it was made for.

    Raises
    ------
    ArtifactError
        See `read_trailer`.
    """
    return read_trailer(path).metadata


def read_trailer(path: str | os.PathLike[str]) -> Trailer:
    """Read and check everything in an exported file but whether this machine can run it.

    Raises
    ------
    ArtifactError
        The file is missing, something else, truncated, corrupted, or in another version's format.
    """
    where = os.fspath(path)
    try:
        if os.path.isdir(path):
            raise ArtifactError(where, "a directory", "a file that module.export wrote", "check the path")
        with open(path, "rb") as file:
            return _read_trailer(file, os.fstat(file.fileno()).st_size, where)
    except OSError as error:
        found = f"cannot be read ({error.strerror or error})"
        raise ArtifactError(where, found, "a file that module.export wrote", "check the path") from error


def check_versions(metadata: Metadata, where: str) -> None:
    """Raise ArtifactError unless the installed TVM is the one that compiled the library."""
    installed = installed_versions()
    for package, name in {"tvm": "apache-tvm", "tvm_ffi": "apache-tvm-ffi"}.items():
        built, here = str(metadata.versions.get(package)), installed[package]
        if built.split(".post")[0] != here.split(".post")[0]:
            action = f"compile the model again, or install {name} {built}"
            raise ArtifactError(where, f"compiled with {name} {built}", f"{here}, which is installed", action)


def open_executable(path: str | os.PathLike[str], library_bytes: int) -> Any:
    """Map an exported library's code and return its executable, weights unpacked.

    Raises
    ------
    ArtifactError
        The system's loader refuses it, or the packed weights are not what was exported.
    """
    section = _packed_section(path, library_bytes)
    if not section:
        return open_library(path)
    try:
        saved = parameters.joined(section)
    except ValueError as error:
        found = f"packed weights that do not fit ({error})"
        raise ArtifactError(os.fspath(path), found, "what module.export wrote", _EXPORT_AGAIN) from error
    code = open_library(path)
    with _without_scope_messages():
        executable = tvm_ffi.get_global_func("ffi.Module.load_from_bytes.relax.VMExecutable")(saved)
    executable.import_module(code)
    return executable


def _packed_section(path: str | os.PathLike[str], library_bytes: int) -> bytes:
    """What stands behind the code, from a file whose checksum was right; empty where there is nothing."""
    with open(path, "rb") as file:
        file.seek(max(0, library_bytes - parameters.FOOTER.size))
        size = parameters.section_bytes(file.read(parameters.FOOTER.size))
        if size > library_bytes:
            found, expected = f"packed weights of {size} bytes", f"at most {library_bytes}"
            raise ArtifactError(os.fspath(path), found, expected, _EXPORT_AGAIN)
        file.seek(library_bytes - size)
        return file.read(size)


def open_library(path: str | os.PathLike[str]) -> Any:
    """Map an exported library's code and return its TVM module.

    Through a link of a name never used before: the system's loader takes a name it knows for the library it mapped
    then, even if the file has been replaced since.

    Raises
    ------
    ArtifactError
        The system's loader refuses it.
    """
    try:
        load = tvm_ffi.get_global_func("ffi.Module.load_from_file.so")
        with tempfile.TemporaryDirectory(prefix="tvm_int8-") as directory, _without_scope_messages():
            link_name = os.path.join(directory, f"{uuid.uuid4().hex}.so")
            os.symlink(os.path.realpath(path), link_name)
            return load(link_name, "so")
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ArtifactError(os.fspath(path), f"cannot be loaded ({lines[-1]})", "", _EXPORT_AGAIN) from error


@contextlib.contextmanager
def _without_scope_messages() -> Iterator[None]:
    """Keep a debugging message of this TVM ("Warning: Scope Saving:", "... Loaded:") off standard error.

    It is written by C++ to the file descriptor and cannot be switched off; everything else is passed on afterwards.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as captured:
        saved = os.dup(2)
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            captured.seek(0)
            lines = [line for line in captured if not re.search(rb"Warning: Scope (Saving|Loaded):", line)]
            if lines:
                os.write(2, b"".join(lines))


def _append_trailer(path: Path, metadata: Metadata) -> None:
    text = metadata.to_json().encode()
    with open(path, "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        lengths = _LENGTHS.pack(FORMAT_VERSION, size, len(text))
        digest = _digest(file, size, text, lengths)
        file.seek(0, os.SEEK_END)
        file.write(text + _FOOTER.pack(lengths, digest, _MAGIC))
        file.flush()
        os.fsync(file.fileno())


def _read_trailer(file: BinaryIO, size: int, where: str) -> Trailer:
    file.seek(max(0, size - _FOOTER.size))
    footer = file.read()
    if len(footer) < _FOOTER.size or not footer.endswith(_MAGIC):
        raise _without_footer(file, size, where)
    lengths, digest, _ = _FOOTER.unpack(footer)
    version, library_bytes, metadata_bytes = _LENGTHS.unpack(lengths)
    if version != FORMAT_VERSION:
        action = f"use the tvm_int8 that wrote it, or {_EXPORT_AGAIN}"
        raise ArtifactError(where, f"format version {version}", f"version {FORMAT_VERSION}", action)
    if library_bytes + metadata_bytes + _FOOTER.size != size:
        found = f"corrupted: {size} bytes"
        raise ArtifactError(where, found, f"{library_bytes + metadata_bytes + _FOOTER.size}", _EXPORT_AGAIN)
    file.seek(library_bytes)
    text = file.read(metadata_bytes)
    if _digest(file, library_bytes, text, lengths) != digest:
        raise ArtifactError(where, "corrupted: wrong checksum", "the bytes that were exported", _EXPORT_AGAIN)
    try:
        return Trailer(library_bytes, Metadata.from_json(text), digest)
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(where, f"metadata that does not fit ({error})", "", _EXPORT_AGAIN) from error


def _without_footer(file: BinaryIO, size: int, where: str) -> ArtifactError:
    """Tell a truncated file from a library of something else and from no library at all."""
    expected, action = "a file that module.export wrote", f"check the path, copy the file again, or {_EXPORT_AGAIN}"
    file.seek(0)
    header = file.read(64)
    if size == 0:
        return ArtifactError(where, "empty", expected, action)
    if not header.startswith(_ELF):
        return ArtifactError(where, "not a shared library", expected, action)
    if len(header) == 64:
        section_table, entry_bytes, entries = struct.unpack_from("<40xQ10xHH", header)
        if section_table + entry_bytes * entries <= size:
            found = "a shared library without tvm_int8's metadata: truncated, stripped, or made by something else"
            return ArtifactError(where, found, expected, action)
    return ArtifactError(where, f"truncated: only {size} bytes are left", expected, action)


def _digest(file: BinaryIO, library_bytes: int, text: bytes, lengths: bytes) -> bytes:
    digest = hashlib.sha256()
    file.seek(0)
    _for_chunks(file, library_bytes, digest.update)
    digest.update(text)
    digest.update(lengths)
    return digest.digest()


def _for_chunks(file: BinaryIO, size: int, use: Callable[[bytes], object]) -> None:
    """Pass the next `size` bytes of a file on in pieces."""
    while size and (chunk := file.read(min(size, _CHUNK))):
        use(chunk)
        size -= len(chunk)
