"""What can go wrong in training and is the user's to mend: one clear line each, never a traceback."""


class TrainingError(Exception):
    """Bad data, a bad recipe or a run that cannot go on; the text says what was given, what is allowed,
    what to do."""

    exit_code = 1


class TrainingInterruptedError(TrainingError):
    """SIGTERM (preemption) or Ctrl-C stopped the run; the same command continues after the last complete
    epoch.

    Exit code 75 (sysexits' EX_TEMPFAIL: "try again") after SIGTERM, 130 (the shell's own) after Ctrl-C.
    """

    exit_code = 75

    def __init__(self, text: str, *, exit_code: int = 75) -> None:
        super().__init__(text)
        self.exit_code = exit_code
