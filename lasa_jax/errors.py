"""The one error that a user is shown without a traceback."""


class InputError(ValueError):
    """A setting, a file or a directory is not as it must be: one line that names it, its value and what is allowed."""
