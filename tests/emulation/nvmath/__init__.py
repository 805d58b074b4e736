"""A stand-in for nvmath-python on machines without a GPU, for tests: of its bindings, what the program uses."""
