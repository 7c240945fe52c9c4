"""PDF bytes to an image of each page, rendered in a process of its own with limits on pages, pixels, memory and time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from alhena.content import Image
from alhena.media.limits import LIMITS, MediaError, check_size

MAX_PAGES = 100
# Of a page: what the encoders read of one image.
MAX_PIXELS = LIMITS.output_frame_pixels
MAX_MEMORY_BYTES = 1 << 30
MAX_SECONDS = 20
PROGRAM = Path(__file__).with_name("render_pdf.py")


def render_pages(data: bytes, max_pages: int = MAX_PAGES, max_seconds: int = MAX_SECONDS) -> tuple[Image, ...]:
    """One PNG a page. Raises ValueError that states what is wrong with the PDF."""
    check_size(data, "PDF", LIMITS)
    if b"%PDF-" not in data[:1024]:
        raise MediaError("the data are not a PDF")
    limits = map(str, (max_pages, MAX_PIXELS, MAX_MEMORY_BYTES, max_seconds))
    command = [sys.executable, "-I", str(PROGRAM), *limits]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=max_seconds, check=False)
    except subprocess.TimeoutExpired:
        raise MediaError(f"the PDF takes more than {max_seconds} s to render, the maximum") from None
    if done.returncode:
        # A negative code is that of a signal: the limit on the time of the processor, or a crash.
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() if done.returncode == 1 else []
        is_stated = bool(lines) and "PDF" in lines[-1] and "Error" not in lines[-1]
        raise MediaError(
            lines[-1] if is_stated else "the PDF cannot be rendered: it is damaged, or takes too much memory or time"
        )
    return tuple(map(Image, _pages(done.stdout)))


def _pages(output: bytes) -> list[bytes]:
    """The PNGs, each after its size."""
    pages, start = [], 0
    while start < len(output):
        end = start + 8 + int.from_bytes(output[start : start + 8], "big")
        pages.append(output[start + 8 : end])
        start = end
    return pages
