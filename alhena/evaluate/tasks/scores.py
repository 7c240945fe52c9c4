"""Scores of one answer against the references of its item, from 0 to 1; definitions are those of the benchmarks' publishers."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from alhena.corpus.prose import units
from alhena.evaluate.tasks.extraction import canonical_number
from alhena.evaluate.tasks.items import Item

Score = Callable[[Item, str], float]


def exact(item: Item, answer: str) -> float:
    """The answer is one of the references, but for white space around it."""
    return float(answer.strip() in {reference.strip() for reference in item.references})


def same_number(item: Item, answer: str) -> float:
    """The numbers are equal."""
    return float(answer != "" and canonical_number(answer) == canonical_number(item.reference))


def _normal_english(text: str) -> str:
    """SQuAD's normal form: lower case, without articles and punctuation."""
    text = "".join(ch for ch in text.lower() if ch not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _bag_f1(predicted: Sequence[str], gold: Sequence[str]) -> float:
    common = sum((Counter(predicted) & Counter(gold)).values())
    if not predicted or not gold:
        return float(predicted == gold)
    return 2 * common / (len(predicted) + len(gold))


def squad_f1(item: Item, answer: str) -> float:
    """F1 over words (characters in scripts without spaces), of the best reference."""
    predicted = units(_normal_english(answer))
    return max(_bag_f1(predicted, units(_normal_english(reference))) for reference in item.references)


def _drop_words(text: str) -> frozenset[str]:
    """DROP's bag of words of one span: split at spaces and hyphens, numbers in one form, without articles."""
    out = set()
    for word in re.split(r"[ -]", text):
        number = canonical_number(word)
        normal = number or _normal_english(word)
        out |= {normal} if normal else set()
    return frozenset(out)


def _drop_pair(predicted: frozenset[str], gold: frozenset[str]) -> float:
    """F1 of two spans; 0 where the reference has numbers and the answer none of them."""
    numbers = {word for word in gold if canonical_number(word)}
    if numbers and not numbers & predicted:
        return 0.0
    return _bag_f1([*predicted], [*gold])


def drop_f1(item: Item, answer: str) -> float:
    """DROP's F1: spans of the answer, separated by commas or "and" where the reference has several, aligned with those of the reference."""
    # Importing it takes a while.
    from scipy.optimize import linear_sum_assignment

    best = 0.0
    for spans in item.facts["spans"]:
        parts = re.split(r"\s*(?:,|\band\b)\s*", answer) if len(spans) > 1 else [answer]
        predicted, gold = ([_drop_words(span) for span in group if span.strip()] for group in (parts, spans))
        if not predicted or not gold:
            continue
        scores = np.array([[_drop_pair(p, g) for g in gold] for p in predicted])
        rows, columns = linear_sum_assignment(-scores)
        best = max(best, round(float(scores[rows, columns].sum()) / max(len(gold), len(predicted)), 2))
    return best


class _Units:
    """Words of all scripts for rouge-score, whose own tokenizer drops everything but a to z."""

    def tokenize(self, text: str) -> list[str]:
        return units(text)


@cache
def _rouge() -> Callable[[str, str], float]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Units())
    return lambda reference, answer: float(scorer.score(reference, answer)["rougeL"].fmeasure)


def rouge_l(item: Item, answer: str) -> float:
    """ROUGE-L, F-measure, of the best reference."""
    return max(_rouge()(reference, answer) for reference in item.references)


@cache
def _chrf() -> CHRF:
    return CHRF()


def sentence_chrf(item: Item, answer: str) -> float:
    """chrF of one sentence; that of a corpus is computed over all of them."""
    return _chrf().sentence_score(answer, list(item.references)).score / 100


@cache
def _bleu() -> BLEU:
    return BLEU(effective_order=True)


def sentence_bleu(item: Item, answer: str) -> float:
    """BLEU of one sentence; that of a corpus is computed over all of them."""
    return _bleu().sentence_score(answer, list(item.references)).score / 100


def corpus_metric(name: str) -> CHRF | BLEU:
    """The corpus-level metric of sacrebleu by its name."""
    return CHRF() if name == "chrF" else BLEU()


def corpus_score(name: str, rows: Sequence[tuple[str, str, str]]) -> float:
    """The score of (answer, reference, group): of each group as a corpus, and the mean of them, in percent."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for answer, reference, group in rows:
        groups.setdefault(group, []).append((answer, reference))
    metric = corpus_metric(name)
    return float(np.mean([metric.corpus_score([a for a, _ in g], [[r for _, r in g]]).score for g in groups.values()]))


_LATEX = (
    (r"\\(?:left|right|!|,|;|:|displaystyle|\s)", ""), (r"\\[dt]frac", r"\\frac"), (r"\\\$|\$|\\%|%", ""),
    (r"\^\{?\\circ\}?", ""), (r"\\text(?:bf|it|rm)?\{\s*([^{}]*)\}", r"\1"), (r"\\mbox\{[^{}]*\}", ""),
    (r"\\frac(\d)(\d)", r"\\frac{\1}{\2}"), (r"\\frac(\d)\{", r"\\frac{\1}{"), (r"\\sqrt(\w)", r"\\sqrt{\1}"),
    (r"(?<![\w{}])(\d+)/(\d+)(?![\w{}])", r"\\frac{\1}{\2}"), (r"^[a-zA-Z]\s*=\s*", ""), (r"\s+", ""),
)  # fmt: skip


def normal_expression(text: str) -> str:
    r"""A mathematical expression without differences of notation alone.

    >>> expression_value(r"x = \dfrac12") == expression_value("0.50"), expression_value(r"3 \text{ cm}")
    (True, '3cm')
    """
    text = text.strip().rstrip(".").replace(r"{,}", ",")
    for pattern, replacement in _LATEX:
        text = re.sub(pattern, replacement, text)
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+", text):
        text = text.replace(",", "")
    return canonical_number(text) or re.sub(r"\\frac\{(-?\d+)\}\{(\d+)\}", _lowest_terms, text)


def _lowest_terms(found: re.Match[str]) -> str:
    number = canonical_number(f"{found[1]}/{found[2]}")
    return f"({number})" if number else found[0]


def same_expression(item: Item, answer: str) -> float:
    """The expressions are equal but for notation."""
    return float(answer != "" and expression_value(answer) == expression_value(item.reference))


def expression_value(text: str) -> str:
    """A mathematical expression in a form that is the same for all notations of it."""
    normal = normal_expression(text)
    return normal[1:-1] if re.fullmatch(r"\(-?\d+(/\d+)?\)", normal) else normal
