"""Metrics as modules of the evaluate library: lmkit's own, which ship here, and those that a recipe names in ``eval.metrics``."""
