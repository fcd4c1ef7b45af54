"""Calibration and quantisation: ranges of tensors, the scales they give, and the arithmetic those scales mean."""
