"""Tuning: workloads, their search on the target's hardware, and the logs that keep what was found."""
