"""What the pipeline raises for anything that is not a bug of its own."""

from __future__ import annotations


class PipelineError(Exception):
    """Input that the pipeline cannot use: an image, a bundle, a schema, a setting. The text says what to do.

    `exit_code` is what the `isthmus` command ends with.
    """

    exit_code: int = 1


class NotPushedError(PipelineError):
    """A gate refused the model, or could not run; nothing was pushed.

    The text begins "not pushed, because" and holds every reason on one line.
    """

    exit_code: int = 3

    def __init__(self, reasons: list[str]) -> None:
        """Join the reasons of all gates that refused."""
        super().__init__(
            "not pushed, because " + "; and ".join(" ".join(reason.split()) for reason in reasons)
        )
        self.reasons = reasons
