"""What an analysis says of one layer, and of leaving it in FP32: plain numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Distribution:
    """How values spread: `counts` of them in bins of the same width between `low` and `high`."""

    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class WeightAnalysis:
    """A layer's weights, as it multiplies its data with them: factors of the data's channels are in them.

    Parameters
    ----------
    low, high : float
        The smallest and the largest.
    sqnr_db : float
        The weights' power over that of what rounding changes in them.
    levels : Distribution
        Of the integers they are stored as; an outlier in an output channel pushes its other weights to the middle.
    """

    low: float
    high: float
    sqnr_db: float
    levels: Distribution


@dataclass(frozen=True)
class ActivationAnalysis:
    """What a layer reads.

    Parameters
    ----------
    tensor : str
        Its name in the calibration table.
    low, high : float
        What the smallest and the largest integer stand for, of any channel.
    method : str
        What made the range; "channels" for one per channel, "bytes" for an image that is not rounded.
    saturation : float
        Share of the values that are cut off: outside of the range by more than half a step.
    values : Distribution
        Of the values before rounding, on the analysed inputs.
    """

    tensor: str
    low: float
    high: float
    method: str
    saturation: float
    values: Distribution


@dataclass(frozen=True)
class LayerAnalysis:
    """A convolution or dense layer that computes in INT8.

    Parameters
    ----------
    layer, op : str
        The user's name of it, and its operator.
    sqnr_db : float or None
        Of the tensor its kernel delivers, noise of all layers before it included; None where the float network has no
        such tensor.
    alone_db, without_db : float
        SQNR of the network's outputs with only this layer quantised, and with all layers but this one.
    share : float
        Its noise alone over the sum of all layers' noise alone, 0 to 1.
    int8_time, float_time : float
        What it takes in INT8 and in FP32, in the analysis's `time_unit`.
    weight : WeightAnalysis
    activation : ActivationAnalysis
    """

    layer: str
    op: str
    sqnr_db: float | None
    alone_db: float
    without_db: float
    share: float
    int8_time: float
    float_time: float
    weight: WeightAnalysis
    activation: ActivationAnalysis


@dataclass(frozen=True)
class Suggestion:
    """One more layer to leave in FP32, after those of the suggestions before it.

    Parameters
    ----------
    layer : str
    gain_db : float
        What that adds to the outputs' SQNR, measured.
    sqnr_db : float
        What the outputs' SQNR then is.
    cost : float
        What the layer takes longer in FP32, in the analysis's `time_unit`; at least what can be measured.
    cost_share : float
        The same, relative to the whole network in INT8.
    total_share : float
        The same of all layers up to this one.
    float_layers : tuple of str
        The option with all layers up to this one, and what it held before. Unlike patterns in `exclude`, names in it
        cannot be mistaken for a kind of operator.
    """

    layer: str
    gain_db: float
    sqnr_db: float
    cost: float
    cost_share: float
    total_share: float
    float_layers: tuple[str, ...]
