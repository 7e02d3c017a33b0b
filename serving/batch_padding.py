"""`pad_variable_length_inputs`: requests of other row shapes run together, padded to the longest of the batch.

The rules and texts are those of tensorflow_serving/batching/batching_util.cc: a tensor grows at the end of each
dimension but the first, by copies of its own first element. Outputs stay as long as the batch made them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from isthmus.serving.errors import RequestError
from isthmus.serving.status import Code

__all__ = ["concatenated"]

Array = np.ndarray[Any, Any]

_MAX_RANK = 6


def concatenated(parts: Sequence[Array]) -> Array:
    """The parts, all of one rank and type, one after the other along the first axis.

    Raises:
        RequestError: INVALID_ARGUMENT for more than six dimensions, and for a part that must grow and has no element.
    """
    if parts[0].ndim > _MAX_RANK:
        raise _invalid("Only tensors with rank from 1 to 6 can be padded.")
    row_shape = tuple(max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True))
    return np.concatenate([_padded(part, row_shape) for part in parts])


def _padded(part: Array, row_shape: tuple[int, ...]) -> Array:
    if part.shape[1:] == row_shape:
        return part
    if not part.size:
        raise _invalid("Got empty tensor in batch of non-empty tensors.")
    padded = np.full((part.shape[0], *row_shape), part.flat[0], part.dtype)
    padded[tuple(map(slice, part.shape))] = part
    return padded


def _invalid(message: str) -> RequestError:
    return RequestError(Code.INVALID_ARGUMENT, message)
