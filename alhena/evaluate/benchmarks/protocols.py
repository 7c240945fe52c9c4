"""Protocols: how a model is asked and what counts as its answer.

    choices    the choice with the largest log-likelihood, divided by its tokens or bytes where the benchmark says so
    greedy     one greedy completion, without chain of thought
    cot        one greedy completion with chain of thought
    majority   k sampled chains of thought; their most frequent answer
    routed     the majority's answer if its share of the k samples exceeds a threshold τ, else the answer *without* chain of thought
               (Gemini 1.0 report, appendix: uncertainty-routed chain of thought); τ is chosen on the validation split, never on test

A sample without an answer counts among the k and votes for nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from alhena.evaluate.models.interface import (
    Advance,
    Completed,
    Completion,
    Continuation,
    LanguageModel,
    Likelihood,
    no_advance,
)
from alhena.evaluate.tasks.items import Form, Item, Kind, Normalization, Task, loaded
from alhena.schema import bounded

# Of sampling; greedy decoding has none.
MIN_TEMPERATURE = 0.01
WAYS: tuple[Normalization, ...] = ("none", "tokens", "bytes")
# Items with media that are held in memory together.
MEDIA_ITEMS = 64


@dataclass(frozen=True)
class Protocol:
    """The settings of one run. ``threshold`` is τ of the routed protocol; None: it is chosen on the validation split."""

    kind: Kind
    shots: int
    samples: int = 8
    temperature: float = 0.7
    seed: int = 0
    threshold: float | None = None
    # Of a completion, where it is less than what the benchmark allows.
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        most = 1 << 20
        limits = {"shots": (0, most), "samples": (1, 1024), "temperature": (MIN_TEMPERATURE, 2), "threshold": (0, 1)}
        bounded(self, max_tokens=(1, most), **limits)


@dataclass(frozen=True)
class Outcome:
    """What became of one item. ``reason`` says why it could not be asked; it then counts as wrong."""

    id: str
    group: str
    reference: str
    answer: str
    score: float
    output: str = ""
    truncated: bool = False
    reason: str = ""
    # Of the majority among the samples.
    share: float | None = None
    # The answer is that of the majority; None where nothing is routed.
    by_majority: bool | None = None
    # What it counts in the mean.
    weight: float = 1.0
    # The generated image, where the answer is one.
    image: bytes = b""


@dataclass(frozen=True)
class Asked:
    """The items of a split, and the shots that stand before them."""

    task: Task
    items: Sequence[Item]
    shots: Sequence[Item]

    def shots_of(self, item: Item, count: int) -> list[Item]:
        """The first shots, of the item's group where the task says so; never the item itself. Raises ValueError when there are too few."""
        others = [shot for shot in self.shots if not shot.is_same(item)]
        available = [s for s in others if s.group in ("", item.group)] if self.task.shots_of_group else others
        if len(available) < count:
            where = f" for {item.group}" if self.task.shots_of_group and item.group else ""
            raise ValueError(
                f"{self.task.name} has {len(available)} examples for shots{where}; --shots {len(available)} is the most"
            )
        return available[:count]


@dataclass(frozen=True)
class Result:
    """Outcomes of the items of the test split in order, and further facts of the protocol."""

    outcomes: list[Outcome]
    facts: dict[str, Any] = field(default_factory=dict)


def outcome_of(task: Task, item: Item, answer: str, **more: Any) -> Outcome:
    """An answer with its score."""
    metric = task.metric
    return Outcome(
        item.id, item.group, item.reference, answer, metric.score(item, answer), weight=metric.weight(item), **more
    )


def _wrong(task: Task, item: Item, reason: str) -> Outcome:
    return outcome_of(task, item, "", reason=reason)


# ── log-likelihood of choices ──────────────────────────────────────────────────────────────────────────────


def length_of(text: str, likelihood: Likelihood, normalization: Normalization) -> float:
    """What the log-likelihood of a choice is divided by."""
    sizes = {"none": 1, "tokens": likelihood.tokens, "bytes": len(text.strip().encode())}
    return max(1, sizes[normalization])


def choose(
    model: LanguageModel, asked: Asked, shots: int, advance: Advance = no_advance
) -> tuple[list[Outcome], dict[str, float]]:
    """The most likely choice of each item; and the score under every normalization, in percent."""
    form, requests, texts = asked.task.direct, list[Continuation](), list[list[str]]()
    for item in asked.items:
        prompt = form.prompt(item, asked.shots_of(item, shots))
        texts.append([form.answer(replace(item, references=(choice,))) for choice in item.choices])
        requests += [Continuation(prompt, text) for text in texts[-1]]
    scored, total = iter(model.log_likelihoods(requests, advance)), dict.fromkeys(WAYS, 0.0)
    outcomes = []
    for item, of_item in zip(asked.items, texts, strict=True):
        likelihoods = [next(scored) for _ in of_item]
        if reasons := [result for result in likelihoods if isinstance(result, str)]:
            outcomes.append(_wrong(asked.task, item, reasons[0]))
            continue
        by_way = {}
        for way in WAYS:
            values = [
                l.nats / length_of(text, l, way)
                for l, text in zip(likelihoods, of_item, strict=True)
                if isinstance(l, Likelihood)
            ]
            by_way[way] = item.choices[int(np.argmax(values))]
            total[way] += asked.task.metric.score(item, by_way[way])
        outcomes.append(outcome_of(asked.task, item, by_way[asked.task.normalization]))
    return outcomes, {way: round(100 * total[way] / max(1, len(outcomes)), 2) for way in WAYS}


# ── completions ────────────────────────────────────────────────────────────────────────────────────────────


def _seed(item: Item, sample: int, seed: int) -> int:
    """A seed of each sample's own, whatever else is asked."""
    key = hashlib.blake2b(f"{seed}:{sample}:{item.id}".encode(), digest_size=4).digest()
    return int.from_bytes(key, "big") % 2**31


def _completions(
    model: LanguageModel, asked: Asked, form: Form, p: Protocol, advance: Advance, samples: int = 0
) -> list[list[Completed | str]]:
    """Of each item one greedy completion, or that many sampled ones."""
    of_item = {item.id: asked.shots_of(item, p.shots) for item in asked.items}
    shots = _shots_with_media([shot for shots in of_item.values() for shot in shots])
    limit = min(form.max_tokens, p.max_tokens or form.max_tokens)
    at_once = MEDIA_ITEMS if any(item.media for item in asked.items) else max(1, len(asked.items))
    out = list[list[Completed | str]]()
    for start in range(0, len(asked.items), at_once):
        items = loaded(asked.items[start : start + at_once])
        requests = []
        for item in items:
            if isinstance(item, str):
                continue
            prompt = form.prompt(item, [shots[shot.id] for shot in of_item[item.id]])
            request = Completion(prompt, limit, form.stop, is_image=form.judge is not None)
            requests += [
                replace(request, temperature=p.temperature, seed=_seed(item, n, p.seed)) for n in range(samples)
            ] or [request]
        answered, each = iter(model.complete(requests, advance)), max(1, samples)
        out += [[item] * each if isinstance(item, str) else [next(answered) for _ in range(each)] for item in items]
    return out


def _shots_with_media(shots: Sequence[Item]) -> dict[str, Item]:
    """Shots by id, loaded. Raises ValueError when a medium of one cannot be read."""
    by_id = {shot.id: shot for shot in shots}
    out = {}
    for id, shot in zip(by_id, loaded(list(by_id.values())), strict=True):
        if isinstance(shot, str):
            raise ValueError(f"{id}, an example for shots: {shot}")
        out[id] = shot
    return out


def _from_completion(task: Task, form: Form, item: Item, completed: Completed | str) -> Outcome:
    if isinstance(completed, str):
        return _wrong(task, item, completed)
    if form.judge is None:
        answer = form.extract(item, completed.text)
    else:
        answer = form.judge(item, completed.image) if completed.image else ""
    image = completed.image if form.judge else b""
    return outcome_of(task, item, answer, output=completed.text, truncated=completed.truncated, image=image)


def complete_greedily(
    model: LanguageModel, asked: Asked, form: Form, p: Protocol, advance: Advance = no_advance
) -> list[Outcome]:
    """The answer in one greedy completion of each item."""
    answered = _completions(model, asked, form, p, advance)
    return [_from_completion(asked.task, form, item, c[0]) for item, c in zip(asked.items, answered, strict=True)]


def without_reasoning(model: LanguageModel, asked: Asked, p: Protocol, advance: Advance = no_advance) -> list[Outcome]:
    """Answers without chain of thought: the most likely choice, or a greedy completion."""
    if asked.task.kind == "choices":
        return choose(model, asked, p.shots, advance)[0]
    return complete_greedily(model, asked, asked.task.direct, p, advance)


# ── votes ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Votes:
    """The answers of the samples of one item, in order; empty: that sample has none."""

    item: Item
    answers: tuple[str, ...]
    key: Callable[[str], str] = str.strip

    def majority(self, k: int | None = None) -> tuple[str, float]:
        """The most frequent answer among the first k samples, the earliest of equally frequent ones, and its share of the k."""
        answers = self.answers[:k]
        counts = Counter(self.key(answer) for answer in answers if answer)
        if not counts:
            return "", 0.0
        best, count = counts.most_common(1)[0]
        return next(answer for answer in answers if answer and self.key(answer) == best), count / len(answers)


def vote(model: LanguageModel, asked: Asked, p: Protocol, advance: Advance = no_advance) -> list[Votes]:
    """Samples with chain of thought of each item."""
    form = asked.task.form("majority")
    answered = _completions(model, asked, form, p, advance, p.samples)
    return [
        Votes(
            item, tuple("" if isinstance(c, str) else form.extract(item, c.text) for c in of_item), asked.task.vote_key
        )
        for item, of_item in zip(asked.items, answered, strict=True)
    ]


def routed(
    votes: Votes, direct: Outcome, threshold: float, metric: Callable[[Item, str], float], k: int | None = None
) -> Outcome:
    """The majority's answer if its share exceeds the threshold, else the direct one."""
    answer, share = votes.majority(k)
    if share > threshold:
        return replace(
            direct,
            answer=answer,
            score=metric(votes.item, answer),
            output="",
            reason="",
            truncated=False,
            share=share,
            by_majority=True,
        )
    return replace(direct, share=share, by_majority=False)


def choose_threshold(
    votes: Sequence[Votes], direct: Sequence[Outcome], metric: Callable[[Item, str], float], k: int | None = None
) -> float:
    """The threshold of the best score on these items, of the validation split; the smallest of equally good ones.

    0: the majority wherever a sample has an answer; 1: never. Raises ValueError without items.
    """
    if not votes:
        raise ValueError("a threshold is chosen on the validation split, which has no items: give one with --threshold")
    majority = [v.majority(k) for v in votes]
    right = np.array([metric(v.item, answer) for v, (answer, _) in zip(votes, majority, strict=True)])
    shares, of_direct = np.array([share for _, share in majority]), np.array([outcome.score for outcome in direct])
    candidates = sorted({0.0, 1.0, *shares.tolist()})
    scores = [float(np.where(shares > t, right, of_direct).mean()) for t in candidates]
    return candidates[int(np.argmax(scores))]


def powers_up_to(k: int) -> list[int]:
    """1, 2, 4, … and k."""
    return sorted({*(1 << i for i in range(k.bit_length())), k})


# ── all protocols ──────────────────────────────────────────────────────────────────────────────────────────


def run(model: LanguageModel, test: Asked, validation: Asked, p: Protocol, advance: Advance = no_advance) -> Result:
    """Asks the items of the test split. The validation split is asked only by the routed protocol without a given threshold."""
    if p.kind == "choices":
        if any(item.media for item in test.items):
            raise ValueError(
                f"{test.task.name} has media, after which choices cannot be scored; ask it with --protocol greedy"
            )
        if without := [item.id for item in test.items if len(item.choices) < 2]:
            raise ValueError(f"{test.task.name}: {without[0]} has no choices; ask it with --protocol greedy")
        outcomes, by_normalization = choose(model, test, p.shots, advance)
        return Result(outcomes, {"normalization": test.task.normalization, "score_by_normalization": by_normalization})
    if p.kind in ("greedy", "cot"):
        return Result(complete_greedily(model, test, test.task.form(p.kind), p, advance))
    votes = vote(model, test, p, advance)
    if p.kind == "majority":
        return Result([_of_majority(test.task, v) for v in votes])
    return _routed(model, (test, votes), validation, p, advance)


def _of_majority(task: Task, votes: Votes) -> Outcome:
    answer, share = votes.majority()
    return outcome_of(task, votes.item, answer, share=share)


def _routed(
    model: LanguageModel, tested: tuple[Asked, list[Votes]], validation: Asked, p: Protocol, advance: Advance
) -> Result:
    test, votes = tested
    metric, ks = test.task.metric.score, powers_up_to(p.samples)
    direct = without_reasoning(model, test, p, advance)
    if p.threshold is None:
        held = vote(model, validation, p, advance)
        held_direct = without_reasoning(model, validation, p, advance)
        thresholds = {k: choose_threshold(held, held_direct, metric, k) for k in ks}
    else:
        thresholds = dict.fromkeys(ks, p.threshold)
    curve = [{"k": k, "threshold": thresholds[k], **_scores_at(votes, direct, thresholds[k], metric, k)} for k in ks]
    outcomes = [routed(v, d, thresholds[p.samples], metric) for v, d in zip(votes, direct, strict=True)]
    facts = {
        "threshold": thresholds[p.samples],
        "validation_items": len(validation.items) if p.threshold is None else 0,
    }
    return Result(outcomes, facts | {"by_k": curve, "routing": _routing(votes, direct, outcomes, metric)})


def _scores_at(
    votes: Sequence[Votes], direct: Sequence[Outcome], threshold: float, metric: Callable[[Item, str], float], k: int
) -> dict[str, float]:
    """Scores without chain of thought, of the majority of k, and routed, in percent."""
    majority = [metric(v.item, v.majority(k)[0]) for v in votes]
    of_routed = [routed(v, d, threshold, metric, k).score for v, d in zip(votes, direct, strict=True)]
    columns = {"greedy": [d.score for d in direct], "majority": majority, "routed": of_routed}
    return {name: round(100 * float(np.mean(values)), 2) for name, values in columns.items()}


def _routing(
    votes: Sequence[Votes], direct: Sequence[Outcome], outcomes: Sequence[Outcome], metric: Callable[[Item, str], float]
) -> dict[str, dict[str, float]]:
    """Of the items answered by the majority, and of those answered directly: their number, and what each answer scores there, in percent."""
    out: dict[str, dict[str, float]] = {}
    for name, by_majority in (("majority", True), ("direct", False)):
        rows = [
            (metric(v.item, v.majority()[0]), d.score)
            for v, d, o in zip(votes, direct, outcomes, strict=True)
            if o.by_majority is by_majority
        ]
        means = 100 * np.mean(rows, axis=0) if rows else (0.0, 0.0)
        out[name] = {"items": len(rows), "majority": round(float(means[0]), 2), "direct": round(float(means[1]), 2)}
    return out
