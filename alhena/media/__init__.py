"""Media bytes to arrays and back, with every size bounded before anything is decoded.

    image  bytes -> uint8 [height, width, 3], upright  (composited over white)
    audio  bytes -> float32 [samples] at 16 kHz, mono, full scale 1
    video  bytes -> uint8 [frames, height, width, 3], their times in seconds, and the audio track if there is one

Every decoder raises ValueError that states what is wrong with the bytes. None executes or trusts their content, and none
truncates silently. ``sniff`` returns the MIME type of bytes by their content.
"""

from __future__ import annotations

from dataclasses import replace

from alhena.content import Audio, Image, Part, ToolResult, Video
from alhena.media.audio import SAMPLE_RATE, decode_audio, encode_audio, resample
from alhena.media.image import decode_image, encode_png
from alhena.media.limits import LIMITS, Limits, MediaError, limit_memory, machine_memory
from alhena.media.sniff import sniff
from alhena.media.video import Clip, decode_video, encode_video

__all__ = [
    "LIMITS",
    "SAMPLE_RATE",
    "Clip",
    "Limits",
    "MediaError",
    "check",
    "decode_audio",
    "decode_image",
    "decode_video",
    "encode_audio",
    "encode_png",
    "encode_video",
    "limit_memory",
    "machine_memory",
    "resample",
    "sniff",
]


def check(part: Part) -> tuple[str, ...]:
    """Decodes a part if it is media. Returns notes on what was left out; raises ValueError when it does not decode."""
    if isinstance(part, Image):
        decode_image(part.data)
    elif isinstance(part, Audio):
        decode_audio(part.data)
    elif isinstance(part, Video):
        return decode_video(part.data, 2, excerpt=replace(part.excerpt, frames_per_second=None)).notes
    elif isinstance(part, ToolResult):
        return tuple(note for medium in part.parts for note in check(medium))
    return ()
