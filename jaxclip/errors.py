"""The exception for errors that the user can fix."""


class UserError(Exception):
    """A one-line message that states what is wrong, where, and what to do.

    Commands print it without a traceback and exit with status 2.
    """
