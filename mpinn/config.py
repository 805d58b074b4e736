"""Configuration: TOML and overrides to frozen, typed tables; what is wrong is said once, with the path of the key."""


class InputError(Exception):
    """Something that the user gave is wrong: the program prints one message and leaves with code 2."""

    def __init__(self, path: str, message: str):
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path
