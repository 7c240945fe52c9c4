"""Limits of what is decoded, and the guards that keep a process within its memory.

Three lines of defense, outermost first: the limits on one item, one large picture or clip at a time in a process,
and a limit on the memory of the process itself (``limit_memory``).
"""

from __future__ import annotations

import os
import re
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


class MediaError(ValueError):
    """What is wrong with media bytes, in a sentence that can be shown to a user; libraries raise ValueErrors that cannot."""


@dataclass(frozen=True)
class Limits:
    """The most that is decoded of one media item.

    A picture of 64 Mpixel (the largest that phones take without stitching) needs up to 0.6 GB while it is decoded,
    WebP up to 1.1 GB. It is then reduced to ``kept_pixels``, and a video frame to ``kept_frame_pixels``: no encoder reads more.
    """

    bytes: int = 64 << 20
    image_pixels: int = 64_000_000
    kept_pixels: int = 16_000_000
    audio_seconds: float = 600.0
    # Hz
    audio_rates: tuple[int, int] = (2_000, 192_000)
    audio_channels: int = 32
    # samples times channels: 600 s of stereo at 192 kHz
    audio_values: int = 240_000_000
    # full scale is 1
    audio_peak: float = 16.0
    video_seconds: float = 600.0
    # of one frame: 4K and the macroblocks around it
    video_pixels: int = 4096 * 2304
    # of all frames: a minute of 1920x1080 at 30 frames a second, or ten of 640x360
    video_total_pixels: int = 4_000_000_000
    video_frames: int = 64
    kept_frame_pixels: int = 1 << 20
    # of all tracks of a sound or clip
    packets: int = 400_000


LIMITS = Limits()
# Pixels from which pictures and clips are decoded one at a time.
LARGE = 4_000_000
_large = threading.Lock()


def _after_fork() -> None:
    """A child must not inherit a lock that another thread of its parent holds."""
    global _large
    _large = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def one_large_at_a_time(pixels: int) -> Iterator[None]:
    """Waits until no other thread decodes a large picture or clip; small ones never wait."""
    if pixels < LARGE:
        yield
        return
    with _large:
        yield


def check_size(data: bytes, what: str, limits: Limits) -> None:
    """Raises ValueError when the file is empty or larger than ``limits.bytes``."""
    if not data:
        raise MediaError(f"the {what} is empty (0 bytes)")
    if len(data) > limits.bytes:
        raise MediaError(f"the {what} has {len(data):,} bytes; at most {limits.bytes:,} are read")


def reason(error: BaseException) -> str:
    """What a library's error says, without addresses of objects, paths and numbers of errors."""
    said = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    said = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "the data", str(said)).strip().rstrip(".:")
    return " ".join(said.split()) or type(error).__name__


def machine_memory() -> int:
    """Bytes of memory that this machine has, or its control group may use."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        allowed = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return most
    return min(most, int(allowed)) if allowed.isdigit() else most


def limit_memory(most: int) -> None:
    """Limits the memory that this process may write to ``most`` bytes; beyond it allocations fail instead of the machine.

    The limit is RLIMIT_DATA: private writable memory. JAX reserves gigabytes of address space that it never
    touches, so RLIMIT_AS would stop a healthy process. The decoders answer a failed allocation with ValueError.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
