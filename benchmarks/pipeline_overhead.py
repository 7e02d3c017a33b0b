"""The DAG's own overhead: what of a pipeline run is nobody's work.

python benchmarks/pipeline_overhead.py [--home FOLDER]

Trains and exports the digits recipe into FOLDER unless it is done there already, runs its pipeline with an empty
metadata store, and takes the time inside the executors (from their `Do` to its end) from the time of the run. The
start of the process, with its imports, is shown beside it: one process pays it once.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from measure import ROOT, run, write_section

from isthmus.tfx_pipeline.imports import torch_kept_out


def main() -> None:
    """Measures, prints and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path)
    with ExitStack() as stack:
        home = parser.parse_args().home or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for stage in ("train", "export"):
            run(["make", "--silent", stage, f"STORE={home}"])
        imports_s, total_s, work = pipeline(home.absolute())
    inside = sum(work.values())
    lines = "\n".join(f"| {name} | {seconds:.2f} |" for name, seconds in work.items())
    write_section(
        "The pipeline's own overhead",
        f"""The digits, every component run, one process. Imports {imports_s:.1f} s, then {total_s:.1f} s, of which
{total_s - inside:.1f} s ({(total_s - inside) / total_s:.0%}) in no component: MLMD, the launcher, the cache, the lines.

| component | seconds |
|---|---|
{lines}
""",
    )


def pipeline(home: Path) -> tuple[float, float, dict[str, float]]:
    """(seconds of the imports, of the run after them, {executor: seconds in its Do})."""
    started = time.monotonic()
    with torch_kept_out():
        from tfx.orchestration.portable import python_executor_operator

        from isthmus.tfx_pipeline import pipeline as _  # noqa: F401 - for its imports

    from isthmus.cli.recipe import load
    from isthmus.lineage import tracking
    from isthmus.tfx_pipeline.run import run_local

    tracking.connect(home)
    imports_s = time.monotonic() - started
    shutil.rmtree(home / "pipeline", ignore_errors=True)
    (home / "metadata.db").unlink(missing_ok=True)
    work: dict[str, float] = {}
    original = python_executor_operator.run_with_executor

    def timed(execution_info: Any, executor: Any) -> Any:
        begun = time.monotonic()
        try:
            return original(execution_info, executor)
        finally:
            name = execution_info.pipeline_node.node_info.id
            work[name] = time.monotonic() - begun

    # Beam's launcher and the plain one both call it through this module.
    python_executor_operator.run_with_executor = timed
    recipe = load(ROOT / "recipes/digits.yaml")
    started = time.monotonic()
    run_local(
        name=recipe.name,
        bundle=(home / "bundles" / recipe.name / "latest").resolve(),
        data_root=home / "data" / recipe.name,
        config=recipe.pipeline,
        home=home,
    )
    return imports_s, time.monotonic() - started, work


if __name__ == "__main__":
    main()
