"""Where a network's quantisation error comes from, layer by layer, and what to do about it."""
