"""The command line's own error: caught in `main`, which prints its one line and exits with 1."""


class CliError(Exception):
    """The message is one line: what is wrong and what to do about it."""
