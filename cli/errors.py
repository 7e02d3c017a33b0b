"""What the command line itself can refuse."""


class UsageError(Exception):
    """A recipe or an argument that cannot be accepted; the text says what would be."""

    exit_code = 2
