"""The client for asyncio, over gRPC.

async with AsyncGrpcClient(port=8500) as client:
    answer = await client.predict_images("digits", ["seven.png", "one.png"])
"""

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from isthmus.serving import grpc_messages, image_batches
from isthmus.serving.client_base import Array, Signature, VersionStatus
from isthmus.serving.errors import RequestError
from isthmus.serving.image_batches import Image
from isthmus.serving.retries import RetryPolicy, call_with_retries_async
from isthmus.serving.status import Code

__all__ = ["AsyncGrpcClient"]

_RETRY = RetryPolicy()


class AsyncGrpcClient:
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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

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
