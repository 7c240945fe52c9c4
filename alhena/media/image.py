"""Picture bytes to upright 8-bit RGB and back.

What does not touch the pixels does not decide: color profiles, texts and other ancillary chunks are left out,
and a picture is read whether or not they are sound.
"""

from __future__ import annotations

import io
import math
import zlib

import numpy as np
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from alhena.media.limits import LIMITS, Limits, MediaError, check_size, one_large_at_a_time, reason

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
ORIENTATION = 0x0112
# rows times columns that are composited and converted at once
STRIP = 1 << 20


def decode_image(data: bytes, limits: Limits = LIMITS) -> np.ndarray:
    """Decodes PNG, JPEG, WebP, GIF (first frame) or BMP to uint8 [height, width, 3], upright.

    Transparent pixels are laid over white, 16 bits are scaled to 8, and more than ``limits.kept_pixels`` are reduced
    by a whole factor. Raises ValueError that says what is wrong.
    """
    check_size(data, "image", limits)
    try:
        with Pillow.open(io.BytesIO(_essential(data)), formats=FORMATS) as image:
            width, height = image.size
            if width * height > limits.image_pixels:
                raise MediaError(f"the image is {width}x{height}; at most {limits.image_pixels:,} pixels are read")
            with one_large_at_a_time(width * height):
                return _upright(_reduced(image, limits.kept_pixels), _orientation(image))
    except MediaError:
        raise
    except UnidentifiedImageError:
        raise MediaError("the image cannot be decoded: it is no PNG, JPEG, WebP, GIF or BMP, or cut off") from None
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


def _essential(data: bytes) -> bytes:
    """A PNG without the chunks that do not touch its pixels; other formats unchanged."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    kept, start = [data[:8]], 8
    while start + 8 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] in PNG_CHUNKS:
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def _reduced(image: Pillow.Image, kept_pixels: int) -> np.ndarray:
    """uint8 [height, width, 3] with at most ``kept_pixels`` pixels; the copies on the way are of one strip only."""
    factor = _factor(image.size, kept_pixels)
    # JPEG decodes at a half, a quarter or an eighth directly
    image.draft(None, (-(-image.width // factor), -(-image.height // factor)))
    image.load()
    factor = _factor(image.size, kept_pixels)
    rows = max(1, STRIP // image.width // factor) * factor
    if factor == 1 and image.height <= rows:
        return np.asarray(_rgb(image))
    out = np.empty((-(-image.height // factor), -(-image.width // factor), 3), np.uint8)
    for top in range(0, image.height, rows):
        strip = _rgb(image, (0, top, image.width, min(top + rows, image.height)))
        part = np.asarray(strip if factor == 1 else strip.reduce(factor))
        out[top // factor : top // factor + len(part)] = part
    return out


def _factor(size: tuple[int, int], kept_pixels: int) -> int:
    factor = math.isqrt(max(0, size[0] * size[1] - 1) // kept_pixels) or 1
    while -(-size[0] // factor) * -(-size[1] // factor) > kept_pixels:
        factor += 1
    return factor


def _rgb(image: Pillow.Image, box: tuple[int, int, int, int] | None = None) -> Pillow.Image:
    """The picture, or a box of it, as RGB over white."""
    info, mode = image.info, image.mode
    part = image.crop(box) if box else image
    if mode.startswith("I"):
        return _from_16_bits(np.asarray(part), info.get("transparency"))
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in info:
        layer = part.convert("RGBA")
        part = Pillow.alpha_composite(Pillow.new("RGBA", layer.size, "white"), layer)
    return part.convert("RGB")


def _from_16_bits(gray: np.ndarray, transparent: object) -> Pillow.Image:
    """Values 0..65535 [height, width], one of them transparent or None, as RGB."""
    values = ((gray.astype(np.int64).clip(0, 65535) + 128) // 257).astype(np.uint8)
    if isinstance(transparent, int):
        values[gray == transparent] = 255
    return Pillow.fromarray(values).convert("RGB")


def _orientation(image: Pillow.Image) -> int:
    """1..8 as EXIF numbers them; 1 when it is not said or cannot be read."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    # a broken tag may raise anything at all, and pixels are there without it
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Mirrored and turned as ``orientation`` asks: 2 to 4 flip, 5 to 8 swap rows and columns first."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 [height, width, 3] as PNG."""
    out = io.BytesIO()
    Pillow.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
