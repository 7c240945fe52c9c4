"""Answers of models to the questions of a split: greedy, in the slots of the engine, with token limits derived from the references.

A document that cannot be asked (a medium that does not decode, a prompt that is too long) is counted with its reason and skipped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from rich.progress import TaskID

from alhena.batch import Example
from alhena.content import Document, Image, Text, Thought, ToolCall, call_text
from alhena.evaluate.results import AnsweredQuestion, AnswerSet
from alhena.evaluate.tasks.starter import predicted_answer, reference, task_of
from alhena.media import decode_image
from alhena.progress import progress_bar
from alhena.serve.decoding.buckets import OUTPUTS
from alhena.serve.decoding.sampling.sampler import IMAGE_GUIDANCE, Sampling
from alhena.serve.engine import Answer, Engine, Prompt
from alhena.tokens.encode import Encoder
from alhena.tokens.encoders import AnyEncoder
from alhena.tokens.formats.own_tools import declared_tools
from alhena.tokens.gemma_encoder import thinks
from alhena.tokens.images import code_grid

# Questions that are encoded and wait in the engine at a time.
AT_ONCE = 512
# Limit of an answer in tokens: the longest reference of its task times FACTOR, plus MARGIN; at least MIN_TOKENS.
MIN_TOKENS, FACTOR, MARGIN = 32, 1.5, 8


def is_question(document: Document) -> bool:
    """Whether a document ends with a model turn that follows another turn."""
    return len(document.contents) > 1 and document.contents[-1].role == "model"


def _token_limit(encoder: AnyEncoder, document: Document) -> int:
    """Tokens that a correct answer may take."""
    text_tokens, image_tokens = 0, 0
    for part in document.contents[-1].parts:
        if isinstance(part, Text | Thought):
            text_tokens += len(encoder.tokenizer.encode(part.text))
        elif isinstance(part, ToolCall):
            text_tokens += len(encoder.tokenizer.encode(call_text(part)))
        elif isinstance(part, Image) and isinstance(encoder, Encoder):
            try:
                height, width = decode_image(part.data).shape[:2]
            except ValueError:
                continue
            # Beside the codes there are <boi_out>, <rows n>, <columns n> and <eoi_out>.
            image_tokens += math.prod(code_grid(height, width, encoder.budget.image_out_codes)) + 4
    return math.ceil(FACTOR * text_tokens) + image_tokens + MARGIN


def answer_limits(encoder: AnyEncoder, documents: Sequence[Document]) -> dict[str, int]:
    """Maximum tokens of an answer by task: one limit for a whole task, so that it reveals nothing about a single answer."""
    limits: dict[str, int] = {}
    for document in documents:
        task = task_of(document)
        limits[task] = min(max(limits.get(task, MIN_TOKENS), _token_limit(encoder, document)), OUTPUTS[-1])
    return limits


def sampling_of(document: Document, seed: int, limits: Mapping[str, int]) -> Sampling:
    """Greedy; image generation uses classifier-free guidance."""
    has_image = any(isinstance(part, Image) for part in document.contents[-1].parts)
    return Sampling(max_tokens=limits[task_of(document)], seed=seed, guidance=IMAGE_GUIDANCE if has_image else 1.0)


def prompt_of(engine: Engine, document: Document) -> Prompt:
    """The turns before the answer, with the tools that the document declares; thinking where its answer has a thought."""
    thinking = engine.encoder.thinks and thinks(document.contents)
    return Prompt(document.contents[:-1], tuple(declared_tools(document)), thinking)


def _or_reason(engine: Engine, document: Document, sampling: Sampling) -> Example | str:
    """The encoded prompt of a question, or why it cannot be asked."""
    try:
        return engine.encode(prompt_of(engine, document), sampling)
    except ValueError as error:
        return str(error)


def _answer(item: Answer | Exception) -> Answer | str:
    """An answer, or why there is none. Raises what is no fault of the question."""
    if isinstance(item, Exception) and not isinstance(item, ValueError):
        raise item
    return item if isinstance(item, Answer) else str(item)


def generate_answers(
    engine: Engine, documents: Sequence[Document], advance: Callable[[int], None] = lambda done: None
) -> list[Answer | str]:
    """Greedy answers in the order of the documents; an error message where a question cannot be asked.

    Questions of one task follow each other, those with long answers last. ``advance`` is called with the number of documents answered
    since its last call.
    """
    limits = answer_limits(engine.encoder, documents)
    tasks = [task_of(document) for document in documents]
    order = sorted(range(len(documents)), key=lambda i: (limits[tasks[i]] > OUTPUTS[0], tasks[i]))
    out: dict[int, Answer | str] = {}
    for start in range(0, len(order), AT_ONCE):
        part = order[start : start + AT_ONCE]
        samplings = {i: sampling_of(documents[i], i, limits) for i in part}
        encoded = {i: _or_reason(engine, documents[i], samplings[i]) for i in part}
        out |= {i: reason for i, reason in encoded.items() if isinstance(reason, str)}
        valid = {i: (example, samplings[i]) for i, example in encoded.items() if not isinstance(example, str)}
        advance(len(part) - len(valid))
        answers = engine.answers([*valid.values()], advance)
        out |= {i: _answer(item) for i, item in zip(valid, answers, strict=True)}
    return [out[i] for i in range(len(documents))]


def _answered(document: Document, answers: Mapping[str, Answer]) -> AnsweredQuestion:
    images: dict[str, bytes] = {}
    for name, answer in answers.items():
        generated = [part.data for part in answer.content.parts if isinstance(part, Image)]
        images |= {name: generated[0]} if generated else {}
    predicted = {name: predicted_answer(document, answer.content.parts) for name, answer in answers.items()}
    truncated = frozenset(name for name, answer in answers.items() if answer.finish == "length")
    return AnsweredQuestion(document, reference(document), predicted, images, truncated)


def _all_answers(engines: Mapping[str, Engine], questions: Sequence[Document]) -> dict[str, list[Answer | str]]:
    """Answers by model, under a progress bar."""
    out: dict[str, list[Answer | str]] = {}
    with progress_bar() as progress:
        for name, engine in engines.items():
            bar = progress.add_task(f"ask {name}", total=len(questions))

            def advance(done: int, bar: TaskID = bar) -> None:
                progress.update(bar, advance=done)

            out[name] = generate_answers(engine, questions, advance)
    return out


def answer_questions(engines: Mapping[str, Engine], documents: Sequence[Document]) -> AnswerSet:
    """Answers of every model to every question of the documents. A question that one model cannot be asked is skipped for all."""
    questions = [document for document in documents if is_question(document)]
    by_model = _all_answers(engines, questions)
    answered, skipped = list[AnsweredQuestion](), Counter[str]()
    for i, document in enumerate(questions):
        answers = {name: answers[i] for name, answers in by_model.items()}
        errors = [answer for answer in answers.values() if isinstance(answer, str)]
        if errors:
            skipped[errors[0]] += 1
        else:
            complete = {name: answer for name, answer in answers.items() if isinstance(answer, Answer)}
            answered.append(_answered(document, complete))
    return AnswerSet(answered, dict(skipped))
