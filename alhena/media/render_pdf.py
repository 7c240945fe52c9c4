"""A program that renders the pages of a PDF: PDF on standard input, PNGs on standard output, each after its size in 8 bytes.

It is a process of its own, because a library in C++ reads bytes of strangers here: its memory and its time are limited, and the server
survives its end. It imports nothing of this package, so it starts quickly. See alhena/media/pdf.py.

    python -I render_pdf.py MAX_PAGES MAX_PIXELS MAX_BYTES MAX_SECONDS
"""

from __future__ import annotations

import io
import math
import resource
import sys

# Points to an inch, and pixels to an inch at most: that of a good scan.
POINTS, PIXELS_PER_INCH = 72, 150


def _limit(max_bytes: int, max_seconds: int) -> None:
    for kind, limit in (
        (resource.RLIMIT_DATA, max_bytes),
        (resource.RLIMIT_CPU, max_seconds),
        (resource.RLIMIT_FSIZE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))


def _render(data: bytes, max_pages: int, max_pixels: int) -> None:
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        sys.exit(f"the PDF cannot be read: {error}")
    if len(document) > max_pages:
        sys.exit(f"the PDF has {len(document):,} pages; at most {max_pages} are read")
    if not len(document):
        sys.exit("the PDF has no pages")
    for number in range(len(document)):
        page = document[number]
        width, height = page.get_size()
        if not (width > 0 and height > 0 and max(width, height) < 1e5 * min(width, height)):
            sys.exit(f"page {number + 1} of the PDF has no size")
        scale = min(PIXELS_PER_INCH / POINTS, math.sqrt(max_pixels / (width * height)), max_pixels / max(width, height))
        out = io.BytesIO()
        # Forms and annotations may hold scripts: they are not drawn.
        page.render(scale=scale, draw_annots=False, may_draw_forms=False).to_pil().save(out, "PNG", compress_level=1)
        sys.stdout.buffer.write(len(out.getvalue()).to_bytes(8, "big") + out.getvalue())


def main() -> None:
    max_pages, max_pixels, max_bytes, max_seconds = map(int, sys.argv[1:])
    _limit(max_bytes, max_seconds)
    try:
        _render(sys.stdin.buffer.read(), max_pages, max_pixels)
    except MemoryError:
        sys.exit("the PDF needs more memory than it may have")


if __name__ == "__main__":
    main()
