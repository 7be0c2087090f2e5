"""Evaluation: predictions in file order, and metrics with intervals."""
