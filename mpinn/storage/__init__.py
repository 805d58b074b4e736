"""Checkpoints and metrics: written, found again, and checked for damage."""
