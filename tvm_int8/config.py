"""What a user can choose about quantisation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from tvm_int8.errors import ConfigError
from tvm_int8.option_checks import check_bool, check_choice, check_names, check_number, invalid
from tvm_int8.quantization.bit_widths import BitWidths
from tvm_int8.quantization.calibrators import calibrator_names

ACTIVATION_DTYPES = ("uint8",)
WEIGHT_BITS = (8, 7)
WEIGHT_CLIPPINGS = ("none", "mse")
ROUNDINGS = ("nearest", "sums", "learned")
WINOGRAD = ("auto", "off", "always")
_SWITCHES = (
    "per_channel_weights",
    "per_channel_activations",
    "plain_convolutions",
    "activation_symmetric",
    "equalization",
    "range_search",
)
BIAS_CORRECTIONS = ("none", "analytic", "empirical")

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "fast": {
            "method": "minmax",
            "per_channel_activations": False,
            "rounding": "nearest",
            "bias_correction": "none",
        },
        "default": {},
        "best": {
            "method": "auto",
            "per_channel_activations": True,
            "rounding": "learned",
            "bias_correction": "empirical",
            "range_search": True,
            "max_slowdown": 0.05,
            "winograd_max_loss_db": 0.0,
        },
    }
)
"""Options by the name of a preset: what a plain post-training quantiser does, the defaults, the lowest error."""


@dataclass(frozen=True)
class QuantizationConfig:
    """Options of calibration and quantisation; checked on construction, immutable afterwards.

    Parameters
    ----------
    method : str
        How a tensor's range is made from calibration data: ``"mse"`` (least squared error), ``"minmax"``,
        ``"moving_average"``, ``"percentile"``, ``"entropy"``, ``"gaussian"``, ``"laplacian"``, ``"auto"`` (the best of
        all these, tensor by tensor), or another registered calibrator.
    methods : mapping of str to str
        Methods for single tensors: the name of a tensor, that of the layer that delivers it, or a glob pattern over
        either -> method. The first entry that matches counts; where none does, `method`. Stored as a tuple of pairs.
    percentile : float
        Share of a tensor's values, in per cent, that its range keeps; above 50, at most 100. For ``"percentile"``.
    exclude : sequence of str
        What stays in FP32: layer names, glob patterns over layer names (``"/head/*"``) or kinds of operators
        (``"conv2d_transpose"``, with or without the ``nn.`` in front).
    float_layers : sequence of str
        Exact names of more layers that stay in FP32: what `mixed_precision` and the options below chose.
    per_channel_weights : bool
        One weight scale per output channel, instead of one per tensor.
    per_channel_activations : bool
        Scales of their own for the channels of activations that convolutions and element-wise operators read, where
        that lowers the noise; free of charge where readers keep channels apart, as depthwise convolutions do.
    plain_convolutions : bool
        Round what every convolution delivers, with its bias and ReLU or clip, also in front of a residual addition or
        another activation, which otherwise are part of its kernel. ONNX Runtime computes only such convolutions in
        INT8; modules compiled here get slower and less accurate.
    activation_symmetric : bool
        Zero point 128 for activations that can be negative, 0 for all others, instead of the one that uses all 256
        integers.
    activation_dtype : str
        Integer type of activations: ``"uint8"``.
    weight_bits : int
        8, or 7: weights within [-63, 63], so that two products of a byte fit into 16 bits.
    bits : BitAllocation, dict or None
        How many bits the weights and activations of layers have: what `allocate_bits` returned, a dict of layer name or
        glob pattern -> bits of its weights, or a dict of two such dicts, ``"weights"`` and ``"activations"``. What is
        not named has 8; layers with weights of more than 8 bits are in FP32. Stored as `BitWidths`.
    weight_clipping : str
        ``"none"``: the largest weight of an output channel sets its scale. ``"mse"``: the scale with the least squared
        error, which may clip the largest weights.
    rounding : str
        How weights become integers: ``"nearest"``; ``"sums"``, to the nearest except where that keeps the sum of a
        kernel's taps; ``"learned"``, up or down as calibration data wants it. Weights to which
        `bits` gives fewer are learned with "sums", too, where there are calibration data.
    equalization : bool
        Move scale between consecutive layers, so that their channels span similar ranges.
    bias_correction : str or bool
        Where the mean error of rounded weights that is taken out of the biases comes from: ``"empirical"`` (or True),
        from observed activations; ``"analytic"``, from the parameters of batch norms; ``"none"`` (or False): it stays.
    range_search : bool
        Choose between calibrated and widest ranges, and between scales of tensors and of channels, by the error they
        cause in the network's outputs on calibration data; takes less than a minute more.
    max_slowdown : float
        Layers in FP32, those that take most noise with them for their time, as long as all convolutions together take
        no more than this share longer, by estimate: 0.05 for 5 %. 0: all in INT8 that can be.
    min_sqnr_db : float or None
        Layers in FP32, those that cost most accuracy first, until the outputs have this signal-to-quantisation-noise
        ratio in dB. None: all in INT8 that can be.

    winograd : str
        3x3 convolutions by transformed tiles. ``"auto"``: where that is expected to be faster; ``"off"``: nowhere;
        ``"always"``: wherever it can be, with 8 bits throughout if that is faster, whatever it costs in accuracy.
    winograd_max_loss_db : float
        What such a layer may lose of its signal-to-quantisation-noise ratio in dB, with ``winograd="auto"``: so many
        products of 8 bits are among those of 16, which lose nothing. May be negative.

    Raises
    ------
    ConfigError
        For an unknown option or a value that is not valid; the message lists what is.

    Examples
    --------
    >>> config = QuantizationConfig(method="percentile", exclude=["/head/*", "softmax"])
    >>> config.excludes("/head/conv", "nn.conv2d"), config.excludes("/stem/conv", "nn.conv2d")
    (True, False)
    >>> QuantizationConfig(methods={"/head/*": "minmax"}).method_of("conv7", "/head/conv")
    'minmax'
    >>> QuantizationConfig.from_dict(config.to_dict()) == config
    True
    """

    method: str = "mse"
    methods: tuple[tuple[str, str], ...] = ()
    percentile: float = 99.99
    exclude: tuple[str, ...] = ()
    float_layers: tuple[str, ...] = ()
    per_channel_weights: bool = True
    per_channel_activations: bool = True
    plain_convolutions: bool = False
    activation_symmetric: bool = False
    activation_dtype: str = "uint8"
    weight_bits: int = 8
    bits: BitWidths | None = None
    weight_clipping: str = "none"
    rounding: str = "sums"
    equalization: bool = False
    bias_correction: str = "empirical"
    range_search: bool = False
    max_slowdown: float = 0.0
    min_sqnr_db: float | None = None
    winograd: str = "auto"
    winograd_max_loss_db: float = 10.0

    def __new__(cls, *args: Any, **options: Any) -> QuantizationConfig:
        """Refuse unknown options with the list of known ones, before the dataclass's TypeError does."""
        check_names("quantization options", options, _option_names(cls))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Check every value, and bring `methods`, `exclude` and `bias_correction` into their stored form."""
        if isinstance(self.bias_correction, bool):
            object.__setattr__(self, "bias_correction", "empirical" if self.bias_correction else "none")
        check_choice("method", self.method, calibrator_names())
        check_choice("activation_dtype", self.activation_dtype, ACTIVATION_DTYPES)
        check_choice("weight_bits", self.weight_bits, WEIGHT_BITS)
        check_choice("weight_clipping", self.weight_clipping, WEIGHT_CLIPPINGS)
        check_choice("rounding", self.rounding, ROUNDINGS)
        check_choice("winograd", self.winograd, WINOGRAD)
        check_number("winograd_max_loss_db", self.winograd_max_loss_db, math.isfinite, "a finite number of decibels")
        check_choice("bias_correction", self.bias_correction, BIAS_CORRECTIONS)
        for option in _SWITCHES:
            check_bool(option, getattr(self, option))
        expected = "a number above 50 and at most 100"
        check_number("percentile", self.percentile, lambda value: 50 < value <= 100, expected)
        expected = "a share of at least 0 and below 10, like 0.05"
        check_number("max_slowdown", self.max_slowdown, lambda value: 0 <= value < 10, expected)
        if self.min_sqnr_db is not None:
            check_number("min_sqnr_db", self.min_sqnr_db, math.isfinite, "a finite number of decibels, or None")
        if self.bits is not None:
            object.__setattr__(self, "bits", BitWidths.of(self.bits))
        for option in ("exclude", "float_layers"):
            object.__setattr__(self, option, _as_names(option, getattr(self, option)))
        object.__setattr__(self, "methods", _as_methods(self.methods))

    def excludes(self, layer: str, op_kind: str) -> bool:
        """Tell whether a layer stays in FP32.

        Parameters
        ----------
        layer : str
            The layer's name in the user's model.
        op_kind : str
            The operator's name, for instance ``"relax.nn.conv2d"``.
        """
        return layer in self.float_layers or any(_matches(pattern, layer, op_kind) for pattern in self.exclude)

    def unmatched_exclusions(self, layers: Iterable[tuple[str, str]]) -> tuple[str, ...]:
        """Return what of `exclude` and `float_layers` matches no ``(layer, op_kind)`` pair: misspelt, probably."""
        layers = list(layers)
        unmatched = [p for p in self.exclude if not any(_matches(p, layer, kind) for layer, kind in layers)]
        return (*unmatched, *(name for name in self.float_layers if name not in {layer for layer, _ in layers}))

    def method_of(self, tensor: str, layer: str = "") -> str:
        """Return the calibration method of a tensor: that of the first entry of `methods` that matches, or `method`.

        Parameters
        ----------
        tensor : str
            The tensor's name.
        layer : str
            The name of the layer that delivers it; empty for the network's inputs.
        """
        return next((method for pattern, method in self.methods if _names(pattern, tensor, layer)), self.method)

    def unmatched_methods(self, points: Iterable[tuple[str, str]]) -> tuple[str, ...]:
        """Return the patterns of `methods` that match none of the ``(tensor, layer)`` pairs: probably misspelt."""
        points = list(points)
        return tuple(p for p, _ in self.methods if not any(_names(p, tensor, layer) for tensor, layer in points))

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a dict of JSON types."""
        lists = {option: list(getattr(self, option)) for option in ("exclude", "float_layers")}
        bits = None if self.bits is None else self.bits.to_dict()
        return {**dataclasses.asdict(self), **lists, "methods": dict(self.methods), "bits": bits}

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> QuantizationConfig:
        """Make a config from `to_dict`'s result or a part of it; what is missing takes its default."""
        if not isinstance(options, Mapping):
            raise ConfigError("quantization options", f"a {type(options).__name__}", "a dict of option name -> value")
        check_names("quantization options", options, _option_names(cls))
        return cls(**options)

    @classmethod
    def preset(cls, name: str, **options: Any) -> QuantizationConfig:
        """Make a config from a preset.

        Parameters
        ----------
        name : str
            ``"fast"``: what a plain post-training quantiser does; ``"default"``: the defaults; ``"best"``: the lowest
            error, for more time.
        **options
            Options on top of it.

        Examples
        --------
        >>> QuantizationConfig.preset("fast", exclude=["/head/*"]).method
        'minmax'
        """
        check_choice("preset", name, tuple(PRESETS))
        return cls(**{**PRESETS[name], **options})


def _option_names(cls: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


def _as_names(option: str, given: Any) -> tuple[str, ...]:
    """Return a list of names as a tuple; a lone string is one name, not a sequence of letters."""
    names = (given,) if isinstance(given, str) else given
    sequence = isinstance(names, list | tuple | set | frozenset)
    if not sequence or not all(isinstance(name, str) and name for name in names):
        kinds = ", glob patterns or operator kinds" if option == "exclude" else ""
        raise invalid(option, given, f"a list of layer names{kinds}")
    return tuple(sorted(names)) if isinstance(names, set | frozenset) else tuple(names)


def _as_methods(methods: Any) -> tuple[tuple[str, str], ...]:
    """Return `methods` as a tuple of pairs; that form is accepted, too."""
    pairs = tuple(methods.items()) if isinstance(methods, Mapping) else methods
    whole = isinstance(pairs, tuple) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs)
    if not whole or not all(isinstance(pattern, str) and pattern for pattern, _ in pairs):
        raise invalid("methods", methods, "a dict of layer or tensor name, or glob pattern -> method")
    if len(dict(pairs)) < len(pairs):
        raise invalid("methods", methods, "every pattern once")
    for pattern, method in pairs:
        check_choice(f"methods[{pattern!r}]", method, calibrator_names())
    return pairs


def _matches(pattern: str, layer: str, op_kind: str) -> bool:
    """Compare names literally before as a glob: names made by PyTorch contain square brackets."""
    return _bare_kind(pattern) == _bare_kind(op_kind) or _names(pattern, layer)


def _names(pattern: str, *names: str) -> bool:
    return any(pattern == name or fnmatchcase(name, pattern) for name in names if name)


def _bare_kind(op_kind: str) -> str:
    return op_kind.removeprefix("relax.").removeprefix("nn.")
