"""Every kind of file that both Pillow and TensorFlow read: the same pixels."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from isthmus.export.tf_half import decoding

decode = tf.function(decoding.decode, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)

# An odd size: strides are padded, chroma is cut.
PHOTOGRAPH = Image.fromarray(load_sample_images().images[1][100:161, 200:297])
GENERATOR = np.random.default_rng(0)
RGBA = Image.fromarray(
    np.dstack([np.asarray(PHOTOGRAPH), GENERATOR.integers(0, 256, (61, 97), dtype=np.uint8)])
)
CMYK = Image.frombytes("CMYK", (97, 61), np.asarray(RGBA).tobytes())
GRAY_16 = Image.fromarray(GENERATOR.integers(0, 65536, (61, 97)).astype(np.uint16))


def saved(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def deep_png(channels: int) -> bytes:
    deep = GENERATOR.integers(0, 65536, (61, 97, channels)).astype(np.uint16)
    return tf.io.encode_png(deep).numpy()


def jpegs() -> dict[str, bytes]:
    files = {}
    for subsampling in (0, 1, 2):
        for quality in (25, 75, 100):
            for progressive in (False, True):
                options = {"subsampling": subsampling, "quality": quality, "progressive": progressive}
                name = f"{subsampling}, quality {quality}{', progressive' if progressive else ''}"
                files[f"jpeg {name}"] = saved(PHOTOGRAPH, "JPEG", **options)
                inked = saved(CMYK, "JPEG", **options)
                marker = inked.index(b"Adobe") - 4
                files[f"jpeg cmyk {name}"] = inked
                files[f"jpeg ycck {name}"] = inked[: marker + 15] + b"\x02" + inked[marker + 16 :]
                files[f"jpeg cmyk without marker {name}"] = inked[:marker] + inked[marker + 16 :]
    files |= {f"jpeg {name}": jpeg_sampled(factors) for name, factors in SAMPLINGS.items()}
    files["jpeg gray"] = saved(PHOTOGRAPH.convert("L"), "JPEG")
    files["jpeg with restarts"] = saved(PHOTOGRAPH, "JPEG", restart_marker_blocks=2)
    files["jpeg that stores rgb"] = saved(PHOTOGRAPH, "JPEG", keep_rgb=True)
    files["jpeg that is rotated by EXIF"] = saved(PHOTOGRAPH, "JPEG", exif=exif_of(6))
    files["jpeg with more after its end"] = saved(PHOTOGRAPH, "JPEG") + b"more"
    return files


def jpeg_sampled(factors: list[tuple[int, int]]) -> bytes:
    """A JPEG of flat 8 × 8 blocks with sampling factors (horizontal, vertical) per component that Pillow never writes.

    Huffman codes: a DC difference's category in 4 bits; of the AC symbols only "end of block", in 1 bit.
    """
    width, height = 77, 59
    across, down = max(h for h, _ in factors), max(v for _, v in factors)
    mcus = -(-width // (8 * across)) * -(-height // (8 * down))
    bits, last = "", [0] * len(factors)
    for _ in range(mcus):
        for component, (h, v) in enumerate(factors):
            for level in GENERATOR.integers(-60, 61, h * v).tolist():
                difference, last[component] = level - last[component], level
                category = abs(difference).bit_length()
                value = difference if difference > 0 else difference + (1 << category) - 1
                bits += f"{category:04b}" + (f"{value:0{category}b}" if category else "") + "0"
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")

    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content

    ids = range(1, len(factors) + 1)
    frame = b"".join(bytes([i, h << 4 | v, 0]) for i, (h, v) in zip(ids, factors, strict=True))
    dc_table = bytes([0, 0, 0, 0, 12, *[0] * 12]) + bytes(range(12))
    ac_table = bytes([0x10, 1, *[0] * 15]) + b"\0"
    return b"".join(
        [
            b"\xff\xd8",
            segment(0xDB, b"\0" + bytes([16] * 64)),
            segment(0xC0, struct.pack(">BHHB", 8, height, width, len(factors)) + frame),
            segment(0xC4, dc_table),
            segment(0xC4, ac_table),
            segment(0xDA, bytes([len(factors)]) + b"".join(bytes([i, 0]) for i in ids) + bytes([0, 63, 0])),
            scan,
            b"\xff\xd9",
        ]
    )


SAMPLINGS = {
    "4:4:0": [(1, 2), (1, 1), (1, 1)],
    "4:1:1": [(4, 1), (1, 1), (1, 1)],
    "4:1:0": [(4, 2), (1, 1), (1, 1)],
    "4:2:0 by two": [(2, 2), (1, 1), (2, 1)],
    "4:2:2 in blue only": [(2, 1), (1, 1), (2, 1)],
    "gray, sampled oddly": [(2, 2)],
}


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def pngs() -> dict[str, bytes]:
    files = {f"png palette of {n}": saved(PHOTOGRAPH.quantize(n), "PNG") for n in (2, 4, 16, 200)}
    for mode in ("1", "L", "LA", "RGB", "RGBA"):
        files[f"png {mode}"] = saved(RGBA.convert(mode), "PNG")
    files["png palette, one color transparent"] = saved(PHOTOGRAPH.quantize(16), "PNG", transparency=3)
    files["png palette, alpha each"] = saved(PHOTOGRAPH.quantize(16), "PNG", transparency=bytes(range(16)))
    files["png gray, one level transparent"] = saved(PHOTOGRAPH.convert("L"), "PNG", transparency=100)
    files["png rgb, one color transparent"] = saved(PHOTOGRAPH, "PNG", transparency=(10, 20, 30))
    files["png gray 16 bit"] = saved(GRAY_16, "PNG")
    files["png gray 16 bit, dark"] = saved(Image.fromarray(np.asarray(GRAY_16) >> 7), "PNG")
    files |= {f"png 16 bit, {channels} channels": deep_png(channels) for channels in (2, 3, 4)}
    files["png interlaced"] = interlaced_png()
    return files


def interlaced_png() -> bytes:
    """Pillow does not write Adam7: seven small images, each row with filter 0."""
    import zlib

    pixels = np.asarray(PHOTOGRAPH)
    passes = [
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ]
    rows = [row for y, x, dy, dx in passes for row in pixels[y::dy, x::dx] if row.size]
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def gifs() -> dict[str, bytes]:
    small = PHOTOGRAPH.quantize(64)
    other = PHOTOGRAPH.rotate(30).quantize(64)
    clear = saved(small, "GIF", transparency=5)
    descriptor = clear.index(b"\x2c\0\0\0\0")
    canvas = clear[:6] + struct.pack("<HH", 150, 140)
    return {
        "gif": saved(small, "GIF"),
        "gif gray": saved(PHOTOGRAPH.convert("L"), "GIF"),
        "gif black and white": saved(PHOTOGRAPH.convert("1"), "GIF"),
        "gif interlaced": saved(small, "GIF", interlace=1),
        "gif with a comment": saved(small, "GIF", comment=b"hello " * 100),
        "gif animated": saved(small, "GIF", save_all=True, append_images=[other], loop=0),
        "gif transparent": clear,
        "gif transparent, animated": saved(
            small, "GIF", save_all=True, append_images=[other], transparency=7
        ),
        "gif smaller than its canvas": canvas + clear[10:],
        "gif somewhere on its canvas": (
            canvas + clear[10:descriptor] + b"\x2c" + struct.pack("<HH", 21, 9) + clear[descriptor + 5 :]
        ),
        "gif beyond its canvas": clear[:6] + struct.pack("<HH", 90, 40) + clear[10:],
    }


def bmp(bits: int, *, masks: tuple[int, ...] = (), top_down: bool = False, header: int = 40) -> bytes:
    """Noise in a layout that Pillow reads and does not write."""
    width, height = 31, 17
    row_bytes = (bits * width + 31) // 32 * 4
    rows = GENERATOR.integers(0, 256, row_bytes * height, dtype=np.uint8).tobytes()
    palette = b""
    if bits <= 8:
        colors = GENERATOR.integers(0, 256, (1 << bits, 3 if header == 12 else 4), dtype=np.uint8)
        palette = colors.tobytes()
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        compression = 3 if masks else 0
        signed = -height if top_down else height
        info = struct.pack("<IiiHHIIiiII", header, width, signed, 1, bits, compression, len(rows), 1, 1, 0, 0)
        fields = b"".join(struct.pack("<I", mask) for mask in masks)
        info += fields if header == 40 else fields.ljust(header - 40, b"\0")
    start = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + info + palette + rows


def misplaced(file: bytes, offset: int) -> bytes:
    return file[:10] + struct.pack("<I", offset) + file[14:]


def bmps() -> dict[str, bytes]:
    files = {f"bmp {mode}": saved(RGBA.convert(mode), "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")}
    files |= {f"bmp {bits} bit": bmp(bits) for bits in (1, 4, 8, 16, 24, 32)}
    files |= {f"bmp {bits} bit, top down": bmp(bits, top_down=True) for bits in (8, 16, 24)}
    files |= {f"bmp {bits} bit of OS/2": bmp(bits, header=12) for bits in (1, 4, 8, 24)}
    for bits, offset in ((8, 54), (4, 54), (8, 0), (24, 0)):
        files[f"bmp {bits} bit, pixels said to be at {offset}"] = misplaced(bmp(bits), offset)
    files["bmp 16 bit, 5-6-5"] = bmp(16, masks=(0xF800, 0x7E0, 0x1F))
    files["bmp 16 bit, 5-6-5, pixels said to be at 0"] = misplaced(files["bmp 16 bit, 5-6-5"], 0)
    files["bmp 16 bit, 5-5-5 said so"] = bmp(16, masks=(0x7C00, 0x3E0, 0x1F))
    files["bmp 32 bit, masks"] = bmp(32, masks=(0xFF0000, 0xFF00, 0xFF))
    files["bmp 32 bit, red last"] = bmp(32, masks=(0xFF, 0xFF00, 0xFF0000, 0xFF000000), header=124)
    files["bmp 32 bit, version 5"] = bmp(32, masks=(0xFF0000, 0xFF00, 0xFF, 0xFF000000), header=124)
    return files


def animated_webp_on_a_canvas() -> bytes:
    """The first frame of an animation at (20, 10) of a canvas of 150 × 140."""
    whole = bytearray(saved(PHOTOGRAPH, "WEBP", save_all=True, append_images=[PHOTOGRAPH.rotate(30)]))
    whole[24:30] = (149).to_bytes(3, "little") + (139).to_bytes(3, "little")
    frame = whole.index(b"ANMF")
    whole[frame + 8 : frame + 14] = (10).to_bytes(3, "little") + (5).to_bytes(3, "little")
    return bytes(whole)


def odd_webp(*, lossless: bool) -> bytes:
    """A picture chunk of odd length, which is followed by a byte of padding; made one byte longer if need be."""
    encoded = saved(PHOTOGRAPH, "WEBP", lossless=lossless)
    size = int.from_bytes(encoded[16:20], "little")
    if size % 2:
        return encoded
    chunk = encoded[12:16] + struct.pack("<I", size + 1) + encoded[20 : 20 + size] + b"\0" + b"\0"
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def webps() -> dict[str, bytes]:
    other = PHOTOGRAPH.rotate(30)
    return {
        "webp": saved(PHOTOGRAPH, "WEBP", quality=80),
        "webp lossless": saved(PHOTOGRAPH, "WEBP", lossless=True),
        "webp with alpha": saved(RGBA, "WEBP", quality=80),
        "webp lossless with alpha": saved(RGBA, "WEBP", lossless=True),
        "webp animated": saved(PHOTOGRAPH, "WEBP", save_all=True, append_images=[other]),
        "webp animated, lossless with alpha": saved(
            RGBA, "WEBP", save_all=True, append_images=[RGBA.rotate(30)], lossless=True
        ),
        "webp animated with alpha": saved(RGBA, "WEBP", save_all=True, append_images=[RGBA.rotate(30)]),
        "webp animated, smaller than its canvas": animated_webp_on_a_canvas(),
        "webp lossless of odd length": odd_webp(lossless=True),
        "webp of odd length": odd_webp(lossless=False),
        "webp with a profile": saved(PHOTOGRAPH, "WEBP", quality=80, exif=exif_of(6)),
    }


FILES = {**jpegs(), **pngs(), **gifs(), **bmps(), **webps()}


@pytest.mark.parametrize("name", FILES)
def test_the_same_pixels(name):
    with Image.open(io.BytesIO(FILES[name])) as opened, warnings.catch_warnings():
        # Pillow advises against dropping a palette's alpha, which is what timm does.
        warnings.filterwarnings("ignore", "Palette images with Transparency", UserWarning)
        expected = np.asarray(opened.convert("RGB"))
    got = decode(tf.constant(FILES[name])).numpy()
    assert got.shape == expected.shape
    differences = np.abs(got.astype(int) - expected)
    assert differences.max() == 0, (
        f"{(differences > 0).mean():.2%} of the values differ, by up to {differences.max()}"
    )


REFUSED = {
    "nothing": b"",
    "text": b"no image at all",
    "a TIFF": saved(PHOTOGRAPH, "TIFF"),
    "half a JPEG": FILES["jpeg 0, quality 75"][:1500],
    "a JPEG's first bytes": b"\xff\xd8\xff",
    "half a PNG": FILES["png RGB"][: len(FILES["png RGB"]) // 2],
    "half a GIF": FILES["gif"][:2000],
    "a GIF's header": FILES["gif"][:13],
    "half a BMP": FILES["bmp RGB"][:5000],
    "a compressed BMP": b"BM" + bmp(8)[2:30] + b"\1" + bmp(8)[31:],
    "half a WebP": FILES["webp"][:500],
    "half a CMYK JPEG": FILES["jpeg cmyk 0, quality 75"][:1500],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_fails(name):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(tf.constant(REFUSED[name]))
