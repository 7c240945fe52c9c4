"""A contact sheet: one look at what the corpus holds, a few test items a row of the report card.

    scenes/colour   ┌────┐ What colour is the star? → red    ┌────┐ …
    speech          ▁▃▆▂▅▁ Transcribe. → forty seven         ▂▅▇▃▁▆ …

Clips are shown as film strips, sounds as log-mel-like spectrograms (time to the right, low pitch below).
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw

from alhena.content import Audio, Document, Image, Part, Text, Video
from alhena.corpus.starter.words import font
from alhena.files import write_atomically
from alhena.media import decode_audio, decode_image, decode_video, encode_png

PER_TASK = 4
CELL_WIDTH, CELL_HEIGHT, MARGIN, LABEL = 320, 190, 10, 130
SCALE = 1.5


def spectrogram(samples: np.ndarray, window: int = 512, hop: int = 128) -> np.ndarray:
    """float32 [samples] at 16 kHz to grey pixels uint8 [128, time, 3]."""
    samples = np.pad(samples, (0, max(window - len(samples), 0)))
    pieces = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop] * np.hanning(window)
    level = np.log(np.abs(np.fft.rfft(pieces))[:, :128].T[::-1] + 1e-3)
    grey = 255 - 255 * (level - level.min()) / max(float(np.ptp(level)), 1e-6)
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)


def _pixels(part: Part) -> np.ndarray | None:
    if isinstance(part, Image):
        return decode_image(part.data)
    if isinstance(part, Audio):
        return spectrogram(decode_audio(part.data))[::2, ::2]
    if isinstance(part, Video):
        frames = decode_video(part.data, 6).frames
        return np.hstack([np.pad(f, ((0, 0), (0, 2), (0, 0)), constant_values=160) for f in frames])
    return None


def _caption(document: Document) -> str:
    said = [[p.text for p in c.parts if isinstance(p, Text)] or ["(picture)"] for c in document.contents]
    if len(said) == 1:
        return " … ".join(said[0])
    question = "" if said[0] == ["(picture)"] else said[0][-1]
    return f"{question} → {said[1][0]}" if question else f"(asked aloud: {document.facts['words']}) → {said[1][0]}"


def _cell(document: Document) -> Pillow.Image:
    cell = Pillow.new("RGB", (CELL_WIDTH, CELL_HEIGHT), "white")
    draw, x, lowest = ImageDraw.Draw(cell), 0, 0
    shown = [p for p in map(_pixels, document.parts) if p is not None]
    for pixels in shown:
        height, width = pixels.shape[:2]
        scale = min(SCALE, (CELL_WIDTH - x) / width)
        if scale < 0.4:
            break
        image = Pillow.fromarray(pixels).resize((int(width * scale), int(height * scale)), Pillow.Resampling.LANCZOS)
        cell.paste(image, (x, 0))
        draw.rectangle((x, 0, x + image.width - 1, image.height - 1), outline=(200, 200, 200))
        x, lowest = x + image.width + 6, max(lowest, image.height)
    face = font("DejaVuSans" if shown else "DejaVuSansMono", 12)
    lines = [part for line in _caption(document).splitlines() for part in textwrap.wrap(line, 44) or [""]]
    room = (CELL_HEIGHT - lowest) // 15
    if len(lines) > room:
        lines = [*lines[: room // 2 - 1], "…", *lines[-(room // 2) :]]
    draw.text((0, lowest + 3), "\n".join(lines), (40, 40, 40), face, spacing=1)
    return cell


def _row(task: str, documents: Sequence[Document]) -> Pillow.Image:
    cells = [_cell(document) for document in documents]
    boxes = [Pillow.eval(cell.convert("L"), lambda v: 255 - v).getbbox() for cell in cells]
    height = max((box[3] for box in boxes if box), default=20) + MARGIN
    row = Pillow.new("RGB", (LABEL + PER_TASK * (CELL_WIDTH + MARGIN), height), "white")
    ImageDraw.Draw(row).text((MARGIN, 2), task, (20, 60, 140), font("DejaVuSans-Bold", 12))
    for k, cell in enumerate(cells):
        row.paste(cell.crop((0, 0, CELL_WIDTH, height)), (LABEL + k * (CELL_WIDTH + MARGIN), 0))
    return row


def write_sheet(path: Path, examples: Mapping[str, Sequence[Document]]) -> None:
    """Writes a PNG with one row a task (the first ``PER_TASK`` documents of each)."""
    rows = [_row(task, documents[:PER_TASK]) for task, documents in examples.items()]
    sheet = Pillow.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows) + MARGIN), "white")
    y = MARGIN
    for row in rows:
        sheet.paste(row, (0, y))
        y += row.height
    write_atomically(path, encode_png(np.asarray(sheet)))
