"""Cutting the depth of a model: what its pieces cost, and where stages and fine blocks begin."""
