"""Limits on decoding, and guards that keep a process within its memory.

Three lines of defense: limits on one media item, one large image or video at a time in a process, and a limit on the memory
of the process itself (``limit_memory``).
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
    """What is wrong with media bytes, in a sentence for the user, unlike the ValueErrors of libraries."""


@dataclass(frozen=True)
class Limits:
    """Maximum sizes of one media item.

    An image of 64 Mpixel (the largest that phones take without stitching) needs up to 0.6 GB while it is decoded,
    WebP up to 1.1 GB. It is then downsampled to ``output_pixels``, and a video frame to ``output_frame_pixels``: no encoder reads
    more.
    """

    bytes: int = 64 << 20
    image_pixels: int = 64_000_000
    output_pixels: int = 16_000_000
    audio_seconds: float = 600.0
    # In Hz.
    audio_rates: tuple[int, int] = (2_000, 192_000)
    audio_channels: int = 32
    # Samples times channels: 600 s of stereo at 192 kHz
    audio_values: int = 240_000_000
    # Full scale is 1.
    audio_peak: float = 16.0
    video_seconds: float = 600.0
    # Of one frame: 4K and the macroblocks around it
    video_pixels: int = 4096 * 2304
    # Of all frames: a minute of 1920x1080 at 30 frames a second, or ten of 640x360
    video_total_pixels: int = 4_000_000_000
    video_frames: int = 64
    output_frame_pixels: int = 1 << 20
    # Of all tracks of an audio or video file.
    packets: int = 400_000


LIMITS = Limits()
# Pixels from which images and videos are decoded one at a time.
LARGE = 4_000_000
_large_lock = threading.Lock()


def _after_fork() -> None:
    """Replaces the lock: a child process must not inherit one that another thread of its parent holds."""
    global _large
    _large_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def one_large_at_a_time(pixels: int) -> Iterator[None]:
    """Waits until no other thread decodes a large image or video; small ones never wait."""
    if pixels < LARGE:
        yield
        return
    with _large_lock:
        yield


def check_size(data: bytes, what: str, limits: Limits) -> None:
    """Raises ValueError when the file is empty or larger than ``limits.bytes``."""
    if not data:
        raise MediaError(f"the {what} is empty (0 bytes)")
    if len(data) > limits.bytes:
        raise MediaError(f"the {what} has {len(data):,} bytes; at most {limits.bytes:,} are read")


def reason(error: BaseException) -> str:
    """The message of a library's error, without addresses of objects, paths and error numbers."""
    message = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    message = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "the data", str(message)).strip().rstrip(".:")
    return " ".join(message.split()) or type(error).__name__


def machine_memory() -> int:
    """Bytes of memory of this machine, or those that its control group may use."""
    max_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        allowed = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return max_bytes
    return min(max_bytes, int(allowed)) if allowed.isdigit() else max_bytes


def limit_memory(max_bytes: int) -> None:
    """Limits the writable memory of this process; beyond it allocations fail, and the machine does not run out of memory.

    The limit is RLIMIT_DATA: private writable memory. JAX reserves gigabytes of address space that it never
    uses, so RLIMIT_AS would stop a healthy process. The decoders raise ValueError when an allocation fails.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        max_bytes = min(max_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (max_bytes, hard))
