"""Images: upright, 8 bits, over white; ancillary data is ignored; memory is bounded."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageOps

from alhena.media import Limits, decode_image, encode_png
from tests.media.inputs import chunk, picture, png, saved


def corners(pixels: np.ndarray) -> list[str]:
    """The colors of the corners, row by row."""
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 1): "white"}
    return [names[tuple(int(v > 127) for v in pixels[row, column])] for row in (2, -3) for column in (2, -3)]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, "red green blue white"),
        (2, "green red white blue"),
        (3, "white blue green red"),
        (4, "blue white red green"),
        (5, "red blue green white"),
        (6, "blue red white green"),
        (7, "white green blue red"),
        (8, "green white red blue"),
    ],
)
def test_the_exif_orientation_is_applied(form: str, orientation: int, expected: str) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    pixels = decode_image(saved(Pillow.fromarray(picture()), form, exif=exif))
    assert corners(pixels) == expected.split()
    assert pixels.shape == ((64, 32, 3) if orientation > 4 else (32, 64, 3))


def test_exif_without_an_orientation_that_exists_changes_nothing() -> None:
    for value in (0, 9, 65535):
        exif = Pillow.Exif()
        exif[0x0112] = value
        assert corners(decode_image(saved(Pillow.fromarray(picture()), "PNG", exif=exif))) == corners(picture())


def test_a_broken_exif_chunk_is_ignored() -> None:
    plain = encode_png(picture())
    for body in (b"", b"MM\0*", b"II*\0\xff\xff\xff\xff", b"junk" * 50):
        broken = plain[:33] + chunk(b"eXIf", body) + plain[33:]
        np.testing.assert_array_equal(decode_image(broken), picture())


def gray16(values: np.ndarray, *others: bytes) -> bytes:
    """uint16 [height, width] as 16-bit gray PNG."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(values.shape[1], values.shape[0], 16, 0, rows, *others)


def test_16_bit_gray_is_scaled_to_8_bits() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (4, 1))
    pixels = decode_image(gray16(ramp))
    np.testing.assert_array_equal(pixels, np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 4, 0).repeat(3, 2))


def test_a_transparent_value_of_16_bit_gray_is_white() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (4, 1))
    pixels = decode_image(gray16(ramp, chunk(b"tRNS", struct.pack(">H", 100 * 257))))
    assert (pixels[:, 100] == 255).all() and (pixels[:, 99] == 99).all() and (pixels[:, 101] == 101).all()


def test_16_bit_colors_and_alpha_are_scaled_too() -> None:
    row = np.array([[0, 32896, 65535, 65535], [65535, 0, 0, 0]], ">u2")
    rows = b"\0" + row.tobytes()
    assert decode_image(png(2, 1, 16, 6, rows)).tolist() == [[[0, 128, 255], [255, 255, 255]]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_other_modes_give_the_pixels_that_pillow_shows(mode: str) -> None:
    image = Pillow.fromarray(picture()).convert(mode)
    np.testing.assert_array_equal(decode_image(saved(image, "PNG")), np.asarray(image.convert("RGB")))


def test_cmyk_is_read_as_its_colors() -> None:
    pixels = decode_image(saved(Pillow.fromarray(picture()).convert("CMYK"), "JPEG", quality=95))
    assert corners(pixels) == corners(picture())


def test_transparent_pixels_are_composited_over_white() -> None:
    image = Pillow.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("GIF", {})):
        assert decode_image(saved(image, form, **options))[0].tolist() == [[255, 0, 0], [255, 255, 255]], form


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_read(form: str) -> None:
    frames = [Pillow.new("RGB", (8, 8), color) for color in ("red", "blue")]
    pixels = decode_image(saved(frames[0], form, save_all=True, append_images=frames[1:], lossless=True))
    assert pixels[0, 0].argmax() == 0 and pixels[0, 0, 0] > 200 and pixels[0, 0, 2] < 50


def test_large_or_broken_ancillary_chunks_are_ignored() -> None:
    plain, text = encode_png(picture()), zlib.compress(bytes(3 << 20))
    for name, body in (
        (b"zTXt", b"comment\0\0" + text),
        (b"iCCP", b"profile\0\0" + text),
        (b"iTXt", b"comment\0\1\0\0\0" + text),
        (b"tEXt", bytes(2 << 20)),
        (b"iCCP", b"junk"),
        (b"gAMA", b""),
        (b"acTL", b"\xff"),
    ):
        for damaged in (chunk(name, body), chunk(name, body)[:-1] + b"?"):
            np.testing.assert_array_equal(decode_image(plain[:33] + damaged + plain[33:]), picture())


def test_a_large_image_is_downsampled_by_an_integer_factor() -> None:
    limits = Limits(output_pixels=picture().shape[0] * picture().shape[1] // 4)
    for form, options in (("PNG", {}), ("BMP", {}), ("JPEG", {"quality": 95})):
        pixels = decode_image(saved(Pillow.fromarray(picture()), form, **options), limits)
        assert pixels.shape == (16, 32, 3) and corners(pixels) == corners(picture())


def test_strips_give_the_same_pixels_as_decoding_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 4), np.uint8), "RGBA")
    whole = decode_image(saved(image, "PNG"))
    reduced = decode_image(saved(image, "PNG"), Limits(output_pixels=53 * 37 // 4))
    monkeypatch.setattr("alhena.media.image.STRIP", 53 * 4)
    np.testing.assert_array_equal(decode_image(saved(image, "PNG")), whole)
    np.testing.assert_array_equal(decode_image(saved(image, "PNG"), Limits(output_pixels=53 * 37 // 4)), reduced)


def test_more_pixels_than_the_limit_are_refused_by_their_size() -> None:
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        with pytest.raises(ValueError, match="64x32; at most 2,000 pixels"):
            decode_image(saved(Pillow.fromarray(picture()), form), Limits(image_pixels=2000))


def test_bytes_that_are_no_image_or_truncated_are_refused_in_one_sentence() -> None:
    whole = saved(Pillow.fromarray(picture()), "JPEG")
    for data in (b"", b"x" * 100, whole[:300], encode_png(picture())[:60], b"RIFF....WEBPVP8 ", b"BM" + bytes(60)):
        with pytest.raises(ValueError, match=r"^the image [^\n]*$") as refused:
            decode_image(data)
        assert " at 0x" not in str(refused.value)


def test_exif_agrees_with_pillow_on_a_square_of_noise() -> None:
    noise = Pillow.fromarray(np.random.default_rng(1).integers(0, 256, (9, 9, 3), np.uint8))
    for orientation in range(1, 9):
        exif = Pillow.Exif()
        exif[0x0112] = orientation
        data = saved(noise, "PNG", exif=exif)
        expected = ImageOps.exif_transpose(Pillow.open(io.BytesIO(data)))
        np.testing.assert_array_equal(decode_image(data), np.asarray(expected))
