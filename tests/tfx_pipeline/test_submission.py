"""Submission: the real clients of Kubeflow and Vertex against a server on loopback, and what is refused before."""

from __future__ import annotations

import json
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from ir_executor import IrExecutor
from tfx.orchestration.pipeline import Pipeline

from isthmus.tfx_pipeline import kubeflow, remote, submission
from isthmus.tfx_pipeline.cluster_config import TASKS, ClusterConfig, Resources
from isthmus.tfx_pipeline.code import CODE
from isthmus.tfx_pipeline.config import PipelineConfig
from isthmus.tfx_pipeline.data_config import InputConfig
from isthmus.tfx_pipeline.data_pipeline import DataInputs
from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.package import documents
from isthmus.tfx_pipeline.pipeline import CacheKeys, Places, create_pipeline
from isthmus.tfx_pipeline.sources import Source
from isthmus.tfx_pipeline.submission import Job, Target, submit

IMAGE = "registry.example/isthmus:1"


@dataclass
class Api:
    """A server that answers as Kubeflow's and Vertex's API do, and remembers what it was sent."""

    url: str = ""
    status: int = 200
    """What it answers; anything but 200 is an error."""
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    """(method, path, JSON body)."""
    headers: list[dict[str, str]] = field(default_factory=list)

    def answer(self, method: str, path: str, body: Any) -> dict[str, Any]:
        """The API's JSON."""
        route = path.split("?", maxsplit=1)[0]
        if route.endswith("/healthz"):
            return {"multi_user": False}
        if route.endswith("/experiments"):
            return {"experiment_id": "e-1", **(body or {})} if method == "POST" else {}
        if route.endswith("/runs"):
            return {"run_id": "r-1", **body}
        if route.endswith("/recurringruns"):
            return {"recurring_run_id": "s-1", **body}
        kind = "schedules" if "schedules" in route else "pipelineJobs"
        return {**body, "name": f"projects/123/locations/europe-west4/{kind}/created-1"}

    def posted(self, ending: str) -> Any:
        """The body of the one POST to a path with this ending."""
        (body,) = [
            b for method, path, b in self.requests if method == "POST" and path.split("?")[0].endswith(ending)
        ]
        return body


@pytest.fixture
def api() -> Iterator[Api]:
    """The server, running."""
    api = Api()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            api.requests.append((self.command, self.path, body))
            api.headers.append({key.lower(): value for key, value in self.headers.items()})
            answer: Any = api.answer(self.command, self.path, body)
            if api.status != 200:
                answer = {"error": {"code": api.status, "message": "no such luck", "status": "X"}}
            content = json.dumps(answer).encode()
            self.send_response(api.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _serve  # noqa: N815 - http.server's names

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield api
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def no_session_of_the_user(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """kfp reads and writes ~/.config/kfp."""
    monkeypatch.setenv("HOME", str(tmp_path))


def built(root: str, *, enable_cache: bool = True, inputs: DataInputs | None = None) -> Pipeline:
    """The pipeline of a cluster."""
    return create_pipeline(
        name="Colours_1",
        classes_file=f"{root}/classes/1/classes.json",
        dataset={"name": "colours", "source": "here", "digest": "d", "splits": {"test": 1}},
        places=Places(
            pipeline_root=f"{root}/pipeline/Colours_1",
            serving=f"{root}/serving/Colours_1",
            data_root=f"{root}/data",
            bundle=f"{root}/bundle",
            home="/tmp/isthmus",
            tracking_uri="http://mlflow:5000",
        ),
        config=PipelineConfig(),
        inputs=inputs,
        keys=CacheKeys(data="d", manifest="m", champion="", code=dict.fromkeys(CODE, "c")),
        enable_cache=enable_cache,
        on_cluster=True,
    )


def job_for(target: Target, config: ClusterConfig | None = None, *, inputs: DataInputs | None = None) -> Job:
    """A compiled job, without data or bundle to look at."""
    config = config or ClusterConfig()
    compiled = kubeflow.compile_job(
        built(target.root, enable_cache=target.cache, inputs=inputs),
        image=target.image,
        config=config,
        recurring=target.schedule is not None,
    )
    return Job(name="Colours_1", pipeline_job=compiled, package=documents(compiled, config, target.cluster))


def kubeflow_target(endpoint: str | None, **settings: Any) -> Target:
    """Kubeflow at an address."""
    return Target(cluster="kubeflow", image=IMAGE, root="s3://bucket/team/", endpoint=endpoint, **settings)


def vertex_target(endpoint: str | None, **settings: Any) -> Target:
    """Vertex at an address."""
    defaults: dict[str, Any] = {"project": "project-1", "region": "europe-west4"}
    return Target(
        cluster="vertex", image=IMAGE, root="gs://bucket/team", endpoint=endpoint, **defaults | settings
    )


def tasks_of(spec: dict[str, Any]) -> dict[str, Any]:
    """{task: its spec}."""
    return dict(spec["root"]["dag"]["tasks"])


def containers(spec: dict[str, Any]) -> dict[str, Any]:
    """{task: its container}."""
    executors = spec["deploymentSpec"]["executors"]
    return {name.removesuffix("_executor"): executor["container"] for name, executor in executors.items()}


def cached(spec: dict[str, Any]) -> set[str]:
    """The tasks that may take earlier results."""
    return {
        name for name, task in tasks_of(spec).items() if task.get("cachingOptions", {}).get("enableCache")
    }


def test_a_run_on_kubeflow(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_TOKEN", "secret-token")
    target = kubeflow_target(api.url, service_account="pipeline-runner", experiment="nightly")
    submitted = submit(job_for(target), target)
    assert (submitted.kind, submitted.id) == ("run", "r-1")
    assert submitted.url == f"{api.url}/#/runs/details/r-1"
    assert api.posted("/experiments")["display_name"] == "nightly"
    run = api.posted("/runs")
    assert run["service_account"] == "pipeline-runner"
    assert run["experiment_id"] == "e-1"
    assert run["runtime_config"]["pipeline_root"] == "s3://bucket/team/pipeline/Colours_1"
    spec = run["pipeline_spec"]
    assert spec["pipelineInfo"]["name"] == "colours-1"
    assert spec["schemaVersion"] == "2.1.0"
    assert {container["image"] for container in containers(spec).values()} == {IMAGE}
    assert all(
        c["command"] == ["python", "-m", "isthmus.tfx_pipeline.container"] for c in containers(spec).values()
    )
    registrar = tasks_of(spec)["Registrar"]["inputs"]["parameters"]
    assert registrar["tracking_uri"]["runtimeValue"]["constant"] == "http://mlflow:5000"
    assert registrar["run"]["runtimeValue"]["constant"] == "{{$.pipeline_job_uuid}}"
    assert {header["authorization"] for header in api.headers if "authorization" in header} == {
        "Bearer secret-token"
    }


def test_secrets_volumes_environment_and_resources_of_kubeflow(api: Api) -> None:
    config = ClusterConfig(
        tasks={"Evaluator": Resources(cpu=8, memory_gib=16)},
        environment={"AWS_ENDPOINT_URL": "http://minio:9000"},
        secrets={"AWS_SECRET_ACCESS_KEY": "minio/secretkey"},
        volumes={"/data": "images"},
    )
    target = kubeflow_target(api.url)
    submit(job_for(target, config), target)
    sent = api.posted("/runs")["pipeline_spec"]
    found = containers(sent["pipeline_spec"])
    assert found["Evaluator"]["resources"] == {"cpuLimit": 8.0, "memoryLimit": 16.0}
    assert found["Pusher"]["resources"] == {"cpuLimit": 2.0, "memoryLimit": 4.0}
    assert found["Pusher"]["env"] == [{"name": "AWS_ENDPOINT_URL", "value": "http://minio:9000"}]
    of_kubernetes = sent["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(of_kubernetes) == {f"{name}_executor" for name in found}
    secret, volume = (
        of_kubernetes["Pusher_executor"]["secretAsEnv"][0],
        of_kubernetes["Pusher_executor"]["pvcMount"][0],
    )
    assert secret["secretName"] == "minio"
    assert secret["keyToEnv"] == [{"secretKey": "secretkey", "envVar": "AWS_SECRET_ACCESS_KEY"}]
    assert (volume["constant"], volume["mountPath"]) == ("images", "/data")


def test_what_the_world_decides_is_never_cached(api: Api) -> None:
    once, recurring = kubeflow_target(api.url), kubeflow_target(api.url, schedule="0 3 * * *")
    spec = job_for(once).pipeline_job["pipelineSpec"]
    assert cached(spec) == set(tasks_of(spec)) - {"ChampionResolver", "Pusher", "Registrar"}
    spec = job_for(recurring).pipeline_job["pipelineSpec"]
    assert not cached(spec) & {"ChampionResolver", "Pusher", "Registrar", "ImageExampleGen", "BundleImporter"}
    assert "StatisticsGen" in cached(spec)
    assert cached(job_for(kubeflow_target(api.url, cache=False)).pipeline_job["pipelineSpec"]) == set()


def test_a_schedule_reads_the_prediction_log_again(api: Api) -> None:
    inputs = DataInputs(
        source=Source(pattern="s3://b/images", path="s3://b/images", kind="folder"),
        serving=Source(pattern="s3://b/log", path="s3://b/log", kind="prediction_log"),
    )
    once, recurring = kubeflow_target(api.url), kubeflow_target(api.url, schedule="0 3 * * *")
    assert "ServingExampleGen" in cached(job_for(once, inputs=inputs).pipeline_job["pipelineSpec"])
    found = cached(job_for(recurring, inputs=inputs).pipeline_job["pipelineSpec"])
    assert not found & {"ServingExampleGen", "ImageExampleGen", "BundleImporter"}
    assert "ServingStatisticsGen" in found


def test_a_task_that_failed_is_tried_again_but_no_refusal(api: Api) -> None:
    target = kubeflow_target(api.url)
    submit(job_for(target), target)
    tasks = tasks_of(api.posted("/runs")["pipeline_spec"])
    policies = {name: task.get("retryPolicy") for name, task in tasks.items()}
    assert policies.pop("Registrar") is None
    assert list(policies.values()) == [{"maxRetryCount": 1, "backoffDuration": "30s"}] * len(policies)


def test_a_schedule_on_kubeflow(api: Api) -> None:
    target = kubeflow_target(api.url, schedule="0 3 * * *")
    submitted = submit(job_for(target), target)
    assert (submitted.kind, submitted.id) == ("schedule", "s-1")
    recurring = api.posted("/recurringruns")
    # Kubeflow's cron begins with the seconds.
    assert recurring["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *"
    assert recurring["no_catchup"] is True
    assert int(recurring["max_concurrency"]) == 1
    assert recurring["pipeline_spec"]["pipelineInfo"]["name"] == "colours-1"


def test_a_run_on_vertex(api: Api) -> None:
    target = vertex_target(
        api.url, service_account="runner@project-1.iam.gserviceaccount.com", experiment="Nightly"
    )
    submitted = submit(job_for(target), target)
    assert submitted.kind == "run"
    assert submitted.id == "projects/123/locations/europe-west4/pipelineJobs/created-1"
    ((method, path, body),) = api.requests
    assert method == "POST"
    assert path.startswith(
        "/v1/projects/project-1/locations/europe-west4/pipelineJobs?pipelineJobId=colours-1-"
    )
    assert body["serviceAccount"] == "runner@project-1.iam.gserviceaccount.com"
    assert (body["labels"]["isthmus-model"], body["labels"]["isthmus-experiment"]) == ("colours_1", "nightly")
    assert body["runtimeConfig"]["gcsOutputDirectory"] == "gs://bucket/team/pipeline/Colours_1"
    assert {container["image"] for container in containers(body["pipelineSpec"]).values()} == {IMAGE}
    assert cached(body["pipelineSpec"]) == set(tasks_of(body["pipelineSpec"])) - {
        "ChampionResolver",
        "Pusher",
        "Registrar",
    }


def test_a_schedule_on_vertex(api: Api) -> None:
    target = vertex_target(api.url, schedule="0 3 * * *", service_account="runner@x")
    submitted = submit(job_for(target), target)
    assert submitted.kind == "schedule"
    body = api.posted("/schedules")
    assert body["cron"] == "0 3 * * *"
    assert body["createPipelineJobRequest"]["pipelineJob"]["serviceAccount"] == "runner@x"
    assert (
        body["createPipelineJobRequest"]["pipelineJob"]["pipelineSpec"]["pipelineInfo"]["name"] == "colours-1"
    )


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (401, "answered 401: it wants a token: set KFP_TOKEN"),
        (404, "answered 404: there is no Kubeflow Pipelines v2 API at this address"),
        (403, "answered 403: this account may not do that"),
    ],
)
def test_kubeflow_refuses(api: Api, status: int, text: str) -> None:
    target = kubeflow_target(api.url)
    job = job_for(target)
    api.status = status
    with pytest.raises(PipelineError) as raised:
        submit(job, target)
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (401, "answered 401: the credentials are not accepted"),
        (404, "answered 404: there is no Vertex AI for project-1 in europe-west4"),
        (403, "answered 403: this account may not start pipelines in project-1"),
    ],
)
def test_vertex_refuses(api: Api, status: int, text: str) -> None:
    target = vertex_target(api.url)
    job = job_for(target)
    api.status = status
    with pytest.raises(PipelineError) as raised:
        submit(job, target)
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("make", [kubeflow_target, vertex_target])
def test_nobody_there(make: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    target = make(endpoint)
    with pytest.raises(PipelineError, match=f"cannot reach .* at {endpoint}: .*refused") as raised:
        submit(job_for(target), target)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"cluster": "vertex", "root": "s3://b/x"},
            r"--root s3://b/x: the runner vertex needs gs://BUCKET/FOLDER$",
        ),
        ({"root": "/mnt/x"}, r"the runner kubeflow needs gs://BUCKET/FOLDER or s3://BUCKET/FOLDER$"),
        (
            {"root": "minio://b/x"},
            r"cannot open minio://.*give s3:// and the store's address as AWS_ENDPOINT_URL$",
        ),
        ({"schedule": "daily"}, r"--schedule 'daily': write the five fields of cron, such as '0 3 \* \* \*'"),
    ],
)
def test_targets_that_no_cluster_takes(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(PipelineError, match=text):
        Target(**{"cluster": "kubeflow", "image": IMAGE, "root": "gs://b/x", **settings})


def test_no_address_to_submit_to() -> None:
    with pytest.raises(PipelineError, match="--submit needs --endpoint"):
        kubeflow_target(None).check_submission()
    with pytest.raises(PipelineError, match="--submit needs --project and --region"):
        vertex_target(None, project=None, region=None).check_submission()


@pytest.mark.parametrize("uri", [None, "sqlite:////home/mlflow.db", "/home/mlruns"])
def test_a_tracking_store_on_this_machine_is_refused(uri: str | None) -> None:
    with pytest.raises(
        PipelineError, match="the tasks need an MLflow server that they can reach, as --tracking-uri"
    ):
        submission.prepare(
            name="colours",
            bundle="gs://b/bundle",
            data_root=None,
            config=PipelineConfig(),
            tracking_uri=uri,
            target=vertex_target(None),
        )


def test_secrets_of_kubernetes_are_refused_on_vertex() -> None:
    config = PipelineConfig(cluster=ClusterConfig(secrets={"X": "a/b"}))
    with pytest.raises(PipelineError, match="on Vertex give the service account the roles"):
        submission.prepare(
            name="colours",
            bundle="gs://b/bundle",
            data_root=None,
            config=config,
            tracking_uri="http://mlflow:5000",
            target=vertex_target(None),
        )


def test_workers_elsewhere_cannot_read_a_model_on_s3() -> None:
    config = PipelineConfig(beam_args=("--runner=PortableRunner", "--job_endpoint=flink:8099"))
    with pytest.raises(PipelineError, match="reads gs:// and no s3://: use a root on gs://"):
        submission.prepare(
            name="colours",
            bundle="s3://b/bundle",
            data_root=None,
            config=config,
            tracking_uri="http://mlflow:5000",
            target=kubeflow_target(None),
        )


@pytest.mark.parametrize("place", ["/srv/models", "models", "/data/../srv/models", "/database"])
def test_nothing_is_pushed_to_the_disk_of_a_container(place: str) -> None:
    config = PipelineConfig(push_to=place, cluster=ClusterConfig(volumes={"/data": "claim"}))
    with pytest.raises(PipelineError) as raised:
        submission.prepare(
            name="colours",
            bundle="s3://b/bundle",
            data_root=None,
            config=config,
            tracking_uri="http://mlflow:5000",
            target=kubeflow_target(None),
        )
    assert str(raised.value).startswith(f"pipeline.push_to {place}: a task would push to its container's own")


@pytest.fixture
def uploaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """{place: content} of what is written to an object store that takes everything."""
    found: dict[str, bytes] = {}
    monkeypatch.setattr(remote, "exists", found.__contains__)
    monkeypatch.setattr(remote, "write_bytes", found.__setitem__)
    return found


@pytest.fixture
def mounted(
    tmp_path: Path,
    images: Path,
    make_bundle: Callable[..., Path],
    uploaded: dict[str, bytes],
) -> Path:
    """A volume with a bundle and two spans of images."""
    shutil.copytree(make_bundle(), tmp_path / "volume" / "bundle")
    for span in ("span-1", "span-2"):
        shutil.copytree(images, tmp_path / "volume" / span)
    return tmp_path / "volume"


def prepared(mounted: Path, *, target: Target, name: str = "colours", **settings: Any) -> Job:
    """A job of what is on a volume: nothing of it is uploaded."""
    return submission.prepare(
        name=name,
        bundle=mounted / "bundle",
        data_root=None,
        config=PipelineConfig(
            input=InputConfig(path=str(mounted / "span-{SPAN}")),
            cluster=ClusterConfig(volumes={str(mounted): "claim"}),
            **settings,
        ),
        tracking_uri="http://mlflow:5000",
        target=target,
    )


@pytest.mark.parametrize("place", ["s3://other/models", "volume"])
def test_a_store_or_a_volume_is_pushed_to(mounted: Path, place: str) -> None:
    push_to = str(mounted / "models") if place == "volume" else place
    job = prepared(mounted, target=kubeflow_target(None), push_to=push_to)
    pusher = tasks_of(job.pipeline_job["pipelineSpec"])["Pusher"]["inputs"]["parameters"]
    assert pusher["base_directory"]["runtimeValue"]["constant"] == f"{push_to}/colours"


@pytest.mark.parametrize(
    ("name", "target", "text"),
    [
        (
            "--",
            kubeflow_target(None),
            "the runner kubeflow keeps Latin letters and digits, and there are none",
        ),
        (
            "цвета",
            vertex_target(None),
            "the runner vertex keeps Latin letters and digits, and there are none",
        ),
        (
            "_2026_colours",
            vertex_target(None),
            "pipelines begin with a letter, and this one would be '2026-col",
        ),
    ],
)
def test_a_name_that_the_cluster_refuses_is_refused_before_anything_is_read(
    name: str, target: Target, text: str
) -> None:
    with pytest.raises(PipelineError, match=text) as raised:
        prepared(Path("/nothing"), target=target, name=name)
    assert str(raised.value).startswith(f"name {name!r}: ")
    assert "\n" not in str(raised.value)


def test_a_long_name_is_cut_to_what_a_job_may_be_called(mounted: Path, api: Api) -> None:
    name = "My_colours" + "_of-the_rainbow" * 10  # A hyphen would be the last character of what is left.
    target = kubeflow_target(None)
    job = prepared(mounted, target=target, name=name)
    short = job.pipeline_job["pipelineSpec"]["pipelineInfo"]["name"]
    assert short == "my-colours-of-the-rainbow-of-the-rainbow-of-the-rainbow-of-the"
    assert job.places["serving"].endswith(f"/{name}")
    submit(job, vertex_target(api.url))
    ((_, path, body),) = api.requests
    (identity,) = parse_qs(urlsplit(path).query)["pipelineJobId"]
    assert re.fullmatch("[a-z][-a-z0-9]{0,127}", identity)
    assert body["displayName"] == name[:128]


def test_a_name_that_begins_with_a_digit_is_kubeflows(mounted: Path) -> None:
    job = prepared(mounted, target=kubeflow_target(None), name="2026_colours")
    assert job.pipeline_job["pipelineSpec"]["pipelineInfo"]["name"] == "2026-colours"


def test_only_a_schedule_leaves_the_span_open(mounted: Path) -> None:
    def asked(**settings: Any) -> Any:
        job = prepared(mounted, target=kubeflow_target(None, **settings))
        parameters = tasks_of(job.pipeline_job["pipelineSpec"])["ImageExampleGen"]["inputs"]["parameters"]
        assert parameters["input_base"]["runtimeValue"]["constant"] == str(mounted / "span-{SPAN}")
        return json.loads(parameters["source"]["runtimeValue"]["constant"])["span"]

    assert asked() == 2
    assert asked(schedule="0 3 * * *") is None


def test_21841_classes_fit_into_the_command_of_every_task(
    mounted: Path, uploaded: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ImageNet-21k's number, each under another name, too: Linux takes 128 KiB as one argument of a command."""
    manifest = json.loads((mounted / "bundle" / "manifest.json").read_text())
    labels = ["blue", "green", "red", *(f"class {number} of many" for number in range(21_838))]
    manifest["model"]["labels"] = labels
    monkeypatch.setattr(remote, "read_bytes", lambda _: json.dumps(manifest).encode())
    class_map = tmp_path / "class_map.txt"
    class_map.write_text("".join(f"n{number:08d}\n" for number in range(21_841)))
    job = submission.prepare(
        name="many",
        bundle="s3://bucket/bundle",
        data_root=None,
        config=PipelineConfig(
            input=InputConfig(path=str(mounted / "span-1"), class_map=class_map),
            cluster=ClusterConfig(volumes={str(mounted): "claim"}),
        ),
        tracking_uri="http://mlflow:5000",
        target=kubeflow_target(None),
    )

    arguments: dict[str, int] = {}

    class Launcher:
        """Starts nothing: looks at the command, and says that the task ended well."""

        def run(self, argv: list[str], *, env: dict[str, str], log: Path) -> int:  # noqa: ARG002
            arguments[log.parent.name] = max(len(argument.encode()) for argument in argv)
            (given,) = (json.loads(a) for a in argv if a.startswith('{"inputs": {"parameterValues"'))
            log.write_text("")
            Path(given["outputs"]["outputFile"]).parent.mkdir()
            Path(given["outputs"]["outputFile"]).write_text("{}")
            return 0

    spec = job.pipeline_job["pipelineSpec"]
    server: Any = Launcher()
    IrExecutor(spec, root="s3://bucket/team", server=server, scratch=tmp_path / "tasks").run()
    assert arguments.keys() == tasks_of(spec).keys()
    assert max(arguments.values()) < 16 * 1024, arguments
    assert len(json.dumps(job.pipeline_job)) < 128 * 1024
    place = tasks_of(spec)["ImageExampleGen"]["inputs"]["parameters"]["classes_file"]
    (content,) = uploaded.values()
    assert json.loads(uploaded[place["runtimeValue"]["constant"]]) == json.loads(content)
    assert json.loads(content)["labels"] == labels
    assert json.loads(content)["class_map"]["n00021840"] == 21_840


def test_every_task_may_be_given_resources() -> None:
    assert {component.id for component in built("gs://b").components} <= set(TASKS)
    with pytest.raises(ValueError, match=r"no task Trainer; there are ImageExampleGen, "):
        ClusterConfig(tasks={"Trainer": Resources()})


def test_a_package_of_two_documents_is_yaml(tmp_path: Any) -> None:
    from isthmus.tfx_pipeline.package import write_package

    target = kubeflow_target(None)
    one, two = job_for(target).package, job_for(target, ClusterConfig(secrets={"X": "a/b"})).package
    write_package(tmp_path / "x.json", one)
    assert json.loads((tmp_path / "x.json").read_text())["pipelineInfo"]["name"] == "colours-1"
    write_package(tmp_path / "x.yaml", two)
    assert len(list(yaml.safe_load_all((tmp_path / "x.yaml").read_text()))) == 2
    with pytest.raises(PipelineError, match=r"use \.yaml"):
        write_package(tmp_path / "y.json", two)
    with pytest.raises(PipelineError, match=r"name the file .json or .yaml"):
        write_package(tmp_path / "y.txt", one)
