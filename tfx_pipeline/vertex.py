"""Submitting to Vertex AI Pipelines through Google's own client."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.package import write_package

if TYPE_CHECKING:
    from isthmus.tfx_pipeline.submission import Job, Submitted, Target

_TIMEOUT_S = 120.0


def submit(job: Job, target: Target) -> Submitted:
    """Start a PipelineJob or a PipelineJobSchedule.

    Raises:
        PipelineError: There are no credentials, or the API cannot be reached or refuses.
    """
    from google.cloud import aiplatform

    from isthmus.tfx_pipeline.submission import Submitted

    where = target.endpoint or f"{target.region}-aiplatform.googleapis.com"
    with _explained(where, target), tempfile.TemporaryDirectory(prefix="isthmus-submit-") as scratch:
        package = Path(scratch, "pipeline.json")
        write_package(package, job.package)
        aiplatform.init(
            project=target.project,
            location=target.region,
            credentials=_credentials(target),
            api_endpoint=target.endpoint,
            # HTTP passes proxies and private gateways that gRPC does not.
            api_transport="rest",
        )
        run = aiplatform.PipelineJob(
            display_name=job.name,
            template_path=str(package),
            pipeline_root=job.pipeline_job["runtimeConfig"]["gcsOutputDirectory"],
            enable_caching=None,  # each task says so itself
        )
        if target.schedule is None:
            run.submit(
                service_account=target.service_account,
                experiment=target.experiment,
                create_request_timeout=_TIMEOUT_S,
            )
            return Submitted(kind="run", id=run.resource_name, url=run._dashboard_uri())
        schedule = run.create_schedule(
            cron=target.schedule,
            display_name=job.name,
            max_concurrent_run_count=1,
            service_account=target.service_account,
            create_request_timeout=_TIMEOUT_S,
        )
        return Submitted(kind="schedule", id=schedule.resource_name, url=schedule._dashboard_uri())


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
        raise PipelineError(
            f"cannot reach Vertex AI at {where}: {' '.join(str(error).split())[:300]}"
        ) from error
