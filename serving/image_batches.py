"""Image files to predict calls and back: which input takes them, how they are cut into batches, how the answers
are put together."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from isthmus.serving.client_base import Array, Signature
from isthmus.serving.errors import ServingError

__all__ = ["Image", "encoded", "image_input", "joined", "parts"]

Image = Path | str | bytes
"""A file, or the encoded bytes themselves."""


def image_input(signatures: Mapping[str, Signature], signature: str) -> str:
    """Alias of the signature's one string input.

    Raises:
        ServingError: no such signature, or it has none or several.
    """
    name = signature or "serving_default"
    if name not in signatures:
        known = sorted(known for known in signatures if not known.startswith("__"))
        raise ServingError(f"the model has no signature {name!r}; it has {', '.join(known)}")
    inputs = signatures[name].inputs
    aliases = [alias for alias, spec in inputs.items() if spec.dtype == "string"]
    if len(aliases) != 1:
        listing = ", ".join(f"{alias} ({spec.dtype})" for alias, spec in inputs.items())
        raise ServingError(
            f"signature {name!r} has {len(aliases)} string inputs ({listing}): choose with input_alias, or "
            "another signature"
        )
    return aliases[0]


def parts(images: Sequence[Image], batch_size: int) -> list[Sequence[Image]]:
    """The images cut into batches.

    Raises:
        ServingError: batch_size is not positive.
    """
    if batch_size < 1:
        raise ServingError(f"batch_size must be 1 or more; got {batch_size}")
    return [images[start : start + batch_size] for start in range(0, len(images), batch_size)]


def encoded(images: Sequence[Image]) -> list[bytes]:
    """Their bytes.

    Raises:
        ServingError: a file cannot be read.
    """
    return [_encoded(image) for image in images]


def joined(answers: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Outputs of all batches, joined along the first axis; nothing for no batch."""
    return {alias: np.concatenate([answer[alias] for answer in answers]) for alias in (answers or [{}])[0]}


def _encoded(image: Image) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise ServingError(f"cannot read {image}: {error.strerror}") from error
