"""Media containers, opened with an allow-list of formats and codecs and without any protocol.

FFmpeg guesses formats from content; some of them are lists of other files or of network addresses. Here the first bytes
select one of the listed formats, and only the given bytes are ever opened.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import av

from alhena.media.limits import Limits, MediaError, reason
from alhena.media.sniff import sniff

# FFmpeg's demuxer of each MIME type.
DEMUXERS = {
    "video/mp4": "mov",
    "video/quicktime": "mov",
    "video/3gpp": "mov",
    "video/webm": "matroska",
    "video/x-matroska": "matroska",
    "video/x-msvideo": "avi",
    "video/mp2t": "mpegts",
    "video/ogg": "ogg",
    "audio/mp4": "mov",
    "audio/webm": "matroska",
    "audio/x-matroska": "matroska",
    "audio/ogg": "ogg",
    "audio/mpeg": "mp3",
    "audio/aac": "aac",
    "audio/flac": "flac",
    "audio/wav": "wav",
    "audio/aiff": "aiff",
}
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,ogg,mp3,aac,flac,wav,aiff"
VIDEO_CODECS = frozenset(
    "h264 hevc vp8 vp9 libvpx libvpx-vp9 av1 libdav1d mpeg4 msmpeg4 msmpeg4v2 h263 flv mpeg1video mpeg2video mjpeg png "
    "theora prores dnxhd dvvideo wmv1 wmv2 ffv1 huffyuv ffvhuff utvideo qtrle rawvideo".split()
)
AUDIO_CODECS = frozenset(
    "aac aac_fixed aac_latm mp3 mp3float mp2 mp2float mp1 mp1float ac3 eac3 opus libopus vorbis flac alac speex amrnb amrwb "
    "adpcm_ms adpcm_ima_wav adpcm_ima_qt gsm gsm_ms wmav1 wmav2 pcm_alaw pcm_mulaw pcm_u8 pcm_s8 pcm_s16le pcm_s16be "
    "pcm_s24le pcm_s24be pcm_s32le pcm_s32be pcm_f32le pcm_f32be pcm_f64le pcm_f64be".split()
)
# Errors that a library raises for bytes that it cannot decode.
DECODE_ERRORS = (av.error.FFmpegError, IndexError, KeyError, OverflowError, ZeroDivisionError, TypeError, ValueError)


@contextmanager
def open_container(data: bytes, what: str, limits: Limits) -> Iterator[av.container.InputContainer]:
    """Opens a container for reading. Raises ValueError when its format is not listed, or when decoding fails in the block."""
    demuxer = DEMUXERS.get(sniff(data) or "")
    if demuxer is None:
        raise MediaError(f"the {what} cannot be decoded: its first bytes are those of no supported format")
    # This limit applies already while FFmpeg decodes the first frames to probe their format.
    codec_limits = {"max_pixels": str(limits.video_pixels), "threads": "1"}
    rules = {
        "format_whitelist": FORMATS,
        "protocol_whitelist": "",
        "codec_whitelist": ",".join(sorted(VIDEO_CODECS | AUDIO_CODECS)),
        "max_streams": "64",
    }
    try:
        with av.open(
            io.BytesIO(data),
            mode="r",
            format=demuxer,
            options=codec_limits,
            container_options=rules,
            metadata_errors="ignore",
        ) as container:
            yield container
    except MediaError:
        raise
    except DECODE_ERRORS as error:
        raise MediaError(f"the {what} cannot be decoded: {reason(error)}") from None
    except MemoryError:
        raise MediaError(f"the {what} cannot be decoded: it needs more memory than is free") from None


def configure_decoder(stream: av.stream.Stream, limits: Limits) -> None:
    """Sets the limits of a stream's decoder, and one thread, so that decoding of damaged streams is deterministic."""
    stream.codec_context.options = {"max_pixels": str(limits.video_pixels)}
    if stream.codec_context.name == "flac":
        # Its frames have checksums: damage is refused instead of decoded as noise.
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
    stream.codec_context.thread_count = 1


def codec_problem(stream: av.stream.Stream, known: frozenset[str]) -> str | None:
    """Why the codec of the stream is unsupported, or None."""
    if stream.codec_context is None:
        return "its codec is unknown"
    name = stream.codec_context.name
    return None if name in known else f"its codec, {name}, is not supported"


def packets(
    container: av.container.InputContainer, streams: list[av.stream.Stream], what: str, limits: Limits
) -> Iterator[av.Packet]:
    """The packets of the streams, with an empty one of each at the end. Raises ValueError when there are too many."""
    for number, packet in enumerate(container.demux(streams)):
        if number > limits.packets:
            raise MediaError(f"the {what} has more than {limits.packets:,} packets, the maximum")
        yield packet
