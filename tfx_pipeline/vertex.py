"""Submitting to Vertex AI Pipelines through Google's own client of its API."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.package import innermost

if TYPE_CHECKING:
    from isthmus.tfx_pipeline.submission import Job, Submitted, Target

_TIMEOUT_S = 120.0

#: Characters that the API takes for a name that is only shown.
_DISPLAYED = 128


def submit(job: Job, target: Target) -> Submitted:
    """Start a PipelineJob or a schedule of them.

    The API's client is called, and not `aiplatform.PipelineJob.submit` above it: that one makes a bucket that is
    missing and changes who may write to it, without a word.

    Raises:
        PipelineError: There are no credentials, or the API cannot be reached or refuses.
    """
    from google.cloud import aiplatform_v1

    from isthmus.tfx_pipeline.submission import Submitted

    where = target.endpoint or f"https://{target.region}-aiplatform.googleapis.com"
    common: dict[str, Any] = {
        "credentials": _credentials(target),
        "client_options": {"api_endpoint": where},
        # HTTP passes proxies and private gateways that gRPC does not.
        "transport": "rest",
    }
    parent = f"projects/{target.project}/locations/{target.region}"
    console = f"https://console.cloud.google.com/vertex-ai/locations/{target.region}"
    name = job.pipeline_job["pipelineSpec"]["pipelineInfo"]["name"]
    with _explained(where, target):
        run = _pipeline_job(job, target)
        if target.schedule is None:
            created = aiplatform_v1.PipelineServiceClient(**common).create_pipeline_job(
                parent=parent,
                pipeline_job=run,
                pipeline_job_id=f"{name}-{time.strftime('%Y%m%d%H%M%S')}",
                timeout=_TIMEOUT_S,
            )
            number = created.name.rsplit("/", maxsplit=1)[-1]
            return Submitted(
                kind="run", id=created.name, url=f"{console}/pipelines/runs/{number}?project={target.project}"
            )
        schedule = aiplatform_v1.ScheduleServiceClient(**common).create_schedule(
            parent=parent,
            schedule=aiplatform_v1.Schedule(
                display_name=job.name[:_DISPLAYED],
                cron=target.schedule,
                max_concurrent_run_count=1,
                create_pipeline_job_request={"parent": parent, "pipeline_job": run},
            ),
            timeout=_TIMEOUT_S,
        )
        number = schedule.name.rsplit("/", maxsplit=1)[-1]
        return Submitted(
            kind="schedule", id=schedule.name, url=f"{console}/schedules/{number}?project={target.project}"
        )


def _pipeline_job(job: Job, target: Target) -> Any:
    """The request's message out of the compiled job."""
    from google.cloud import aiplatform_v1

    labels = {"isthmus-model": cluster_label(job.name)}
    if target.experiment:
        labels["isthmus-experiment"] = cluster_label(target.experiment)
    return aiplatform_v1.PipelineJob(
        display_name=job.name[:_DISPLAYED],
        pipeline_spec=job.pipeline_job["pipelineSpec"],
        runtime_config={"gcs_output_directory": job.pipeline_job["runtimeConfig"]["gcsOutputDirectory"]},
        service_account=target.service_account or "",
        labels={**job.pipeline_job.get("labels", {}), **labels},
    )


def cluster_label(text: str) -> str:
    """A label's value as Google wants it: lower case, digits, - and _, 63 at most."""
    return re.sub("[^a-z0-9_-]+", "-", text.lower())[:63]


def _credentials(target: Target) -> Any:
    """None for Google's default; no token travels in clear to an endpoint without TLS (a test's, or a gateway's)."""
    from google.auth.credentials import AnonymousCredentials

    return AnonymousCredentials() if (target.endpoint or "").startswith("http://") else None


@contextlib.contextmanager
def _explained(where: str, target: Target) -> Iterator[None]:
    import requests
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError, InvalidOperation

    try:
        yield
    except exceptions.GoogleAPICallError as error:
        reasons = {
            401: "the credentials are not accepted; run `gcloud auth application-default login`",
            403: f"this account may not start pipelines in {target.project}",
            404: f"there is no Vertex AI for {target.project} in {target.region}",
        }
        told = " ".join(str(error.message).split())[:300]
        why = reasons.get(error.code, "it refused")
        raise PipelineError(f"{where} answered {error.code}: {why} ({told})") from error
    except InvalidOperation as error:
        # The client tries to refresh credentials after a 401, and these cannot be refreshed.
        raise PipelineError(f"{where} answered 401: the credentials are not accepted ({error})") from error
    except (exceptions.RetryError, requests.RequestException, GoogleAuthError) as error:
        raise PipelineError(f"cannot reach Vertex AI at {where}: {innermost(error)}") from error
