"""Training a quantised network with its own scales, bit-widths and rounding, in PyTorch (the extra ``finetune``)."""
