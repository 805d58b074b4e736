"""Measuring speed: whole steps, kernels and messages, beside PyTorch where it is installed."""
