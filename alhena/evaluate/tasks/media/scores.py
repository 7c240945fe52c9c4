"""Scores of short answers about images, by the definitions of the publishers: VQA accuracy, ANLS, relaxed accuracy."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import combinations

from rapidfuzz.distance import Levenshtein

from alhena.evaluate.metrics import normalize
from alhena.evaluate.tasks.items import Item, Metric

# Of an answer that an annotator gave, so many others make it fully right.
AGREEING = 3
# Least similarity of an answer that counts.
MIN_SIMILARITY = 0.5
# Relative error of a number read off a chart.
TOLERANCE = 0.05
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = "zero one two three four five six seven eight nine ten".split()
_DIGITS = {"none": "0"} | {name: str(value) for value, name in enumerate(_NUMBERS)}
_CONTRACTED = """ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll let's ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll
they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've""".split()


def _without_some_apostrophes(word: str) -> list[str]:
    """A contracted word without one or more of its apostrophes."""
    at = [i for i, ch in enumerate(word) if ch == "'"]
    return [
        "".join(ch for i, ch in enumerate(word) if i not in left_out)
        for count in range(1, len(at) + 1)
        for left_out in combinations(at, count)
    ]


_CONTRACTIONS = {form: word for word in _CONTRACTED for form in _without_some_apostrophes(word)}


@lru_cache(maxsize=1 << 17)
def normal_answer(text: str) -> str:
    """The form in which VQA compares answers: without punctuation and articles, numbers as digits, contractions with their apostrophe.

    >>> normal_answer("The two dogs, I think."), normal_answer("dont know"), normal_answer("1,000 m/s")
    ('2 dogs i think', "don't know", '1000 ms')
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    is_grouped = re.search(r"\d,\d", text) is not None
    out = text
    for mark in _PUNCTUATION:
        if is_grouped or f"{mark} " in text or f" {mark}" in text:
            out = out.replace(mark, "")
        else:
            out = out.replace(mark, " ")
    out = re.sub(r"\.(?!\d)", "", out)
    words = [_DIGITS.get(word, word) for word in out.lower().split() if word not in ("a", "an", "the")]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words)


def vqa_accuracy(item: Item, answer: str) -> float:
    """The mean over annotators of whether three of the others gave this answer (a third for each that did)."""
    given = [normal_answer(text) == normal_answer(answer) for text in item.references]
    if not answer.strip():
        return 0.0
    return sum(min(1.0, (sum(given) - same) / AGREEING) for same in given) / len(given)


def anls(item: Item, answer: str) -> float:
    """Normalized Levenshtein similarity with the best reference; 0 below one half (Biten et al. 2019)."""
    best = max(Levenshtein.normalized_similarity(normalize(text), normalize(answer)) for text in item.references)
    return best if best > MIN_SIMILARITY else 0.0


def _value(text: str) -> float | None:
    """A number; percentages as fractions, groups of thousands joined.

    >>> [_value(text) for text in ("12.5%", "1,200", "red", "nan")]
    [0.125, 1200.0, None, None]
    """
    text = text.strip()
    number = re.fullmatch(r"[-+]?\$?(\d{1,3}(?:,\d{3})+|\d*)(\.\d+)?%?", text)
    if number is None or not any(ch.isdigit() for ch in text):
        return None
    value = float(text.replace(",", "").replace("$", "").rstrip("%"))
    return value / 100 if text.endswith("%") else value


def relaxed(item: Item, answer: str) -> float:
    """A number within 5 % of the reference, else the same text (Masry et al. 2022)."""
    gold, value = _value(item.reference), _value(answer)
    if gold and value is not None:
        return float(abs(value - gold) <= TOLERANCE * abs(gold))
    return same_text(item, answer)


def same_text(item: Item, answer: str) -> float:
    """One of the references, but for case and white space."""
    return float(bool(answer.strip()) and normalize(answer) in {normalize(text) for text in item.references})


VQA = Metric("VQA accuracy", vqa_accuracy, binary=False)
ANLS = Metric("ANLS", anls, binary=False)
RELAXED = Metric("relaxed accuracy", relaxed)
SAME = Metric("accuracy", same_text)
