"""Networks to measure with, the runtimes to measure against, and the comparison itself."""
