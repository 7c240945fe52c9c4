"""Questions to models: greedy answers in batches, of a length that follows from the references.

A document that cannot be asked (a medium that does not decode, a prompt that is too long) is counted with its reason; the others go on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from alhena.content import Document, Image, Text
from alhena.evaluate.results import Answered, Asked
from alhena.evaluate.tasks import reference, verdict
from alhena.media import decode_image
from alhena.progress import progress_bar
from alhena.serve.engine import OUTPUT_BUCKETS, Answer, Engine
from alhena.serve.sampler import IMAGE_GUIDANCE, Sampling
from alhena.tokens.encode import Encoder
from alhena.tokens.images import code_grid

GROUP = 32
LEAST_TOKENS, FACTOR, MARGIN = 32, 1.5, 8  # of an answer: the longest reference of its task times FACTOR, and MARGIN


def is_question(document: Document) -> bool:
    return len(document.contents) > 1 and document.contents[-1].role == "model"


def _task(document: Document) -> str:
    return str(document.facts.get("task", document.source))


def _room(encoder: Encoder, document: Document) -> int:
    """Tokens that an answer as right as the reference may take."""
    words, codes = 0, 0
    for part in document.contents[-1].parts:
        if isinstance(part, Text):
            words += len(encoder.tokenizer.encode(part.text))
        elif isinstance(part, Image):
            try:
                height, width = decode_image(part.data).shape[:2]
            except ValueError:
                continue
            codes += math.prod(code_grid(height, width, encoder.budget.image_out_codes)) + 4
    return math.ceil(FACTOR * words) + codes + MARGIN


def answer_limits(encoder: Encoder, documents: Sequence[Document]) -> dict[str, int]:
    """Most tokens of an answer, by task: one limit for all of a task, so that it says nothing about the single answer."""
    limits: dict[str, int] = {}
    for document in documents:
        known = limits.get(_task(document), LEAST_TOKENS)
        limits[_task(document)] = min(max(known, _room(encoder, document)), OUTPUT_BUCKETS[-1])
    return limits


def _sampling(document: Document, seed: int, limits: Mapping[str, int]) -> Sampling:
    """Greedy; drawings with guidance, for the right answer is one."""
    drawn = any(isinstance(part, Image) for part in document.contents[-1].parts)
    return Sampling(max_tokens=limits[_task(document)], seed=seed, guidance=IMAGE_GUIDANCE if drawn else 1.0)


def _answers(engine: Engine, documents: Sequence[Document], samplings: Sequence[Sampling]) -> list[Answer | str]:
    """The answer of each, or why it could not be asked: a group that is refused is halved until the one is found."""
    try:
        return list(engine.generate([document.contents[:-1] for document in documents], samplings))
    except ValueError as error:
        if len(documents) == 1:
            return [str(error)]
        half = len(documents) // 2
        first = _answers(engine, documents[:half], samplings[:half])
        return first + _answers(engine, documents[half:], samplings[half:])


def respond(
    engine: Engine, documents: Sequence[Document], advance: Callable[[int], None] = lambda done: None
) -> list[Answer | str]:
    """Greedy answers, in batches of documents of one task (prompts of one size); a reason where there is none."""
    limits = answer_limits(engine.encoder, documents)
    order = sorted(
        range(len(documents)), key=lambda i: (limits[_task(documents[i])] > OUTPUT_BUCKETS[0], _task(documents[i]))
    )
    out: dict[int, Answer | str] = {}
    for start in range(0, len(order), GROUP):
        group = order[start : start + GROUP]
        samplings = [_sampling(documents[i], i, limits) for i in group]
        out |= zip(group, _answers(engine, [documents[i] for i in group], samplings), strict=True)
        advance(len(group))
    return [out[i] for i in range(len(documents))]


def _answered(document: Document, given: Mapping[str, Answer]) -> Answered:
    pictures: dict[str, bytes] = {}
    for name, answer in given.items():
        found = [part.data for part in answer.content.parts if isinstance(part, Image)]
        pictures |= {name: found[0]} if found else {}
    answers = {name: verdict(document, answer.content.parts) for name, answer in given.items()}
    cut = frozenset(name for name, answer in given.items() if answer.finish == "length")
    return Answered(document, reference(document), answers, pictures, cut)


def ask_all(engines: Mapping[str, Engine], documents: Sequence[Document]) -> Asked:
    """Every question to every model, under a progress bar."""
    questions = [document for document in documents if is_question(document)]
    given: dict[str, list[Answer | str]] = {}
    with progress_bar() as progress:
        for name, engine in engines.items():
            bar = progress.add_task(f"ask {name}", total=len(questions))
            given[name] = respond(engine, questions, lambda done, bar=bar: progress.update(bar, advance=done))
    answered, not_asked = list[Answered](), Counter[str]()
    for i, document in enumerate(questions):
        reasons = [answer for some in given.values() if isinstance(answer := some[i], str)]
        if reasons:
            not_asked[reasons[0]] += 1
            continue
        answers = {name: answer for name, some in given.items() if isinstance(answer := some[i], Answer)}
        answered.append(_answered(document, answers))
    return Asked(answered, dict(not_asked))
