"""Clip bytes to a few upright RGB frames with square pixels, their times, and the sound track; and back.

    1  packets are counted, without decoding: which frames are wanted follows (evenly spaced, first and last included)
    2  one pass decodes the pictures; frames that are not wanted are dropped at once
    3  only where packets and frames do not agree in number (hidden frames, edit lists), a second pass decodes them again
    4  one pass decodes the sound track

So the choice is always ``np.linspace`` over all frames that decode, rounded, and memory holds the wanted frames only.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import av
import numpy as np

from alhena.media.audio import SAMPLE_RATE, Blocks, MissingSound, Packed, mono, sound_frames
from alhena.media.container import PICTURE_CODECS, codec_missing, opened, packets, prepare
from alhena.media.limits import LIMITS, Limits, MediaError, check_size, one_large_at_a_time

ATTACHED_PICTURE = 0x400
# Pixels wider or higher than this are taken for a broken header.
MOST_ASPECT = 8


@dataclass(frozen=True)
class Clip:
    """A decoded clip: its clock begins with its first frame.

    ``frames`` uint8 [frames, height, width, 3], ``seconds`` float32 [frames] when each is shown, ``sound`` float32
    [samples] at 16 kHz or None, and ``notes``, a sentence for each thing that could not be read though the pictures could.
    """

    frames: np.ndarray
    seconds: np.ndarray
    sound: np.ndarray | None
    notes: tuple[str, ...] = ()


@dataclass
class _Pictures:
    """Frames of one pass: the wanted ones as RGB, and what they have in common."""

    wanted: frozenset[int]
    limits: Limits
    aspect: float
    rate: float
    count: int = 0
    pixels: int = 0
    first_time: float = 0.0
    size: tuple[int, int] | None = None
    frames: list[np.ndarray] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, frame: av.VideoFrame) -> None:
        time = self.count / self.rate if frame.time is None else frame.time
        if not self.count:
            self.first_time = time
        self._check(frame, time - self.first_time)
        if self.count in self.wanted:
            self.size = self.size or _shown_size(frame.width, frame.height, self.aspect, self.limits.kept_frame_pixels)
            width, height = self.size
            pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
            self.frames.append(_upright(pixels, frame))
            self.seconds.append(max(0.0, time - self.first_time))
        self.count += 1

    def _check(self, frame: av.VideoFrame, seconds: float) -> None:
        _check_frame_size(frame.width, frame.height, self.limits)
        if seconds > self.limits.video_seconds:
            raise MediaError(f"the video lasts more than {self.limits.video_seconds:g} s, the most that is read")
        self.pixels += frame.width * frame.height
        _check_total(self.pixels, self.limits)


def decode_video(data: bytes, max_frames: int, limits: Limits = LIMITS) -> Clip:
    """Decodes MP4, MOV, WebM, Matroska, AVI, MPEG-TS or Ogg to at most ``most_frames`` evenly spaced frames and the sound.

    Frames are upright, of square pixels, all of the first one's size, and at most ``limits.kept_frame_pixels`` large.
    A sound track whose codec is not read is left out and said in ``Clip.notes``. Raises ValueError that says what is wrong.
    """
    check_size(data, "video", limits)
    total = _count_packets(data, limits)
    pictures = _decode(data, _spread(total, max_frames, limits), limits)
    if not pictures.count:
        raise MediaError("the video has no frames")
    if pictures.count != total:
        pictures = _decode(data, _spread(pictures.count, max_frames, limits), limits)
    first = pictures.frames[0].shape
    if any(frame.shape != first for frame in pictures.frames):
        raise MediaError("the video turns from upright to sideways between its frames")
    # clocks of damaged clips may run backwards
    seconds = np.maximum.accumulate(np.array(pictures.seconds, np.float32))
    return Clip(np.stack(pictures.frames), seconds, *_sound(data, pictures.first_time, limits))


def _spread(total: int, max_frames: int, limits: Limits) -> frozenset[int]:
    """Indices of the wanted frames among ``total``."""
    wanted = np.linspace(0, total - 1, min(total, max(1, max_frames), limits.video_frames))
    return frozenset(wanted.round().astype(int).tolist())


def _picture_stream(container: av.container.InputContainer, limits: Limits) -> av.VideoStream:
    """The first picture track that is no cover. Raises ValueError when it cannot be decoded or is too large."""
    streams = [s for s in container.streams.video if not int(s.disposition) & ATTACHED_PICTURE]
    if not streams:
        raise MediaError("the video file has no picture track")
    missing = codec_missing(streams[0], PICTURE_CODECS)
    if missing:
        raise MediaError(f"the video's pictures cannot be decoded: {missing}")
    width, height = streams[0].codec_context.width, streams[0].codec_context.height
    if not width * height:
        # FFmpeg's own limit, the same, hides the size of larger frames
        raise MediaError(f"the video's frames have no size that is known, or more than {limits.video_pixels:,} pixels")
    _check_frame_size(width, height, limits)
    return streams[0]


def _check_frame_size(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.video_pixels:
        raise MediaError(f"the video is {width}x{height}; frames of at most {limits.video_pixels:,} pixels are read")


def _check_total(pixels: int, limits: Limits) -> None:
    if pixels > limits.video_total_pixels:
        raise MediaError(
            f"the video's frames have more than {limits.video_total_pixels:,} pixels in all, the most that is read"
        )


def _count_packets(data: bytes, limits: Limits) -> int:
    """Packets of the picture track; almost always the number of its frames. Raises ValueError where they are too many."""
    with opened(data, "video", limits) as container:
        stream = _picture_stream(container, limits)
        area = max(1, stream.codec_context.width * stream.codec_context.height)
        count = 0
        for packet in packets(container, [stream], "video", limits):
            count += packet.size > 0
        _check_total(count * area, limits)
        return count


def _decode(data: bytes, wanted: frozenset[int], limits: Limits) -> _Pictures:
    """One pass over the pictures."""
    with opened(data, "video", limits) as container:
        stream = _picture_stream(container, limits)
        pictures = _Pictures(wanted, limits, _aspect(stream), float(stream.average_rate or 0) or 25.0)
        prepare(stream, limits)
        with one_large_at_a_time(stream.codec_context.width * stream.codec_context.height):
            for packet in packets(container, [stream], "video", limits):
                for frame in packet.decode():
                    pictures.add(frame)
        return pictures


def _sound(data: bytes, first_picture: float, limits: Limits) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """float32 [samples] from the first picture on, or None; and a note where there is a track whose codec is not read."""
    start: float | None = None

    def blocks() -> Blocks:
        nonlocal start
        packed = Packed(limits)
        for frame in sound_frames(data, "video", limits):
            start = (frame.time or 0.0) if start is None else start
            yield packed.convert(frame), frame.sample_rate

    with opened(data, "video", limits) as container:
        if not container.streams.audio:
            return None, ()
    try:
        samples = mono(blocks, limits, limits.video_seconds)
    except MissingSound as error:
        return None, (str(error),)
    return _aligned(samples, (start or 0.0) - first_picture, limits)


def _aligned(samples: np.ndarray, seconds: float, limits: Limits) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """A track that starts ``seconds`` after the first picture, with silence before it; less of one that starts earlier."""
    offset = round(seconds * SAMPLE_RATE)
    if offset < 0:
        rest = samples[-offset:]
        return (rest, ()) if len(rest) else (None, ("the sound track was left out: it ends before the first picture",))
    if offset + len(samples) > limits.video_seconds * SAMPLE_RATE:
        raise MediaError(f"the video's sound ends after {limits.video_seconds:g} s, the most that is read")
    return np.concatenate([np.zeros(offset, np.float32), samples]) if offset else samples, ()


def _aspect(stream: av.VideoStream) -> float:
    """Width over height of the stream's pixels; 1 when it is not said or absurd."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 1 / MOST_ASPECT <= aspect <= MOST_ASPECT else 1.0


def _shown_size(width: int, height: int, aspect: float, most: int) -> tuple[int, int]:
    """Width and height of a frame with square pixels: the height is kept, unless more than ``most`` pixels result.

    >>> _shown_size(64, 48, 1.0, 1 << 20), _shown_size(720, 576, 64 / 45, 1 << 20), _shown_size(4000, 2000, 1.0, 1 << 20)
    ((64, 48), (1024, 576), (1448, 724))
    """
    wide = width * aspect
    scale = min(1.0, math.sqrt(most / (wide * height)))
    return max(1, min(most, round(wide * scale))), max(1, min(most, round(height * scale)))


def _upright(pixels: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """uint8 [height, width, 3] turned and mirrored as the frame's display matrix asks, by the nearest quarter turn."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    # shown x = a x + c y, shown y = b x + d y
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()  # type: ignore[call-overload]
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


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
