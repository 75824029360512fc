"""The exceptions that a person is meant to read, and the exit codes of the program."""

EXIT_USER_ERROR = 2
EXIT_RESTART = 42


class UserError(Exception):
    """A mistake in a command, a config or a file: one line, no traceback, exit code 2.

    The message names the field, file or tensor and the offending value.
    """


class RestartError(Exception):
    """Nobody's mistake, such as a host that did not come: one line, exit code 42.

    Starting the same command again is the cure.
    """
