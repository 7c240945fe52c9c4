"""Errors of a transcript: words to insert, delete or substitute, by the words of the reference, both in Whisper's normal form.

English has Whisper's English form (numbers as digits, contractions in full, American spelling), other languages its basic one (lower
case, no punctuation). Where words are not spaced, characters are counted (CER), as in Whisper.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache

from rapidfuzz.distance import Levenshtein

from alhena.evaluate.tasks.items import Item, Metric

# Chinese (also as FLEURS has it), Cantonese, Japanese, Thai, Lao, Burmese.
SPACELESS = frozenset({"zh", "cmn", "yue", "ja", "th", "lo", "my"})


@cache
def _normalizer(language: str) -> Callable[[str], str]:
    # Importing them takes a while.
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    if language == "en":
        return EnglishTextNormalizer()  # type: ignore[no-any-return]
    return BasicTextNormalizer(split_letters=language in SPACELESS)  # type: ignore[no-any-return]


@lru_cache(maxsize=1 << 17)
def normal_words(text: str, language: str) -> tuple[str, ...]:
    """The words (characters where they are not spaced) of a transcript.

    >>> normal_words("Mr. Smith can't pay $20!", "en"), normal_words("Grüß Gott, Anna.", "de"), normal_words("你好，世界", "zh")
    (('mister', 'smith', 'can', 'not', 'pay', '$20'), ('grüß', 'gott', 'anna'), ('你', '好', '世', '界'))
    """
    return tuple(_normalizer(language.split("_")[0].split("-")[0])(text).split())


def _reference(item: Item) -> tuple[str, ...]:
    return normal_words(item.reference, item.facts["language"])


def error_rate(item: Item, answer: str) -> float:
    """Errors by the words of the reference; it may exceed 1."""
    return Levenshtein.distance(_reference(item), normal_words(answer, item.facts["language"])) / reference_length(item)


def reference_length(item: Item) -> float:
    return max(1.0, float(len(_reference(item))))


WORD_ERRORS = Metric(
    "word error rate", error_rate, binary=False, lower_is_better=True, weight=reference_length, by_group=True
)
