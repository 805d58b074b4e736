"""The exceptions that end the program with a message in place of a traceback."""


class InputError(Exception):
    """Something that the user gave is wrong: the program prints one message and leaves with code 2."""

    def __init__(self, path: str, message: str):
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class FatalError(Exception):
    """The run can't go on, and all ranks know it: the program prints one message and leaves with code 1."""


class LocalError(Exception):
    """One rank can't go on, and only it knows: it prints one message, and ends the job with code 1."""
