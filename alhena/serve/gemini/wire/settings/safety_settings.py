"""safetySettings: the probabilities at which a prompt or an answer is blocked, and the ratings that a response has.

A category that a request does not name is neither rated nor blocked; one with BLOCK_NONE is rated. Texts are rated in windows, so the
cost of a character does not grow with the length of an answer, and a streamed answer is rated as a complete one is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.genai import types

from alhena.content import Content, Text
from alhena.serve.gemini.wire.fields import WireError, not_offered, read_list, read_object, read_string, refuse
from alhena.serve.safety import Classify

CATEGORIES = frozenset(types.HarmCategory.__members__) - {"HARM_CATEGORY_UNSPECIFIED"}
# The least probability of each level.
LEVELS = {"NEGLIGIBLE": 0.0, "LOW": 0.2, "MEDIUM": 0.5, "HIGH": 0.8}
# The level from which on a threshold blocks; None: it never does.
BLOCKS_FROM: dict[str, str | None] = {
    "HARM_BLOCK_THRESHOLD_UNSPECIFIED": None,
    "BLOCK_NONE": None,
    "BLOCK_LOW_AND_ABOVE": "LOW",
    "BLOCK_MEDIUM_AND_ABOVE": "MEDIUM",
    "BLOCK_ONLY_HIGH": "HIGH",
}
OFF = "OFF"
# Characters of an answer after which it is rated again, and those that are then rated.
STEP, WINDOW = 256, 1024


@dataclass(frozen=True)
class Thresholds:
    """The probability from which on each rated category is blocked; above 1: never."""

    limits: Mapping[str, float] = field(default_factory=dict)

    def check(self, classify: Classify | None) -> None:
        """Raises WireError for a category that is to be blocked and that no classifier knows."""
        known = classify("") if classify else {}
        for name, limit in self.limits.items():
            if limit <= 1 and name not in known:
                remedy = "set BLOCK_NONE or OFF for it, or serve with --safety module:function (docs/safety.md)"
                raise not_offered(
                    f"safetySettings: blocking {name}", f"; it rates {', '.join(known) or 'nothing'}: {remedy}"
                )


def read_thresholds(value: Any) -> Thresholds:
    """The safetySettings of a request. Raises WireError."""
    limits: dict[str, float] = {}
    for i, item in enumerate(read_list([] if value is None else value, "safetySettings", 64)):
        where = f"safetySettings[{i}]"
        setting = read_object(item, where, ("category", "threshold", "method"))
        category = read_string(setting.get("category", ""), f"{where}.category", 128)
        if category not in CATEGORIES:
            raise WireError(400, f"{where}.category is {category!r}; there are {', '.join(sorted(CATEGORIES))}")
        if category in limits:
            raise WireError(400, f"{where}.category {category} is repeated")
        threshold = read_string(setting.get("threshold", OFF), f"{where}.threshold", 128)
        if threshold != OFF and threshold not in BLOCKS_FROM:
            raise WireError(400, f"{where}.threshold is {threshold!r}; there are {', '.join(BLOCKS_FROM)} and {OFF}")
        if setting.get("method") != "PROBABILITY":
            refuse(setting, where, ("method",))
        level = BLOCKS_FROM.get(threshold)
        limits |= {} if threshold == OFF else {category: LEVELS[level] if level else 2.0}
    return Thresholds(limits)


class Ratings:
    """The highest probability of each rated category in a text that arrives piece by piece."""

    def __init__(self, classify: Classify | None = None, thresholds: Thresholds = Thresholds()) -> None:
        self._classify, self._limits = classify, thresholds.limits
        self._text, self._unrated, self._highest = "", 0, dict[str, float]()

    def feed(self, text: str) -> None:
        start = 0
        while self._limits and start < len(text):
            # Rated at the same positions whatever the pieces.
            taken = text[start : start + STEP - self._unrated]
            start += len(taken)
            self._text, self._unrated = (self._text + taken)[-WINDOW:], self._unrated + len(taken)
            if self._unrated == STEP:
                self.rate(self._text)

    def end(self) -> None:
        """Rates the rest of the text."""
        if self._limits and (self._unrated or not self._highest):
            self.rate(self._text)

    def rate(self, text: str) -> None:
        """Rates a text at once."""
        self._unrated = 0
        for name, probability in (self._classify(text) if self._classify else {}).items():
            if name in self._limits:
                self._highest[name] = max(probability, self._highest.get(name, 0.0))

    @property
    def blocked(self) -> bool:
        return any(value >= self._limits[name] for name, value in self._highest.items())

    def written(self) -> list[types.SafetyRating] | None:
        """The ratings as a response has them; None where none are asked for."""
        ratings = [
            types.SafetyRating(
                category=types.HarmCategory(name),
                probability=types.HarmProbability(max((v, level) for level, v in LEVELS.items() if v <= value)[1]),
                blocked=value >= self._limits[name] or None,
            )
            for name, value in self._highest.items()
        ]
        return ratings or None


def rate_prompt(classify: Classify | None, thresholds: Thresholds, contents: Iterable[Content]) -> Ratings:
    """The ratings of what is new in a conversation, the texts after the last turn of the model; none where nothing is to be blocked."""
    if all(limit > 1 for limit in thresholds.limits.values()):
        return Ratings()
    new: list[Content] = []
    for content in contents:
        new = [] if content.role == "model" else [*new, content]
    ratings = Ratings(classify, thresholds)
    ratings.rate("\n".join(part.text for content in new for part in content.parts if isinstance(part, Text)))
    return ratings
