"""Faster ways to compute the same layers: nothing a reader of the models needs."""
