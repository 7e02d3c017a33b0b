"""ServerValidator: the real server on the very SavedModel, asked real questions; writes the InfraBlessing.

TFX's InfraValidator needs Docker or Kubernetes. This one starts the embedded server as a process, or the binary or
container of TensorFlow Serving that is configured, sends the reference images over gRPC and REST to every
signature, and wants torch's answers back, within the budgets; a request that is wrong must be refused without harm,
and the model must bring warm-up requests.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tfx import types
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.dsl.io import fileio
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from isthmus.export import parity
from isthmus.export.config import GateConfig, Stage
from isthmus.export.reference import Reference
from isthmus.lineage.files import canonical_json
from isthmus.serving.process import ServerProcess
from isthmus.tfx_pipeline.artifacts import Verdict
from isthmus.tfx_pipeline.config import ServerGate
from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.external_server import (
    ExternalServer,
    binary_command,
    image_command,
    peak_memory_mb,
)
from isthmus.tfx_pipeline.model_artifact import gates_of, manifest_of, reference_of, saved_model_of
from isthmus.tfx_pipeline.parity_validator import inconsistent_answer, record_of
from isthmus.tfx_pipeline.server_budgets import (
    costs,
    latencies_ms,
    metrics_page,
    replayed,
    warmup_refusal,
)
from isthmus.tfx_pipeline.server_questions import GrpcQuestions, RestQuestions, RestRefusal

SIGNATURES = ("serving_default", "tensors", "examples", "classify", "manifest")
_NO_IMAGE = b"this is no image"
# A float image of a large model is megabytes of JSON: enough are sent to see that the numbers arrive.
_NUM_JSON_IMAGES = 2

Predict = Callable[[str, dict[str, Any]], dict[str, Any]]


def ask_everything(
    stage: Stage, predict: Predict, reference: Reference, *, manifest: dict[str, Any], gates: GateConfig
) -> parity.StageResult:
    """Send the reference images to every signature and compare each answer with torch's.

    Args:
        stage: `server_grpc` or `server_rest`.
        predict: (signature, inputs) → outputs.
        reference: N images and torch's logits.
        manifest: The bundle's manifest; the signature of that name must answer with it.
        gates: The limits.
    """
    head, labels = manifest["model"]["head"], manifest["model"]["labels"]
    encoded = list(reference.encoded)
    comparable = parity.comparable_logits(reference.logits, head=head)
    examples = [record_of(image) for image in encoded]
    measurements = []
    for signature, inputs in (
        ("serving_default", {"image_bytes": encoded}),
        ("examples", {"examples": examples}),
    ):
        answer = predict(signature, inputs)
        probabilities = np.asarray(answer["probabilities"])
        measurements.append(
            parity.Measurement(
                what=signature,
                candidate=parity.recovered_logits(probabilities, head=head),
                reference=comparable,
                inconsistent=inconsistent_answer(
                    np.asarray(answer["class_id"]), np.asarray(answer["label"]), labels=labels
                ),
            )
        )
        if "logits" in answer:
            # A softmax forgets what all classes have in common; the logits do not.
            logits = np.asarray(answer["logits"])
            measurements.append(parity.Measurement(what=f"{signature}, logits", candidate=logits))
    num_direct = len(reference) if stage == "server_grpc" else min(_NUM_JSON_IMAGES, len(reference))
    (logits,) = predict("tensors", {"images": reference.images[:num_direct]}).values()
    candidate = np.array(reference.logits)
    candidate[:num_direct] = np.asarray(logits)
    measurements.append(parity.Measurement(what=f"tensors, {num_direct} images", candidate=candidate))
    measurements.append(
        _classify(predict("classify", {"inputs": examples}), reference, comparable, labels, head)
    )
    (answered,) = predict("manifest", {"inputs": [b""]}).values()
    same = json.loads(np.asarray(answered).reshape(-1)[0]) == manifest
    wrong = None if same else "the signature `manifest` does not answer with the bundle's manifest"
    measurements.append(parity.Measurement(what="manifest", candidate=reference.logits, inconsistent=wrong))
    return parity.judge_logits(
        stage, reference.logits, measurements, gates=gates, head=head, paths=reference.paths
    )


def _classify(
    answer: dict[str, Any], reference: Reference, comparable: np.ndarray, labels: list[str], head: str
) -> parity.Measurement:
    """The scores of `classify`, put into the order of the labels by their own class names."""
    names = [[_text(name) for name in row] for row in np.asarray(answer["classes"]).tolist()]
    scores = np.asarray(answer["scores"], dtype=np.float64)
    index = {label: i for i, label in enumerate(labels)}
    probabilities = np.full(reference.logits.shape, np.nan)
    wrong = None
    for row, (row_names, row_scores) in enumerate(zip(names, scores, strict=True)):
        if sorted(row_names) != sorted(labels):
            wrong = f"`classify` answers with the classes {row_names[:5]}, not with the model's labels"
            continue
        probabilities[row, [index[name] for name in row_names]] = row_scores
    return parity.Measurement(
        what="classify",
        candidate=parity.recovered_logits(probabilities, head=head),
        reference=comparable,
        inconsistent=wrong,
    )


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _refuses_nonsense(grpc_questions: GrpcQuestions, rest_questions: RestQuestions) -> list[str]:
    """What is wrong with the way the server takes bytes that are no image; empty when nothing is."""
    reasons = []
    try:
        grpc_questions.predict("serving_default", {"image_bytes": [_NO_IMAGE]})
        reasons.append("gRPC answered bytes that are no image as if they were one")
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.INVALID_ARGUMENT:
            reasons.append(f"gRPC answered a bad request with {error.code().name}, not INVALID_ARGUMENT")
    try:
        rest_questions.predict("serving_default", {"image_bytes": [_NO_IMAGE]})
        reasons.append("REST answered bytes that are no image as if they were one")
    except RestRefusal as refusal:
        if refusal.status != 400:
            reasons.append(f"REST answered a bad request with HTTP {refusal.status}, not 400")
    return reasons


def _first(reference: Reference, num_images: int) -> Reference:
    return Reference(
        images=reference.images[:num_images],
        pixels=reference.pixels[:num_images],
        logits=reference.logits[:num_images],
        encoded=reference.encoded[:num_images],
        labels=reference.labels[:num_images],
        paths=reference.paths[:num_images],
    )


@contextlib.contextmanager
def _serving(gate: ServerGate, name: str, saved_model: Path) -> Iterator[ServerProcess | ExternalServer]:
    """The server that is configured, with the model loaded."""
    if gate.binary or gate.image:
        command = binary_command(gate.binary) if gate.binary else image_command(str(gate.image))
        with ExternalServer(
            command, model_name=name, saved_model=saved_model, start_timeout_s=gate.deadline_s
        ) as external:
            yield external
        return
    with tempfile.TemporaryDirectory(prefix="isthmus-server-") as folder:
        os.symlink(saved_model, Path(folder, "1"))
        with ServerProcess(
            name, Path(folder), start_timeout_s=gate.deadline_s, flags=["--admin_port=0"]
        ) as embedded:
            yield embedded


def _warmup_refusals(server: ServerProcess | ExternalServer, gate: ServerGate) -> list[str]:
    """The reason against a model whose warm-up the embedded server did not replay; another's metrics are not asked."""
    if isinstance(server, ExternalServer):
        return []
    assert server.admin_port is not None, "the embedded server is started with an admin port"
    try:
        page = metrics_page(server.admin_port, deadline_s=gate.deadline_s)
    except OSError as error:
        raise PipelineError(f"the server's metrics cannot be read: {error}") from error
    return [] if replayed(page) else ["the server's metrics tell of no warm-up"]


def _time(over_grpc: GrpcQuestions, reference: Reference, gate: ServerGate) -> tuple[float, list[float]]:
    """(the very first request, those after it) in milliseconds; one image each, taking turns."""
    images = itertools.cycle(reference.encoded)

    def ask() -> object:
        return over_grpc.predict("serving_default", {"image_bytes": [next(images)]})

    first_ms, *after_ms = latencies_ms(ask, 1 + gate.num_requests)
    return first_ms, after_ms


class Executor(base_executor.BaseExecutor):
    """Writes the blessing. Raises when the server does not start or answer; wrong answers are a verdict."""

    def Do(  # noqa: N802 - TFX's name
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Write `INFRA_BLESSED` or `INFRA_NOT_BLESSED`, `verdict.json` and the property `blessed`.

        Raises:
            ServingError: The server does not load the model, or dies.
            PipelineError: It does not answer a request that it should answer.
        """
        (blessing,) = output_dict["blessing"]
        try:
            verdict = self._verdict(input_dict["model"][0], exec_properties)
        except grpc.RpcError as error:
            raise PipelineError(f"the server answered {error.code().name}: {error.details()}") from error
        except RestRefusal as error:
            raise PipelineError(f"the server refused a good request over REST: {error}") from error
        verdict.write(blessing)
        flag = "INFRA_BLESSED" if verdict.passed else "INFRA_NOT_BLESSED"
        with fileio.open(os.path.join(blessing.uri, flag), "w") as file:
            file.write("")

    def _verdict(self, model: types.Artifact, exec_properties: dict[str, Any]) -> Verdict:
        gate = ServerGate(**json.loads(exec_properties["gate"]))
        if refusal := warmup_refusal(saved_model_of(model)):
            return Verdict(passed=False, summary="no warm-up, no server started", reasons=[refusal])
        manifest = manifest_of(model)
        reference = _first(reference_of(model), gate.num_images)
        gates = gates_of(
            manifest,
            logit_error=exec_properties["logit_error"],
            top1_agreement=exec_properties["top1_agreement"],
        )
        with _serving(gate, manifest["name"], saved_model_of(model)) as server:
            asked: dict[str, Any] = {"model_name": manifest["name"], "deadline_s": gate.deadline_s}
            over_grpc = GrpcQuestions(port=server.grpc_port, **asked)
            over_rest = RestQuestions(port=server.rest_port, **asked)
            warmup_refusals = _warmup_refusals(server, gate)
            try:
                first_ms, after_ms = _time(over_grpc, reference, gate)
                verdict = self._ask(over_grpc, over_rest, reference, manifest=manifest, gates=gates)
            finally:
                over_grpc.close()
            measured = costs(first_ms, after_ms, peak_memory_mb(server.pid))
        reasons = [*warmup_refusals, *verdict.reasons, *measured.refusals(gate)]
        return Verdict(
            passed=not reasons,
            summary=f"{verdict.summary}; {measured.summary()}",
            reasons=reasons,
            details={
                **verdict.details,
                "costs": asdict(measured),
                "server": gate.binary or gate.image or "embedded",
            },
        )

    def _ask(
        self,
        over_grpc: GrpcQuestions,
        over_rest: RestQuestions,
        reference: Reference,
        *,
        manifest: dict[str, Any],
        gates: GateConfig,
    ) -> Verdict:
        reasons = []
        if missing := sorted(set(SIGNATURES) - over_grpc.signatures()):
            reasons.append(f"the model has no signature {', '.join(missing)}")
            return Verdict(passed=False, summary="signatures missing", reasons=reasons)
        if (state := over_rest.state()) != "AVAILABLE":
            reasons.append(f"REST says that the model is {state}")
        reasons += _refuses_nonsense(over_grpc, over_rest)
        # After the bad request: a server that it has harmed does not answer these.
        results = [
            ask_everything("server_grpc", over_grpc.predict, reference, manifest=manifest, gates=gates),
            ask_everything("server_rest", over_rest.predict, reference, manifest=manifest, gates=gates),
        ]
        reasons += [f"{result.title}: {result.problem}" for result in results if not result.passed]
        return Verdict(
            passed=not reasons,
            summary=f"{len(SIGNATURES)} signatures over gRPC and REST on {len(reference)} images",
            reasons=reasons,
            details={"stages": [result.as_dict() for result in results]},
        )


class ServerValidatorSpec(ComponentSpec):
    """Inputs, outputs and parameters of ServerValidator."""

    PARAMETERS = {  # noqa: RUF012 - TFX reads class attributes
        "gate": ExecutionParameter(type=str),
        "logit_error": ExecutionParameter(type=float),
        "top1_agreement": ExecutionParameter(type=float),
        "code": ExecutionParameter(type=str),
    }
    INPUTS = {"model": ChannelParameter(type=standard_artifacts.Model)}  # noqa: RUF012
    OUTPUTS = {"blessing": ChannelParameter(type=standard_artifacts.InfraBlessing)}  # noqa: RUF012


class ServerValidator(base_component.BaseComponent):
    """Gate: the server serves the model, and serves torch's answers."""

    SPEC_CLASS = ServerValidatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self,
        *,
        model: types.BaseChannel,
        gate: ServerGate,
        logit_error: float,
        top1_agreement: float,
        code: str,
    ) -> None:
        """Describe one run; the limits of the answers are those of `config.ParityGate`."""
        super().__init__(
            ServerValidatorSpec(
                model=model,
                gate=canonical_json(asdict(gate)),
                logit_error=logit_error,
                top1_agreement=top1_agreement,
                code=code,
                blessing=types.Channel(type=standard_artifacts.InfraBlessing),
            )
        )
