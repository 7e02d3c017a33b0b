"""`python -m isthmus.serving --model_name=… --model_base_path=… --port=… --rest_api_port=…`."""

import logging
import sys
from collections.abc import Sequence

from isthmus.serving import flags
from isthmus.serving.errors import ServingError


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the flags (default: the command line's), serve, and return the exit code; an error is one
    line."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        config = flags.parse(sys.argv[1:] if arguments is None else arguments)
        if config.tune:
            from isthmus.serving.tuning import say_on_stdout, tune

            tune(config, say=say_on_stdout)
        else:
            from isthmus.serving.server import serve

            serve(config)
    except ServingError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
