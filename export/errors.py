"""What `export` raises for anything that is not a bug of its own."""

from __future__ import annotations


class ExportError(Exception):
    """A checkpoint, a data folder, a bundle or a conversion that cannot be used; the text says what to do.

    `exit_code` is what the `isthmus` command ends with.
    """

    exit_code: int = 1


class ParityRefusedError(ExportError):
    """Every rung was tried and none passed the parity gates: nothing was published."""

    exit_code: int = 3
