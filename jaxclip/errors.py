"""The one exception for mistakes that the person at the keyboard can mend."""


class UserError(Exception):
    """A one-line message saying what is wrong, where, and what to do.

    Commands print it without a traceback and exit with status 2.
    """
