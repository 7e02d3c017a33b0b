"""`--beam dataflow` with Google's real client against a server on loopback that plays Dataflow.

The server takes the job request, fetches what was staged for it, and runs the staged pipeline, in a process that gets
nothing else, with one SDK worker in a process of its own: what a component writes must be what it writes in memory.
"""

from __future__ import annotations

import base64
import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import google_crc32c
import pytest
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.dataflow.dataflow_runner import DataflowRuntimeException
from beam_runs import (
    HERE,
    about,
    evaluated,
    examples_at,
    images_below,
    ingested,
    predictions,
    run_beam,
)
from tfx.components.statistics_gen import executor as statistics_gen
from tfx.types import standard_artifacts

from isthmus.tfx_pipeline.beam_options import engine_args

IMAGE = "registry.example/isthmus:1"
ACCOUNT = "beam@a-project.iam.gserviceaccount.com"

# Dataflow's side: the staged pipeline as it is, but for the image, which no machine without a registry can start.
_ENGINE = """
import sys
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
pipeline = beam_runner_api_pb2.Pipeline.FromString(open(sys.argv[1], "rb").read())
for environment in pipeline.components.environments.values():
    environment.urn = python_urns.SUBPROCESS_SDK
    environment.payload = f"{sys.executable} -m apache_beam.runners.worker.sdk_worker_main".encode()
    del environment.dependencies[:]
FnApiRunner().run_via_runner_api(pipeline, PipelineOptions([])).wait_until_finish()
"""


@dataclass
class Cloud:
    """A server that answers as Dataflow's and Cloud Storage's APIs do, and does Dataflow's work itself."""

    folder: Path
    """Of the process that does the work."""
    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    """{gs://bucket/name: content}."""
    jobs: list[dict[str, Any]] = field(default_factory=list)
    """The job requests, in order, with their end."""
    log: str = ""
    """What the last job's process said."""

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        """The status and the API's JSON; an upload is one request that names the object and one that brings it."""
        if path.endswith("/jobs") and method == "POST":
            return 200, self.run(json.loads(body))
        if "/jobs/" in path:
            return 200, self.jobs[-1]
        bucket, _, name = path.partition("/b/")[2].partition("/o")
        if "upload_id" in query:
            self.objects[f"gs://{bucket}/{query['upload_id'][0]}"] = body
            checksum = base64.b64encode(google_crc32c.value(body).to_bytes(4, "big")).decode()
            return 200, {"bucket": bucket, "name": query["upload_id"][0], "crc32c": checksum}
        if method == "GET" and name:
            return 404, {"error": {"code": 404, "message": f"no object {name}"}}
        return 200, {"kind": "storage#bucket", "name": bucket}

    def staged(self, job: dict[str, Any]) -> tuple[bytes, str]:
        """The pipeline that was staged for a job, and the object's name."""
        place = job["environment"]["sdkPipelineOptions"]["options"]["staging_location"]
        return self.objects[f"{place}/pipeline.pb"], f"{place}/pipeline.pb"

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run what was staged for a job; the job as the API shows it afterwards."""
        self.folder.mkdir(exist_ok=True)
        staged = self.folder / f"{len(self.jobs)}.pb"
        staged.write_bytes(self.staged(job)[0])
        done = subprocess.run(
            [sys.executable, "-c", _ENGINE, staged],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        self.log = done.stderr
        state = "JOB_STATE_FAILED" if done.returncode else "JOB_STATE_DONE"
        self.jobs.append({**job, "id": f"job-{len(self.jobs)}", "currentState": state})
        return self.jobs[-1]


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """The server, running."""
    cloud = Cloud(tmp_path / "cloud")

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            url = urlsplit(self.path)
            query = parse_qs(url.query)
            status, answer = cloud.answer(self.command, unquote(url.path), query, body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if "uploadType" in query and "upload_id" not in query:
                name = query.get("name") or [json.loads(body)["name"]]
                self.send_header("Location", f"{cloud.url}{self.path}&upload_id={quote(name[0], safe='')}")
            self.end_headers()
            self.wfile.write(content)

        def __getattr__(self, name: str) -> Any:
            if name.startswith("do_"):
                return self._serve
            raise AttributeError(name)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        cloud.url = f"http://localhost:{server.server_port}"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", cloud.url)
        yield cloud
        server.shutdown()
        thread.join()


def options(cloud: Cloud) -> list[str]:
    """`--beam dataflow`'s own, and then where the services are."""
    return [
        *engine_args(
            "dataflow",
            root="gs://bucket/root",
            image=IMAGE,
            project="a-project",
            region="europe-west4",
            service_account=ACCOUNT,
        ),
        f"--dataflow_endpoint={cloud.url}",
        "--no_auth",
    ]


@pytest.mark.slow
def test_the_same_examples_and_statistics_as_in_memory(cloud: Cloud, tmp_path: Path) -> None:
    root = images_below(tmp_path / "images", 20)
    results = {
        name: ingested(args, root, tmp_path / name)
        for name, args in (("here", HERE), ("elsewhere", options(cloud)))
    }
    assert [len(found) for found in results["here"][0].values()] == [60, 60, 60]
    assert results["elsewhere"] == results["here"]
    assert len(cloud.jobs) == 2
    for job in cloud.jobs:
        the_request_says_what_was_asked(cloud, job)


def the_request_says_what_was_asked(cloud: Cloud, job: dict[str, Any]) -> None:
    """The job request and what was staged for it: image, account, places, and the pipeline whose hash it names."""
    environment = job["environment"]
    assert environment["serviceAccountEmail"] == ACCOUNT
    assert environment["tempStoragePrefix"].startswith("storage.googleapis.com/bucket/root/beam/")
    (pool,) = environment["workerPools"]
    assert pool["workerHarnessContainerImage"] == IMAGE
    assert [image["containerImage"] for image in pool["sdkHarnessContainerImages"]] == [IMAGE]
    # The image has everything: no package of ours or of TFX's travels, only the list of what was installed here.
    assert [package["name"] for package in pool["packages"]] == ["submission_environment_dependencies.txt"]
    asked = environment["sdkPipelineOptions"]["options"]
    assert (asked["project"], asked["region"]) == ("a-project", "europe-west4")
    content, name = cloud.staged(job)
    assert name.startswith(asked["staging_location"])
    assert asked["pipelineProtoHash"] == sha256(content).hexdigest()
    pipeline = beam_runner_api_pb2.Pipeline.FromString(content)
    images = [
        beam_runner_api_pb2.DockerPayload.FromString(environment.payload).container_image
        for environment in pipeline.components.environments.values()
    ]
    assert set(images) == {IMAGE}


@pytest.mark.slow
def test_the_same_evaluation_as_in_memory(
    cloud: Cloud,
    examples: Any,
    make_model: Callable[..., Any],
    artifact_at: Callable[..., Any],
    tmp_path: Path,
) -> None:
    here, elsewhere = (
        evaluated(args, examples, make_model, artifact_at, tmp_path / name)
        for name, args in (("here", HERE), ("elsewhere", options(cloud)))
    )
    assert elsewhere == here
    the_request_says_what_was_asked(cloud, cloud.jobs[0])


@pytest.mark.slow
def test_the_same_predictions_as_in_memory(
    cloud: Cloud, make_bundle: Callable[..., Path], shared_images: Path, tmp_path: Path
) -> None:
    here, elsewhere = (
        predictions(args, make_bundle() / "saved_model", shared_images, tmp_path / name)
        for name, args in (("here", []), ("elsewhere", options(cloud)))
    )
    assert elsewhere == about(here)
    assert cloud.jobs


@pytest.mark.slow
def test_a_job_that_fails_fails_the_component(cloud: Cloud, tmp_path: Path) -> None:
    examples = examples_at(tmp_path / "examples")
    examples.splits = ["train"]
    split = Path(examples.uri, "Split-train")
    split.mkdir(parents=True)
    (split / "data_tfrecord-00000-of-00001.gz").write_bytes(gzip.compress(b"no record"))
    statistics = standard_artifacts.ExampleStatistics()
    statistics.uri = str(tmp_path / "statistics")
    with pytest.raises(DataflowRuntimeException, match="State: FAILED"):
        run_beam(
            statistics_gen.Executor,
            options(cloud),
            {"examples": examples},
            {"statistics": statistics},
            {"exclude_splits": "[]"},
        )
    assert "Not a valid TFRecord" in cloud.log
