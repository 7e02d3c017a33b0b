"""What Beam is told. Standard library only: whoever parses a recipe may ask."""

from __future__ import annotations

from collections.abc import Sequence


def beam_args(*, workers: int, further: Sequence[str] = ()) -> list[str]:
    """Beam's options for this machine, or those of a runner that `further` names.

    The runner is named: DirectRunner would first try to download Prism, a Go binary, and run on that. The image
    is one that nobody reads: without it TFX packs itself into an archive for every Beam component (0.7 s of CPU,
    and a copy of TFX left in the temporary folder), for workers elsewhere. Options with a runner of their own
    get neither.

    Args:
        workers: Processes; 1 runs Beam inside this one.
        further: More options, such as `--runner=FlinkRunner`.
    """
    if any(argument.startswith("--runner") for argument in further):
        return list(further)
    mode = "in_memory" if workers == 1 else "multi_processing"
    return [
        "--runner=FnApiRunner",
        f"--direct_running_mode={mode}",
        f"--direct_num_workers={workers}",
        "--sdk_container_image=unused",
        *further,
    ]
