"""Ranks, grids and messages. Only here is mpi4py imported."""
