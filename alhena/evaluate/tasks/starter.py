"""Task metrics: the rows of the report, each with the documents it selects, its metric, and its chance level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alhena.content import Document, Image, Part, Text, ToolCall, call_text
from alhena.corpus.starter.splits import COLORS, SHAPES
from alhena.corpus.starter.text.long_retrieval import LENGTHS
from alhena.evaluate import metrics
from alhena.evaluate.judges import colour_of, digit_judge, shape_of
from alhena.evaluate.measure import Measure
from alhena.media import decode_image

EXACT, ACCURACY, CHRF = "exact match %", "accuracy %", "chrF"
WER, CER = "word error rate %", "character error rate %"


@dataclass(frozen=True)
class TaskMetric:
    """One metric of one task: a row of the report."""

    section: str
    name: str
    metric_name: str
    metric: metrics.Metric
    selects: Callable[[Document], bool]

    @property
    def measure(self) -> Measure:
        return Measure(
            self.metric_name,
            self.metric in metrics.LOWER_IS_BETTER,
            self.metric in metrics.BINARY,
            CHRF if self.metric is metrics.chrf else None,
        )


def task_of(document: Document) -> str:
    """The task of a document, or its source where it names none."""
    return str(document.facts.get("task", document.source))


def _task(name: str) -> Callable[[Document], bool]:
    return lambda document: document.facts.get("task") == name


def _position(low: float, high: float) -> Callable[[Document], bool]:
    """Retrieval questions whose pair lies between two positions, relative to the length of the list."""
    return lambda d: (
        d.facts.get("task") == "retrieval"
        and all(isinstance(d.facts.get(name), int | float) for name in ("position", "pairs"))
        and low <= d.facts["position"] <= high
    )


def _language(code: str) -> Callable[[Document], bool]:
    return lambda document: document.facts.get("task") == "speech" and document.language == code


TASK_METRICS: tuple[TaskMetric, ...] = (
    TaskMetric("multilingual", "translation", EXACT, metrics.exact_match, _task("translation")),
    TaskMetric("multilingual", "translation, chrF", CHRF, metrics.chrf, _task("translation")),
    TaskMetric("long context", "key-value retrieval, first third", EXACT, metrics.exact_match, _position(0, 1 / 3)),
    TaskMetric(
        "long context", "key-value retrieval, middle", EXACT, metrics.exact_match, _position(1 / 3 + 1e-9, 2 / 3)
    ),
    TaskMetric(
        "long context", "key-value retrieval, last third", EXACT, metrics.exact_match, _position(2 / 3 + 1e-9, 1)
    ),
    *(
        TaskMetric("long context", f"key-value retrieval, up to {n:,} tokens", EXACT, metrics.exact_match, _task(name))
        for name, n in LENGTHS.items()
    ),
    TaskMetric("tools", "function call: name and arguments", EXACT, metrics.exact_match, _task("tools/call")),
    TaskMetric("tools", "answer from a function's result", EXACT, metrics.exact_match, _task("tools/answer")),
    TaskMetric("tools", "no call where none helps", EXACT, metrics.exact_match, _task("tools/none")),
    TaskMetric("tools", "JSON extraction", EXACT, metrics.exact_match, _task("tools/json")),
    TaskMetric("mathematics", "arithmetic, the answer only", EXACT, metrics.exact_match, _task("reasoning/answer")),
    TaskMetric("mathematics", "arithmetic with all its steps", EXACT, metrics.exact_match, _task("reasoning/steps")),
    TaskMetric(
        "mathematics", "arithmetic, longer than in training", EXACT, metrics.exact_match, _task("reasoning/longer")
    ),
    TaskMetric("image", "handwritten numbers", EXACT, metrics.exact_match, _task("digits")),
    TaskMetric("image", "scene: color", EXACT, metrics.exact_match, _task("scenes/colour")),
    TaskMetric("image", "scene: shape", EXACT, metrics.exact_match, _task("scenes/shape")),
    TaskMetric("image", "scene: color of a shape", EXACT, metrics.exact_match, _task("scenes/find")),
    TaskMetric("image", "scene: how many", EXACT, metrics.exact_match, _task("scenes/count")),
    TaskMetric("image", "scene: where", EXACT, metrics.exact_match, _task("scenes/relation")),
    TaskMetric("image", "reading words (OCR)", CER, metrics.character_error_rate, _task("ocr")),
    TaskMetric("image", "chart: highest", EXACT, metrics.exact_match, _task("charts/highest")),
    TaskMetric("image", "chart: lowest", EXACT, metrics.exact_match, _task("charts/lowest")),
    TaskMetric("image", "chart: value", EXACT, metrics.exact_match, _task("charts/value")),
    TaskMetric("audio", "speech recognition", WER, metrics.word_error_rate, _task("speech")),
    TaskMetric("audio", "speech recognition, English", WER, metrics.word_error_rate, _language("en")),
    TaskMetric("video", "which way it moves", EXACT, metrics.exact_match, _task("video/direction")),
    TaskMetric("video", "what moves", EXACT, metrics.exact_match, _task("video/what")),
    TaskMetric("video", "how many move", EXACT, metrics.exact_match, _task("video/count")),
    TaskMetric("video", "digits in order", EXACT, metrics.exact_match, _task("video/order")),
    TaskMetric("combinations", "spoken question about an image", EXACT, metrics.exact_match, _task("spoken")),
    TaskMetric(
        "image generation", "generated digit, by a classifier", ACCURACY, metrics.exact_match, _task("drawing/digit")
    ),
    TaskMetric(
        "image generation", "generated shape, by its pixels", ACCURACY, metrics.exact_match, _task("drawing/shape")
    ),
)


# The facts that say what an output image is to show, by task. Judges compare such an image with them.
_TARGET_FACTS = {"drawing/digit": ("digit",), "drawing/shape": ("colour", "shape")}


def _judged_task(document: Document) -> str | None:
    """The task, where the answer is an image that a judge labels; None for other tasks."""
    task = str(document.facts.get("task"))
    return task if task in _TARGET_FACTS and all(name in document.facts for name in _TARGET_FACTS[task]) else None


def reference(document: Document) -> str:
    """The reference answer as text: texts and tool calls of the last turn, or the label of the image to be generated."""
    task = _judged_task(document)
    if task is not None:
        return " ".join(str(document.facts[name]) for name in _TARGET_FACTS[task])
    return " ".join(_written(document.contents[-1].parts))


def _written(parts: Sequence[Part]) -> list[str]:
    """Texts, and tool calls as texts; thoughts are not part of what is compared."""
    return [
        call_text(part) if isinstance(part, ToolCall) else part.text
        for part in parts
        if isinstance(part, Text | ToolCall)
    ]


def predicted_answer(document: Document, parts: Sequence[Part]) -> str:
    """An answer as text to compare with the reference: its texts and calls, or the label that a judge gives to its first image."""
    task = _judged_task(document)
    if task is None:
        return " ".join(_written(parts))
    images = [part for part in parts if isinstance(part, Image)]
    if not images:
        return "(no image)"
    pixels = decode_image(images[0].data)
    if task == "drawing/digit":
        return str(digit_judge()[0](pixels))
    return f"{colour_of(pixels, dict(COLORS))} {shape_of(pixels)}"


def chance_level(task: TaskMetric, documents: Sequence[Document], references: Sequence[str]) -> float:
    """The best score of an answer that ignores the question: a constant answer, or a listed value (retrieval), or a random pair."""
    if documents[0].facts.get("task") in ("retrieval", *LENGTHS):
        return 100 * sum(1 / float(d.facts["pairs"]) for d in documents) / len(documents)
    constant = metrics.constant_chance(task.metric, references)
    if documents[0].facts.get("task") == "drawing/shape":
        return max(100 / (len(COLORS) * len(SHAPES)), constant)
    return constant
