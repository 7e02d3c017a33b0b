"""Asks a running model server over gRPC and REST, as any client of TensorFlow Serving would.

The stubs are TensorFlow Serving's own and the REST bodies are written here: a mistake that our server and our
client shared would not be seen through our client.
"""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

from isthmus.tfx_pipeline.errors import PipelineError

_MAX_MESSAGE_BYTES = 1 << 30


class GrpcQuestions:
    """Predict and GetModelMetadata of one model."""

    def __init__(self, *, port: int, model_name: str, deadline_s: float) -> None:
        """Open a channel to loopback."""
        self._channel = grpc.insecure_channel(
            f"127.0.0.1:{port}",
            options=[
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ],
        )
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._model_name, self._deadline_s = model_name, deadline_s

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def predict(self, signature: str, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        """Output name → array. Raises grpc.RpcError."""
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = self._model_name, signature
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        answer = self._stub.Predict(request, timeout=self._deadline_s)
        return {name: tf.make_ndarray(proto) for name, proto in answer.outputs.items()}

    def signatures(self) -> set[str]:
        """The names of the model's signatures."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = self._model_name
        answer = self._stub.GetModelMetadata(request, timeout=self._deadline_s)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(signatures)
        return set(signatures.signature_def)


class RestRefusal(Exception):  # noqa: N818 - an answer, not a malfunction
    """The server answered with an HTTP error."""

    def __init__(self, status: int, body: str) -> None:
        """Keep the status and the text."""
        super().__init__(f"HTTP {status}: {body}")
        self.status = status


class RestQuestions:
    """`POST /v1/models/<name>:predict` in the columnar format, and the model's status."""

    def __init__(self, *, port: int, model_name: str, deadline_s: float) -> None:
        """Remember where the server is."""
        self._url, self._deadline_s = f"http://127.0.0.1:{port}/v1/models/{model_name}", deadline_s

    def predict(self, signature: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """Output name → JSON value; a single output has the name "". Raises RestRefusal."""
        body = {
            "signature_name": signature,
            "inputs": {name: _to_json(value) for name, value in inputs.items()},
        }
        outputs = self._ask(f"{self._url}:predict", json.dumps(body).encode())["outputs"]
        return outputs if isinstance(outputs, dict) else {"": outputs}

    def state(self) -> str:
        """State of the newest version, such as AVAILABLE."""
        return str(self._ask(self._url, None)["model_version_status"][0]["state"])

    def _ask(self, url: str, body: bytes | None) -> dict[str, Any]:
        request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self._deadline_s) as answer:
                decoded: dict[str, Any] = json.loads(answer.read())
                return decoded
        except urllib.error.HTTPError as error:
            with error:
                raise RestRefusal(error.code, error.read().decode(errors="replace")[:500]) from None
        except OSError as error:
            raise PipelineError(f"the server did not answer over REST: {error}") from error


def _to_json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [{"b64": base64.b64encode(item).decode()} for item in value]
