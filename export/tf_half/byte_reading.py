"""Reading encoded images in a graph: bytes and numbers at a position that may be a tensor."""

from __future__ import annotations

import tensorflow as tf


class Bytes:
    """The bytes of one encoded image. Reading past the end gives zeros, before the start fails."""

    def __init__(self, encoded: tf.Tensor) -> None:
        """`encoded`: string scalar."""
        self._values = tf.io.decode_raw(encoded, tf.uint8)
        self.length = tf.size(self._values)
        self._padded = tf.concat([self._values, tf.zeros([1], tf.uint8)], axis=0)

    def at(self, positions: tf.Tensor) -> tf.Tensor:
        """int32 of any shape -> int32 of that shape."""
        return tf.cast(tf.gather(self._padded, tf.minimum(positions, self.length)), tf.int32)

    def byte(self, position: tf.Tensor | int) -> tf.Tensor:
        """int32 scalar."""
        return self.at(tf.convert_to_tensor(position))

    def span(self, position: tf.Tensor | int, length: int) -> tf.Tensor:
        """int32 [length], of a length known when tracing; of a column of positions [N, 1], [N, length]."""
        return self.at(position + tf.range(length))

    def slice(self, start: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
        """int32 [length]. The graph fails where the bytes end before."""
        return tf.cast(tf.slice(self._values, [start], [length]), tf.int32)

    def big_endian(self, position: tf.Tensor | int) -> tf.Tensor:
        """int32 scalar from two bytes."""
        high, low = tf.unstack(self.span(position, 2))
        return high * 256 + low

    def little_endian(self, position: tf.Tensor | int, length: int = 2) -> tf.Tensor:
        """int32 scalar from two to four bytes, of which four are signed; a column of positions [N, 1] gives [N]."""
        scale = tf.constant([256**i for i in range(length)])
        return tf.reduce_sum(self.span(position, length) * scale, axis=-1)
