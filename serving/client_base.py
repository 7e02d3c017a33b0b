"""What the gRPC and the REST client share: their answers' types, and waiting for a model."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from isthmus.serving.errors import RequestError, ServingError

__all__ = ["Array", "Client", "Signature", "TensorSpec", "VersionStatus", "as_array"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a signature."""

    dtype: str
    """TensorFlow's name of it, such as float, int64, string."""

    shape: tuple[int, ...] | None
    """-1 where the size is not fixed; None when the rank is unknown."""


@dataclass(frozen=True)
class Signature:
    """One signature of a served model, by input and output alias."""

    method_name: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


@dataclass(frozen=True)
class VersionStatus:
    """State of one version: START, LOADING, AVAILABLE, UNLOADING or END, and what went wrong ("" when
    nothing)."""

    version: int
    state: str
    error_code: str
    error_message: str


class Client:
    """What both wires share."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        raise NotImplementedError

    def status(self, model: str, *, version: int | None = None) -> list[VersionStatus]:
        """State of the model's versions, newest first."""
        raise NotImplementedError

    def metadata(self, model: str, *, version: int | None = None) -> dict[str, Signature]:
        """The model's signatures by name."""
        raise NotImplementedError

    def predict(
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

    def predict_images(
        self,
        model: str,
        images: Sequence[Path | str | bytes],
        *,
        batch_size: int = 32,
        num_parallel: int = 4,
        input_alias: str | None = None,
        signature: str = "",
        version: int | None = None,
        label: str | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Array]:
        """Outputs by alias for image files, in their order, each with one row per image.

        Args:
            model: the model's name.
            images: files, or encoded bytes.
            batch_size: images of one request.
            num_parallel: requests at the same time; files are read as their turn comes.
            input_alias: the input that takes encoded images; by default the signature's only string input,
                asked of the server.
            signature: which one; "" is serving_default.
            version: which one; by default the newest available.
            label: a version label instead of a version.
            timeout_s: time limit of each request, its retries included.

        Raises:
            RequestError: what the server answered to the first request that failed.
            ServingError: a file cannot be read, or no input takes images.
        """
        from isthmus.serving import image_batches

        alias = input_alias or image_batches.image_input(self.metadata(model, version=version), signature)

        def ask(part: Sequence[Path | str | bytes]) -> dict[str, Array]:
            encoded = image_batches.encoded(part)
            spec: dict[str, Any] = {"signature": signature, "version": version, "label": label}
            return self.predict(model, {alias: encoded}, timeout_s=timeout_s, **spec)

        parts = image_batches.parts(images, batch_size)
        with ThreadPoolExecutor(num_parallel, thread_name_prefix="predict-images") as pool:
            return image_batches.joined(list(pool.map(ask, parts)))

    def wait_until_available(self, model: str, *, timeout_s: float = 60.0) -> int:
        """The newest available version of a model, waiting for it if need be.

        Raises:
            ServingError: none was available in time; the text has the last answer.
        """
        deadline = time.monotonic() + timeout_s
        last = "no answer"
        while True:
            try:
                versions = self.status(model)
                available = [status.version for status in versions if status.state == "AVAILABLE"]
                if available:
                    return max(available)
                last = ", ".join(f"{s.version}: {s.state} {s.error_message}".strip() for s in versions)
            except RequestError as error:
                last = str(error)
            if time.monotonic() >= deadline:
                raise ServingError(
                    f"no version of {model!r} became available within {timeout_s:g} s ({last})"
                )
            time.sleep(0.1)


def as_array(value: Any) -> Array:
    """An input value as an array: text and bytes as objects, Python floats as float32, Python ints as they
    are."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, bytes | str):
        return np.array(value, object)
    array = np.asarray(value)
    if array.dtype.kind in "SU":
        # numpy's fixed-width bytes lose trailing zeros: take the values themselves.
        return np.array(value, object)
    return array.astype(np.float32) if array.dtype == np.float64 else array
