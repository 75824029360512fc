"""The one exception a person is meant to read."""


class UserError(Exception):
    """A mistake in a command, a config or a file: one line, no traceback, exit code 2.

    The message names the field, file or tensor and the offending value.
    """
