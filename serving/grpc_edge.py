"""The gRPC wire: binds the port, registers the services, and turns `RequestError` into a status."""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from isthmus.serving.errors import RequestError, ServingError
from isthmus.serving.status import Code

__all__ = ["GrpcEdge"]

logger = logging.getLogger(__name__)

_MAX_MESSAGE_BYTES = 2**31 - 1
# grpc_status_util.cc: longer texts would not fit into HTTP/2 trailers.
_MAX_DETAILS = 1024
_GRPC_CODES = {int(code.value[0]): code for code in grpc.StatusCode}


class GrpcEdge:
    """A gRPC server whose port is bound at once (so that a port in use is known before anything is loaded).

    Raises:
        ServingError: the port is taken or the address unusable.
    """

    def __init__(self, *, host: str, port: int, num_threads: int) -> None:
        threads = num_threads or 4 * (os.cpu_count() or 1)
        self._server = grpc.server(
            ThreadPoolExecutor(threads, thread_name_prefix="grpc"),
            options=[
                # Without this a second server would silently share the port.
                ("grpc.so_reuseport", 0),
                ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ],
        )
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.port: int = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ServingError(
                f"cannot listen on {address} for gRPC: the port is in use or the address is not this machine's; "
                "choose another with --port and --host"
            ) from error

    def start(self, service: Any) -> None:
        """Serve a `service.Service`."""
        from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            _servicer(
                prediction_service_pb2_grpc.PredictionServiceServicer,
                Predict=service.predict,
                GetModelMetadata=service.metadata,
            ),
            self._server,
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            _servicer(model_service_pb2_grpc.ModelServiceServicer, GetModelStatus=service.status),
            self._server,
        )
        self._server.start()

    def stop(self, drain_seconds: float) -> None:
        """Refuse new calls, wait for those in flight at most that long, then cancel them."""
        self._server.stop(drain_seconds).wait()


def _servicer(base: type, **methods: Callable[[Any], Any]) -> Any:
    """An instance of a generated servicer class with these methods; the others stay UNIMPLEMENTED."""
    return type(base.__name__, (base,), {name: staticmethod(_wire(call)) for name, call in methods.items()})()


def _wire(call: Callable[[Any], Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
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
