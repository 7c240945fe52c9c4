"""Video bytes to a few upright RGB frames with square pixels, their times, and the audio track; and back.

    1  the times of packets are read without decoding; they select frames, evenly spaced, first and last included
    2  one pass decodes the video track; frames that are not selected are dropped at once
    3  only where the numbers of packets and frames differ (hidden frames, edit lists), a second pass decodes them again
    4  one pass decodes the audio track

The selection is over all frames that decode, and memory holds the selected frames only.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import av
import numpy as np
from jaxtyping import Float, UInt8

from alhena.content import Excerpt
from alhena.media.audio import SAMPLE_RATE, Blocks, FrameConverter, MissingAudio, audio_frames, mix_to_mono
from alhena.media.container import VIDEO_CODECS, codec_problem, configure_decoder, open_container, packets
from alhena.media.limits import LIMITS, Limits, MediaError, check_size, one_large_at_a_time

Samples = Float[np.ndarray, " aligned"]
# Samples or None, and notes on what was left out.
AudioTrack = tuple[Samples | None, tuple[str, ...]]
# From the number of all frames and of those wanted to the indices of these.
Select = Callable[[int, int], Sequence[int]]
Times = Float[np.ndarray, " all_frames"]
ATTACHED_PICTURE = 0x400
# Aspect ratios of pixels beyond this, or its inverse, are treated as a broken header.
MAX_ASPECT = 8


@dataclass(frozen=True)
class Clip:
    """A decoded video clip; times are relative to its first frame.

    ``seconds`` are the presentation times of the frames, ``audio`` the samples at 16 kHz or None, and ``notes`` a sentence for
    each track that could not be decoded.
    """

    frames: UInt8[np.ndarray, "frames height width 3"]
    seconds: Float[np.ndarray, " frames"]
    audio: Float[np.ndarray, " samples"] | None
    notes: tuple[str, ...] = ()


@dataclass
class _SelectedFrames:
    """Selected frames of one decoding pass as RGB, with their times and common size."""

    indices: frozenset[int]
    limits: Limits
    aspect: float
    rate: float
    pixels: int = 0
    # Of all frames.
    times: list[float] = field(default_factory=list)
    size: tuple[int, int] | None = None
    frames: list[np.ndarray] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, frame: av.VideoFrame) -> None:
        time = self.count / self.rate if frame.time is None else frame.time
        self._check(frame, time - self.first_time if self.times else 0.0)
        if self.count in self.indices:
            self.size = self.size or _display_size(
                frame.width, frame.height, self.aspect, self.limits.output_frame_pixels
            )
            width, height = self.size
            pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
            self.frames.append(_orient(pixels, frame))
            self.seconds.append(max(0.0, time - self.first_time) if self.times else 0.0)
        self.times.append(time)

    @property
    def count(self) -> int:
        return len(self.times)

    @property
    def first_time(self) -> float:
        return self.times[0]

    def _check(self, frame: av.VideoFrame, seconds: float) -> None:
        _check_frame_size(frame.width, frame.height, self.limits)
        if seconds > self.limits.video_seconds:
            raise MediaError(f"the video lasts more than {self.limits.video_seconds:g} s, the maximum")
        self.pixels += frame.width * frame.height
        _check_total(self.pixels, self.limits)


def evenly_spaced(total: int, count: int) -> list[int]:
    """Indices of ``count`` frames among ``total``, the first and the last included; all of a shorter video."""
    return [int(index) for index in np.linspace(0, total - 1, min(total, count)).round()]


def _in_excerpt(times: Times, count: int, excerpt: Excerpt, select: Select) -> Sequence[int]:
    """Indices of the frames to read, given the times of all frames. Raises ValueError when the excerpt has none, or too many."""
    seconds = np.maximum.accumulate(times - times[0]) if len(times) else times
    first = int(np.searchsorted(seconds, excerpt.start - 1e-6))
    end = len(seconds) if excerpt.end is None else int(np.searchsorted(seconds, excerpt.end - 1e-6))
    if first >= end:
        raise MediaError(f"the video has no frame from {excerpt.start:g} s on" + _until(excerpt.end))
    rate = excerpt.frames_per_second
    if rate is None:
        return [first + index for index in select(end - first, count)]
    last = float(seconds[end - 1])
    wanted = int((last - excerpt.start + 1e-6) * rate) + 1
    if wanted > count:
        raise MediaError(
            f"{rate:g} frames a second are {wanted:,} frames of this video; at most {count} are read: "
            "lower fps, or read less of it by startOffset and endOffset"
        )
    # The frame that is shown at each of these times.
    at = np.searchsorted(seconds, excerpt.start + np.arange(wanted) / rate + 1e-6) - 1
    return sorted({max(first, int(index)) for index in at})


def _until(end: float | None) -> str:
    return "" if end is None else f" before {end:g} s"


def decode_video(
    data: bytes,
    max_frames: int,
    limits: Limits = LIMITS,
    select: Select = evenly_spaced,
    excerpt: Excerpt = Excerpt(),
) -> Clip:
    """Decodes MP4, MOV, WebM, Matroska, AVI, MPEG-TS or Ogg to at most ``max_frames`` frames and the audio track.

    ``select`` gives the indices of the frames among all, of which there are as many as its first argument says; of an ``excerpt`` with
    a number of frames a second, these are read.

    Frames are upright, of square pixels, all of the first one's size, and at most ``limits.output_frame_pixels`` large.
    An audio track of an unsupported codec is left out and reported in ``Clip.notes``. Raises ValueError that states what is wrong.
    """
    check_size(data, "video", limits)
    times, count = _packet_times(data, limits), min(max(1, max_frames), limits.video_frames)
    choose = partial(_in_excerpt, count=count, excerpt=excerpt, select=select)
    selected = _decode(data, frozenset(choose(times) if len(times) else ()), limits)
    if not selected.count:
        raise MediaError("the video has no frames")
    if selected.count != len(times):
        selected = _decode(data, frozenset(choose(np.array(selected.times))), limits)
    first = selected.frames[0].shape
    if any(frame.shape != first for frame in selected.frames):
        raise MediaError("the video changes its orientation between frames")
    # Times of damaged files may decrease.
    seconds = np.maximum.accumulate(np.array(selected.seconds, np.float32))
    samples, notes = _decode_audio_track(data, selected.first_time, limits)
    return Clip(np.stack(selected.frames), seconds, _cut(samples, excerpt), notes)


def _cut(samples: Samples | None, excerpt: Excerpt) -> Samples | None:
    """The samples of an excerpt, or None where it has none."""
    if samples is None or (not excerpt.start and excerpt.end is None):
        return samples
    end = None if excerpt.end is None else round(excerpt.end * SAMPLE_RATE)
    rest = samples[round(excerpt.start * SAMPLE_RATE) : end]
    return rest if len(rest) else None


def _video_stream(container: av.container.InputContainer, limits: Limits) -> av.VideoStream:
    """The first video track that is not cover art. Raises ValueError when it cannot be decoded or is too large."""
    streams = [s for s in container.streams.video if not int(s.disposition) & ATTACHED_PICTURE]
    if not streams:
        raise MediaError("the video file has no video track")
    problem = codec_problem(streams[0], VIDEO_CODECS)
    if problem:
        raise MediaError(f"the video track cannot be decoded: {problem}")
    width, height = streams[0].codec_context.width, streams[0].codec_context.height
    if not width * height:
        # FFmpeg has the same limit and hides the size of larger frames.
        raise MediaError(f"the video's frames have an unknown size, or more than {limits.video_pixels:,} pixels")
    _check_frame_size(width, height, limits)
    return streams[0]


def _check_frame_size(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.video_pixels:
        raise MediaError(f"the video is {width}x{height}; frames of at most {limits.video_pixels:,} pixels are read")


def _check_total(pixels: int, limits: Limits) -> None:
    if pixels > limits.video_total_pixels:
        raise MediaError(f"the video's frames have more than {limits.video_total_pixels:,} pixels in all, the maximum")


def _packet_times(data: bytes, limits: Limits) -> Times:
    """Presentation times of the packets of the video track, mostly those of its frames. Raises ValueError when there are too many."""
    times: list[float] = []
    with open_container(data, "video", limits) as container:
        stream = _video_stream(container, limits)
        area = max(1, stream.codec_context.width * stream.codec_context.height)
        rate = float(stream.average_rate or 0) or 25.0
        for packet in packets(container, [stream], "video", limits):
            if packet.size > 0:
                pts, unit = packet.pts, packet.time_base
                times.append(len(times) / rate if pts is None or unit is None else float(pts * unit))
        _check_total(len(times) * area, limits)
    return np.sort(np.array(times, np.float64))


def _decode(data: bytes, indices: frozenset[int], limits: Limits) -> _SelectedFrames:
    """One decoding pass over the video track."""
    with open_container(data, "video", limits) as container:
        stream = _video_stream(container, limits)
        selected = _SelectedFrames(indices, limits, _aspect(stream), float(stream.average_rate or 0) or 25.0)
        configure_decoder(stream, limits)
        with one_large_at_a_time(stream.codec_context.width * stream.codec_context.height):
            for packet in packets(container, [stream], "video", limits):
                for frame in packet.decode():
                    selected.add(frame)
        return selected


def _decode_audio_track(data: bytes, first_frame: float, limits: Limits) -> AudioTrack:
    """The samples from the time of the first frame on, or None; and a note on a track of an unsupported codec."""
    start: float | None = None

    def blocks() -> Blocks:
        nonlocal start
        converter = FrameConverter(limits)
        for frame in audio_frames(data, "video", limits):
            start = (frame.time or 0.0) if start is None else start
            yield converter.convert(frame), frame.sample_rate

    with open_container(data, "video", limits) as container:
        if not container.streams.audio:
            return None, ()
    try:
        samples = mix_to_mono(blocks, limits, limits.video_seconds)
    except MissingAudio as error:
        return None, (str(error),)
    return _aligned(samples, (start or 0.0) - first_frame, limits)


def _aligned(samples: Float[np.ndarray, " samples"], seconds: float, limits: Limits) -> AudioTrack:
    """Aligns a track that starts ``seconds`` after the first frame: silence is put before it, or its start removed."""
    offset = round(seconds * SAMPLE_RATE)
    if offset < 0:
        rest = samples[-offset:]
        return (rest, ()) if len(rest) else (None, ("the audio track was left out: it ends before the first frame",))
    if offset + len(samples) > limits.video_seconds * SAMPLE_RATE:
        raise MediaError(f"the video's audio ends after {limits.video_seconds:g} s, the maximum")
    return np.concatenate([np.zeros(offset, np.float32), samples]) if offset else samples, ()


def _aspect(stream: av.VideoStream) -> float:
    """Width / height of the stream's pixels; 1 when it is missing or implausible."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 1 / MAX_ASPECT <= aspect <= MAX_ASPECT else 1.0


def _display_size(width: int, height: int, aspect: float, max_pixels: int) -> tuple[int, int]:
    """Width and height of a frame with square pixels, of the same height unless it has more than ``max_pixels``.

    >>> _display_size(64, 48, 1.0, 1 << 20), _display_size(720, 576, 64 / 45, 1 << 20), _display_size(4000, 2000, 1.0, 1 << 20)
    ((64, 48), (1024, 576), (1448, 724))
    """
    wide = width * aspect
    scale = min(1.0, math.sqrt(max_pixels / (wide * height)))
    return max(1, min(max_pixels, round(wide * scale))), max(1, min(max_pixels, round(height * scale)))


def _orient(pixels: UInt8[np.ndarray, "h w 3"], frame: av.VideoFrame) -> UInt8[np.ndarray, "height width 3"]:
    """Rotates and mirrors by the frame's display matrix, rounded to a quarter turn."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    # Displayed x = a x + c y, displayed y = b x + d y.
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()  # type: ignore[call-overload]
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def encode_video(frames: Sequence[UInt8[np.ndarray, "height width 3"]], per_second: int) -> bytes:
    """Frames of even height and width as MP4 (H.264, nearly lossless)."""
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
