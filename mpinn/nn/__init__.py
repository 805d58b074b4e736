"""Layers, losses, optimizers, and the flat vectors in which the parameters of a model stand."""
