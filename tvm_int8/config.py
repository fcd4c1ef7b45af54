"""What a user can choose about quantisation."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from tvm_int8.errors import ConfigError
from tvm_int8.quantization.calibrators import calibrator_names

ACTIVATION_DTYPES = ("uint8",)


@dataclass(frozen=True)
class QuantizationConfig:
    """Options of calibration and quantisation; checked on construction, immutable afterwards.

    Parameters
    ----------
    method : str
        How a tensor's range is made from calibration data: ``"mse"`` (least squared error), ``"minmax"``,
        ``"percentile"``, or another registered calibrator.
    percentile : float
        Share of a tensor's values, in per cent, that its range keeps; above 50, at most 100. For ``"percentile"``.
    exclude : sequence of str
        What stays in FP32: layer names, glob patterns over layer names (``"/head/*"``) or kinds of operators
        (``"conv2d_transpose"``, with or without the ``nn.`` in front).
    per_channel_weights : bool
        One weight scale per output channel, instead of one per tensor.
    per_channel_activations : bool
        Scales of their own for the channels of activations that convolutions and element-wise operators read, where
        that lowers the noise; free of charge where readers keep channels apart, as depthwise convolutions do.
    bias_correction : bool
        Take the mean error of rounded weights out of the biases.
    activation_dtype : str
        Integer type of activations: ``"uint8"``.

    Raises
    ------
    ConfigError
        For an unknown option or a value that is not valid; the message lists what is.

    Examples
    --------
    >>> config = QuantizationConfig(method="percentile", exclude=["/head/*", "softmax"])
    >>> config.excludes("/head/conv", "nn.conv2d"), config.excludes("/stem/conv", "nn.conv2d")
    (True, False)
    >>> QuantizationConfig.from_dict(config.to_dict()) == config
    True
    """

    method: str = "mse"
    percentile: float = 99.99
    exclude: tuple[str, ...] = ()
    per_channel_weights: bool = True
    per_channel_activations: bool = True
    bias_correction: bool = True
    activation_dtype: str = "uint8"

    def __new__(cls, *args: Any, **options: Any) -> QuantizationConfig:
        """Refuse unknown options with the list of known ones, before the dataclass's TypeError does."""
        _check_option_names(cls, options)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Check every value, and turn `exclude` into a tuple."""
        _check_choice("method", self.method, calibrator_names())
        _check_choice("activation_dtype", self.activation_dtype, ACTIVATION_DTYPES)
        for option in ("per_channel_weights", "per_channel_activations", "bias_correction"):
            if not isinstance(getattr(self, option), bool):
                raise _invalid(option, getattr(self, option), "True or False")
        number = isinstance(self.percentile, int | float) and not isinstance(self.percentile, bool)
        if not (number and 50 < self.percentile <= 100):
            raise _invalid("percentile", self.percentile, "a number above 50 and at most 100")
        object.__setattr__(self, "exclude", _as_patterns(self.exclude))

    def excludes(self, layer: str, op_kind: str) -> bool:
        """Tell whether a layer stays in FP32.

        Parameters
        ----------
        layer : str
            The layer's name in the user's model.
        op_kind : str
            The operator's name, for instance ``"relax.nn.conv2d"``.
        """
        return any(_matches(pattern, layer, op_kind) for pattern in self.exclude)

    def unmatched_exclusions(self, layers: Iterable[tuple[str, str]]) -> tuple[str, ...]:
        """Return the entries of `exclude` that match none of the ``(layer, op_kind)`` pairs: probably misspelt."""
        layers = list(layers)
        return tuple(p for p in self.exclude if not any(_matches(p, layer, kind) for layer, kind in layers))

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a dict of JSON types."""
        return {**dataclasses.asdict(self), "exclude": list(self.exclude)}

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> QuantizationConfig:
        """Make a config from `to_dict`'s result or a part of it; what is missing takes its default."""
        if not isinstance(options, Mapping):
            raise ConfigError("quantization options", f"a {type(options).__name__}", "a dict of option name -> value")
        _check_option_names(cls, options)
        return cls(**options)


def _check_option_names(cls: type, options: Mapping[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(cls)]
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            raise ConfigError(
                where="quantization options",
                found=f"unknown option {name!r}",
                expected="only " + ", ".join(known),
                action=f"did you mean {close[0]!r}?" if close else "remove it",
            )


def _check_choice(option: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise _invalid(option, value, "one of " + ", ".join(map(repr, choices)))


def _invalid(option: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"option {option!r}", repr(value), expected, "choose a valid value or leave the option out")


def _as_patterns(exclude: Any) -> tuple[str, ...]:
    """Return `exclude` as a tuple; a lone string is one pattern, not a sequence of letters."""
    patterns = (exclude,) if isinstance(exclude, str) else exclude
    sequence = isinstance(patterns, list | tuple | set | frozenset)
    if not sequence or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise _invalid("exclude", exclude, "a list of layer names, glob patterns or operator kinds")
    return tuple(sorted(patterns)) if isinstance(patterns, set | frozenset) else tuple(patterns)


def _matches(pattern: str, layer: str, op_kind: str) -> bool:
    """Compare names literally before as a glob: names made by PyTorch contain square brackets."""
    return pattern == layer or _bare_kind(pattern) == _bare_kind(op_kind) or fnmatchcase(layer, pattern)


def _bare_kind(op_kind: str) -> str:
    return op_kind.removeprefix("relax.").removeprefix("nn.")
