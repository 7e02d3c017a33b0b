"""What Beam is told. Standard library only: whoever parses a recipe may ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from isthmus.tfx_pipeline.errors import PipelineError

FORKING_RUNNER = "isthmus.tfx_pipeline.forking_runner.ForkingRunner"
"""Of several worker processes on this machine."""

#: Beam runners that work on the machine that asks.
_RUNNERS_HERE = {
    "FnApiRunner",
    "DirectRunner",
    "BundleBasedDirectRunner",
    "InteractiveRunner",
    FORKING_RUNNER,
}

Engine = Literal["dataflow", "flink", "spark"]
ENGINES: tuple[Engine, ...] = ("dataflow", "flink", "spark")


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
    runner, mode = ("FnApiRunner", "in_memory") if workers == 1 else (FORKING_RUNNER, "multi_processing")
    return [
        f"--runner={runner}",
        f"--direct_running_mode={mode}",
        f"--direct_num_workers={workers}",
        "--sdk_container_image=unused",
        *further,
    ]


def start_early(args: Sequence[str]) -> None:
    """Let the process that workers will be forks of, if these options mean any, import Beam from now on."""
    if f"--runner={FORKING_RUNNER}" in args:
        from isthmus.tfx_pipeline import fork_server

        fork_server.start()


def runs_elsewhere(args: Sequence[str]) -> bool:
    """Whether these options give the work to processes that may be on other machines."""
    for position, argument in enumerate(args):
        if argument.startswith("--runner="):
            return argument.removeprefix("--runner=") not in _RUNNERS_HERE
        if argument == "--runner":
            return position + 1 < len(args) and args[position + 1] not in _RUNNERS_HERE
    return False


def engine_args(
    engine: Engine,
    *,
    root: str,
    image: str | None = None,
    project: str | None = None,
    region: str | None = None,
    service_account: str | None = None,
    job_endpoint: str | None = None,
    worker_pool: str = "localhost:50000",
) -> list[str]:
    """The options that give Beam's work to an engine; docs/runners.md says what each engine must have running.

    Args:
        engine: Dataflow is asked through Google's API. Flink and Spark through Beam's job service (their job server),
            with the SDK workers of a pool beside each of their task managers or executors: no Docker and no Java
            where the pipeline runs.
        root: A place that the engine's workers can write, for temporary files.
        image: The image of Dataflow's workers, the same as the pipeline's.
        project: Dataflow's project.
        region: Dataflow's region.
        service_account: Who Dataflow's workers are; None for the project's default.
        job_endpoint: HOST:PORT of the job server of Flink or Spark.
        worker_pool: HOST:PORT of the worker pool, as a task manager or executor sees it.

    Raises:
        PipelineError: Something that this engine needs is missing.
    """
    if engine == "dataflow":
        needed = {"--image": image, "--project": project, "--region": region}
        if missing := [option for option, value in needed.items() if not value]:
            raise PipelineError(f"--beam dataflow needs {', '.join(missing)}")
        if not root.startswith("gs://"):
            raise PipelineError(f"--beam dataflow needs a root on gs://, got {root}")
        return [
            "--runner=DataflowRunner",
            f"--project={project}",
            f"--region={region}",
            f"--temp_location={root.rstrip('/')}/beam",
            f"--sdk_container_image={image}",
            # The image has everything: the workers install nothing.
            "--sdk_location=container",
            "--experiments=use_runner_v2",
            *([f"--service_account_email={service_account}"] if service_account else []),
        ]
    if not job_endpoint:
        raise PipelineError(
            f"--beam {engine} needs --beam-endpoint HOST:PORT, the address of its Beam job server"
        )
    return [
        "--runner=PortableRunner",
        f"--job_endpoint={job_endpoint}",
        "--environment_type=EXTERNAL",
        f"--environment_config={worker_pool}",
        # Without it TFX packs itself into an archive for workers that have it already.
        "--sdk_container_image=unused",
        "--sdk_location=container",
    ]
