"""The console command `isthmus`.

    isthmus train --config recipes/digits.yaml
    isthmus export --config recipes/digits.yaml
    isthmus pipeline --config recipes/digits.yaml
    isthmus serve --model_name=digits --model_base_path=.isthmus/serving/digits
    isthmus registry list
    isthmus lineage models:/digits@champion
    isthmus doctor

This is the one place that turns an error into an exit code: an exception with an attribute `exit_code` was
foreseen by the part that raised it and becomes one line; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from isthmus.cli.parser import build_parser

INTERRUPTED = 130

#: A full or read-only disk and a folder of somebody else are no bugs of ours.
_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0 done, 1 refused, 2 wrong usage, 130 interrupted."""
    parser = build_parser()
    arguments, flags = parser.parse_known_args(argv)
    if flags and not hasattr(arguments, "takes_flags"):
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    arguments.flags = flags
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has what it wanted; the interpreter must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        text, exit_code = _foreseen(error)
        if exit_code is None:
            raise
        print(f"error: {text}", file=sys.stderr)
        return exit_code


def _foreseen(error: Exception) -> tuple[str, int | None]:
    """What to say of an error and the exit code; None for the code of a bug."""
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        return f"{error.strerror}: {error.filename or 'the store'}", 1
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("isthmus"):
        return f"{error.name} is not installed; `isthmus doctor` says which part of isthmus brings it", 1
    return str(error), getattr(error, "exit_code", None)


if __name__ == "__main__":
    sys.exit(main())
