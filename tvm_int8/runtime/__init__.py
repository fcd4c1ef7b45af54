"""Running compiled modules: inputs and outputs, threads, timing, and the library file they are exported to."""

from .arguments import InputError
from .artifact import read_metadata
from .measure import BenchmarkResult, Profile, ProfileRow
from .module import CompiledModule, load

__all__ = ["BenchmarkResult", "CompiledModule", "InputError", "Profile", "ProfileRow", "load", "read_metadata"]
