"""A small client of TensorFlow Serving's API: numpy in, numpy out, over gRPC or REST.

    with GrpcClient(port=8500) as client:
        client.predict("digits", {"image_bytes": [Path("seven.png").read_bytes()]})["label"]

        client.predict_images("digits", sorted(Path("scans").glob("*.png")), batch_size=64)

Works against the embedded server and against stock TensorFlow Serving. It does not import tensorflow
(`wire_messages` says how), so it starts in a fraction of a second.
"""

from isthmus.serving.async_client import AsyncClient, AsyncGrpcClient, AsyncRestClient
from isthmus.serving.client_base import Client, Signature, TensorSpec, VersionStatus
from isthmus.serving.grpc_client import GrpcClient
from isthmus.serving.rest_client import RestClient
from isthmus.serving.retries import NO_RETRIES, RetryPolicy

__all__ = [
    "NO_RETRIES",
    "AsyncClient",
    "AsyncGrpcClient",
    "AsyncRestClient",
    "Client",
    "GrpcClient",
    "RestClient",
    "RetryPolicy",
    "Signature",
    "TensorSpec",
    "VersionStatus",
]
