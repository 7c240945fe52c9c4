"""Image bytes to upright 8-bit RGB and back.

Color profiles, texts and other ancillary chunks are ignored: an image is decoded even when they are damaged.
"""

from __future__ import annotations

import io
import math
import zlib

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from alhena.media.limits import LIMITS, Limits, MediaError, check_size, one_large_at_a_time, reason

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
ORIENTATION = 0x0112
# Pixels that are composited and converted at once.
STRIP = 1 << 20


def decode_image(data: bytes, limits: Limits = LIMITS) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes PNG, JPEG, WebP, GIF (first frame) or BMP to upright 8-bit RGB.

    Transparent pixels are composited over white, 16 bits are scaled to 8, and more than ``limits.output_pixels`` are
    downsampled by an integer factor. Raises ValueError that states what is wrong.
    """
    check_size(data, "image", limits)
    try:
        with Pillow.open(io.BytesIO(_without_ancillary_chunks(data)), formats=FORMATS) as image:
            width, height = image.size
            if width * height > limits.image_pixels:
                raise MediaError(f"the image is {width}x{height}; at most {limits.image_pixels:,} pixels are read")
            with one_large_at_a_time(width * height):
                return _orient(_downsample(image, limits.output_pixels), _orientation(image))
    except MediaError:
        raise
    except UnidentifiedImageError:
        raise MediaError("the image cannot be decoded: it is not PNG, JPEG, WebP, GIF or BMP, or truncated") from None
    except (
        OSError,
        SyntaxError,
        EOFError,
        IndexError,
        OverflowError,
        TypeError,
        ValueError,
        Warning,
        zlib.error,
    ) as error:
        raise MediaError(f"the image cannot be decoded: {reason(error)}") from None
    except Pillow.DecompressionBombError:
        raise MediaError(f"the image is too large; at most {limits.image_pixels:,} pixels are read") from None
    except MemoryError:
        raise MediaError("the image cannot be decoded: it needs more memory than is free") from None


def _without_ancillary_chunks(data: bytes) -> bytes:
    """A PNG without the chunks that do not affect its pixels; other formats unchanged."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    kept, start = [data[:8]], 8
    while start + 8 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] in PNG_CHUNKS:
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def _downsample(image: Pillow.Image, output_pixels: int) -> UInt8[np.ndarray, "height width 3"]:
    """RGB of at most ``output_pixels`` pixels; intermediate copies are of one strip only."""
    factor = _downsampling_factor(image.size, output_pixels)
    # JPEG decodes at 1/2, 1/4 or 1/8 of its size directly.
    image.draft(None, (-(-image.width // factor), -(-image.height // factor)))
    image.load()
    factor = _downsampling_factor(image.size, output_pixels)
    rows = max(1, STRIP // image.width // factor) * factor
    if factor == 1 and image.height <= rows:
        return np.asarray(_rgb(image))
    out = np.empty((-(-image.height // factor), -(-image.width // factor), 3), np.uint8)
    for top in range(0, image.height, rows):
        strip = _rgb(image, (0, top, image.width, min(top + rows, image.height)))
        part = np.asarray(strip if factor == 1 else strip.reduce(factor))
        out[top // factor : top // factor + len(part)] = part
    return out


def _downsampling_factor(size: tuple[int, int], output_pixels: int) -> int:
    """The smallest integer factor by which an image of this size is reduced to ``output_pixels`` or fewer."""
    factor = math.isqrt(max(0, size[0] * size[1] - 1) // output_pixels) or 1
    while -(-size[0] // factor) * -(-size[1] // factor) > output_pixels:
        factor += 1
    return factor


def _rgb(image: Pillow.Image, box: tuple[int, int, int, int] | None = None) -> Pillow.Image:
    """The image, or a box of it, as RGB over white."""
    info, mode = image.info, image.mode
    part = image.crop(box) if box else image
    if mode.startswith("I"):
        return _from_16_bits(np.asarray(part), info.get("transparency"))
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in info:
        layer = part.convert("RGBA")
        part = Pillow.alpha_composite(Pillow.new("RGBA", layer.size, "white"), layer)
    return part.convert("RGB")


def _from_16_bits(gray: Integer[np.ndarray, "height width"], transparent: object) -> Pillow.Image:
    """Values 0..65535, one of them transparent or None, as RGB."""
    values = ((gray.astype(np.int64).clip(0, 65535) + 128) // 257).astype(np.uint8)
    if isinstance(transparent, int):
        values[gray == transparent] = 255
    return Pillow.fromarray(values).convert("RGB")


def _orientation(image: Pillow.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 when it is missing or cannot be read."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    # A broken tag may raise any exception; the pixels do not need it.
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _orient(pixels: UInt8[np.ndarray, "h w 3"], orientation: int) -> UInt8[np.ndarray, "height width 3"]:
    """Mirrors and rotates by the EXIF orientation: 2 to 4 flip, 5 to 8 transpose first."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def encode_png(pixels: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """Pixels as PNG."""
    out = io.BytesIO()
    Pillow.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
