"""Metrics: a file each, listed in `table`."""
