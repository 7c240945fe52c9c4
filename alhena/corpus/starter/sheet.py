"""A contact sheet of the starter corpus: people look at data before they train on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from alhena.content import Audio, Document, Image, Text, Video
from alhena.media import SAMPLE_RATE, decode_audio, decode_image, decode_video

SHOWN = ("scenes", "digits", "ocr", "charts", "video", "speech", "spoken", "drawing")
EACH = 5


def _caption(document: Document) -> str:
    texts = [part.text for part in document.parts if isinstance(part, Text)][:2]
    return "\n".join(text[:34] for text in texts)


def _show(axes, document: Document) -> None:
    media = [part for part in document.parts if not isinstance(part, Text)]
    if isinstance(media[0], Image):
        axes.imshow(decode_image(media[0].data), interpolation="nearest")
    elif isinstance(media[0], Video):
        axes.imshow(np.concatenate(list(decode_video(media[0].data, 6).frames), 1), interpolation="nearest")
    elif isinstance(media[0], Audio):
        samples = decode_audio(media[0].data)
        axes.plot(np.arange(len(samples)) / SAMPLE_RATE, samples, linewidth=0.4, color="#2a6f97")
        axes.set_ylim(-1, 1)


def contact_sheet(path: Path, seed: int) -> None:
    """Draws a few training documents of each kind with their first question and answer."""
    from alhena.corpus.starter.build import SOURCES

    figure = Figure(figsize=(EACH * 2.4, len(SHOWN) * 1.9), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(SHOWN), EACH)
    for row, source in enumerate(SHOWN):
        for column in range(EACH):
            document = SOURCES[source](np.random.default_rng([seed, row, column]), "train", column)
            axes = grid[row][column]
            axes.set_axis_off()
            _show(axes, document)
            axes.set_title(_caption(document) or source, fontsize=7)
        grid[row][0].text(-0.1, 0.5, source, rotation=90, transform=grid[row][0].transAxes, va="center", ha="right", fontsize=10)
    figure.savefig(path)
