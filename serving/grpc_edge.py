"""The gRPC wire: binds the port, registers the services, and turns `RequestError` into a status."""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError

from isthmus.serving import grpc_extras, profiler
from isthmus.serving.access_log import AccessLog
from isthmus.serving.config import ServingConfig
from isthmus.serving.errors import RequestError, ServingError
from isthmus.serving.metrics import Metrics
from isthmus.serving.ports import bound_socket, port_taken
from isthmus.serving.security import ApiTokens, TokenInterceptor, check_reload_peer, read_tls
from isthmus.serving.status import Code
from isthmus.serving.tracing import Tracing
from isthmus.serving.wire_messages import serialized_file

__all__ = ["GrpcEdge"]

logger = logging.getLogger(__name__)

Handler = Callable[[Any, grpc.ServicerContext], Any]

_MAX_MESSAGE_BYTES = 2**31 - 1
_PORT_FLAGS = "--port and --host"
# grpc_status_util.cc: longer texts would not fit into HTTP/2 trailers.
_MAX_DETAILS = 1024
# A call that leaves itself more time than this has no deadline; gRPC says so with 292 billion years.
_MAX_TIMEOUT_S = 30 * 86400.0
# What gRPC itself may take to cancel calls.
_CANCEL_SECONDS = 2.0
_GRPC_CODES = {int(code.value[0]): code for code in grpc.StatusCode}


class GrpcEdge:
    """A gRPC server whose port is bound at once and open from `start` on.

    Raises:
        PortTakenError: or the address is unusable.
        ServingError: the TLS configuration is.
    """

    def __init__(
        self,
        config: ServingConfig,
        metrics: Metrics,
        tokens: ApiTokens | None = None,
        access_log: AccessLog | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._tracing = tracing
        self._access_log = access_log
        tls_file = config.ssl_config_file
        self._credentials = None if tls_file is None else read_tls(tls_file).grpc_credentials()
        threads = config.grpc_max_threads or max(4 * (os.cpu_count() or 1), 32)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="grpc")
        self._server = grpc.server(
            self._pool,
            interceptors=[] if tokens is None else [TokenInterceptor(tokens, self._log_refused)],
            options=[
                # Without this a second server would silently share the port.
                ("grpc.so_reuseport", 0),
                ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_receive_message_length", config.max_request_bytes),
                *_channel_arguments(config.grpc_channel_arguments),
            ],
        )
        self._health: grpc_extras.Health | None = None
        self._stopped: threading.Event | None = None
        # gRPC listens as soon as it has a port, and a connection would wait for the models in the kernel's queue.
        self._kept = bound_socket(config.host, config.port, what="gRPC", flags=_PORT_FLAGS)
        self.port: int = self._kept.getsockname()[1]

    def _listen(self, address: str, flags: str) -> None:
        try:
            if self._credentials is None:
                self._server.add_insecure_port(address)
            else:
                self._server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise port_taken(address, "gRPC", flags, "it is in use or not this machine's") from error

    def add(self, service: Any) -> None:
        """Register a `service.Service`; the port opens with `start`."""
        from tensorflow_serving.apis import (
            classification_pb2,
            get_model_metadata_pb2,
            get_model_status_pb2,
            inference_pb2,
            model_management_pb2,
            predict_pb2,
            regression_pb2,
        )

        services = _described_services()
        reload = self._privileged(service.reload_config, "ReloadConfig", with_timeout=True)
        methods = {
            "PredictionService": {
                "Predict": (predict_pb2.PredictRequest, self._counted("Predict", service.predict)),
                "Classify": (
                    classification_pb2.ClassificationRequest,
                    self._counted("Classify", service.classify),
                ),
                "Regress": (regression_pb2.RegressionRequest, self._counted("Regress", service.regress)),
                "MultiInference": (
                    inference_pb2.MultiInferenceRequest,
                    self._counted("MultiInference", service.multi_inference),
                ),
                "GetModelMetadata": (
                    get_model_metadata_pb2.GetModelMetadataRequest,
                    _wire(service.metadata),
                ),
            },
            "ModelService": {
                "GetModelStatus": (get_model_status_pb2.GetModelStatusRequest, _wire(service.status)),
                "HandleReloadConfigRequest": (model_management_pb2.ReloadConfigRequest, reload),
            },
        }
        for name, calls in methods.items():
            self._add_service(f"tensorflow.serving.{name}", calls)
        if self._config.enable_grpc_healthcheck_service:
            self._health = grpc_extras.Health(services)
            self._health.add_to(self._server)
        grpc_extras.add_reflection(self._server, services)
        if self._config.enable_profiler:
            profiling = {
                name: (request_class, self._privileged(call, "Profile"))
                for name, (request_class, call) in profiler.methods().items()
            }
            self._add_service(profiler.SERVICE, profiling)

    def start(self) -> None:
        """Open the port and serve what was added.

        Raises:
            PortTakenError: by one that was bound before this one was and listens since; or the UNIX socket cannot be
                made.
        """
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        self._listen(f"{host}:{self.port}", _PORT_FLAGS)
        self._kept.close()
        if self._config.grpc_socket_path:
            self._listen(f"unix:{self._config.grpc_socket_path}", "--grpc_socket_path")
        self._server.start()

    def _counted(self, api: str, call: Callable[..., Any]) -> Handler:
        """The call on the wire within the client's deadline, with its outcome in the metrics."""

        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            started, code = time.perf_counter(), Code.INTERNAL

            def counted(asked: Any) -> Any:
                nonlocal code
                try:
                    response, code = call(asked, timeout_s=_remaining_s(context)), Code.OK
                except RequestError as error:
                    code = error.code
                    raise
                return response

            try:
                if self._tracing is None:
                    return _wire(counted)(request, context)
                with self._tracing.request(*_span_of(api, context)) as span:
                    try:
                        return _wire(counted)(request, context)
                    finally:
                        span.done(code, **{"rpc.grpc.status_code": int(code)})
            finally:
                self._metrics.request(
                    model=_model_name(request),
                    api=api,
                    entrypoint="GRPC",
                    status=code.name,
                    duration_us=(time.perf_counter() - started) * 1e6,
                )

        return handle

    def _add_service(self, name: str, methods: Mapping[str, tuple[Any, Handler]]) -> None:
        """Register a service: the request's class and the call of each method; a line of the access log for each
        call.

        Messages are parsed here and not by grpcio, which writes a traceback into the log for each that is none.
        """

        def handler(method: str, request_class: Any, call: Handler) -> Any:
            def handle(data: bytes, context: grpc.ServicerContext) -> bytes:
                started, model, serialized = time.perf_counter(), "", None
                try:
                    try:
                        request = request_class.FromString(data)
                    except DecodeError:
                        context.abort(grpc.StatusCode.INTERNAL, "Exception deserializing request!")
                    model = _model_name(request)
                    serialized = call(request, context).SerializeToString()
                    return serialized
                finally:
                    seconds = time.perf_counter() - started
                    self._log(method, model, context, len(data), serialized, seconds)

            return grpc.unary_unary_rpc_method_handler(handle)

        handlers = {method: handler(method, *both) for method, both in methods.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))

    def _log(
        self,
        method: str,
        model: str,
        context: grpc.ServicerContext,
        bytes_in: int,
        response: bytes | None,
        seconds: float,
    ) -> None:
        """One line of the access log; a call without a response failed with the context's code."""
        if self._access_log is not None:
            code = grpc.StatusCode.OK if response is not None else context.code() or grpc.StatusCode.UNKNOWN
            self._access_log.request(
                wire="GRPC",
                peer=context.peer(),
                method=method,
                path=model,
                status=code.name,
                bytes_in=bytes_in,
                bytes_out=0 if response is None else len(response),
                duration_ms=seconds * 1e3,
            )

    def _log_refused(self, method: str, data: bytes, context: grpc.ServicerContext) -> None:
        """The line of a call without a token; its message is not read."""
        self._log(method.rpartition("/")[2], "", context, len(data), None, 0.0)

    def _privileged(self, call: Callable[..., Any], what: str, *, with_timeout: bool = False) -> Handler:
        """The call for those who may send ReloadConfig requests."""

        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            def checked(asked: Any) -> Any:
                check_reload_peer(self._config.reload_config_from, context.peer(), what)
                return call(asked, timeout_s=_remaining_s(context)) if with_timeout else call(asked)

            return _wire(checked)(request, context)

        return handle

    def begin_stop(self, drain_seconds: float) -> None:
        """Say that nothing is served any more, refuse new calls, cancel those in flight after that long; returns at
        once."""
        if self._health is not None:
            self._health.stop()
        self._kept.close()
        if self._stopped is None:
            self._stopped = self._server.stop(drain_seconds)

    def stop(self, drain_seconds: float) -> None:
        """`begin_stop`, and wait for its end. A cancelled call's computation goes on in its thread."""
        self.begin_stop(drain_seconds)
        assert self._stopped is not None
        self._stopped.wait(drain_seconds + _CANCEL_SECONDS)
        self._pool.shutdown(wait=False, cancel_futures=True)


def _remaining_s(context: grpc.ServicerContext) -> float | None:
    """How long the client still waits; None without a deadline.

    Raises:
        RequestError: DEADLINE_EXCEEDED, it does not: what waited that long in line is not begun.
    """
    remaining = context.time_remaining()
    if remaining is None or remaining > _MAX_TIMEOUT_S:
        return None
    if remaining <= 0:
        raise RequestError(Code.DEADLINE_EXCEEDED, "the deadline passed before the request was begun")
    return float(remaining)


def _span_of(api: str, context: grpc.ServicerContext) -> tuple[str, dict[str, str], dict[str, str]]:
    """Name, propagated headers and attributes of a call's span, by OpenTelemetry's conventions."""
    headers = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
    service = "tensorflow.serving.PredictionService"
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": api}
    return f"{service}/{api}", headers, attributes


def _model_name(request: Any) -> str:
    """The model that a request is about; "" for those that are about the server."""
    if hasattr(request, "tasks"):
        return request.tasks[0].model_spec.name if request.tasks else ""
    return str(request.model_spec.name) if hasattr(request, "model_spec") else ""


def _described_services() -> list[str]:
    """Names of the two services, after putting their files into protobuf's default pool for the reflection
    service.

    Their generated modules cannot be imported: they set an attribute that protobuf 6's descriptors do not
    have.
    """
    names = []
    for module in ("model_service_pb2", "prediction_service_pb2"):
        serialized = serialized_file(f"tensorflow_serving.apis.{module}")
        file = descriptor_pool.Default().AddSerializedFile(serialized)
        names += [service.full_name for service in file.services_by_name.values()]
    return names


def _channel_arguments(text: str) -> list[tuple[str, int | str]]:
    """`key=value,key=value` as gRPC takes it: whole numbers as such."""
    arguments: list[tuple[str, int | str]] = []
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise ServingError(f"--grpc_channel_arguments: {item!r} is no key=value")
        arguments.append((key, int(value) if value.lstrip("-").isdigit() else value))
    return arguments


def _wire(call: Callable[[Any], Any]) -> Handler:
    def handle(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return call(request)
        except RequestError as error:
            abort(context, error)
        except Exception:
            logger.exception("a request failed in a way that no request should")
            abort(context, RequestError(Code.INTERNAL, "internal error; the server's log has the details"))

    return handle


def abort(context: grpc.ServicerContext, error: RequestError) -> None:
    """End the call with the error's status; texts are cut as the original cuts them."""
    details = (
        error.message if len(error.message) <= _MAX_DETAILS else error.message[:_MAX_DETAILS] + "...TRUNCATED"
    )
    context.abort(_GRPC_CODES[int(error.code)], details)
