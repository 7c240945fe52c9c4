"""Audio: every listed format is decoded completely or refused, with finite samples."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile
import soxr

from alhena.media import SAMPLE_RATE, Limits, decode_audio
from tests.media.inputs import encoded_sound, silent_flac, sound, tone


def pitch(samples: np.ndarray) -> float:
    """The strongest frequency, in Hz."""
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(power.argmax() * SAMPLE_RATE / len(samples))


SOUNDS = {
    "wav": lambda: sound(tone()),
    "wav 24 bit": lambda: sound(tone(), subtype="PCM_24"),
    "wav float": lambda: sound(tone(), subtype="FLOAT"),
    "wav adpcm": lambda: sound(tone(), subtype="MS_ADPCM"),
    "flac": lambda: sound(tone(), form="FLAC"),
    "vorbis": lambda: sound(tone(), form="OGG", subtype="VORBIS"),
    "opus": lambda: sound(tone(1.0, 48000), 48000, "OGG", "OPUS"),
    "mp3": lambda: sound(tone(), form="MP3"),
    "aiff": lambda: sound(tone(), form="AIFF"),
    "m4a": lambda: encoded_sound(tone(1.0, 44100), 44100, "ipod", "aac"),
    "adts": lambda: encoded_sound(tone(1.0, 44100), 44100, "adts", "aac"),
    "alac": lambda: encoded_sound(tone(1.0, 44100), 44100, "ipod", "alac"),
    "webm": lambda: encoded_sound(tone(1.0, 48000), 48000, "webm", "libopus"),
    "mp3 behind zeros": lambda: bytes(2000) + sound(tone(), form="MP3"),
    "mp3 behind a tag": lambda: b"ID3\4\0\0\0\0\x0f\x50" + bytes(2000) + sound(tone(), form="MP3"),
    "wav of 44.1 kHz": lambda: sound(tone(1.0, 44100), 44100),
    "wav of 8 kHz": lambda: sound(tone(1.0, 8000), 8000),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_a_tone_keeps_its_pitch_and_level_in_every_format(name: str) -> None:
    samples = decode_audio(SOUNDS[name]())
    assert samples.dtype == np.float32 and 0.95 < len(samples) / SAMPLE_RATE < 1.15
    # Lossy codecs overshoot at the end of the tone.
    assert abs(pitch(samples) - 440) < 3 and 0.4 < np.abs(samples[4000:12000]).max() < 0.65


@pytest.mark.parametrize("form", ["WAV", "FLAC", "MP3", "OGG"])
def test_decoding_in_blocks_gives_all_samples(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 60_000).astype(np.float32)
    data = sound(noise, form=form)
    whole, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    monkeypatch.setattr("alhena.media.audio.BLOCK", 7001)
    # The MP3 decoder rounds the last bit depending on the size of the block.
    np.testing.assert_allclose(decode_audio(data), whole, rtol=0, atol=1e-7 if form == "MP3" else 0)


def test_resampling_in_blocks_equals_resampling_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 60_000).astype(np.float32)
    monkeypatch.setattr("alhena.media.audio.BLOCK", 7001)
    blocks = decode_audio(sound(noise, 44100, subtype="FLOAT"))
    np.testing.assert_allclose(blocks, soxr.resample(noise, 44100, SAMPLE_RATE), atol=1e-5)


def test_the_length_in_a_header_is_ignored() -> None:
    data = bytearray(sound(tone(), form="FLAC"))
    # the low 36 bits before the checksum of the samples
    for length in (0, 1, 8000, 20_000, (1 << 36) - 1):
        data[21] = data[21] & 0xF0 | length >> 32
        data[22:26] = (length & 0xFFFFFFFF).to_bytes(4, "big")
        assert len(decode_audio(bytes(data))) == SAMPLE_RATE, length
    wav = bytearray(sound(tone()))
    for length in (0xFFFFFFFF, 0x7FFFFFFF):
        wav[4:8] = wav[40:44] = struct.pack("<I", length)
        assert len(decode_audio(bytes(wav))) == SAMPLE_RATE, length


def test_audio_that_is_too_long_is_refused_and_never_truncated() -> None:
    limits = Limits(audio_seconds=0.5)
    assert len(decode_audio(sound(tone(0.5)), limits)) == SAMPLE_RATE // 2
    for name in ("wav", "flac", "mp3", "m4a", "opus"):
        with pytest.raises(ValueError, match=r"^the audio lasts more than 0\.5 s, the maximum$"):
            decode_audio(SOUNDS[name](), limits)


@pytest.mark.parametrize("name", ["mp3", "vorbis", "opus"])
def test_files_joined_end_to_end_are_read_to_the_end(name: str) -> None:
    once, twice = (len(decode_audio(SOUNDS[name]() * times)) for times in (1, 2))
    assert once == SAMPLE_RATE and 1.9 < twice / once < 2.2


def test_damage_inside_flac_is_refused() -> None:
    data = bytearray(sound(tone(), form="FLAC"))
    data[5000] ^= 0xFF
    with pytest.raises(ValueError, match="the audio cannot be decoded"):
        decode_audio(bytes(data))


@pytest.mark.parametrize("value", [1e29, -1e29, 16.5, float("inf"), float("nan"), 3e38])
def test_a_sample_out_of_range_is_refused_with_its_value(value: float) -> None:
    samples = tone()
    samples[8000] = value
    for channels in (samples, np.stack([samples, tone()], 1)):
        with pytest.raises(
            ValueError, match="finite" if not np.isfinite(value) else f"{value:.4g}".replace("+", r"\+")
        ):
            decode_audio(sound(channels, subtype="FLOAT"))


def test_a_double_beyond_float32_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        decode_audio(sound(tone().astype(np.float64) + 1e300, subtype="DOUBLE"))


def test_a_loud_but_possible_sample_is_kept() -> None:
    assert np.abs(decode_audio(sound(tone() * 20, subtype="FLOAT"))).max() == pytest.approx(10, rel=0.01)


def test_antiphase_gives_the_louder_channel() -> None:
    left = tone()
    samples = decode_audio(sound(np.stack([0.9 * left, -left], 1), subtype="FLOAT"))
    np.testing.assert_allclose(samples, -left)
    samples = decode_audio(sound(np.stack([left, -left], 1), 44100, form="FLAC"))
    assert np.abs(samples).max() == pytest.approx(0.5, rel=0.05)


def test_other_channels_are_averaged() -> None:
    left, right = tone(), tone(hertz=1000)
    samples = decode_audio(sound(np.stack([left, right], 1), subtype="FLOAT"))
    np.testing.assert_allclose(samples, (left + right) / 2, atol=1e-6)
    one_of_eight = np.zeros((SAMPLE_RATE, 8), np.float32)
    one_of_eight[:, 3] = left
    np.testing.assert_allclose(decode_audio(sound(one_of_eight, subtype="FLOAT")), left / 8, atol=1e-6)


@pytest.mark.parametrize("layout", ["5.1", "7.1", "hexadecagonal"])
def test_many_channels_of_a_planar_codec_are_averaged(layout: str) -> None:
    """PyAV's own conversion of eight planes or more reads beyond them and ends the process."""
    data = encoded_sound(
        tone(1.0, 48000), 48000, "matroska", "aac" if layout != "hexadecagonal" else "pcm_s16le", layout
    )
    samples = decode_audio(data)
    assert abs(pitch(samples) - 440) < 3 and np.abs(samples[4000:12000]).max() > 0.02


def test_implausible_rates_and_sizes_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="655,350 samples a second"):
        decode_audio(silent_flac(655_350, 8, 1))
    with pytest.raises(ValueError, match="samples in all channels"):
        decode_audio(silent_flac(96_000, 8, 8), Limits(audio_values=1_000_000))
    with pytest.raises(ValueError, match="channels"):
        decode_audio(sound(np.zeros((100, 33), np.float32)))
    wav = bytearray(sound(tone()))
    wav[24:28] = struct.pack("<I", 1)
    with pytest.raises(ValueError, match="1 samples a second"):
        decode_audio(bytes(wav))


def test_bytes_that_are_no_audio_are_refused_in_one_sentence() -> None:
    flac = sound(tone(), form="FLAC")
    for data in (
        b"",
        b"x" * 100,
        flac[:4],
        flac[:20],
        flac[:30],
        b"RIFF....WAVEfmt ",
        sound(np.zeros(0, np.float32)),
        b"OggS" + bytes(99),
    ):
        with pytest.raises(ValueError, match=r"^the (audio|file) [^\n]*$") as refused:
            decode_audio(data)
        assert " at 0x" not in str(refused.value)
