"""The two standard gRPC services beside TensorFlow Serving's own: health checks and server reflection."""

from collections.abc import Collection, Iterator
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool

from isthmus.serving.private_messages import message_class

__all__ = ["add_health", "add_reflection"]

_SERVING = 1
_REFLECTION = "grpc.reflection.v1alpha."
_NOT_FOUND = 5


def add_health(server: Any, services: Collection[str]) -> None:
    """grpc.health.v1.Health: SERVING for "" and each of the services, NOT_FOUND for every other name."""
    request_class = message_class("grpc.health.v1.HealthCheckRequest")
    response_class = message_class("grpc.health.v1.HealthCheckResponse")

    def check(request: Any, context: grpc.ServicerContext) -> Any:
        if request.service and request.service not in services:
            context.abort(grpc.StatusCode.NOT_FOUND, "service name unknown")
        return response_class(status=_SERVING)

    handlers = {
        "Check": grpc.unary_unary_rpc_method_handler(
            check, request_class.FromString, response_class.SerializeToString
        )
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers),)
    )


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
