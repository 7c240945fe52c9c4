"""Media for tests: small files of every supported format, and hand-made ones that try to exhaust memory or time."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image as Pillow

from alhena.media import SAMPLE_RATE


def picture(height: int = 32, width: int = 64) -> np.ndarray:
    """uint8 [height, width, 3] whose four corners differ: red, green, blue, white; the rest is gray."""
    out = np.full((height, width, 3), 128, np.uint8)
    h, w = height // 2, width // 2
    out[:h, :w], out[:h, w:], out[h:, :w], out[h:, w:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
    return out


def saved(image: Pillow.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, bits: int, color: int, rows: bytes, *others: bytes) -> bytes:
    """A PNG of raw rows (each begins with its filter byte), with other chunks before its pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    body = chunk(b"IHDR", header) + b"".join(others) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tone(seconds: float = 1.0, rate: int = SAMPLE_RATE, hertz: float = 440.0) -> np.ndarray:
    """float32 [samples] of a sine at half of full scale."""
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def sound(samples: np.ndarray, rate: int = SAMPLE_RATE, form: str = "WAV", subtype: str | None = None) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=form, subtype=subtype)
    return out.getvalue()


def encoded_sound(samples: np.ndarray, rate: int, form: str, codec: str, layout: str = "mono") -> bytes:
    """float32 [samples], the same in each channel of the layout, by one of FFmpeg's encoders."""
    out = io.BytesIO()
    with av.open(out, "w", format=form) as container:
        _add_sound(container, container.add_stream(codec, rate=rate, layout=layout), samples, rate)
    return out.getvalue()


def _add_sound(container: av.container.OutputContainer, stream: av.AudioStream, samples: np.ndarray, rate: int) -> None:
    layout = stream.layout
    packed = np.repeat(samples.astype(np.float32), layout.nb_channels)[None]
    frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout.name)
    frame.sample_rate = rate
    resampler = av.AudioResampler(
        stream.format.name, layout.name, rate, frame_size=stream.codec_context.frame_size or None
    )
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(stream.encode(part))
    container.mux(stream.encode(None))


@dataclass(frozen=True)
class ClipSettings:
    """How a clip is written. ``start`` is the first frame's time; ``encoder`` and ``container`` are FFmpeg's options."""

    start: float = 0.0
    per_second: int = 4
    aspect: Fraction | None = None
    rotation: float = 0.0
    encoder: tuple[tuple[str, str], ...] = ()
    container: tuple[tuple[str, str], ...] = ()


def clip(
    frames: Sequence[np.ndarray],
    form: str = "mp4",
    codec: str = "libx264",
    track: tuple[str, np.ndarray, int] | None = None,
    **settings: Any,
) -> bytes:
    """Frames of one size as a clip; ``track`` is an audio codec, samples and their rate; ``settings`` are those above."""
    out, s = io.BytesIO(), ClipSettings(**settings)
    with av.open(out, "w", format=form, container_options=dict(s.container)) as container:
        stream = container.add_stream(codec, rate=s.per_second, options=dict(s.encoder))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if s.aspect is not None:
            stream.codec_context.sample_aspect_ratio = s.aspect
        if s.rotation:
            stream.set_display_rotation(s.rotation)
        sound_stream = container.add_stream(track[0], rate=track[2], layout="mono") if track else None
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.time_base, frame.pts = Fraction(1, 1000), round(1000 * (s.start + number / s.per_second))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if track:
            _add_sound(container, sound_stream, track[1], track[2])
    return out.getvalue()


def gray_frames(count: int, height: int = 32, width: int = 48) -> list[np.ndarray]:
    """Frames of increasing brightness, so that the mean of a frame identifies it."""
    return [np.full((height, width, 3), 16 + 4 * i, np.uint8) for i in range(count)]


def motion_jpeg(width: int, height: int, times: int) -> bytes:
    """One JPEG image as a clip of ``times`` frames at 30 a second."""
    out, picture = io.BytesIO(), saved(Pillow.new("RGB", (width, height)), "JPEG")
    with av.open(out, "w", format="mov") as container:
        stream = container.add_stream("mjpeg", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"
        _mux_again(container, stream, picture, times, Fraction(1, 30))
    return out.getvalue()


def silent_matroska(hours: float) -> bytes:
    """Silence as FLAC in Matroska, some 20 bytes for half a second."""
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as container:
        stream = container.add_stream("flac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        packet = [*stream.encode(frame), *stream.encode(None)][0]
        step = Fraction(stream.codec_context.frame_size, 8000)
        _mux_again(container, stream, bytes(packet), round(hours * 3600 / step), step)
    return out.getvalue()


def _mux_again(
    container: av.container.OutputContainer, stream: av.stream.Stream, data: bytes, times: int, step: Fraction
) -> None:
    for number in range(times):
        packet = av.Packet(data)
        packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 1000), True
        packet.pts = packet.dts = round(1000 * number * step)
        container.mux(packet)


def _crc(data: bytes, polynomial: int, bits: int) -> int:
    value, top = 0, 1 << (bits - 1)
    for byte in data:
        value ^= byte << (bits - 8)
        for _ in range(8):
            value = (value << 1 ^ polynomial if value & top else value << 1) & ((1 << bits) - 1)
    return value


def silent_flac(rate: int, channels: int, blocks: int) -> bytes:
    """FLAC of ``blocks`` times 65,535 samples of silence, some 30 bytes each; the length is not in the header."""
    info = rate << 44 | (channels - 1) << 41 | 15 << 36
    out = [b"fLaC\x80\0\0\x22", struct.pack(">HH", 65535, 65535), bytes(6), struct.pack(">Q", info), bytes(16)]
    for number in range(blocks):
        coded = chr(number).encode("utf-8", "surrogatepass")
        head = b"\xff\xf8" + bytes([0x70, (channels - 1) << 4 | 8]) + coded + struct.pack(">H", 65534)
        frame = head + bytes([_crc(head, 0x07, 8)]) + bytes(3 * channels)
        out.append(frame + struct.pack(">H", _crc(frame, 0x8005, 16)))
    return b"".join(out)


def patched_stsz(data: bytes, sample_size: int, count: int) -> bytes:
    """An MP4 whose first table of sample sizes claims ``count`` samples of one size, and whose one chunk holds them all."""
    at = data.index(b"stsz")
    data = data[: at + 8] + struct.pack(">II", sample_size, count) + data[at + 16 :]
    at = data.index(b"stsc")
    return data[: at + 16] + struct.pack(">I", count) + data[at + 20 :]


@cache
def seeds() -> dict[str, bytes]:
    """A small file of every supported format, by a name that begins with image, audio or video."""
    pixels, samples = picture(), tone(0.3)
    image = Pillow.fromarray(pixels)
    gray = bytes(b for row in range(16) for b in (0, *np.arange(0, 65536, 1024, ">u2").astype(">u2").tobytes()))
    out = {
        "image/png": saved(image, "PNG"),
        "image/png16": png(64, 16, 16, 0, gray, chunk(b"tRNS", struct.pack(">H", 4096))),
        "image/palette": saved(image.convert("P"), "PNG", transparency=0),
        "image/rgba": saved(image.convert("RGBA"), "PNG"),
        "image/jpeg": saved(image, "JPEG"),
        "image/progressive": saved(image, "JPEG", progressive=True, exif=_orientation(6)),
        "image/cmyk": saved(image.convert("CMYK"), "JPEG"),
        "image/webp": saved(image, "WEBP", exif=_orientation(8)),
        "image/gif": saved(image, "GIF", save_all=True, append_images=[image.rotate(90)]),
        "image/bmp": saved(image, "BMP"),
        "audio/wav": sound(samples),
        "audio/float": sound(np.stack([samples, samples], 1), 44100, "WAV", "FLOAT"),
        "audio/flac": sound(samples, form="FLAC"),
        "audio/long": silent_flac(16000, 2, 3),
        "audio/vorbis": sound(samples, form="OGG", subtype="VORBIS"),
        "audio/opus": sound(tone(0.3, 48000), 48000, "OGG", "OPUS"),
        "audio/mp3": sound(samples, form="MP3"),
        "audio/aiff": sound(samples, form="AIFF"),
        "audio/m4a": encoded_sound(samples, SAMPLE_RATE, "ipod", "aac"),
        "audio/adts": encoded_sound(samples, SAMPLE_RATE, "adts", "aac"),
        "audio/alac": encoded_sound(samples, SAMPLE_RATE, "ipod", "alac"),
        "audio/7.1": encoded_sound(tone(0.3, 48000), 48000, "ipod", "aac", "7.1"),
        "audio/adpcm": sound(samples, subtype="MS_ADPCM"),
        "audio/ulaw": sound(samples, 8000, subtype="ULAW"),
        "audio/webm": encoded_sound(tone(0.3, 48000), 48000, "webm", "libopus"),
    }
    frames, track = gray_frames(6), ("aac", samples, SAMPLE_RATE)
    return out | {
        "video/mp4": clip(frames, track=track),
        "video/fragmented": clip(frames, track=track, container=(("movflags", "frag_keyframe+empty_moov"),)),
        "video/hevc": clip(gray_frames(6, 64, 64), "mp4", "libx265", encoder=(("x265-params", "log-level=none"),)),
        "video/ffv1": clip(frames, "matroska", "ffv1"),
        "video/rotated": clip(frames, rotation=90),
        "video/mov": clip(frames, "mov", "mjpeg"),
        "video/webm": clip(frames, "webm", "libvpx", ("libopus", tone(0.3, 48000), 48000)),
        "video/vp9": clip(frames, "webm", "libvpx-vp9"),
        "video/mkv": clip(frames, "matroska", "mpeg4", track, aspect=Fraction(4, 3)),
        "video/avi": clip(frames, "avi", "mpeg4", ("mp3", samples, SAMPLE_RATE)),
        "video/ts": clip(frames, "mpegts", "mpeg2video", ("mp2", samples, SAMPLE_RATE), per_second=25),
    }


def _orientation(value: int) -> Pillow.Exif:
    exif = Pillow.Exif()
    exif[0x0112] = value
    return exif
