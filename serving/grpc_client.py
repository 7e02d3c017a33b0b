"""The gRPC client."""

from collections.abc import Mapping, Sequence
from typing import Any

from isthmus.serving import grpc_messages
from isthmus.serving.client_base import Array, Client, Signature, VersionStatus
from isthmus.serving.errors import RequestError
from isthmus.serving.retries import RetryPolicy, call_with_retries
from isthmus.serving.status import Code

__all__ = ["GrpcClient"]

_RETRY = RetryPolicy()


class GrpcClient(Client):
    """A client of the gRPC API; safe to share between threads.

    Args:
        host: name or address of the server.
        port: its gRPC port.
        timeout_s: time limit of one call, its retries included.
        credentials: grpc.ssl_channel_credentials(…) for a server with TLS.
        token: for a server that wants an API token.
        retry: when a predict is tried again.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 8500,
        timeout_s: float = 30.0,
        credentials: Any = None,
        token: str | None = None,
        retry: RetryPolicy = _RETRY,
    ) -> None:
        import grpc

        self._timeout_s, self._retry = timeout_s, retry
        self._metadata = grpc_messages.call_metadata(token)
        address, options = f"{host}:{port}", grpc_messages.CHANNEL_OPTIONS
        self._channel = (
            grpc.insecure_channel(address, options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options)
        )

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def predict(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        signature: str = "",
        version: int | None = None,
        label: str | None = None,
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> dict[str, Array]:
        """Outputs by alias of one Predict call.

        Args:
            model: the model's name.
            inputs: arrays, or what numpy makes arrays of, by input alias; bytes and text become strings.
            signature: which one; "" is serving_default.
            version: which one; by default the newest available.
            label: a version label instead of a version.
            outputs: aliases to compute; all by default.
            timeout_s: time limit of this call, retries included, instead of the client's.

        Raises:
            RequestError: what the server answered, or DEADLINE_EXCEEDED, or UNAVAILABLE when there is no
                server.
        """
        request = grpc_messages.predict_request(model, inputs, signature, version, label, outputs)
        response = call_with_retries(
            lambda left_s: self._call(grpc_messages.PREDICT, request, left_s),
            self._retry,
            timeout_s=self._timeout_s if timeout_s is None else timeout_s,
        )
        return grpc_messages.predict_outputs(response)

    def status(self, model: str, *, version: int | None = None) -> list[VersionStatus]:
        """State of the model's versions, newest first.

        Raises:
            RequestError: NOT_FOUND for an unknown model.
        """
        request = grpc_messages.status_request(model, version)
        return grpc_messages.statuses(self._call(grpc_messages.STATUS, request, self._timeout_s))

    def labelled_version(self, model: str, label: str) -> int:
        """The version that a label stands for, by the metadata's answer: the status request ignores labels.

        Raises:
            RequestError: INVALID_ARGUMENT for a label that the model does not have.
        """
        request = grpc_messages.metadata_request(model, None, label)
        answer = self._call(grpc_messages.METADATA, request, self._timeout_s)
        return int(answer.model_spec.version.value)

    def metadata(self, model: str, *, version: int | None = None) -> dict[str, Signature]:
        """The model's signatures by name.

        Raises:
            RequestError: NOT_FOUND for an unknown model.
        """
        request = grpc_messages.metadata_request(model, version)
        return grpc_messages.signatures(self._call(grpc_messages.METADATA, request, self._timeout_s))

    def reload_config(self, config: Any) -> None:
        """Make the server serve exactly what a ModelServerConfig message says, from now on.

        Raises:
            RequestError: FAILED_PRECONDITION when a label names a version that is not AVAILABLE;
                PERMISSION_DENIED when the server takes no such request from here.
        """
        request = grpc_messages.reload_request(config)
        status = self._call(grpc_messages.RELOAD, request, self._timeout_s).status
        if status.error_code:
            raise RequestError(Code(status.error_code), status.error_message)

    def _call(self, method: grpc_messages.Method, request: Any, timeout_s: float) -> Any:
        import grpc

        call = self._channel.unary_unary(
            method.path,
            request_serializer=type(request).SerializeToString,
            response_deserializer=method.response_class().FromString,
        )
        try:
            return call(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise RequestError(Code(error.code().value[0]), error.details() or "") from error
