"""timm's evaluation transform in TensorFlow ops: encoded bytes in, exactly the pixels timm evaluated out.

What timm does (`timm/data/transforms_factory.py: transforms_imagenet_eval`, `timm/data/transforms.py`, and
torchvision's `Resize` and `CenterCrop`), for `input_size` (H, W) and `scale = floor(size / crop_pct)` per
side:

| crop_mode | resize | then |
|---|---|---|
| `center`, square scale | shorter edge to it, longer one cut to an integer | centre crop |
| `center`, other | `round(edge / min(ratio))` per edge, ratio = edge / scale | centre crop |
| `squash` | both edges to their scale, whatever the aspect | centre crop |
| `border` | `round(edge / max(ratio))` per edge | centre crop, padded with `round(255 * mean)` |

A centre crop starts at `round((resized - size) / 2)`, half to even; an image smaller than the crop is padded,
`(size - resized) // 2` before it (with 0 unless `border`). Then `x / 255`, minus mean, over std, in float32.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from isthmus.export.errors import ExportError
from isthmus.export.tf_half import decoding, resampling

CROP_MODES = ("center", "squash", "border")
DEFAULT_CROP_PCT = 0.875
# A crop_mode of border shrinks the longer edge to the target: the shorter one can round to nothing.
MAX_EDGE = 1 << 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The evaluation transform as timm resolves it, checked."""

    height: int
    """Output pixels."""
    width: int
    """Output pixels."""
    scale: tuple[int, int]
    """Target of the resize before the crop: (height, width)."""
    interpolation: str
    """One of `resampling.INTERPOLATIONS`."""
    crop_mode: str
    """One of `CROP_MODES`."""
    mean: tuple[float, ...]
    """Per channel, of values in 0..1."""
    std: tuple[float, ...]
    """Per channel."""

    @classmethod
    def parse(cls, preprocessing: dict[str, Any]) -> Recipe:
        """Read `timm.data.resolve_data_config`'s dictionary.

        Raises:
            ExportError: not three channels, or an interpolation or crop mode that timm's evaluation has not.
        """
        channels, height, width = (int(v) for v in preprocessing["input_size"])
        if channels != 3:
            raise ExportError(
                f"preprocessing: input_size {preprocessing['input_size']} has {channels} channels; "
                "encoded images become RGB: 3. Train with in_chans 3"
            )
        interpolation = str(preprocessing.get("interpolation") or "bicubic")
        if interpolation not in resampling.INTERPOLATIONS:
            raise ExportError(
                f"preprocessing: unknown interpolation {interpolation!r}; "
                f"one of {', '.join(resampling.INTERPOLATIONS)}"
            )
        crop_mode = str(preprocessing.get("crop_mode") or "center")
        if crop_mode not in CROP_MODES:
            raise ExportError(
                f"preprocessing: unknown crop_mode {crop_mode!r}; one of {', '.join(CROP_MODES)}"
            )
        crop_pct = float(preprocessing.get("crop_pct") or DEFAULT_CROP_PCT)
        return cls(
            height=height,
            width=width,
            scale=(math.floor(height / crop_pct), math.floor(width / crop_pct)),
            interpolation=interpolation,
            crop_mode=crop_mode,
            mean=tuple(float(v) for v in preprocessing["mean"]),
            std=tuple(float(v) for v in preprocessing["std"]),
        )


def _resized(recipe: Recipe, height: tf.Tensor, width: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """int64 scalars: the size of the whole resized image."""
    scale_height, scale_width = recipe.scale
    if recipe.crop_mode == "squash":
        return tf.constant(scale_height, tf.int64), tf.constant(scale_width, tf.int64)
    if recipe.crop_mode == "center" and scale_height == scale_width:
        shorter = tf.minimum(height, width)
        return scale_height * height // shorter, scale_height * width // shorter
    edges = tf.cast(tf.stack([height, width]), tf.float64)
    ratios = resampling.divided(edges, tf.constant(recipe.scale, tf.float64))
    ratio = tf.reduce_max(ratios) if recipe.crop_mode == "border" else tf.reduce_min(ratios)
    # tf.round, like Python's round, takes halves to the even side.
    resized = tf.cast(tf.round(edges / ratio), tf.int64)
    return resized[0], resized[1]


def _crop_positions(resized: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Positions in the resized edge that a centre crop of `size` shows: int64 [size]; which of them exist."""
    start = tf.where(
        resized >= size,
        tf.cast(tf.round(tf.cast(resized - size, tf.float64) / 2.0), tf.int64),
        -((size - resized) // 2),
    )
    positions = start + tf.range(size, dtype=tf.int64)
    return tf.clip_by_value(positions, 0, resized - 1), (positions >= 0) & (positions < resized)


def transform(image: tf.Tensor, recipe: Recipe) -> tf.Tensor:
    """Resize and crop one decoded image: uint8 [h, w, 3] -> uint8 [H, W, 3]."""
    height, width = tf.unstack(tf.shape(image, out_type=tf.int64)[:2])
    resized = _resized(recipe, height, width)
    if recipe.crop_mode == "border":
        message = "the image is too narrow for crop_mode border: its shorter edge would have no pixel left"
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_min(resized) > 0, [message])]):
            resized = (tf.identity(resized[0]), tf.identity(resized[1]))
    rows, rows_exist = _crop_positions(resized[0], recipe.height)
    columns, columns_exist = _crop_positions(resized[1], recipe.width)
    pixels = resampling.resize_at(
        image, resized=resized, rows=rows, columns=columns, interpolation=recipe.interpolation
    )
    never_padded = recipe.crop_mode != "border" and (
        recipe.scale[0] >= recipe.height and recipe.scale[1] >= recipe.width
    )
    if never_padded:
        return pixels
    border = recipe.crop_mode == "border"
    fill = tf.constant([round(255 * m) if border else 0 for m in recipe.mean], tf.uint8)
    exists = rows_exist[:, tf.newaxis] & columns_exist[tf.newaxis, :]
    return tf.where(exists[..., tf.newaxis], pixels, fill)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The transform as three Python functions to be traced into a graph."""

    recipe: Recipe

    @property
    def height(self) -> int:
        """Output pixels."""
        return self.recipe.height

    @property
    def width(self) -> int:
        """Output pixels."""
        return self.recipe.width

    def pixels(self, encoded: tf.Tensor) -> tf.Tensor:
        """Encoded images, string [N], to uint8 [N, H, W, 3], what timm has before it normalises.

        The graph fails with INVALID_ARGUMENT, naming every image of the batch that does not decode.
        """
        height, width = self.recipe.height, self.recipe.width
        decoders = decoding.Decoders()

        def resize(image: tf.Tensor) -> tf.Tensor:
            return transform(image, self.recipe)

        resized = decoding.shared(resize, tf.TensorSpec([None, None, 3], tf.uint8))
        return tf.cond(
            tf.shape(encoded)[0] == 1,
            lambda: resized(_only(decoders, encoded[0]))[tf.newaxis],
            lambda: _each(lambda one: resized(decoders.decode(one)), encoded, height, width),
        )

    def normalize(self, pixels: tf.Tensor) -> tf.Tensor:
        """uint8 [..., 3] to float32, the model's input."""
        mean, std = (tf.constant(v, tf.float32) for v in (self.recipe.mean, self.recipe.std))
        # Plain divisions would be rewritten into one multiplication and one addition when the graph is
        # optimised, whose last digits are not torch's.
        divide = tf.math.divide_no_nan
        return divide(divide(tf.cast(pixels, tf.float32), 255.0) - mean, std)

    def images(self, encoded: tf.Tensor) -> tf.Tensor:
        """Encoded images, string [N], to float32 [N, H, W, 3], the model's input."""
        return self.normalize(self.pixels(encoded))


def _each(one: Callable[[tf.Tensor], tf.Tensor], encoded: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """`one` of every element, side by side; the elements for which it fails are named in one error.

    A graph has no `try`. A tf.data pipeline inside of it has: it leaves failing elements out, and the index
    that travels with each image says which are missing. It costs a fraction of a millisecond.
    """
    blank = (tf.constant(-1, tf.int64), tf.zeros([height, width, 3], tf.uint8))
    num = tf.shape(encoded, out_type=tf.int64)[0]
    images = (
        tf.data.Dataset.from_tensor_slices((tf.range(num), encoded))
        .map(lambda i, image: (i, one(image)), num_parallel_calls=PARALLEL_IMAGES, deterministic=True)
        .ignore_errors()
    )
    # get_single_element wants one batch, even of nothing.
    images = tf.data.Dataset.from_tensors(blank).concatenate(images).batch(num + 1)
    indices, pixels = decoding.as_written(images).get_single_element()
    return tf.ensure_shape(_checked(pixels[1:], indices[1:], num), [None, height, width, 3])


def _only(decoders: decoding.Decoders, encoded: tf.Tensor) -> tf.Tensor:
    """The one image of a batch, decoded; named as by `_each` where it cannot be."""
    image = decoders.decode_or_nothing(encoded)
    indices = tf.range(tf.minimum(tf.size(image, out_type=tf.int64), 1))
    return _checked(image, indices, tf.constant(1, tf.int64))


def _checked(value: tf.Tensor, indices: tf.Tensor, num: tf.Tensor) -> tf.Tensor:
    """`value`, or the error that names those of `num` images that are not among `indices`."""
    complete = tf.size(indices, out_type=tf.int64) == num
    refusal = tf.cond(complete, lambda: tf.constant(""), lambda: _refusal(indices, num))
    with tf.control_dependencies([tf.debugging.Assert(complete, [refusal])]):
        return tf.identity(value)


def _refusal(indices: tf.Tensor, num: tf.Tensor) -> tf.Tensor:
    """The error's text: which of `num` images are not among `indices`."""
    failed = tf.sets.difference(tf.range(num)[tf.newaxis], indices[tf.newaxis]).values
    named = tf.strings.reduce_join(tf.strings.as_string(failed), separator=", ")
    formats = f" of this batch (counted from 0) cannot be read as {decoding.FORMATS}"
    return tf.strings.join(["image ", named, formats])


PARALLEL_IMAGES = 8


def build(preprocessing: dict[str, Any]) -> Preprocessing:
    """timm's resolved data configuration (`checkpoint.preprocessing`) as functions.

    Raises:
        ExportError: not three channels, or an interpolation or crop mode that timm's evaluation has not.
    """
    return Preprocessing(recipe=Recipe.parse(preprocessing))
