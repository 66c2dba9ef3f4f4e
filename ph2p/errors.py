"""The one exception a user is meant to see."""


class UserError(Exception):
    """One line that names the file or the configuration key at fault and says how to fix it.

    The command line prints it without a traceback and exits with a non-zero code.
    """
