"""Messages that tensorflow_model_server reads or speaks and that no installed package brings.

The configuration files' messages (tensorflow-serving-api leaves session_bundle_config, monitoring and ssl
out) and gRPC's health and reflection services. Field numbers are those of the public .proto files; what the
embedded server has no use for is declared all the same, so that a file written for the original parses.
"""

import functools
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

__all__ = ["message_class"]

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "float": _Field.TYPE_FLOAT,
}

# package -> message -> "[repeated] type name = number", or "oneof_name: type name = number".
_PACKAGES: dict[str, dict[str, tuple[str, ...]]] = {
    "tensorflow.serving": {
        # servables/tensorflow/session_bundle_config.proto
        "BatchingParameters": (
            ".google.protobuf.Int64Value max_batch_size = 1",
            ".google.protobuf.Int64Value batch_timeout_micros = 2",
            ".google.protobuf.Int64Value max_enqueued_batches = 3",
            ".google.protobuf.Int64Value num_batch_threads = 4",
            ".google.protobuf.StringValue thread_pool_name = 5",
            "repeated int64 allowed_batch_sizes = 6",
            "bool pad_variable_length_inputs = 7",
            ".google.protobuf.Int64Value max_execution_batch_size = 8",
            ".google.protobuf.BoolValue enable_large_batch_splitting = 9",
        ),
        # config/monitoring_config.proto
        "PrometheusConfig": ("bool enable = 1", "string path = 2"),
        "MonitoringConfig": (".tensorflow.serving.PrometheusConfig prometheus_config = 1",),
        # config/ssl_config.proto
        "SSLConfig": (
            "string server_key = 1",
            "string server_cert = 2",
            "string custom_ca = 3",
            "bool client_verify = 4",
        ),
    },
    # tsl/profiler/protobuf/profiler_service.proto; an XSpace is bytes here, nobody looks into it.
    "tensorflow": {
        "ProfileOptions": (
            "int32 host_tracer_level = 2",
            "int32 device_tracer_level = 3",
            "int32 python_tracer_level = 4",
            "int64 duration_ms = 9",
        ),
        "ProfileRequest": (
            "int64 duration_ms = 1",
            ".tensorflow.ProfileOptions opts = 4",
            "string repository_root = 5",
            "string session_id = 6",
            "string host_name = 7",
            "bool emit_xspace = 9",
        ),
        "ProfileResponse": ("bool empty_trace = 7", "bytes xspace = 8"),
        "TerminateRequest": ("string session_id = 1",),
        "TerminateResponse": (),
    },
    # https://github.com/grpc/grpc/blob/master/src/proto/grpc/health/v1/health.proto; the status enum is an
    # int here.
    "grpc.health.v1": {
        "HealthCheckRequest": ("string service = 1",),
        "HealthCheckResponse": ("int32 status = 1",),
    },
    # https://github.com/grpc/grpc/blob/master/src/proto/grpc/reflection/v1alpha/reflection.proto
    "grpc.reflection.v1alpha": {
        "ExtensionRequest": ("string containing_type = 1", "int32 extension_number = 2"),
        "ServerReflectionRequest": (
            "string host = 1",
            "message_request: string file_by_filename = 3",
            "message_request: string file_containing_symbol = 4",
            "message_request: .grpc.reflection.v1alpha.ExtensionRequest file_containing_extension = 5",
            "message_request: string all_extension_numbers_of_type = 6",
            "message_request: string list_services = 7",
        ),
        "FileDescriptorResponse": ("repeated bytes file_descriptor_proto = 1",),
        "ExtensionNumberResponse": ("string base_type_name = 1", "repeated int32 extension_number = 2"),
        "ServiceResponse": ("string name = 1",),
        "ListServiceResponse": ("repeated .grpc.reflection.v1alpha.ServiceResponse service = 1",),
        "ErrorResponse": ("int32 error_code = 1", "string error_message = 2"),
        "ServerReflectionResponse": (
            "string valid_host = 1",
            ".grpc.reflection.v1alpha.ServerReflectionRequest original_request = 2",
            "message_response: .grpc.reflection.v1alpha.FileDescriptorResponse file_descriptor_response = 4",
            "message_response: .grpc.reflection.v1alpha.ExtensionNumberResponse "
            "all_extension_numbers_response = 5",
            "message_response: .grpc.reflection.v1alpha.ListServiceResponse list_services_response = 6",
            "message_response: .grpc.reflection.v1alpha.ErrorResponse error_response = 7",
        ),
    },
}


@functools.cache
def message_class(full_name: str) -> Any:
    """The class of one of these messages, such as "tensorflow.serving.SSLConfig"."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(full_name))


@functools.cache
def _pool() -> Any:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    for package, messages in _PACKAGES.items():
        file = descriptor_pb2.FileDescriptorProto(
            name=f"isthmus/{package.replace('.', '/')}.proto",
            package=package,
            syntax="proto3",
            dependency=[wrappers_pb2.DESCRIPTOR.name],
        )
        for name, fields in messages.items():
            _declare(file.message_type.add(name=name), fields)
        pool.Add(file)
    return pool


def _declare(message: Any, fields: tuple[str, ...]) -> None:
    oneofs: list[str] = []
    for declaration in fields:
        oneof, _, rest = declaration.rpartition(": ")
        left, number = rest.split(" = ")
        *label, kind, name = left.split()
        field = message.field.add(
            name=name,
            number=int(number),
            label=_Field.LABEL_REPEATED if label else _Field.LABEL_OPTIONAL,
            type=_SCALARS.get(kind, _Field.TYPE_MESSAGE),
        )
        if kind not in _SCALARS:
            field.type_name = kind
        if oneof:
            if oneof not in oneofs:
                oneofs.append(oneof)
                message.oneof_decl.add(name=oneof)
            field.oneof_index = oneofs.index(oneof)
