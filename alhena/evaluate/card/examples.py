"""Examples: items of each row, right and wrong, with their media as small as a page can hold. Stored as examples.jsonl beside the results.

    {"id", "rows": [key], "prompt": [{"kind": "text" | "image" | "video" | "audio", "text" | "url", "peaks"}], "reference",
     "answers": {model: {"text", "url"}}}

Media are data URLs: images and frames of a video as thumbnails, the beginning of a recording with the peaks of its waveform.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image as Pillow

from alhena.content import Audio, Image, Part, ToolResult, Video, written
from alhena.evaluate.measure import Scored
from alhena.evaluate.results import Evaluation
from alhena.files import read_lines
from alhena.media import SAMPLE_RATE, decode_audio, decode_image, decode_video, encode_audio
from alhena.schema import parsed
from alhena.shapes import UInt8

# Of each row that many items that every model answers right, and that many that one does not.
PER_KIND = 3
# Media that are smaller are embedded as they are.
SMALL_BYTES, SIDE = 24_000, 256
AUDIO_SECONDS, PEAKS = 8, 96
FRAMES, FRAME_SIDE = 6, 96
MAX_TEXT, MAX_ANSWER = 1200, 400
MAX_URL = 600_000
IMAGES = ("image/png", "image/jpeg", "image/webp", "image/gif")
_URL = re.compile(r"data:(image/(png|jpeg|webp|gif)|audio/flac);base64,[A-Za-z0-9+/]*={0,2}")


@dataclass(frozen=True)
class Piece:
    """A part of a prompt as it is shown."""

    kind: Literal["text", "image", "video", "audio"]
    text: str = ""
    url: str = ""
    peaks: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_url(self.url)


@dataclass(frozen=True)
class ShownAnswer:
    """The answer of a model, and the image that it generated."""

    text: str
    url: str = ""

    def __post_init__(self) -> None:
        check_url(self.url)


@dataclass(frozen=True)
class Example:
    """An item of one or more rows."""

    id: str
    rows: tuple[str, ...]
    prompt: tuple[Piece, ...]
    reference: str
    answers: Mapping[str, ShownAnswer] = field(default_factory=dict)


def check_url(url: str) -> None:
    """Raises ValueError unless it is empty or the data URL of a small image or recording."""
    if len(url) > MAX_URL or (url and not _URL.fullmatch(url)):
        raise ValueError(f"{url[:60]!r} is no data URL of an image or a recording of at most {MAX_URL:,} characters")


def short(text: str, limit: int = MAX_TEXT) -> str:
    """A text without its middle where it is long: the question stands at its end, the instruction at its beginning."""
    return text if len(text) <= limit else f"{text[: limit // 3]} […] {text[-2 * limit // 3 :]}"


def _url(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def _thumbnail(pixels: UInt8[np.ndarray, "height width 3"], side: int = SIDE) -> str:
    image = Pillow.fromarray(pixels)
    if max(image.size) > side:
        image.thumbnail((side, side), Pillow.Resampling.LANCZOS)
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.save(png, "PNG", optimize=True)
    image.save(jpeg, "JPEG", quality=85)
    best = min((png, "image/png"), (jpeg, "image/jpeg"), key=lambda pair: len(pair[0].getvalue()))
    return _url(best[1], best[0].getvalue())


def image_url(data: bytes, mime: str = "image/png") -> str:
    """An image as a data URL. Raises ValueError when it does not decode."""
    pixels = decode_image(data)
    if len(data) <= SMALL_BYTES and mime in IMAGES and max(pixels.shape) <= SIDE:
        return _url(mime, data)
    return _thumbnail(pixels)


def _video(part: Video) -> Piece:
    frames = decode_video(part.data, FRAMES, excerpt=part.excerpt).frames
    small = []
    for frame in frames:
        image = Pillow.fromarray(frame)
        image.thumbnail((FRAME_SIDE, FRAME_SIDE), Pillow.Resampling.LANCZOS)
        small.append(np.asarray(image))
    return Piece("video", url=_thumbnail(np.concatenate(small, axis=1), FRAMES * FRAME_SIDE))


def _audio(part: Audio) -> Piece:
    samples = decode_audio(part.data)[: AUDIO_SECONDS * SAMPLE_RATE]
    loudest = [float(np.abs(chunk).max(initial=0)) for chunk in np.array_split(samples, PEAKS)]
    top = max(*loudest, 1e-6)
    peaks = tuple(round(value / top, 2) for value in loudest)
    return Piece("audio", url=_url("audio/flac", encode_audio(samples)), peaks=peaks)


def pieces_of(part: Part) -> list[Piece]:
    """A part of a prompt as it is shown; a medium that does not decode is named."""
    try:
        if isinstance(part, Image):
            return [Piece("image", url=image_url(part.data, part.mime))]
        if isinstance(part, Video):
            return [_video(part)]
        if isinstance(part, Audio):
            return [_audio(part)]
    except ValueError as error:
        return [Piece("text", f"({type(part).__name__.lower()}: {error})")]
    media = part.parts if isinstance(part, ToolResult) else ()
    return [Piece("text", short(written(part) or "")), *(piece for medium in media for piece in pieces_of(medium))]


def is_right(score: float, lower_is_better: bool) -> bool:
    return score <= 1e-9 if lower_is_better else score >= 1 - 1e-9


def wrong_items(of_models: Iterable[Sequence[Scored]], lower_is_better: bool) -> set[str]:
    """Ids of the items that not all models have right."""
    return {item.id for items in of_models for item in items if not is_right(item.score, lower_is_better)}


def chosen(of_models: Collection[Sequence[Scored]], lower_is_better: bool = False) -> list[str]:
    """Ids of items that several models answered: some that all of them have right, some that one has not, from all over the set."""
    wrong = wrong_items(of_models, lower_is_better)
    ids = [item.id for item in next(iter(of_models), ())]
    groups = [id for id in ids if id not in wrong], [id for id in ids if id in wrong]
    return [id for group in groups for id in _spread(group)]


def _spread(ids: Sequence[str]) -> list[str]:
    return [ids[i * len(ids) // PER_KIND] for i in range(min(PER_KIND, len(ids)))] if len(ids) > PER_KIND else [*ids]


def lines(examples: Iterable[Example]) -> str:
    """The content of examples.jsonl."""
    return "".join(json.dumps(asdict(example), ensure_ascii=False) + "\n" for example in examples)


def example_lines(evaluation: Evaluation) -> str:
    """The content of examples.jsonl for the questions of an evaluation."""
    rows: dict[str, list[str]] = {}
    for row in evaluation.rows:
        for id in chosen(row.scored.values(), row.lower_is_better):
            rows.setdefault(id, []).append(row.key)
    examples = []
    for question in evaluation.answers.questions:
        document = question.document
        if document.id in rows:
            prompt = [piece for c in document.contents[:-1] for part in c.parts for piece in pieces_of(part)]
            answers = {
                model: ShownAnswer(short(text, MAX_ANSWER), image_url(question.images[model]) if model in question.images else "")
                for model, text in question.answers.items()
            }  # fmt: skip
            examples.append(
                Example(
                    document.id, tuple(rows[document.id]), tuple(prompt), short(question.reference, MAX_ANSWER), answers
                )
            )
    return lines(examples)


def read_examples(path: Path) -> list[Example]:
    """The examples of a file; none where there is no file. Raises ValueError that names the line of what cannot be shown."""
    return [parsed(Example, line, path, f"line {n}") for n, line in enumerate(read_lines(path), 1)]
