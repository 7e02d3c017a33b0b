"""The clients for asyncio, over gRPC and over REST.

async with AsyncGrpcClient(port=8500) as client:
    answer = await client.predict_images("digits", ["seven.png", "one.png"])
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

from isthmus.serving import grpc_messages, image_batches
from isthmus.serving.client_base import Array, Signature, VersionStatus
from isthmus.serving.errors import RequestError
from isthmus.serving.image_batches import Image
from isthmus.serving.rest_client import RestClient
from isthmus.serving.retries import RetryPolicy, call_with_retries_async
from isthmus.serving.status import Code

__all__ = ["AsyncClient", "AsyncGrpcClient", "AsyncRestClient"]

T = TypeVar("T")
_RETRY = RetryPolicy()


class AsyncClient:
    """What both wires share; `Client` with coroutines."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        raise NotImplementedError

    async def status(self, model: str, *, version: int | None = None) -> list[VersionStatus]:
        """State of the model's versions, newest first."""
        raise NotImplementedError

    async def metadata(self, model: str, *, version: int | None = None) -> dict[str, Signature]:
        """The model's signatures by name."""
        raise NotImplementedError

    async def predict(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        signature: str = "",
        version: int | None = None,
        label: str | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Array]:
        """Outputs by alias of one predict call."""
        raise NotImplementedError

    async def predict_images(
        self,
        model: str,
        images: Sequence[Image],
        *,
        batch_size: int = 32,
        num_parallel: int = 4,
        input_alias: str | None = None,
        signature: str = "",
        version: int | None = None,
        label: str | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Array]:
        """As `Client.predict_images`.

        Raises:
            RequestError: as there.
            ServingError: as there.
        """
        alias = input_alias or image_batches.image_input(
            await self.metadata(model, version=version), signature
        )
        slots = asyncio.Semaphore(num_parallel)

        async def ask(batch: Sequence[Image]) -> dict[str, Array]:
            async with slots:
                encoded = await asyncio.to_thread(image_batches.encoded, batch)
                return await self.predict(
                    model,
                    {alias: encoded},
                    signature=signature,
                    version=version,
                    label=label,
                    timeout_s=timeout_s,
                )

        tasks = [asyncio.create_task(ask(part)) for part in image_batches.parts(images, batch_size)]
        try:
            return image_batches.joined(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()


class AsyncGrpcClient(AsyncClient):
    """`GrpcClient` with coroutines; make it where the event loop runs. Arguments as there."""

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

        address, options = f"{host}:{port}", grpc_messages.CHANNEL_OPTIONS
        self._timeout_s, self._retry = timeout_s, retry
        self._metadata = grpc_messages.call_metadata(token)
        self._channel = (
            grpc.aio.insecure_channel(address, options)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options)
        )

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def predict(
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
        """As `GrpcClient.predict`.

        Raises:
            RequestError: as there.
        """
        request = grpc_messages.predict_request(model, inputs, signature, version, label, outputs)
        response = await call_with_retries_async(
            lambda left_s: self._call(grpc_messages.PREDICT, request, left_s),
            self._retry,
            timeout_s=self._timeout_s if timeout_s is None else timeout_s,
        )
        return grpc_messages.predict_outputs(response)

    async def status(self, model: str, *, version: int | None = None) -> list[VersionStatus]:
        """As `GrpcClient.status`.

        Raises:
            RequestError: as there.
        """
        request = grpc_messages.status_request(model, version)
        return grpc_messages.statuses(await self._call(grpc_messages.STATUS, request, self._timeout_s))

    async def metadata(self, model: str, *, version: int | None = None) -> dict[str, Signature]:
        """As `GrpcClient.metadata`.

        Raises:
            RequestError: as there.
        """
        request = grpc_messages.metadata_request(model, version)
        return grpc_messages.signatures(await self._call(grpc_messages.METADATA, request, self._timeout_s))

    async def _call(self, method: grpc_messages.Method, request: Any, timeout_s: float) -> Any:
        import grpc

        call = self._channel.unary_unary(
            method.path,
            request_serializer=type(request).SerializeToString,
            response_deserializer=method.response_class().FromString,
        )
        try:
            return await call(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise RequestError(Code(error.code().value[0]), error.details() or "") from error


class AsyncRestClient(AsyncClient):
    """`RestClient` with coroutines: its calls run in threads of their own, at most max_connections at a time.

    Arguments as there.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 8501,
        timeout_s: float = 30.0,
        tls: ssl.SSLContext | None = None,
        token: str | None = None,
        retry: RetryPolicy = _RETRY,
        max_connections: int = 8,
    ) -> None:
        self._client = RestClient(
            host=host, port=port, timeout_s=timeout_s, tls=tls, token=token, retry=retry
        )
        self._pool = ThreadPoolExecutor(max_connections, thread_name_prefix="rest-client")

    async def close(self) -> None:
        """Close the connections, when the calls under way have ended."""
        await asyncio.to_thread(self._pool.shutdown)
        self._client.close()

    async def predict(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        signature: str = "",
        version: int | None = None,
        label: str | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Array]:
        """As `RestClient.predict`.

        Raises:
            RequestError: as there.
        """
        return await self._run(
            lambda: self._client.predict(
                model, inputs, signature=signature, version=version, label=label, timeout_s=timeout_s
            )
        )

    async def status(self, model: str, *, version: int | None = None) -> list[VersionStatus]:
        """As `RestClient.status`.

        Raises:
            RequestError: as there.
        """
        return await self._run(lambda: self._client.status(model, version=version))

    async def metadata(self, model: str, *, version: int | None = None) -> dict[str, Signature]:
        """As `RestClient.metadata`.

        Raises:
            RequestError: as there.
        """
        return await self._run(lambda: self._client.metadata(model, version=version))

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)
