"""A value while a graph is being lowered: a numpy constant, an affine function of the batch, or a TF tensor.

A tensor is kept in whatever axis order it was produced in (its *storage*), together with that order: an ONNX
Transpose costs nothing until an operator insists on another order, and a chain of convolutions stays NHWC
although ONNX thinks in NCHW. `order[i]` is the logical (ONNX) axis that storage axis i holds.
"""

from __future__ import annotations

import contextvars
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from isthmus.export.tf_half.direct.graph import Dim, Dims, static_dims

Order = tuple[int, ...]

# While shapes are probed, weights need no contents: a placeholder is cheaper than a copy.
_MAX_PROBED_ELEMENTS = 4096


@dataclass(kw_only=True)
class Run:
    """One traversal of a graph: either a probe at a fixed batch size or the real, dynamic one."""

    batch_sizes: tuple[int, ...]
    """The probed batch sizes that Dim entries refer to; one entry during a probe."""
    batch: Any = None
    """int32 scalar tensor: the batch size of the dynamic run."""
    probing: bool = False

    def affine(self, slope: np.ndarray, offset: np.ndarray, dtype: Any = tf.int64) -> Any:
        """slope * batch + offset as a tensor."""
        return tf.cast(self.batch, dtype) * tf.constant(slope, dtype) + tf.constant(offset, dtype)

    def affine_dim(self, dim: Dim) -> tuple[int, int]:
        """(slope, offset) of one probed integer; raises ValueError when it is not affine in the batch."""
        if len(set(dim)) == 1:
            return 0, dim[0]
        (n0, n1, *_), (d0, d1, *_) = self.batch_sizes, dim
        slope, rest = divmod(d1 - d0, n1 - n0)
        offset = d0 - slope * n0
        if rest or any(slope * n + offset != d for n, d in zip(self.batch_sizes, dim, strict=True)):
            raise ValueError(f"size {dim} at batch {self.batch_sizes} is not an affine function of the batch")
        return slope, offset


current_run: contextvars.ContextVar[Run] = contextvars.ContextVar("current_run")


def identity(rank: int) -> Order:
    """The order in which ONNX itself names the axes."""
    return tuple(range(rank))


def channels_last(rank: int) -> Order:
    """N, spatial…, C: the only order TensorFlow convolves in on a CPU."""
    return (0, *range(2, rank), 1)


@dataclass(eq=False)
class Value:
    """See the module's docstring. Exactly one of `constant` and `tensor` is set."""

    constant: np.ndarray | None = None
    tensor: Any = None
    order: Order = ()
    affine: tuple[np.ndarray, np.ndarray] | None = None
    """Set when the tensor is slope * batch + offset."""
    dims: Dims | None = None
    """Logical shape at the probed batch sizes, when known."""
    _stored: dict[Order, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, tensor: Any, order: Sequence[int] | None = None) -> Value:
        """A tensor in the given storage order (ONNX's own when omitted)."""
        tensor = tf.convert_to_tensor(tensor)
        return cls(tensor=tensor, order=tuple(order) if order is not None else identity(tensor.shape.rank))

    @classmethod
    def const(cls, array: Any) -> Value:
        """A value known now."""
        array = np.asarray(array)
        return cls(constant=array, order=identity(array.ndim))

    @classmethod
    def batch_affine(cls, slope: np.ndarray, offset: np.ndarray, dtype: Any) -> Value:
        """slope * batch + offset."""
        return cls(
            tensor=current_run.get().affine(slope, offset, dtype),
            order=identity(slope.ndim),
            affine=(slope, offset),
        )

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.order)

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Logical shape; None where it depends on the batch."""
        if self.constant is not None:
            return self.constant.shape
        logical: list[int | None] = [None] * self.rank
        for axis, dim in zip(self.order, self.tensor.shape, strict=True):
            logical[axis] = dim
        return tuple(logical)

    @property
    def dtype(self) -> Any:
        """TensorFlow element type."""
        return tf.as_dtype(self.constant.dtype) if self.constant is not None else self.tensor.dtype

    def known_dims(self) -> Dims:
        """Logical shape at the probed batch sizes; raises ValueError when it is not known."""
        if self.dims is not None:
            return self.dims
        shape = self.shape
        samples = len(current_run.get().batch_sizes)
        if None in shape:
            raise ValueError("the shape is not known before the graph runs")
        return static_dims([dim or 0 for dim in shape], samples)

    def axis(self, logical: int) -> int:
        """Storage axis that holds a logical axis (negative counts from the end)."""
        return self.order.index(logical % self.rank)

    def stored(self, order: Sequence[int]) -> Any:
        """The tensor with its axes in `order`; transposed at most once per order."""
        order = tuple(order)
        if order not in self._stored:
            self._stored[order] = self._in_order(order)
        return self._stored[order]

    def logical(self) -> Any:
        """The tensor exactly as ONNX sees it."""
        return self.stored(identity(self.rank))

    def _in_order(self, order: Order) -> Any:
        if self.constant is not None:
            return graph_constant(contiguous(np.transpose(self.constant, order)))
        if order == self.order:
            return self.tensor
        permutation = [self.order.index(axis) for axis in order]
        moving = [axis for axis in permutation if self.tensor.shape[axis] != 1]
        if moving == sorted(moving):  # only axes of size one change place
            return self._reshaped_to(order)
        return tf.transpose(self.tensor, permutation)

    def _reshaped_to(self, order: Order) -> Any:
        spec = [self.shape[axis] for axis in order]
        if spec.count(None) > 1:
            return tf.transpose(self.tensor, [self.order.index(axis) for axis in order])
        return tf.reshape(self.tensor, [-1 if dim is None else dim for dim in spec])


def contiguous(array: np.ndarray) -> np.ndarray:
    """A C-ordered array of the same rank (numpy.ascontiguousarray turns a scalar into a vector)."""
    return np.ascontiguousarray(array) if array.ndim else array


def graph_constant(array: np.ndarray) -> Any:
    """A tf.constant; of a probe, only the shape matters once the array is large."""
    run = current_run.get()
    if run.probing and array.size > _MAX_PROBED_ELEMENTS and not tf.executing_eagerly():
        return tf.raw_ops.Placeholder(dtype=tf.as_dtype(array.dtype), shape=array.shape)
    return tf.constant(array)


def dims_spec(dims: Sequence[Dim]) -> Any:
    """A shape for tf.reshape: numbers, with one -1 for a single batch-dependent size, or else a tensor."""
    run = current_run.get()
    slopes, offsets = zip(*(run.affine_dim(dim) for dim in dims), strict=True) if dims else ((), ())
    dynamic = sum(slope != 0 for slope in slopes)
    if dynamic == 0:
        return np.array(offsets, np.int32)
    if dynamic == 1 and 0 not in offsets_of_static(slopes, offsets):
        return [-1 if slope else offset for slope, offset in zip(slopes, offsets, strict=True)]
    return run.affine(np.array(slopes), np.array(offsets), tf.int32)


def offsets_of_static(slopes: Sequence[int], offsets: Sequence[int]) -> list[int]:
    """The sizes that do not depend on the batch; a zero among them makes -1 ambiguous."""
    return [offset for slope, offset in zip(slopes, offsets, strict=True) if not slope]


def shape_tensor(dims: Sequence[Dim]) -> Any:
    """A complete int32 shape (no -1): numbers when static, else a tensor."""
    run = current_run.get()
    pairs = [run.affine_dim(dim) for dim in dims]
    slopes = np.array([pair[0] for pair in pairs], np.int32)
    offsets = np.array([pair[1] for pair in pairs], np.int32)
    return run.affine(slopes, offsets, tf.int32) if slopes.any() else offsets
