"""The one exception that reaches the user as a plain message."""


class UsageError(Exception):
    """Something the user can put right: the message names the argument and the cure."""
