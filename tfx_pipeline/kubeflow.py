"""The pipeline as Kubeflow Pipelines v2 and Vertex AI read it: their common intermediate representation (IR)."""

from __future__ import annotations

from typing import Any

from kfp.pipeline_spec import pipeline_spec_pb2
from tfx.orchestration.kubeflow.v2 import kubeflow_v2_dag_runner
from tfx.orchestration.pipeline import Pipeline

from isthmus.tfx_pipeline.cluster_config import TASKS, ClusterConfig, Resources
from isthmus.tfx_pipeline.container import COMMAND

#: What these find depends on the world outside, which no cache key holds when a run starts by schedule, or long after
#: it was compiled. They are the cheap ones; what reads images, logs and bundles joins them in a recurring run.
NEVER_CACHED = ("ChampionResolver", "Pusher", "Registrar")
READ_AGAIN_BY_SCHEDULE = ("ImageExampleGen", "ServingExampleGen", "BundleImporter")


def compile_job(
    pipeline: Pipeline, *, image: str, config: ClusterConfig, recurring: bool = False
) -> dict[str, Any]:
    """Compile a pipeline into a PipelineJob.

    Args:
        pipeline: What `create_pipeline(on_cluster=True)` built.
        image: The container image of every task.
        config: Resources and environment.
        recurring: Whether a schedule will start it again and again: then the data is read every time.

    Returns:
        The PipelineJob as JSON values; `pipelineSpec` is the IR (schema 2.1.0).
    """
    for component in pipeline.components:
        component.with_platform_config(_resources(config.tasks.get(component.id, config.resources)))
    runner = kubeflow_v2_dag_runner.KubeflowV2DagRunner(
        config=kubeflow_v2_dag_runner.KubeflowV2DagRunnerConfig(
            default_image=image, default_commands=list(COMMAND), use_pipeline_spec_2_1=True
        )
    )
    job: dict[str, Any] = runner.run(pipeline, write_out=False)
    spec = job["pipelineSpec"]
    spec["defaultPipelineRoot"] = pipeline.pipeline_info.pipeline_root
    tasks = spec["root"]["dag"]["tasks"]
    assert set(tasks) <= set(TASKS), f"cluster_config.TASKS does not name {sorted(set(tasks) - set(TASKS))}"
    for name in (*NEVER_CACHED, *(READ_AGAIN_BY_SCHEDULE if recurring else ())):
        if name in tasks:  # A prediction log is not read by every pipeline.
            tasks[name]["cachingOptions"] = {}
    for name, task in tasks.items():
        if name != "Registrar" and config.retries:
            task["retryPolicy"] = {"maxRetryCount": config.retries, "backoffDuration": "30s"}
    environment = [{"name": name, "value": value} for name, value in sorted(config.environment.items())]
    for executor in spec["deploymentSpec"]["executors"].values():
        if environment:
            executor["container"]["env"] = environment
    return job


def _resources(resources: Resources) -> Any:
    return pipeline_spec_pb2.PipelineDeploymentConfig.PipelineContainerSpec.ResourceSpec(
        cpu_limit=resources.cpu, memory_limit=resources.memory_gib
    )
