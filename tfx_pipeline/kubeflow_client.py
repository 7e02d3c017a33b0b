"""Submitting to Kubeflow Pipelines v2 through its own client."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.package import innermost, write_package

if TYPE_CHECKING:
    from isthmus.tfx_pipeline.submission import Job, Submitted, Target

TOKEN_VARIABLE = "KFP_TOKEN"
"""Environment variable with the bearer token for the API, where it asks for one."""


def submit(job: Job, target: Target) -> Submitted:
    """Start a run or a recurring run.

    Raises:
        PipelineError: The API cannot be reached or refuses.
    """
    import kfp

    from isthmus.tfx_pipeline.submission import Submitted

    assert target.endpoint is not None
    endpoint = target.endpoint.rstrip("/")
    with _explained(endpoint), tempfile.TemporaryDirectory(prefix="isthmus-submit-") as scratch:
        token = os.environ.get(TOKEN_VARIABLE)
        _check(endpoint, token)
        package = Path(scratch, "pipeline.yaml")
        write_package(package, job.package)
        with warnings.catch_warnings():
            # It says of itself, every time, that it is for Kubeflow Pipelines v2.
            warnings.simplefilter("ignore", FutureWarning)
            client = kfp.Client(host=endpoint, existing_token=token)
        experiment = client.create_experiment(target.experiment or job.name)
        common = {
            "experiment_id": experiment.experiment_id,
            "job_name": f"{job.name} {time.strftime('%Y-%m-%d %H:%M:%S')}",
            "pipeline_package_path": str(package),
            "pipeline_root": job.pipeline_job["runtimeConfig"]["gcsOutputDirectory"],
            "service_account": target.service_account,
        }
        if target.schedule is None:
            run = client.run_pipeline(**common)
            return Submitted(kind="run", id=run.run_id, url=f"{endpoint}/#/runs/details/{run.run_id}")
        # Kubeflow's cron has a field for the seconds in front.
        recurring = client.create_recurring_run(
            **common, cron_expression=f"0 {target.schedule}", no_catchup=True, max_concurrency=1
        )
        number = recurring.recurring_run_id
        return Submitted(kind="schedule", id=number, url=f"{endpoint}/#/recurringrun/details/{number}")


def _check(endpoint: str, token: str | None) -> None:
    """Ask once whether the API is there: kfp.Client asks five times, five seconds apart, and then says "timeout"."""
    import kfp_server_api

    configuration = kfp_server_api.Configuration(host=endpoint)
    if token:
        configuration.api_key["authorization"] = token
        configuration.api_key_prefix["authorization"] = "Bearer"
    with kfp_server_api.ApiClient(configuration) as client:
        kfp_server_api.HealthzServiceApi(client).healthz_service_get_healthz()


@contextlib.contextmanager
def _explained(endpoint: str) -> Iterator[None]:
    import kfp_server_api
    import urllib3

    try:
        yield
    except kfp_server_api.ApiException as error:
        reasons = {
            401: f"it wants a token: set {TOKEN_VARIABLE}",
            403: "this account may not do that",
            404: "there is no Kubeflow Pipelines v2 API at this address",
        }
        told = " ".join(str(error.body or error.reason or "").split())[:300]
        why = reasons.get(error.status, "it refused")
        raise PipelineError(f"{endpoint} answered {error.status}: {why} ({told})") from error
    except urllib3.exceptions.HTTPError as error:
        raise PipelineError(f"cannot reach Kubeflow Pipelines at {endpoint}: {innermost(error)}") from error
