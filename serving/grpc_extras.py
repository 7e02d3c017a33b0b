"""The two standard gRPC services beside TensorFlow Serving's own: health checks and server reflection."""

import threading
from collections.abc import Collection, Iterator
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool

from isthmus.serving.private_messages import message_class

__all__ = ["Health", "add_reflection"]

_SERVING, _NOT_SERVING, _SERVICE_UNKNOWN = 1, 2, 3
_MAX_NUM_WATCHERS = 8
_WATCH_STEP_S = 0.5
_REFLECTION = "grpc.reflection.v1alpha."
_NOT_FOUND = 5


class Health:
    """grpc.health.v1.Health: SERVING for "" and each of the services, NOT_FOUND (Watch: SERVICE_UNKNOWN) for
    every other name. `stop` makes all of them NOT_SERVING, which tells watching balancers to go elsewhere."""

    def __init__(self, services: Collection[str]) -> None:
        self._services = services
        self._stopping = threading.Event()
        self._watchers = threading.Semaphore(_MAX_NUM_WATCHERS)
        self._response = message_class("grpc.health.v1.HealthCheckResponse")

    def add_to(self, server: Any) -> None:
        """Register the service."""
        parse = message_class("grpc.health.v1.HealthCheckRequest").FromString
        serialize = self._response.SerializeToString
        handlers = {
            "Check": grpc.unary_unary_rpc_method_handler(self._check, parse, serialize),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch, parse, serialize),
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers),)
        )

    def stop(self) -> None:
        """From now on nothing is served."""
        self._stopping.set()

    def _check(self, request: Any, context: grpc.ServicerContext) -> Any:
        if request.service and request.service not in self._services:
            context.abort(grpc.StatusCode.NOT_FOUND, "service name unknown")
        return self._response(status=_NOT_SERVING if self._stopping.is_set() else _SERVING)

    def _watch(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        """Each watcher holds one of the server's threads, so there is a bound to them."""
        if not self._watchers.acquire(blocking=False):
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"more than {_MAX_NUM_WATCHERS} health watchers"
            )
        try:
            is_known = not request.service or request.service in self._services
            yield self._response(status=_SERVING if is_known else _SERVICE_UNKNOWN)
            while context.is_active():
                if self._stopping.wait(_WATCH_STEP_S):
                    if is_known:
                        yield self._response(status=_NOT_SERVING)
                    return
        finally:
            self._watchers.release()


def add_reflection(server: Any, services: Collection[str]) -> None:
    """grpc.reflection.v1alpha and v1 (the same messages on the wire), as grpcurl and the like use them.

    Args:
        server: the grpc.Server.
        services: full names of the services to list; their files are in protobuf's default pool.
    """
    request_class = message_class(_REFLECTION + "ServerReflectionRequest")
    response_class = message_class(_REFLECTION + "ServerReflectionResponse")

    def answer(requests: Iterator[Any], _context: grpc.ServicerContext) -> Iterator[Any]:
        for request in requests:
            response = response_class(valid_host=request.host, original_request=request)
            _fill(response, request, services)
            yield response

    handler = grpc.stream_stream_rpc_method_handler(
        answer, request_class.FromString, response_class.SerializeToString
    )
    for version in ("v1alpha", "v1"):
        name = f"grpc.reflection.{version}.ServerReflection"
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}),)
        )


def _fill(response: Any, request: Any, services: Collection[str]) -> None:
    pool = descriptor_pool.Default()
    kind = request.WhichOneof("message_request")
    try:
        if kind == "list_services":
            response.list_services_response.SetInParent()
            for service in sorted(services):
                response.list_services_response.service.add(name=service)
        elif kind == "file_by_filename":
            _fill_files(response, pool.FindFileByName(request.file_by_filename))
        elif kind == "file_containing_symbol":
            _fill_files(response, pool.FindFileContainingSymbol(request.file_containing_symbol))
        else:
            raise KeyError(kind)
    except KeyError:
        response.error_response.error_code = _NOT_FOUND
        response.error_response.error_message = "File not found."


def _fill_files(response: Any, file: Any) -> None:
    """The file and all that it depends on, dependencies last."""
    seen: dict[str, bytes] = {}

    def add(current: Any) -> None:
        if current.name not in seen:
            proto = descriptor_pb2.FileDescriptorProto()
            current.CopyToProto(proto)
            seen[current.name] = proto.SerializeToString()
            for dependency in current.dependencies:
                add(dependency)

    add(file)
    response.file_descriptor_response.file_descriptor_proto.extend(seen.values())
