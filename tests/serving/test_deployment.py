"""The production files: validated by Kubernetes' own models, by this server's readers, and against each other."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kubernetes import client as kubernetes

from isthmus.serving import batching_parameters, flags, model_config
from isthmus.serving.deployment import SERVER_IMAGE, Deployment, files, main
from isthmus.serving.errors import ServingError
from isthmus.serving.metrics import Metrics

FOLDER = Path(__file__).parents[2] / "serving" / "deploy"
IMAGE = "registry.example/isthmus/digits:1"
PLAIN = Deployment(name="digits", image=IMAGE)
CLAIMED = Deployment(name="digits", image=IMAGE, model_claim="models", stable_version=3, canary_version=5)

CLASSES = {
    "ServiceAccount": "V1ServiceAccount",
    "ConfigMap": "V1ConfigMap",
    "Deployment": "V1Deployment",
    "Service": "V1Service",
    "HorizontalPodAutoscaler": "V2HorizontalPodAutoscaler",
    "PodDisruptionBudget": "V1PodDisruptionBudget",
    "NetworkPolicy": "V1NetworkPolicy",
}


def check(value: Any, kind: str, where: str) -> None:
    """Every field is one that Kubernetes' published API has, of its type, and none that it demands is missing."""
    many = re.fullmatch(r"list\[(.*)\]|dict\(str, (.*)\)", kind)
    if many is not None:
        is_list = kind.startswith("list")
        assert isinstance(value, list if is_list else dict), where
        for index, each in enumerate(value) if is_list else value.items():
            check(each, many.group(1) or many.group(2), f"{where}[{index}]")
        return
    plain = {"str": str, "int": int, "bool": bool, "object": object}
    if kind in plain:
        # object: an integer or a string, such as a port.
        assert isinstance(value, plain[kind]), where
        return
    model = getattr(kubernetes, kind)
    by_name = {model.attribute_map[name]: name for name in model.openapi_types}
    unknown = set(value) - set(by_name) - {"appProtocol"}
    assert not unknown, f"{where}: {kind} has no {unknown}"
    for name, each in value.items():
        if name in by_name:
            check(each, model.openapi_types[by_name[name]], f"{where}.{name}")
    model(**{by_name[name]: each for name, each in value.items() if name in by_name})


def objects(deployment: Deployment) -> dict[str, Any]:
    """The manifests by kind."""
    loaded = list(yaml.safe_load_all(files(deployment)["kubernetes.yaml"]))
    assert len({each["kind"] for each in loaded}) == len(loaded)
    return {each["kind"]: each for each in loaded}


@pytest.mark.parametrize("deployment", [PLAIN, CLAIMED])
def test_kubernetes_knows_every_field(deployment: Deployment) -> None:
    by_kind = objects(deployment)
    assert by_kind.keys() == CLASSES.keys()
    for kind, value in by_kind.items():
        check(value, CLASSES[kind], kind)
    service = yaml.safe_load(files(deployment)["kserve.yaml"])
    predictor = dict(service["spec"]["predictor"])
    assert (predictor.pop("minReplicas"), predictor.pop("maxReplicas")) == (2, 8)
    check(predictor, "V1PodSpec", "predictor")


def test_a_wrong_field_is_found() -> None:
    for pod in ({"containers": [{"name": "x", "imagePullPolice": "Always"}]}, {"volumes": []}):
        with pytest.raises((AssertionError, ValueError)):
            check(pod, "V1PodSpec", "pod")


@pytest.mark.parametrize("deployment", [PLAIN, CLAIMED])
def test_the_objects_fit_together(deployment: Deployment) -> None:
    by_kind = objects(deployment)
    template = by_kind["Deployment"]["spec"]["template"]
    labels, pod = template["metadata"]["labels"], template["spec"]
    (container,) = pod["containers"]
    for selector in (
        by_kind["Deployment"]["spec"]["selector"]["matchLabels"],
        by_kind["Service"]["spec"]["selector"],
        by_kind["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        by_kind["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for port in by_kind["Service"]["spec"]["ports"]:
        assert ports[port["targetPort"]] == port["port"]
    named = [port["port"] for rule in by_kind["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]]
    assert set(named) == set(ports)
    assert (
        by_kind["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"]
        == by_kind["Deployment"]["metadata"]["name"]
    )
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    for flag in container["args"]:
        path = flag.partition("=")[2]
        assert (
            not path.startswith("/config/") or path.removeprefix("/config/") in by_kind["ConfigMap"]["data"]
        )
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(ports["http"])


def test_security(tmp_path: Path) -> None:
    pod = objects(CLAIMED)["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert all(mount["readOnly"] for mount in container["volumeMounts"])
    policy = objects(CLAIMED)["NetworkPolicy"]["spec"]
    assert policy["egress"] == []
    assert all(rule["from"] for rule in policy["ingress"])


def test_probes_ask_for_what_they_mean() -> None:
    (container,) = objects(PLAIN)["Deployment"]["spec"]["template"]["spec"]["containers"]
    for name, path in (
        ("startupProbe", "/v1/models/digits/metadata"),
        ("readinessProbe", "/v1/models/digits/metadata"),
        ("livenessProbe", "/v1/models/digits"),
    ):
        assert container[name]["httpGet"] == {"path": path, "port": "http"}


@pytest.mark.parametrize("deployment", [PLAIN, CLAIMED])
def test_the_servers_own_files_are_read(deployment: Deployment, tmp_path: Path) -> None:
    for name, text in files(deployment).items():
        (tmp_path / name).write_text(text)
    (model,) = model_config.read_file(tmp_path / "models.config")
    assert (model.name, model.base_path) == ("digits", Path("/models/digits"))
    if deployment is CLAIMED:
        assert model.labels == {"stable": 3, "canary": 5}
        assert model.policy.versions == {3, 5}
    parameters = batching_parameters.read_parameters(tmp_path / "batching.config", num_cpus=2)
    assert parameters.allowed_batch_sizes == (1, 2, 4, 8, 16, 32)
    config = flags.parse(deployment.arguments)
    assert (config.port, config.rest_api_port, config.enable_batching) == (8500, 8501, True)


def test_image() -> None:
    lines = files(PLAIN)["Dockerfile"].splitlines()
    assert f"FROM {SERVER_IMAGE}" in lines
    assert "USER 65532:65532" in lines
    assert "COPY --chmod=0555 model /models/digits" in lines
    assert not [line for line in files(CLAIMED)["Dockerfile"].splitlines() if "/models/digits" in line]
    command = files(PLAIN)["Dockerfile"].partition("CMD ")[2].replace("\\\n", "")
    assert json.loads(command) == PLAIN.arguments


def test_dashboard_and_alerts_ask_for_metrics_that_exist() -> None:
    metrics = Metrics()
    metrics.request(model="digits", api="Predict", entrypoint="GRPC", status="OK", duration_us=1)
    metrics.runtime(model="digits", api="Predict", duration_us=1)
    metrics.load_attempt(model_path="/models/digits/1", succeeded=True, duration_us=1)
    page = metrics.page()
    texts = files(PLAIN)
    rules = yaml.safe_load(texts["alerts.yaml"])["groups"][0]["rules"]
    panels = json.loads(texts["grafana-dashboard.json"])["panels"]
    expressions = [rule["expr"] for rule in rules] + [panel["targets"][0]["expr"] for panel in panels]
    assert len(expressions) == 11
    for expression in expressions:
        assert expression.count("(") == expression.count(")")
        for name, matchers in re.findall(r"(:tensorflow:[a-z_:]+)\{([^}]*)\}", expression):
            assert f"\n{name}{{" in page, name
            for label in re.findall(r"([a-z_]+)(?:=|=~)\"", matchers):
                assert re.search(rf"^{name}\{{.*\b{label}=", page, re.MULTILINE), (name, label)


def test_the_committed_files_are_the_generated_ones(tmp_path: Path) -> None:
    assert main(["--name=digits", f"--image={IMAGE}", f"--output={tmp_path}"]) == 0
    generated = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert generated == {file.name: file.read_text() for file in FOLDER.iterdir()}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"name": "Digits"}, "'Digits' is no name for a deployment"),
        ({"name": "../x"}, "is no name for a deployment"),
        ({"image": "registry.example:5000/digits"}, "needs a tag of its own"),
        ({"image": "digits:latest"}, "needs a tag of its own"),
        ({"canary_version": 2}, "a canary_version needs a stable_version"),
        ({"min_replicas": 9}, "min_replicas must be 1 or more, and at most max_replicas"),
    ],
)
def test_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ServingError, match=re.escape(text)):
        Deployment(**{"name": "digits", "image": IMAGE, **values})


def test_command_line_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--name=digits", "--image=x:latest", f"--output={tmp_path}"]) == 1
    assert capsys.readouterr().err.startswith("error: image 'x:latest' needs a tag")


def test_vertex_knows_every_field() -> None:
    """The bodies of models.upload and endpoints.deployModel, read by Google's own messages."""
    from google.cloud.aiplatform_v1.types import DeployedModel, Model

    texts = files(PLAIN)
    upload, deploy = json.loads(texts["vertex-model.json"]), json.loads(texts["vertex-deploy.json"])
    container = Model.from_json(json.dumps(upload["model"])).container_spec
    assert list(container.args) == PLAIN.arguments
    assert (container.ports[0].container_port, container.grpc_ports[0].container_port) == (8501, 8500)
    assert container.predict_route == "/v1/models/digits:predict"
    resources = DeployedModel.from_json(json.dumps(deploy["deployedModel"])).dedicated_resources
    assert (resources.min_replica_count, resources.max_replica_count) == (2, 8)
    upload["model"]["containerSpec"]["healthRout"] = "/"
    with pytest.raises(json_format.ParseError, match="healthRout"):
        Model.from_json(json.dumps(upload["model"]))
