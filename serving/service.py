"""Every call of the API on the models that run: what both wires share.

Messages in, messages (or JSON) out; errors leave as `RequestError` and become a response in the edge.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from google.protobuf import json_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)

from isthmus.serving import (
    examples,
    inference,
    json_examples,
    json_request,
    json_response,
    model_config,
    tensors,
)
from isthmus.serving.config import ServingConfig
from isthmus.serving.errors import RequestError
from isthmus.serving.manager import ModelManager
from isthmus.serving.metrics import Metrics
from isthmus.serving.prediction_log import PredictionLog
from isthmus.serving.routing import ModelRef, Route
from isthmus.serving.savedmodel import DEFAULT_SIGNATURE, LoadedModel
from isthmus.serving.status import Code
from isthmus.serving.tracing import annotate

__all__ = ["Service", "model_ref"]

logger = logging.getLogger(__name__)

_SIGNATURE_DEF = "signature_def"


def model_ref(spec: Any) -> ModelRef:
    """The model that a tensorflow.serving.ModelSpec names."""
    choice = spec.WhichOneof("version_choice")
    return ModelRef(
        spec.name,
        spec.version.value if choice == "version" else None,
        spec.version_label if choice == "version_label" else None,
    )


class Service:
    """The API over a `ModelManager`."""

    def __init__(
        self,
        manager: ModelManager,
        config: ServingConfig,
        metrics: Metrics,
        predictions: PredictionLog | None = None,
    ) -> None:
        self.manager = manager
        self._predictions = predictions
        self._metrics = metrics
        self._as_content = config.enable_serialization_as_tensor_content
        check = config.enable_signature_method_name_check
        self._grpc_options = inference.CallOptions(check_method_name=check)
        self._rest_options = inference.CallOptions(
            check_method_name=check, timeout_ms=max(config.rest_api_timeout_in_ms, 0)
        )

    @contextmanager
    def _running(
        self, ref: ModelRef, api: str, *signatures: str, entrypoint: str = "GRPC"
    ) -> Iterator[tuple[LoadedModel, int]]:
        """The model that ref names; the time within, when all goes well, is a computation's, and one of each of the
        signatures ("" for the default), which the model then has."""
        with self.manager.model(ref) as found:
            started = time.perf_counter()
            annotate(model=ref.name, version=found[1])
            yield found
            duration_us = (time.perf_counter() - started) * 1e6
        self._metrics.runtime(model=ref.name, api=api, duration_us=duration_us)
        for signature in {name or DEFAULT_SIGNATURE for name in signatures}:
            self._metrics.signature(
                model=ref.name,
                signature=signature,
                api=api.lower() if entrypoint == "REST" else api,
                entrypoint=entrypoint,
                duration_us=duration_us,
            )

    # ---- gRPC: timeout_s is how long the client still waits; None: as long as it takes ----

    def _within(self, timeout_s: float | None) -> inference.CallOptions:
        if timeout_s is None:
            return self._grpc_options
        return dataclasses.replace(self._grpc_options, timeout_ms=max(math.ceil(timeout_s * 1e3), 1))

    def predict(self, request: Any, *, timeout_s: float | None = None) -> Any:
        """PredictionService.Predict."""
        spec = _spec(request)
        with self._running(model_ref(spec), "Predict", spec.signature_name) as (model, version):
            outputs = inference.predict_from_protos(
                model,
                spec.signature_name,
                request.inputs,
                request.output_filter,
                self._within(timeout_s),
            )
        response = predict_pb2.PredictResponse()
        _fill_spec(response.model_spec, spec, version)
        for alias, array in outputs.items():
            tensors.fill_proto(response.outputs[alias], array, as_content=self._as_content)
        if self._predictions is not None and self._predictions.is_sampled():
            self._predictions.predict(request, response)
        return response

    def classify(self, request: Any, *, timeout_s: float | None = None) -> Any:
        """PredictionService.Classify."""
        spec = _spec(request)
        response = classification_pb2.ClassificationResponse()
        with self._running(model_ref(spec), "Classify", spec.signature_name) as (model, version):
            result = examples.classify(model, spec.signature_name, request.input, self._within(timeout_s))
        response.result.CopyFrom(result)
        _fill_spec(response.model_spec, spec, version)
        if self._predictions is not None and self._predictions.is_sampled():
            self._predictions.classify(request, response)
        return response

    def regress(self, request: Any, *, timeout_s: float | None = None) -> Any:
        """PredictionService.Regress."""
        spec = _spec(request)
        response = regression_pb2.RegressionResponse()
        with self._running(model_ref(spec), "Regress", spec.signature_name) as (model, version):
            result = examples.regress(model, spec.signature_name, request.input, self._within(timeout_s))
        response.result.CopyFrom(result)
        _fill_spec(response.model_spec, spec, version)
        if self._predictions is not None and self._predictions.is_sampled():
            self._predictions.regress(request, response)
        return response

    def multi_inference(self, request: Any, *, timeout_s: float | None = None) -> Any:
        """PredictionService.MultiInference."""
        ref = model_ref(request.tasks[0].model_spec) if request.tasks else ModelRef("")
        signatures = [task.model_spec.signature_name for task in request.tasks]
        with self._running(ref, "MultiInference", *signatures) as (model, version):
            return examples.multi_inference(model, request, version, self._within(timeout_s))

    def reload_config(self, request: Any, *, timeout_s: float | None = None) -> Any:
        """ModelService.HandleReloadConfigRequest: replaces all that is served; waits for models that are
        new."""
        if request.config.WhichOneof("config") != "model_config_list":
            raise RequestError(
                Code.INVALID_ARGUMENT,
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported",
            )
        self.manager.reload(model_config.settings(request.config), timeout_s=timeout_s)
        response = model_management_pb2.ReloadConfigResponse()
        response.status.SetInParent()
        return response

    def metadata(self, request: Any) -> Any:
        """PredictionService.GetModelMetadata."""
        spec = _spec(request)
        if not request.metadata_field:
            raise RequestError(
                Code.INVALID_ARGUMENT, "GetModelMetadataRequest must specify at least one metadata_field"
            )
        for field in request.metadata_field:
            if field != _SIGNATURE_DEF:
                raise RequestError(Code.INVALID_ARGUMENT, f"Metadata field {field} is not supported")
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        with self.manager.model(model_ref(spec)) as (model, version):
            signatures = _signature_map(model.signatures)
        response.model_spec.name = spec.name
        response.model_spec.version.value = version
        response.metadata[_SIGNATURE_DEF].Pack(signatures)
        return response

    def status(self, request: Any) -> Any:
        """ModelService.GetModelStatus."""
        return self._status(model_ref(_spec(request)))

    # ---- REST ----

    def rest(self, route: Route, body: bytes) -> bytes:
        """The JSON that answers one REST request."""
        handlers: dict[str, Callable[[ModelRef, bytes], bytes]] = {
            "predict": self._rest_predict,
            "classify": self._rest_classify,
            "regress": self._rest_regress,
            "status": self._rest_status,
            "metadata": self._rest_metadata,
        }
        try:
            return handlers[route.verb](route.model, body)
        except RecursionError as error:
            raise RequestError(Code.INVALID_ARGUMENT, "the JSON is nested too deeply") from error
        except (ValueError, OverflowError) as error:
            # A number or a text that no tensor can hold: the client's to change; each should have had its own text.
            logger.warning("%s of %s: a value was refused late", route.verb, route.model.name, exc_info=True)
            raise RequestError(
                Code.INVALID_ARGUMENT, f"the request holds a value that cannot be converted: {error}"
            ) from error

    def _rest_classify(self, ref: ModelRef, body: bytes) -> bytes:
        signature, example_input = json_examples.parse_examples(body)
        with self._running(ref, "Classify", signature, entrypoint="REST") as (model, version):
            result = examples.classify(model, signature, example_input, self._rest_options)
        if self._predictions is not None and self._predictions.is_sampled():
            spec = _answering_spec(ref, signature, version)
            self._predictions.classify(
                classification_pb2.ClassificationRequest(model_spec=spec, input=example_input),
                classification_pb2.ClassificationResponse(model_spec=spec, result=result),
            )
        return json_examples.classifications(result)

    def _rest_regress(self, ref: ModelRef, body: bytes) -> bytes:
        signature, example_input = json_examples.parse_examples(body)
        with self._running(ref, "Regress", signature, entrypoint="REST") as (model, version):
            result = examples.regress(model, signature, example_input, self._rest_options)
        if self._predictions is not None and self._predictions.is_sampled():
            spec = _answering_spec(ref, signature, version)
            self._predictions.regress(
                regression_pb2.RegressionRequest(model_spec=spec, input=example_input),
                regression_pb2.RegressionResponse(model_spec=spec, result=result),
            )
        return json_examples.regressions(result)

    def _rest_predict(self, ref: ModelRef, body: bytes) -> bytes:
        # The lookup happens inside the parser: a body that is no JSON is answered before a model that is not
        # there.
        def infos_of(signature: str) -> Any:
            with self.manager.model(ref) as (model, _):
                return inference.input_infos(model, signature)

        parsed = json_request.parse_predict(body, infos_of)
        name = parsed.signature_name
        with self._running(ref, "Predict", name, entrypoint="REST") as (model, version):
            outputs = inference.predict(model, name, parsed.inputs, self._rest_options)
        if self._predictions is not None and self._predictions.is_sampled():
            self._predictions.predict_arrays(_answering_spec(ref, name, version), parsed.inputs, outputs)
        return json_response.predictions(outputs, row_format=parsed.row_format)

    def _rest_status(self, ref: ModelRef, _body: bytes) -> bytes:
        return _json(self._status(ref)).encode()

    def _rest_metadata(self, ref: ModelRef, _body: bytes) -> bytes:
        with self.manager.model(ref) as (model, version):
            signatures = _signature_map(model.signatures)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = ref.name
        response.model_spec.version.value = version
        return (
            f'{{\n"model_spec":{_json(response.model_spec)},\n'
            f'"metadata": {{"signature_def": {_json(signatures)}}}\n}}\n'
        ).encode()

    def _status(self, ref: ModelRef) -> Any:
        response = get_model_status_pb2.GetModelStatusResponse()
        for servable in self.manager.statuses(ref):
            entry = response.model_version_status.add(version=servable.version, state=int(servable.state))
            entry.status.SetInParent()
            if servable.error is not None:
                entry.status.error_code = int(servable.error.code)
                entry.status.error_message = servable.error.message
        return response


def _spec(request: Any) -> Any:
    if not request.HasField("model_spec"):
        raise RequestError(Code.INVALID_ARGUMENT, "Missing ModelSpec")
    return request.model_spec


def _fill_spec(answered: Any, asked: Any, version: int) -> None:
    answered.name = asked.name
    answered.version.value = version
    answered.signature_name = asked.signature_name or DEFAULT_SIGNATURE


def _answering_spec(ref: ModelRef, signature: str, version: int) -> Any:
    """The tensorflow.serving.ModelSpec of what answered a REST request."""
    spec = model_pb2.ModelSpec(name=ref.name, signature_name=signature or DEFAULT_SIGNATURE)
    spec.version.value = version
    return spec


def _signature_map(signatures: dict[str, Any]) -> Any:
    result = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in signatures.items():
        result.signature_def[name].CopyFrom(signature)
    return result


def _json(message: Any) -> str:
    """A message as the C++ MessageToJsonString prints it with white space and primitive defaults."""
    return (
        json_format.MessageToJson(
            message,
            always_print_fields_with_no_presence=True,
            preserving_proto_field_name=True,
            indent=1,
            ensure_ascii=False,
        )
        + "\n"
    )
