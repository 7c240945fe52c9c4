"""Measures: the score of a set of items with its 95 % interval, and two models on the same items.

accuracy, exact match     shares        Wilson's interval    McNemar's test
F1, ROUGE-L, chrF, BLEU   means         bootstrap            paired bootstrap, of a corpus metric sacrebleu's
error rates, bits a byte  of all words  bootstrap of ratios  paired bootstrap of ratios
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alhena.evaluate.statistics import bootstrap, group_weights, mcnemar, paired_bootstrap, wilson
from alhena.evaluate.tasks.scores import corpus_metric, corpus_score
from alhena.shapes import Float

BITS_PER_BYTE = "bits per byte"


@dataclass(frozen=True)
class Scored:
    """One item: its score from 0 (1 and more for error rates, bits for texts), and its weight: words or bytes of the reference."""

    id: str
    score: float
    weight: float = 1.0
    answer: str = ""
    reference: str = ""
    group: str = ""


@dataclass(frozen=True)
class Measure:
    """How the scores of items become one. ``corpus`` names a metric of sacrebleu that is no mean of items."""

    name: str
    lower_is_better: bool = False
    binary: bool = False
    corpus: str | None = None
    # The score is the mean of those of the groups.
    by_group: bool = False

    @property
    def scale(self) -> float:
        """What a mean of scores is multiplied by to be shown."""
        return 1.0 if self.name == BITS_PER_BYTE else 100.0

    @property
    def best(self) -> float:
        return 0.0 if self.lower_is_better else 100.0


@dataclass(frozen=True)
class Paired:
    """Two models on the same items: scores, the difference b - a with its 95 % interval, and the p-value of no difference."""

    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    test: str


def _groups(measure: Measure, scored: Sequence[Scored]) -> list[str]:
    return [item.group if measure.by_group else "" for item in scored]


def _weights(measure: Measure, scored: Sequence[Scored]) -> Float[np.ndarray, " N"]:
    # An error rate counts nothing for a reference without words.
    weights = [max(item.weight, 1e-9) for item in scored]
    return group_weights(weights, _groups(measure, scored))


def score_of(measure: Measure, scored: Sequence[Scored]) -> float:
    """The score of all items, in the unit of the measure."""
    if measure.corpus:
        groups = _groups(measure, scored)
        return corpus_score(measure.corpus, [(s.answer, s.reference, g) for s, g in zip(scored, groups, strict=True)])
    return measure.scale * float(np.average([item.score for item in scored], weights=_weights(measure, scored)))


def interval_of(measure: Measure, scored: Sequence[Scored], seed: int = 0) -> tuple[float, float] | None:
    """The 95 % interval of the score; None of a single item that is not right or wrong."""
    scores, weights, score = [item.score for item in scored], _weights(measure, scored), score_of(measure, scored)
    if measure.binary and not measure.by_group:
        low, high = wilson(float(np.mean(scores)), len(scores))
    elif len(scores) > 1:
        low, high = bootstrap(scores, seed, weights)
    else:
        return None
    # That of a corpus score is the interval of the mean of its sentences, around the score of the corpus.
    center = score - measure.scale * float(np.average(scores, weights=weights)) if measure.corpus else 0.0
    return measure.scale * low + center, measure.scale * high + center


def _corpus_p(name: str, a: Sequence[Scored], b: Sequence[Scored]) -> float:
    """The p-value of sacrebleu's paired bootstrap, all groups together."""
    from sacrebleu.significance import PairedTest

    systems: list[tuple[str, Sequence[str]]] = [("a", [s.answer for s in a]), ("b", [s.answer for s in b])]
    references = [[s.reference for s in a]]
    _, results = PairedTest(systems, {name: corpus_metric(name)}, references, test_type="bs", n_samples=1000)()
    second = next(values for key, values in results.items() if key != "System")[1]
    assert not isinstance(second, str)
    return 1.0 if second.p_value is None else float(second.p_value)


def paired(measure: Measure, a: Sequence[Scored], b: Sequence[Scored]) -> Paired:
    """Two models on the same items in the same order; the p-value is not corrected for other tests."""
    of_a, of_b = [item.score for item in a], [item.score for item in b]
    d = paired_bootstrap(of_a, of_b, weights=_weights(measure, a))
    p, test = d.p, "paired bootstrap"
    if measure.corpus:
        p = _corpus_p(measure.corpus, a, b)
    elif measure.binary:
        p, test = mcnemar(of_a, of_b), "McNemar"
    scale = measure.scale
    return Paired(score_of(measure, a), score_of(measure, b), scale * d.mean, scale * d.low, scale * d.high, p, test)
