"""The one error of this part. Its text says what was given, what is allowed and what to do."""

from __future__ import annotations


class LineageError(Exception):
    """Bad input, a broken link, a refused promotion. The command line prints it as one line."""

    exit_code: int = 1


class PromotionRefused(LineageError):  # noqa: N818 - a verdict, not a malfunction
    """A gate, a hash or an approval stands against the move. Nothing was changed.

    `reasons` holds each of them as one sentence.
    """

    exit_code = 3

    def __init__(self, text: str, reasons: list[str]) -> None:
        super().__init__(text)
        self.reasons = reasons


class PromotionConflict(LineageError):  # noqa: N818
    """Somebody else moved the champion in between. Nothing was changed; look again and repeat."""

    exit_code = 4
