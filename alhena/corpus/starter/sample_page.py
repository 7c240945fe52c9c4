"""The sample page: an image with a few test items of each task of the corpus.

    scenes/colour   ┌────┐ What colour is the star? → red    ┌────┐ …
    speech          ▁▃▆▂▅▁ Transcribe. → forty seven         ▂▅▇▃▁▆ …

Clips are shown as rows of frames, audio as log spectrograms (time to the right, low frequencies at the bottom).
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image as Pillow
from PIL import ImageDraw

from alhena.content import Audio, Document, Image, Part, Video, written
from alhena.corpus.starter.images.rendered_words import font
from alhena.files import write_atomically
from alhena.media import decode_audio, decode_image, decode_video, encode_png

ITEMS_PER_TASK = 4
CELL_WIDTH, CELL_HEIGHT, MARGIN, LABEL = 320, 190, 10, 130
SCALE = 1.5


def spectrogram(
    samples: Float[np.ndarray, " samples"], window: int = 512, hop: int = 128
) -> UInt8[np.ndarray, "128 time 3"]:
    """Samples at 16 kHz to gray pixels, by log magnitude."""
    samples = np.pad(samples, (0, max(window - len(samples), 0)))
    windows = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop] * np.hanning(window)
    level = np.log(np.abs(np.fft.rfft(windows))[:, :128].T[::-1] + 1e-3)
    gray = 255 - 255 * (level - level.min()) / max(float(np.ptp(level)), 1e-6)
    return np.repeat(gray.astype(np.uint8)[:, :, None], 3, axis=2)


def _pixels(part: Part) -> UInt8[np.ndarray, "height width 3"] | None:
    """An image of a media part, None for text."""
    if isinstance(part, Image):
        return decode_image(part.data)
    if isinstance(part, Audio):
        return spectrogram(decode_audio(part.data))[::2, ::2]
    if isinstance(part, Video):
        frames = decode_video(part.data, 6).frames
        return np.hstack([np.pad(f, ((0, 0), (0, 2), (0, 0)), constant_values=160) for f in frames])
    return None


def _caption(document: Document) -> str:
    """Question and answer, or the text of a page."""
    texts = [[text for p in c.parts if (text := written(p)) is not None] or ["(image)"] for c in document.contents]
    if len(texts) == 1:
        return " … ".join(texts[0])
    question = f"(spoken: {document.facts['words']})" if texts[0] == ["(image)"] else texts[0][-1]
    return f"{question} → {texts[1][0]}"


def _cell(document: Document) -> Pillow.Image:
    """The media of a document side by side, as far as they fit, above its caption."""
    cell = Pillow.new("RGB", (CELL_WIDTH, CELL_HEIGHT), "white")
    draw, x, bottom = ImageDraw.Draw(cell), 0, 0
    images = [p for p in map(_pixels, document.parts) if p is not None]
    for pixels in images:
        height, width = pixels.shape[:2]
        scale = min(SCALE, (CELL_WIDTH - x) / width)
        if scale < 0.4:
            break
        image = Pillow.fromarray(pixels).resize((int(width * scale), int(height * scale)), Pillow.Resampling.LANCZOS)
        cell.paste(image, (x, 0))
        draw.rectangle((x, 0, x + image.width - 1, image.height - 1), outline=(200, 200, 200))
        x, bottom = x + image.width + 6, max(bottom, image.height)
    face = font("DejaVuSans" if images else "DejaVuSansMono", 12)
    lines = [wrapped for line in _caption(document).splitlines() for wrapped in textwrap.wrap(line, 44) or [""]]
    max_lines = (CELL_HEIGHT - bottom) // 15
    if len(lines) > max_lines:
        lines = [*lines[: max_lines // 2 - 1], "…", *lines[-(max_lines // 2) :]]
    draw.text((0, bottom + 3), "\n".join(lines), (40, 40, 40), face, spacing=1)
    return cell


def _row(task: str, documents: Sequence[Document]) -> Pillow.Image:
    """The cells of a task, with its name at the left."""
    cells = [_cell(document) for document in documents]
    boxes = [Pillow.eval(cell.convert("L"), lambda v: 255 - v).getbbox() for cell in cells]
    height = max((box[3] for box in boxes if box), default=20) + MARGIN
    row = Pillow.new("RGB", (LABEL + ITEMS_PER_TASK * (CELL_WIDTH + MARGIN), height), "white")
    ImageDraw.Draw(row).text((MARGIN, 2), task, (20, 60, 140), font("DejaVuSans-Bold", 12))
    for k, cell in enumerate(cells):
        row.paste(cell.crop((0, 0, CELL_WIDTH, height)), (LABEL + k * (CELL_WIDTH + MARGIN), 0))
    return row


def write_sample_page(path: Path, examples: Mapping[str, Sequence[Document]]) -> None:
    """Writes a PNG with one row per task (the first ``ITEMS_PER_TASK`` documents of each)."""
    rows = [_row(task, documents[:ITEMS_PER_TASK]) for task, documents in examples.items()]
    page = Pillow.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows) + MARGIN), "white")
    y = MARGIN
    for row in rows:
        page.paste(row, (0, y))
        y += row.height
    write_atomically(path, encode_png(np.asarray(page)))
