"""Sound bytes to float32 samples at 16 kHz and back.

Sound is read in blocks that are mixed to one channel and resampled at once, so that memory follows from the result
and never from what a header says.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import av
import numpy as np
import soundfile
import soxr

from alhena.media.container import DECODE_ERRORS, SOUND_CODECS, codec_missing, opened, packets, prepare
from alhena.media.limits import LIMITS, Limits, MediaError, check_size, reason
from alhena.media.sniff import sniff

SAMPLE_RATE = 16_000
# values (samples times channels) that are read at once
BLOCK = 1 << 20
# A mean of channels with less than this share of the loudest one's energy (-20 dB) has been cancelled out.
CANCELLED = 0.01


class MissingSound(MediaError):
    """A file without a sound track, or without samples in it, or of a codec that is not read."""


# Where blocks come from: each is (float32 [samples, channels], rate).
Blocks = Iterator[tuple[np.ndarray, int]]


class Mono:
    """Collects blocks of one sound: checks them, mixes the channels, resamples to 16 kHz.

    ``channel`` picks one channel instead of the mean of all.
    """

    def __init__(self, limits: Limits, seconds: float, channel: int | None = None) -> None:
        self.limits, self.seconds, self.channel = limits, seconds, channel
        self.rate = self.samples = self.values = 0
        self.energy = np.zeros(limits.audio_channels)
        self.mixed_energy = 0.0
        self._out: list[np.ndarray] = []
        self._resampler: soxr.ResampleStream | None = None

    def add(self, block: np.ndarray, rate: int) -> None:
        """float32 [samples, channels] at ``rate`` Hz."""
        if not self.rate:
            self._begin(rate, block.shape[1])
        if rate != self.rate:
            raise MediaError(f"the sound changes from {self.rate} to {rate} samples a second")
        self._check(block)
        mixed = block.mean(axis=1) if self.channel is None else block[:, min(self.channel, block.shape[1] - 1)]
        self.energy[: block.shape[1]] += np.square(block, dtype=np.float64).sum(0)
        self.mixed_energy += float(np.square(mixed, dtype=np.float64).sum())
        mixed = np.ascontiguousarray(mixed, np.float32)
        self._out.append(mixed if self._resampler is None else self._resampler.resample_chunk(mixed))

    def _begin(self, rate: int, channels: int) -> None:
        low, high = self.limits.audio_rates
        if not low <= rate <= high:
            raise MediaError(f"the sound has {rate:,} samples a second; {low:,} to {high:,} are read")
        self.rate = rate
        if rate != SAMPLE_RATE:
            self._resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")

    def _check(self, block: np.ndarray) -> None:
        if block.shape[1] > self.limits.audio_channels:
            raise MediaError(f"the sound has {block.shape[1]} channels; at most {self.limits.audio_channels} are read")
        self.samples += len(block)
        self.values += block.size
        if self.samples > self.seconds * self.rate:
            raise MediaError(f"the sound lasts more than {self.seconds:g} s, the most that is read")
        if self.values > self.limits.audio_values:
            raise MediaError(
                f"the sound has more than {self.limits.audio_values:,} samples in all channels, the most that is read"
            )
        _check_peak(block, self.limits)

    @property
    def loudest(self) -> int | None:
        """The channel to take instead of the mean where channels cancel each other out (stereo in antiphase)."""
        channel = int(self.energy.argmax())
        cancelled = self.channel is None and self.mixed_energy < CANCELLED * self.energy[channel]
        return channel if cancelled else None

    def finish(self) -> np.ndarray:
        """float32 [samples] at 16 kHz. Raises ValueError when there are none."""
        if self._resampler is not None:
            self._out.append(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        samples = np.concatenate(self._out) if self._out else np.zeros(0, np.float32)
        if not len(samples):
            raise MissingSound("the sound has no samples")
        _check_peak(samples, self.limits)
        return samples


def _check_peak(samples: np.ndarray, limits: Limits) -> None:
    """Raises ValueError with the first sample that is no number or beyond ``limits.audio_peak``."""
    wrong = ~(np.abs(samples) <= limits.audio_peak)
    if wrong.any():
        value = float(samples[wrong][0])
        if not np.isfinite(value):
            raise MediaError(f"the sound holds values that are not finite numbers ({value})")
        raise MediaError(
            f"the sound holds a sample of {value:.4g}; full scale is 1 and at most {limits.audio_peak:g} is read"
        )


def mono(blocks: Callable[[], Blocks], limits: Limits, seconds: float) -> np.ndarray:
    """The sound of all blocks at 16 kHz; they are read a second time where the mean of channels cancels out."""
    sound = Mono(limits, seconds)
    for block, rate in blocks():
        sound.add(block, rate)
    samples, loudest = sound.finish(), sound.loudest
    if loudest is None:
        return samples
    sound = Mono(limits, seconds, loudest)
    for block, rate in blocks():
        sound.add(block, rate)
    return sound.finish()


def decode_audio(data: bytes, limits: Limits = LIMITS) -> np.ndarray:
    """Decodes WAV, FLAC, Ogg (Opus, Vorbis), MP3, AAC, M4A, AIFF or WebM to float32 [samples] at 16 kHz, mono.

    The whole sound is returned: one longer than ``limits.audio_seconds`` is refused, never cut. Channels are averaged;
    where they cancel each other out, the loudest one is taken. What libsndfile cannot read, FFmpeg may.
    """
    check_size(data, "sound", limits)
    kind = sniff(data)
    if kind is None:
        raise MediaError(
            "the sound cannot be decoded: it is no WAV, FLAC, Ogg, MP3, AAC, M4A, AIFF or WebM, or its start is missing"
        )
    try:
        samples = mono(lambda: _libsndfile_blocks(data), limits, limits.audio_seconds)
    except MediaError:
        raise
    except MemoryError:
        raise MediaError("the sound cannot be decoded: it needs more memory than is free") from None
    except (soundfile.LibsndfileError, RuntimeError, TypeError, ValueError):
        return mono(lambda: _ffmpeg_blocks(data, limits), limits, limits.audio_seconds)
    if _has_more(data, kind, len(samples) / SAMPLE_RATE, limits):
        return mono(lambda: _ffmpeg_blocks(data, limits), limits, limits.audio_seconds)
    return samples


def _has_more(data: bytes, kind: str, seconds: float, limits: Limits) -> bool:
    """Whether files are joined end to end: libsndfile stops where the first one ends, FFmpeg does not."""
    if kind == "audio/ogg":
        # pages that begin a stream
        return data.count(b"OggS\0\2") > 1
    if kind != "audio/mpeg":
        return False
    try:
        with opened(data, "sound", limits) as container:
            frames = packets(container, list(container.streams.audio[:1]), "sound", limits)
            return sum(float((frame.duration or 0) * frame.time_base) for frame in frames) > 1.1 * seconds + 0.25
    # what libsndfile has read stands
    except MediaError:
        return False


class _Forward(soundfile.SoundFile):
    """A sound file that is only read forward: soundfile else seeks after each block, and asks the header how much is left."""

    def seekable(self) -> bool:
        return False


def _libsndfile_blocks(data: bytes) -> Blocks:
    if data.startswith(b"fLaC") and len(data) > 26:
        # the number of samples, 36 bits, becomes 0: unknown, so that all frames are read
        data = data[:21] + bytes([data[21] & 0xF0, 0, 0, 0, 0]) + data[26:]
    with _Forward(io.BytesIO(data)) as file:
        size = max(1, BLOCK // file.channels)
        while len(block := file.read(size, dtype="float32", always_2d=True)):
            yield block, file.samplerate


def _ffmpeg_blocks(data: bytes, limits: Limits) -> Blocks:
    packed = Packed(limits)
    for frame in sound_frames(data, "sound", limits):
        yield packed.convert(frame), frame.sample_rate


def sound_frames(data: bytes, what: str, limits: Limits) -> Iterator[av.AudioFrame]:
    """The decoded frames of the first sound track whose codec is read. Raises ValueError when there is none."""
    with opened(data, what, limits) as container:
        tracks = [(stream, codec_missing(stream, SOUND_CODECS)) for stream in container.streams.audio]
        stream = next((stream for stream, missing in tracks if missing is None), None)
        if stream is None:
            why = tracks[0][1] if tracks else "there is none"
            raise MissingSound(f"the {what} has no sound track that can be decoded: {why}")
        prepare(stream, limits)
        for packet in packets(container, [stream], what, limits):
            yield from packet.decode()


class Packed:
    """Decoded frames to float32 [samples, channels], full scale 1.

    Through FFmpeg's converter: PyAV reads beyond the list of planes of a planar frame that has eight channels or more.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._form: tuple[str, str, int] | None = None
        self._converter = av.AudioResampler(format="flt")

    def convert(self, frame: av.AudioFrame) -> np.ndarray:
        channels = frame.layout.nb_channels
        if channels > self.limits.audio_channels:
            raise MediaError(f"the sound has {channels} channels; at most {self.limits.audio_channels} are read")
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if form != self._form:
            self._form, self._converter = form, av.AudioResampler(format="flt")
        # times do not matter here, and broken ones disturb the converter
        frame.pts = None
        try:
            parts = [part.to_ndarray().reshape(-1, channels) for part in self._converter.resample(frame)]
        except DECODE_ERRORS as error:
            raise MediaError(f"the sound cannot be decoded: {reason(error)}") from None
        return np.concatenate(parts) if parts else np.zeros((0, channels), np.float32)


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """float32 [samples] at ``rate`` Hz to 16 kHz."""
    return samples if rate == SAMPLE_RATE else soxr.resample(samples, rate, SAMPLE_RATE).astype(np.float32)


def encode_audio(samples: np.ndarray, rate: int = SAMPLE_RATE, format: str = "FLAC") -> bytes:
    """float32 [samples] in -1..1 as 16-bit FLAC or WAV."""
    out = io.BytesIO()
    soundfile.write(out, np.clip(samples, -1, 1), rate, format=format, subtype="PCM_16")
    return out.getvalue()
