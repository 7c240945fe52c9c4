"""mediaResolution and videoMetadata: how the encoders are to read a medium, of the request or of one part.

{"inlineData": {…}, "mediaResolution": {"level": "MEDIA_RESOLUTION_LOW"}, "videoMetadata": {"fps": 2, "startOffset": "3.5s"}}
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from alhena.content import Excerpt, Image, Part, Resolution, Video
from alhena.serve.gemini.wire.fields import Fields, WireError, path, read_number, read_object, read_string, refuse

UNSPECIFIED = "MEDIA_RESOLUTION_UNSPECIFIED"
LEVELS: dict[str, Resolution] = {
    "MEDIA_RESOLUTION_LOW": "low",
    "MEDIA_RESOLUTION_MEDIUM": "medium",
    "MEDIA_RESOLUTION_HIGH": "high",
    "MEDIA_RESOLUTION_ULTRA_HIGH": "ultra high",
}
VIDEO_METADATA = ("fps", "startOffset", "endOffset", "contentLayers")
MAX_FPS = 24


def read_level(value: Any, where: str) -> Resolution | None:
    """The name of a resolution. Raises WireError."""
    name = read_string(value, where, 64)
    if name != UNSPECIFIED and name not in LEVELS:
        raise WireError(400, f"{where} is {name!r}; it must be {', '.join(LEVELS)}")
    return LEVELS.get(name)


def _read_resolution(part: Fields, where: str) -> Resolution | None:
    where = path(where, "mediaResolution")
    resolution = part.get("mediaResolution", UNSPECIFIED)
    if isinstance(resolution, str):
        return read_level(resolution, where)
    fields = read_object(resolution, where, ("level", "numTokens"))
    refuse(fields, where, ("numTokens",))
    return read_level(fields.get("level", UNSPECIFIED), f"{where}.level")


def _read_offset(fields: Fields, where: str, name: str) -> float | None:
    """Seconds of a duration such as ``3.5s``, or ``{"seconds": 3, "nanos": 500000000}``."""
    where, value = path(where, name), fields.get(name)
    if value is None:
        return None
    if isinstance(value, dict):
        parts = read_object(value, where, ("seconds", "nanos"))
        seconds = read_number(parts, where, "seconds", 0) + read_number(parts, where, "nanos", 0) / 1e9
    else:
        match = re.fullmatch(r"(\d{1,6}(\.\d{1,9})?)s", read_string(value, where, 32))
        seconds = float(match[1]) if match else -1.0
    if not 0 <= seconds < 1e6:
        raise WireError(400, f"{where} must be seconds such as '3.5s'")
    return seconds


def _read_excerpt(part: Fields, where: str) -> Excerpt:
    where = path(where, "videoMetadata")
    fields = read_object(part.get("videoMetadata", {}), where, VIDEO_METADATA)
    refuse(fields, where, ("contentLayers",))
    start, end = _read_offset(fields, where, "startOffset") or 0.0, _read_offset(fields, where, "endOffset")
    if end is not None and end <= start:
        raise WireError(400, f"{where}.endOffset must be after startOffset")
    rate = read_number(fields, where, "fps", 0) if "fps" in fields else None
    if rate is not None and not 0 < rate <= MAX_FPS:
        raise WireError(400, f"{where}.fps must be above 0 and at most {MAX_FPS}")
    return Excerpt(start, end, rate)


def with_options(media: Sequence[Part], part: Fields, where: str, default: Resolution | None) -> tuple[Part, ...]:
    """The media of a part, to be read as its options say. Raises WireError where an option is not one of such media."""
    resolution, excerpt = _read_resolution(part, where), _read_excerpt(part, where)
    if part.get("videoMetadata") and not any(isinstance(medium, Video) for medium in media):
        raise WireError(400, f"{path(where, 'videoMetadata')}: the part is no video")
    if resolution and not any(isinstance(medium, Image | Video) for medium in media):
        raise WireError(400, f"{path(where, 'mediaResolution')}: the part is no image, video or PDF")
    out: list[Part] = []
    for medium in media:
        if isinstance(medium, Image | Video):
            medium = replace(medium, resolution=resolution or default)
        out.append(replace(medium, excerpt=excerpt) if isinstance(medium, Video) else medium)
    return tuple(out)
