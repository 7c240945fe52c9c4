"""The rows of the report card: which documents, which metric, what chance would score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alhena.content import Document, Image, Text
from alhena.corpus.starter.splits import COLORS, SHAPES
from alhena.evaluate import metrics
from alhena.evaluate.judges import colour_of, digit_judge, shape_of
from alhena.media import decode_image

Verdict = Callable[
    [Document, str, Sequence[bytes]], str
]  # document, answer text, drawn pictures -> the answer that is compared


@dataclass(frozen=True)
class Row:
    """One line of the card."""

    group: str
    name: str
    metric_name: str
    metric: metrics.Metric
    chosen: Callable[[Document], bool]

    @property
    def lower_is_better(self) -> bool:
        return self.metric in metrics.LOWER_IS_BETTER


def _task(name: str) -> Callable[[Document], bool]:
    return lambda document: document.facts.get("task") == name


def _place(low: float, high: float) -> Callable[[Document], bool]:
    return lambda d: (
        d.facts.get("task") == "retrieval"
        and all(isinstance(d.facts.get(name), int | float) for name in ("position", "pairs"))
        and low <= d.facts["position"] <= high
    )


def _language(code: str) -> Callable[[Document], bool]:
    return lambda document: document.facts.get("task") == "speech" and document.language == code


ANSWERS: tuple[Row, ...] = (
    Row("text", "translation", "exact match %", metrics.exact, _task("translation")),
    Row("text", "translation, chrF", "chrF", metrics.chrf, _task("translation")),
    Row("text", "key-value retrieval, first third", "exact match %", metrics.exact, _place(0, 1 / 3)),
    Row("text", "key-value retrieval, middle", "exact match %", metrics.exact, _place(1 / 3 + 1e-9, 2 / 3)),
    Row("text", "key-value retrieval, last third", "exact match %", metrics.exact, _place(2 / 3 + 1e-9, 1)),
    Row("image", "handwritten numbers", "exact match %", metrics.exact, _task("digits")),
    Row("image", "scene: colour", "exact match %", metrics.exact, _task("scenes/colour")),
    Row("image", "scene: shape", "exact match %", metrics.exact, _task("scenes/shape")),
    Row("image", "scene: colour of a shape", "exact match %", metrics.exact, _task("scenes/find")),
    Row("image", "scene: how many", "exact match %", metrics.exact, _task("scenes/count")),
    Row("image", "scene: where", "exact match %", metrics.exact, _task("scenes/relation")),
    Row("image", "reading words (OCR)", "character errors %", metrics.character_errors, _task("ocr")),
    Row("image", "chart: highest", "exact match %", metrics.exact, _task("charts/highest")),
    Row("image", "chart: lowest", "exact match %", metrics.exact, _task("charts/lowest")),
    Row("image", "chart: value", "exact match %", metrics.exact, _task("charts/value")),
    Row("audio", "speech recognition", "word errors %", metrics.word_errors, _task("speech")),
    Row("audio", "speech recognition, English", "word errors %", metrics.word_errors, _language("en")),
    Row("video", "which way it moves", "exact match %", metrics.exact, _task("video/direction")),
    Row("video", "what moves", "exact match %", metrics.exact, _task("video/what")),
    Row("video", "how many move", "exact match %", metrics.exact, _task("video/count")),
    Row("video", "digits in order", "exact match %", metrics.exact, _task("video/order")),
    Row("combined", "spoken question about a picture", "exact match %", metrics.exact, _task("spoken")),
    Row("drawing", "digit, by a classifier", "recognized %", metrics.exact, _task("drawing/digit")),
    Row("drawing", "shape, by its pixels", "right %", metrics.exact, _task("drawing/shape")),
)


_SHOWN = {"drawing/digit": ("digit",), "drawing/shape": ("colour", "shape")}


def _judged(document: Document) -> str | None:
    """The task, where the answer is a picture that a judge looks at: its facts say what the picture is to show."""
    task = str(document.facts.get("task"))
    return task if task in _SHOWN and all(name in document.facts for name in _SHOWN[task]) else None


def reference(document: Document) -> str:
    """What is right, as text: the last turn's words, or what a drawing was to show."""
    task = _judged(document)
    if task == "drawing/digit":
        return str(document.facts["digit"])
    if task == "drawing/shape":
        return f"{document.facts['colour']} {document.facts['shape']}"
    return " ".join(part.text for part in document.contents[-1].parts if isinstance(part, Text))


def verdict(document: Document, parts: Sequence[object]) -> str:
    """An answer as text to compare: its words, or what the judges see in its first picture."""
    task = _judged(document)
    if task is None:
        return "".join(part.text for part in parts if isinstance(part, Text))
    pictures = [part for part in parts if isinstance(part, Image)]
    if not pictures:
        return "(no picture)"
    pixels = decode_image(pictures[0].data)
    if task == "drawing/digit":
        return str(digit_judge()[0](pixels))
    return f"{colour_of(pixels, dict(COLORS))} {shape_of(pixels)}"


def chance(row: Row, documents: Sequence[Document], references: Sequence[str]) -> float:
    """The best score without looking: the best constant answer, one number of the list for retrieval, any pair for a drawn shape."""
    if documents[0].facts.get("task") == "retrieval":
        return 100 * sum(1 / float(d.facts["pairs"]) for d in documents) / len(documents)
    if documents[0].facts.get("task") == "drawing/shape":
        return max(100 / (len(COLORS) * len(SHAPES)), metrics.constant_chance(row.metric, references))
    return metrics.constant_chance(row.metric, references)
