"""Audio bytes to float32 samples at 16 kHz and back.

Audio is decoded in blocks, each of which is mixed to mono and resampled at once, so that memory depends on the result
and not on the header.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import av
import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from alhena.media.container import (
    AUDIO_CODECS,
    DECODE_ERRORS,
    codec_problem,
    configure_decoder,
    open_container,
    packets,
)
from alhena.media.limits import LIMITS, Limits, MediaError, check_size, reason
from alhena.media.sniff import sniff

SAMPLE_RATE = 16_000
# Values (samples times channels) that are decoded at once.
BLOCK = 1 << 20
# A mean of channels with less than this fraction of the loudest channel's energy (-20 dB) is cancelled out.
CANCELLED = 0.01


class MissingAudio(MediaError):
    """A file without an audio track, without samples in it, or of an unsupported codec."""


# Decoded blocks, and their sample rate in Hz.
Blocks = Iterator[tuple[Float[np.ndarray, "samples channels"], int]]


class MonoMixer:
    """Collects the blocks of one audio stream: checks them, mixes the channels, resamples to 16 kHz.

    ``channel`` selects one channel instead of the mean of all.
    """

    def __init__(self, limits: Limits, seconds: float, channel: int | None = None) -> None:
        self.limits, self.seconds, self.channel = limits, seconds, channel
        self.rate = self.samples = self.values = 0
        self.energy = np.zeros(limits.audio_channels)
        self.mixed_energy = 0.0
        self._chunks: list[np.ndarray] = []
        self._resampler: soxr.ResampleStream | None = None

    def add(self, block: Float[np.ndarray, "samples channels"], rate: int) -> None:
        """Adds a block at ``rate`` Hz. Raises ValueError for one beyond the limits."""
        if not self.rate:
            self._start(rate, block.shape[1])
        if rate != self.rate:
            raise MediaError(f"the audio changes from {self.rate} to {rate} samples a second")
        self._check(block)
        mixed = block.mean(axis=1) if self.channel is None else block[:, min(self.channel, block.shape[1] - 1)]
        self.energy[: block.shape[1]] += np.square(block, dtype=np.float64).sum(0)
        self.mixed_energy += float(np.square(mixed, dtype=np.float64).sum())
        mixed = np.ascontiguousarray(mixed, np.float32)
        self._chunks.append(mixed if self._resampler is None else self._resampler.resample_chunk(mixed))

    def _start(self, rate: int, channels: int) -> None:
        low, high = self.limits.audio_rates
        if not low <= rate <= high:
            raise MediaError(f"the audio has {rate:,} samples a second; {low:,} to {high:,} are read")
        self.rate = rate
        if rate != SAMPLE_RATE:
            self._resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")

    def _check(self, block: Float[np.ndarray, "samples channels"]) -> None:
        if block.shape[1] > self.limits.audio_channels:
            raise MediaError(f"the audio has {block.shape[1]} channels; at most {self.limits.audio_channels} are read")
        self.samples += len(block)
        self.values += block.size
        if self.samples > self.seconds * self.rate:
            raise MediaError(f"the audio lasts more than {self.seconds:g} s, the maximum")
        if self.values > self.limits.audio_values:
            raise MediaError(
                f"the audio has more than {self.limits.audio_values:,} samples in all channels, the maximum"
            )
        _check_peak(block, self.limits)

    @property
    def loudest_channel(self) -> int | None:
        """The channel to use instead of the mean where channels cancel each other out (stereo in antiphase), or None."""
        channel = int(self.energy.argmax())
        cancelled = self.channel is None and self.mixed_energy < CANCELLED * self.energy[channel]
        return channel if cancelled else None

    def finish(self) -> Float[np.ndarray, " samples"]:
        """All samples at 16 kHz. Raises ValueError when there are none."""
        if self._resampler is not None:
            self._chunks.append(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        samples = np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.float32)
        if not len(samples):
            raise MissingAudio("the audio has no samples")
        _check_peak(samples, self.limits)
        return samples


def _check_peak(samples: Float[np.ndarray, " ..."], limits: Limits) -> None:
    """Raises ValueError with the first sample that is not finite or beyond ``limits.audio_peak``."""
    wrong = ~(np.abs(samples) <= limits.audio_peak)
    if wrong.any():
        value = float(samples[wrong][0])
        if not np.isfinite(value):
            raise MediaError(f"the audio holds values that are not finite numbers ({value})")
        raise MediaError(
            f"the audio holds a sample of {value:.4g}; full scale is 1 and at most {limits.audio_peak:g} is read"
        )


def mix_to_mono(blocks: Callable[[], Blocks], limits: Limits, seconds: float) -> Float[np.ndarray, " samples"]:
    """The samples of all blocks at 16 kHz; they are decoded a second time where the channels cancel out."""
    mixer = MonoMixer(limits, seconds)
    for block, rate in blocks():
        mixer.add(block, rate)
    samples, loudest_channel = mixer.finish(), mixer.loudest_channel
    if loudest_channel is None:
        return samples
    mixer = MonoMixer(limits, seconds, loudest_channel)
    for block, rate in blocks():
        mixer.add(block, rate)
    return mixer.finish()


def decode_audio(data: bytes, limits: Limits = LIMITS) -> Float[np.ndarray, " samples"]:
    """Decodes WAV, FLAC, Ogg (Opus, Vorbis), MP3, AAC, M4A, AIFF or WebM to float32 [samples] at 16 kHz, mono.

    Audio longer than ``limits.audio_seconds`` is refused, never truncated. Channels are averaged; where they cancel each
    other out, the loudest one is used. What libsndfile cannot decode is tried with FFmpeg.
    """
    check_size(data, "audio", limits)
    kind = sniff(data)
    if kind is None:
        raise MediaError(
            "the audio cannot be decoded: it is not WAV, FLAC, Ogg, MP3, AAC, M4A, AIFF or WebM, or its start is missing"
        )
    try:
        samples = mix_to_mono(lambda: _libsndfile_blocks(data), limits, limits.audio_seconds)
    except MediaError:
        raise
    except MemoryError:
        raise MediaError("the audio cannot be decoded: it needs more memory than is free") from None
    except (soundfile.LibsndfileError, RuntimeError, TypeError, ValueError):
        return mix_to_mono(lambda: _ffmpeg_blocks(data, limits), limits, limits.audio_seconds)
    if _has_more_streams(data, kind, len(samples) / SAMPLE_RATE, limits):
        return mix_to_mono(lambda: _ffmpeg_blocks(data, limits), limits, limits.audio_seconds)
    return samples


def _has_more_streams(data: bytes, kind: str, seconds: float, limits: Limits) -> bool:
    """Whether several files are concatenated: libsndfile stops at the end of the first one, FFmpeg does not."""
    if kind == "audio/ogg":
        # Pages that begin a stream.
        return data.count(b"OggS\0\2") > 1
    if kind != "audio/mpeg":
        return False
    try:
        with open_container(data, "audio", limits) as container:
            frames = packets(container, list(container.streams.audio[:1]), "audio", limits)
            return sum(float((frame.duration or 0) * frame.time_base) for frame in frames) > 1.1 * seconds + 0.25
    # The result of libsndfile is used.
    except MediaError:
        return False


class _ForwardSoundFile(soundfile.SoundFile):
    """A SoundFile without seeking: soundfile otherwise seeks after each block and trusts the length in the header."""

    def seekable(self) -> bool:
        return False


def _libsndfile_blocks(data: bytes) -> Blocks:
    if data.startswith(b"fLaC") and len(data) > 26:
        # The number of samples, 36 bits, becomes 0 (unknown), so that all frames are decoded.
        data = data[:21] + bytes([data[21] & 0xF0, 0, 0, 0, 0]) + data[26:]
    with _ForwardSoundFile(io.BytesIO(data)) as file:
        size = max(1, BLOCK // file.channels)
        while len(block := file.read(size, dtype="float32", always_2d=True)):
            yield block, file.samplerate


def _ffmpeg_blocks(data: bytes, limits: Limits) -> Blocks:
    converter = FrameConverter(limits)
    for frame in audio_frames(data, "audio", limits):
        yield converter.convert(frame), frame.sample_rate


def audio_frames(data: bytes, what: str, limits: Limits) -> Iterator[av.AudioFrame]:
    """The decoded frames of the first audio track of a supported codec. Raises ValueError when there is none."""
    with open_container(data, what, limits) as container:
        tracks = [(stream, codec_problem(stream, AUDIO_CODECS)) for stream in container.streams.audio]
        stream = next((stream for stream, missing in tracks if missing is None), None)
        if stream is None:
            problem = tracks[0][1] if tracks else "there is none"
            raise MissingAudio(f"the {what} has no audio track that can be decoded: {problem}")
        configure_decoder(stream, limits)
        for packet in packets(container, [stream], what, limits):
            for frame in packet.decode():
                assert isinstance(frame, av.AudioFrame)
                yield frame


class FrameConverter:
    """Converts decoded frames to float32 [samples, channels], full scale 1.

    It uses FFmpeg's converter: PyAV reads beyond the list of planes of a planar frame of eight channels or more.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._layout: tuple[str, str, int] | None = None
        self._converter = av.AudioResampler(format="flt")

    def convert(self, frame: av.AudioFrame) -> Float[np.ndarray, "samples channels"]:
        channels = frame.layout.nb_channels
        if channels > self.limits.audio_channels:
            raise MediaError(f"the audio has {channels} channels; at most {self.limits.audio_channels} are read")
        layout = (frame.format.name, frame.layout.name, frame.sample_rate)
        if layout != self._layout:
            self._layout, self._converter = layout, av.AudioResampler(format="flt")
        # Timestamps do not matter here, and broken ones disturb the converter.
        frame.pts = None
        try:
            parts = [part.to_ndarray().reshape(-1, channels) for part in self._converter.resample(frame)]
        except DECODE_ERRORS as error:
            raise MediaError(f"the audio cannot be decoded: {reason(error)}") from None
        return np.concatenate(parts) if parts else np.zeros((0, channels), np.float32)


def resample(samples: Float[np.ndarray, " samples"], rate: int) -> Float[np.ndarray, " resampled"]:
    """Resamples from ``rate`` Hz to 16 kHz."""
    return samples if rate == SAMPLE_RATE else soxr.resample(samples, rate, SAMPLE_RATE).astype(np.float32)


def encode_audio(samples: Float[np.ndarray, " samples"], rate: int = SAMPLE_RATE, format: str = "FLAC") -> bytes:
    """Samples in -1..1 as 16-bit FLAC or WAV."""
    out = io.BytesIO()
    soundfile.write(out, np.clip(samples, -1, 1), rate, format=format, subtype="PCM_16")
    return out.getvalue()
