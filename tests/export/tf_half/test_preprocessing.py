"""The graph's pixels against timm's rules in Pillow: none may differ."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from isthmus.export.errors import ExportError
from isthmus.export.tf_half import preprocessing, resampling

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# (interpolation, crop_pct, crop_mode, input_size): every interpolation, every crop mode, padding, oblong
# targets.
RECIPES = [
    ("bicubic", 0.875, "center", (3, 32, 32)),
    ("bilinear", 0.95, "center", (3, 48, 48)),
    ("nearest", 0.9, "center", (3, 32, 32)),
    ("lanczos", 1.0, "squash", (3, 40, 40)),
    ("bicubic", 0.9, "border", (3, 32, 32)),
    ("box", 1.25, "center", (3, 40, 40)),
    ("bicubic", 0.8, "center", (3, 24, 40)),
    ("hamming", 1.1, "squash", (3, 40, 24)),
    ("bilinear", 1.0, "border", (3, 33, 47)),
]
EDGES = st.one_of(st.integers(1, 40), st.integers(1, 260), st.sampled_from([1, 2, 31, 32, 33, 64, 256, 500]))
CONTENTS = st.sampled_from(["noise", "black and white", "smooth", "flat"])


def recipe_dict(recipe: tuple) -> dict:
    interpolation, crop_pct, crop_mode, input_size = recipe
    return {
        "interpolation": interpolation,
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
        "input_size": input_size,
        "mean": MEAN,
        "std": STD,
    }


@functools.cache
def graph_pixels(recipe: tuple) -> tf.types.experimental.GenericFunction:
    spec = [tf.TensorSpec([None], tf.string)]
    return tf.function(preprocessing.build(recipe_dict(recipe)).pixels, input_signature=spec, autograph=False)


def painted(height: int, width: int, content: str, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if content == "flat":
        return np.full((height, width, 3), generator.integers(0, 256, 3), np.uint8)
    noise = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if content == "black and white":
        return np.where(noise > 127, 255, 0).astype(np.uint8)
    if content == "smooth":
        coarse = Image.fromarray(noise[: height // 8 + 1, : width // 8 + 1])
        return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return noise


def encode(pixels: np.ndarray, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format, **options)
    return buffer.getvalue()


def in_mode(pixels: np.ndarray, mode: str) -> Image.Image:
    """What a file of another kind holds of the same picture."""
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    image = Image.fromarray(pixels)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(pixels[..., ::-1]).convert("L"))
    return image if image.mode == mode else image.convert(mode)


@st.composite
def encoded_images(draw: st.DrawFn) -> bytes:
    pixels = painted(draw(EDGES), draw(EDGES), draw(CONTENTS), draw(st.integers(0, 2**32 - 1)))
    kind, mode = draw(st.sampled_from(KINDS))
    options: dict[str, object] = {"compress_level": 1} if kind == "PNG" else {}
    if kind == "JPEG":
        options = {"quality": draw(st.integers(20, 100)), "progressive": draw(st.booleans())}
        if mode == "RGB":
            options["subsampling"] = draw(st.integers(0, 2))
    buffer = io.BytesIO()
    in_mode(pixels, mode).save(buffer, kind, **options)
    return buffer.getvalue()


# Half of them RGB, as photographs are.
KINDS = [
    *[("PNG", "RGB"), ("JPEG", "RGB")] * 4,
    ("PNG", "L"),
    ("PNG", "P"),
    ("PNG", "RGBA"),
    ("PNG", "LA"),
    ("PNG", "I;16"),
    ("JPEG", "L"),
    ("JPEG", "CMYK"),
    ("GIF", "P"),
    ("BMP", "RGB"),
]


def assert_timms(timm_rules, recipe: tuple, batch: list[bytes]) -> None:
    """All of the batch in one call, and one alone; images that timm itself refuses are left out."""
    expected = {}
    for index, encoded in enumerate(batch):
        try:
            expected[index] = timm_rules.timm_pixels(encoded, recipe_dict(recipe))
        except ValueError:
            assert recipe[2] == "border"
    got = list(graph_pixels(recipe)(tf.constant([batch[i] for i in expected], tf.string)).numpy())
    compared = list(expected.items())
    if compared:
        # Only this way through the graph is optimised: a batch is in a tf.data pipeline.
        got += list(graph_pixels(recipe)(tf.constant([batch[compared[0][0]]])).numpy())
        compared.append(compared[0])
    for pixels, (index, right) in zip(got, compared, strict=True):
        size = Image.open(io.BytesIO(batch[index])).size
        assert np.array_equal(pixels, right), f"{(pixels != right).sum()} values of {size} differ in {recipe}"


# 9 recipes × 25 examples × 9 images: 2,025 images.
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: "-".join(map(str, recipe[:3])))
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(batch=st.lists(encoded_images(), min_size=9, max_size=9))
def test_no_pixel_differs(timm_rules, recipe, batch):
    assert_timms(timm_rules, recipe, batch)


@pytest.mark.parametrize(
    "recipe", [RECIPES[0], RECIPES[3], RECIPES[4], RECIPES[2]], ids=lambda r: "-".join(map(str, r[:3]))
)
def test_extreme_shapes(timm_rules, recipe):
    shapes = [(1, 1), (1, 4000), (4000, 1), (2, 4001), (4001, 2), (7, 3000), (3000, 7), (999, 10), (1001, 10)]
    assert_timms(timm_rules, recipe, [encode(painted(h, w, "noise", 1)) for h, w in shapes])


def test_a_24_megapixel_photograph_shrunk_into_the_same_pixels(timm_rules):
    pixels = np.asarray(
        Image.fromarray(painted(125, 188, "noise", 2)).resize((6000, 4000), Image.Resampling.NEAREST)
    )
    for recipe in (RECIPES[0], RECIPES[3]):
        assert_timms(timm_rules, recipe, [encode(pixels, "JPEG", quality=90)])


@pytest.mark.parametrize(
    ("recipe", "size"),
    [
        (("nearest", 0.9, "squash", (3, 24, 40)), (428, 1598)),
        (("box", 1.1, "squash", (3, 24, 40)), (55, 627)),
        (("nearest", 1.0, "center", (3, 33, 47)), (88, 404)),
    ],
)
def test_no_division_is_optimised_into_a_product_with_the_reciprocal(timm_rules, recipe, size):
    """Of these sizes a pixel, or the resized edge, is on the other side then."""
    assert_timms(timm_rules, recipe, [encode(painted(*size, "noise", 6))])


@pytest.mark.parametrize("interpolation", resampling.INTERPOLATIONS)
def test_an_image_shrunk_so_far_that_float32_would_not_be_exact(timm_rules, interpolation):
    recipe = (interpolation, 1.0, "squash", (3, 16, 16))
    white = np.full((20, 16_000, 3), 255, np.uint8)
    assert_timms(timm_rules, recipe, [encode(painted(20, 16_000, "noise", 3)), encode(white)])


def photograph_files() -> list[Path]:
    """The real photographs that installed packages ship."""
    import matplotlib
    import sklearn

    folder = Path(sklearn.__file__).parent / "datasets" / "images"
    hopper = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")
    return [folder / "china.jpg", folder / "flower.jpg", hopper]


def photographs() -> list[np.ndarray]:
    """Their pixels, whole and in parts."""
    whole = [np.asarray(Image.open(file).convert("RGB")) for file in photograph_files()]
    parts = [image[y : y + h, x : x + w] for image in whole for y, x, h, w in PARTS]
    return [*whole, *parts]


PARTS = [
    (0, 0, 200, 300),
    (50, 90, 333, 250),
    (100, 7, 64, 411),
    (13, 200, 301, 100),
    (5, 5, 224, 224),
    (77, 31, 256, 341),
]


@pytest.mark.parametrize(
    "recipe", [("bicubic", 0.875, "center", (3, 224, 224)), ("bilinear", 0.95, "squash", (3, 160, 160))]
)
def test_photographs(timm_rules, recipe):
    options = [
        {"quality": 95, "subsampling": 0},
        {"quality": 75, "subsampling": 2, "progressive": True},
        {"quality": 85, "subsampling": 1},
    ]
    images = photographs()
    assert len(images) >= 20
    written = [encode(im, "JPEG", **options[i % 3]) for i, im in enumerate(images)]
    # And the files as their cameras and editors have written them.
    assert_timms(timm_rules, recipe, [*written, *(file.read_bytes() for file in photograph_files())])


def test_normalised_as_torch_does(preprocessing_of_224):
    values = np.arange(256, dtype=np.uint8)[:, np.newaxis].repeat(3, axis=1)
    expected = (values.astype(np.float32) / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    normalize = tf.function(preprocessing_of_224.normalize, autograph=False)
    np.testing.assert_array_equal(normalize(values).numpy(), expected)


@pytest.fixture
def preprocessing_of_224() -> preprocessing.Preprocessing:
    return preprocessing.build(recipe_dict(("bicubic", 0.875, "center", (3, 224, 224))))


def test_every_image_of_a_batch_that_does_not_decode_is_named():
    good = encode(painted(20, 30, "smooth", 4))
    batch = [good, b"no image", good, good[:-40], b"", good]
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"image 1, 3, 4 of this batch \(counted"):
        graph_pixels(RECIPES[0])(tf.constant(batch))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "nothing"])
def test_the_only_image_is_named_too(form):
    """It takes a shorter way through the graph, with a guard of its own for each format."""
    whole = b"no image"
    if form != "nothing":
        buffer = io.BytesIO()
        Image.fromarray(painted(20, 30, "smooth", 4)).save(buffer, form)
        whole = buffer.getvalue()
        assert graph_pixels(RECIPES[0])(tf.constant([whole])).shape == (1, 32, 32, 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="image 0 of this batch"):
        graph_pixels(RECIPES[0])(tf.constant([whole[: len(whole) // 2]]))


def test_a_batch_of_nothing():
    assert graph_pixels(RECIPES[0])(tf.constant([], tf.string)).shape == (0, 32, 32, 3)


def test_an_image_too_narrow_for_crop_mode_border_is_named():
    batch = [encode(painted(40, 40, "smooth", 5)), encode(painted(1, 400, "smooth", 5))]
    with pytest.raises(tf.errors.InvalidArgumentError, match="image 1 of this batch"):
        graph_pixels(RECIPES[4])(tf.constant(batch))
    with pytest.raises(tf.errors.InvalidArgumentError, match="too narrow for crop_mode border"):
        graph_pixels(RECIPES[4])(tf.constant(batch[1:]))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"interpolation": "random"}, "unknown interpolation 'random'; one of nearest, box, bilinear"),
        ({"crop_mode": "corner"}, "unknown crop_mode 'corner'; one of center, squash, border"),
        ({"input_size": (1, 28, 28)}, "has 1 channels; encoded images become RGB: 3"),
    ],
)
def test_what_cannot_be_expressed_is_refused(change, text):
    with pytest.raises(ExportError, match=text):
        preprocessing.build({**recipe_dict(RECIPES[0]), **change})


def test_timms_defaults_stand_in_for_what_is_missing():
    least = {"input_size": (3, 224, 224), "mean": MEAN, "std": STD, "crop_mode": None}
    recipe = preprocessing.build(least).recipe
    assert (recipe.interpolation, recipe.crop_mode, recipe.scale) == ("bicubic", "center", (256, 256))
