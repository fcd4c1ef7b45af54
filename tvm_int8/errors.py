"""Errors a user can act on: each says where, what was found, what was expected and what to do next."""

from __future__ import annotations


class TvmInt8Error(Exception):
    """Base class of every error this package raises on purpose.

    Parameters
    ----------
    where : str
        The file, layer, option or input the error is about.
    found : str
        What is there.
    expected : str
        What should have been there.
    action : str
        What the user can do about it.
    """

    def __init__(self, where: str, found: str = "", expected: str = "", action: str = ""):
        self.where, self.found, self.expected, self.action = where, found, expected, action
        parts = [found, f"expected {expected}" if expected else "", action]
        detail = "; ".join(part for part in parts if part)
        super().__init__(f"{where}: {detail}" if detail else where)


class ModelError(TvmInt8Error):
    """The model cannot be read or imported."""


class CalibrationError(TvmInt8Error):
    """The calibration data, or a calibration table, does not fit the model."""


class ConfigError(TvmInt8Error):
    """An option is unknown or has an invalid value."""


class TargetError(TvmInt8Error):
    """The target is not one this compiler can generate code for, or this machine cannot run it."""


class ArtifactError(TvmInt8Error):
    """A compiled library, tuning log or table on disk is corrupted or does not fit this machine."""


def register_with_tvm() -> None:
    """Let errors raised inside a TVM pass arrive as what they are.

    On the way through TVM they are rebuilt from their message.
    """
    import tvm_ffi

    for cls in (TvmInt8Error, ModelError, CalibrationError, ConfigError, TargetError, ArtifactError):
        tvm_ffi.register_error(cls)
