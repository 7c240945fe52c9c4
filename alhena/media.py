"""Media bytes to arrays and back, with every size bounded before anything is decoded.

    image  bytes -> uint8 [height, width, 3]           (alpha is laid over white)
    audio  bytes -> float32 [samples] at 16 kHz, mono, in -1..1
    video  bytes -> uint8 [frames, height, width, 3], their times in seconds, and the sound track if there is one

Every decoder raises ValueError that says what is wrong with the bytes; none executes or trusts anything they contain.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import av
import numpy as np
import soundfile
import soxr
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from alhena.content import Audio, Image, Part, Video

SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class Limits:
    """The most that is decoded of one media item."""

    bytes: int = 64 << 20
    image_pixels: int = 64_000_000
    audio_seconds: float = 600.0
    video_seconds: float = 600.0
    video_pixels: int = 4096 * 2304
    video_frames: int = 64


LIMITS = Limits()


def _check_size(data: bytes, what: str, limits: Limits) -> None:
    if not data:
        raise ValueError(f"the {what} is empty (0 bytes)")
    if len(data) > limits.bytes:
        raise ValueError(f"the {what} has {len(data):,} bytes; at most {limits.bytes:,} are read")


def decode_image(data: bytes, limits: Limits = LIMITS) -> np.ndarray:
    """Decodes PNG, JPEG, WebP, GIF or BMP to uint8 [height, width, 3]."""
    _check_size(data, "image", limits)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Pillow.DecompressionBombWarning)
            with Pillow.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP", "GIF", "BMP")) as opened:
                image: Pillow.Image = opened
                width, height = image.size
                if width * height > limits.image_pixels:
                    raise ValueError(f"the image is {width}x{height}; at most {limits.image_pixels:,} pixels are read")
                image.load()
                if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                    layer = image.convert("RGBA")
                    image = Pillow.alpha_composite(Pillow.new("RGBA", layer.size, "white"), layer)
                return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise ValueError("the image cannot be decoded: it is no PNG, JPEG, WebP, GIF or BMP, or cut off") from None
    except (OSError, SyntaxError, EOFError, Pillow.DecompressionBombError, Warning) as error:
        raise ValueError(f"the image cannot be decoded: {error}") from None


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 [height, width, 3] as PNG."""
    out = io.BytesIO()
    Pillow.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """float32 [samples] at ``rate`` Hz to 16 kHz."""
    return samples if rate == SAMPLE_RATE else soxr.resample(samples, rate, SAMPLE_RATE).astype(np.float32)


def decode_audio(data: bytes, limits: Limits = LIMITS) -> np.ndarray:
    """Decodes WAV, FLAC, OGG or MP3 to float32 [samples] at 16 kHz, channels averaged."""
    _check_size(data, "sound", limits)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.frames / file.samplerate > limits.audio_seconds:
                raise ValueError(
                    f"the sound lasts {file.frames / file.samplerate:.0f} s; at most {limits.audio_seconds:.0f} s are read"
                )
            samples, rate = file.read(dtype="float32", always_2d=True), file.samplerate
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        raise ValueError(f"the sound cannot be decoded: {error}") from None
    if not len(samples):
        raise ValueError("the sound has no samples")
    if not np.isfinite(samples).all():
        raise ValueError("the sound holds values that are not finite numbers")
    return resample(np.ascontiguousarray(samples.mean(axis=1)), rate)


def encode_audio(samples: np.ndarray, rate: int = SAMPLE_RATE, format: str = "FLAC") -> bytes:
    """float32 [samples] in -1..1 as 16-bit FLAC or WAV."""
    out = io.BytesIO()
    soundfile.write(out, np.clip(samples, -1, 1), rate, format=format, subtype="PCM_16")
    return out.getvalue()


@dataclass(frozen=True)
class Clip:
    frames: np.ndarray  # uint8 [frames, height, width, 3]
    seconds: np.ndarray  # float32 [frames], when each frame is shown
    sound: np.ndarray | None  # float32 [samples] at 16 kHz
    notes: tuple[str, ...] = ()  # what could not be read though the pictures could


def _frames(container: av.container.InputContainer, limits: Limits) -> Iterator[av.VideoFrame]:
    stream = container.streams.video[0]
    if stream.codec_context.width * stream.codec_context.height > limits.video_pixels:
        raise ValueError(
            f"the video is {stream.codec_context.width}x{stream.codec_context.height}, too large to decode"
        )
    for frame in container.decode(stream):
        if frame.time is not None and frame.time > limits.video_seconds:
            raise ValueError(f"the video lasts more than {limits.video_seconds:.0f} s, the most that is read")
        yield frame


def decode_video(data: bytes, most_frames: int, limits: Limits = LIMITS) -> Clip:
    """Decodes MP4 or WebM to at most ``most_frames`` frames spread evenly over the clip, and its sound track."""
    _check_size(data, "video", limits)
    try:
        with av.open(io.BytesIO(data), mode="r") as container:
            if not container.streams.video:
                raise ValueError("the video file has no picture track")
            total = sum(1 for _ in _frames(container, limits))
        if not total:
            raise ValueError("the video has no frames")
        wanted = set(
            np.linspace(0, total - 1, min(total, most_frames, limits.video_frames)).round().astype(int).tolist()
        )
        with av.open(io.BytesIO(data), mode="r") as container:
            kept = [
                (f.to_ndarray(format="rgb24"), f.time or 0.0)
                for i, f in enumerate(_frames(container, limits))
                if i in wanted
            ]
        return Clip(np.stack([f for f, _ in kept]), np.array([t for _, t in kept], np.float32), _sound_track(data))
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"the video cannot be decoded: {error}") from None


def _sound_track(data: bytes) -> np.ndarray | None:
    with av.open(io.BytesIO(data), mode="r") as container:
        if not container.streams.audio:
            return None
        resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        pieces = [out.to_ndarray()[0] for frame in container.decode(audio=0) for out in resampler.resample(frame)]
        return np.concatenate(pieces).astype(np.float32) if pieces else None


def encode_video(frames: Sequence[np.ndarray], per_second: int) -> bytes:
    """uint8 [height, width, 3] frames (even height and width) as MP4 (H.264, nearly lossless)."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=per_second, options={"crf": "12", "preset": "ultrafast", "threads": "1"}
        )
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv444p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


def check(part: Part) -> None:
    """Raises ValueError that says why when a part is media and does not decode."""
    if isinstance(part, Image):
        decode_image(part.data)
    elif isinstance(part, Audio):
        decode_audio(part.data)
    elif isinstance(part, Video):
        decode_video(part.data, 2)
