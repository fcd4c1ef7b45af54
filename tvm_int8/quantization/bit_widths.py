"""How many bits weights and activations have, layer by layer: what `QuantizationConfig(bits=...)` holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from tvm_int8.errors import ConfigError

MOST_BITS = 32
INTEGER_BITS = 8
"""Weights and activations of more bits are in FP32."""
WeightBits = int | tuple[int, ...]
"""Of a layer's weights: all of them, or those of each output channel."""
Pairs = tuple[tuple[str, int], ...]
WeightPairs = tuple[tuple[str, WeightBits], ...]


@dataclass(frozen=True)
class BitWidths:
    """Bit-widths by layer; what is not named has 8 bits.

    Parameters
    ----------
    weights : tuple of (str, int or tuple of int)
        Layer name, or glob pattern over layer names, and the bits of its weights: 1 to 8; more leave the layer in FP32.
        A tuple has those of every output channel, 1 to 8. The first entry that matches counts.
    activations : tuple of (str, int)
        The name of a tensor, that of the layer that delivers it, or a glob pattern over either, and its bits, 1 to 8.

    Examples
    --------
    >>> widths = BitWidths.of({"/head/*": 6, "*": 4})
    >>> widths.weight("/head/conv"), widths.weight("/stem/conv"), widths.activation("relu1", "/stem/conv")
    (6, 4, 8)
    >>> BitWidths.of({"/stem/conv": [4, 4, 2, 6]}).weight("/stem/conv")
    (4, 4, 2, 6)
    """

    weights: WeightPairs = ()
    activations: Pairs = ()

    @classmethod
    def of(cls, given: Any) -> BitWidths:
        """From what users give: layer -> bits, ``{"weights": {...}, "activations": {...}}`` or what has `widths`.

        Raises
        ------
        ConfigError
            For anything else, or a number of bits out of range.
        """
        given = getattr(given, "widths", given)
        if isinstance(given, BitWidths):
            return given
        if not isinstance(given, Mapping):
            raise _invalid(given, "a BitAllocation, or a dict of layer -> bits of its weights")
        parts = given if set(given) <= {"weights", "activations"} else {"weights": given}
        return cls(
            tuple((name, _bits(name, bits)) for name, bits in _named(parts.get("weights", {}), "weights")),
            _pairs(parts.get("activations", {}), "activations", INTEGER_BITS),
        )

    def weight(self, layer: str) -> WeightBits:
        """Bits of a layer's weights, or of those of each output channel."""
        return next((bits for pattern, bits in self.weights if _matches(pattern, layer)), INTEGER_BITS)

    def activation(self, tensor: str, layer: str = "") -> int:
        """Bits of a tensor that `layer` delivers; of an input, without one."""
        found = (bits for pattern, bits in self.activations if _matches(pattern, tensor, layer))
        return next(found, INTEGER_BITS)

    def unmatched(self, layers: Iterable[str], tensors: Iterable[tuple[str, str]]) -> tuple[str, ...]:
        """Entries that match no layer, or none of the ``(tensor, layer)`` pairs: misspelt, probably."""
        layers, tensors = list(layers), list(tensors)
        weights = (p for p, _ in self.weights if not any(_matches(p, layer) for layer in layers))
        activations = (p for p, _ in self.activations if not any(_matches(p, *pair) for pair in tensors))
        return (*weights, *activations)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return what `of` takes, of JSON types."""
        weights = {name: bits if isinstance(bits, int) else list(bits) for name, bits in self.weights}
        return {"weights": weights, "activations": dict(self.activations)}


def _named(given: Any, kind: str) -> Iterable[tuple[Any, Any]]:
    if not isinstance(given, Mapping):
        raise _invalid(given, f"a dict of name -> bits for {kind}")
    return given.items()


def _pairs(given: Any, kind: str, most: int) -> Pairs:
    pairs = tuple(_named(given, kind))
    for name, bits in pairs:
        if not (isinstance(name, str) and name and _is_whole(bits, most)):
            raise _invalid({name: bits}, f"for {kind} names and whole numbers from 1 to {most}")
    return pairs


def _bits(name: Any, bits: Any) -> WeightBits:
    """The bits of a layer, checked."""
    if isinstance(bits, list | tuple) and bits and isinstance(name, str) and name:
        if not all(_is_whole(own, INTEGER_BITS) for own in bits):
            raise _invalid({name: bits}, f"for output channels whole numbers from 1 to {INTEGER_BITS}")
        return tuple(bits)
    return _pairs({name: bits}, "weights", MOST_BITS)[0][1]


def _is_whole(bits: Any, most: int) -> bool:
    return isinstance(bits, int) and not isinstance(bits, bool) and 1 <= bits <= most


def _matches(pattern: str, *names: str) -> bool:
    """Compare names literally before as a glob: names made by PyTorch contain square brackets."""
    return any(pattern == name or fnmatchcase(name, pattern) for name in names if name)


def _invalid(given: Any, expected: str) -> ConfigError:
    return ConfigError("option 'bits'", repr(given), expected, "pass what tvm_int8.allocate_bits returned, or a dict")
