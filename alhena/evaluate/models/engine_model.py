"""The two functions of evaluation over our engine: log-likelihoods in batches, completions in its running batch.

A prompt is asked in turns, as one user turn, or as running text: the form for models that were not tuned to answer. Completions that begin with
the same pages keep them in the engine's cache while they run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from alhena.batch import Example
from alhena.content import Content, Image, Text
from alhena.evaluate.models.interface import (
    Advance,
    Completed,
    Completion,
    Continuation,
    Likelihood,
    Prompt,
    common_beginning,
    no_advance,
    prompt_text,
)
from alhena.evaluate.models.likelihood import Request, Scorer
from alhena.model.attention.paged_cache import PAGE
from alhena.serve.answer import Answer
from alhena.serve.decoding.sampling.sampler import IMAGE_GUIDANCE, Sampling
from alhena.serve.engine import Engine, Prefix
from alhena.shapes import Float
from alhena.tokens.encode import Encoder

In = TypeVar("In")
Out = TypeVar("Out")
# Requests that are encoded and wait in the engine at a time.
AT_ONCE = 512


@dataclass(frozen=True)
class EngineModel:
    """A loaded engine as a ``LanguageModel``; ``turns`` is False for running text."""

    engine: Engine
    turns: bool = True

    @property
    def name(self) -> str:
        return self.engine.name

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(self.engine.params, self.engine.config)

    # ── prompts ────────────────────────────────────────────────────────────────────────────────────────────

    def beginning(self) -> list[int]:
        """The tokens before running text."""
        encoder = self.engine.encoder
        if isinstance(encoder, Encoder):
            return [encoder.vocabulary.bos, encoder.vocabulary.control("<document>")]
        return [encoder.settings.controls["bos"]]

    def example(self, prompt: Prompt) -> Example:
        """The tokens and media of a prompt. Raises ValueError when the model cannot read it."""
        engine = self.engine
        if self.turns:
            return engine.encode([Content("user", prompt)])
        ids = [*self.beginning(), *engine.encoder.tokenizer.encode(prompt_text(prompt))]
        example = engine.encoder.prompt([Content("user", (Text("x"),))]).with_tokens(np.array(ids))
        engine.check(example)
        return example

    def _encoded(self, request: Completion) -> Example:
        if request.is_image and self.engine.image_decoder is None:
            raise ValueError("this model generates no images")
        return self.example(request.prompt)

    def tokens_of(self, request: Continuation) -> Request:
        """Token ids of a prompt and of what follows it. Raises ValueError when there is nothing to score, or too much.

        In running text both are encoded together, and spaces before the continuation belong to it.
        """
        if not request.text.strip():
            raise ValueError("the continuation has no text")
        encode = self.engine.encoder.tokenizer.encode
        if self.turns:
            example = self.example(request.prompt)
            if len(example.patches) or len(example.frames):
                raise ValueError("continuations after images, audio or video cannot be scored: ask for a completion")
            ids = example.tokens.tolist(), encode(request.text.lstrip())
        else:
            context = prompt_text(request.prompt)
            text = context.rstrip()
            together, before = encode(context + request.text), encode(text) if text else []
            ids = [*self.beginning(), *together[: len(before)]], together[len(before) :]
        if (size := len(ids[0]) + len(ids[1])) > self.engine.max_prompt_tokens:
            raise ValueError(f"prompt and continuation have {size:,} tokens; at most {self.engine.max_prompt_tokens:,}")
        return ids

    # ── the two functions ──────────────────────────────────────────────────────────────────────────────────

    def log_likelihoods(
        self, requests: Sequence[Continuation], advance: Advance = no_advance
    ) -> list[Likelihood | str]:
        """Of each continuation after its prompt."""
        encoded = [_or_reason(self.tokens_of, request) for request in requests]
        valid = [tokens for tokens in encoded if not isinstance(tokens, str)]
        scored = iter(self.score(valid, advance))
        return [reason if isinstance(reason, str) else next(scored) for reason in encoded]

    def score(self, requests: Sequence[Request], advance: Advance = no_advance) -> list[Likelihood]:
        """Of token ids after token ids."""
        return self._scorer(requests, advance)

    def token_nats(self, tokens: Sequence[int]) -> Float[np.ndarray, " tokens"]:
        """The log-probability of each token of running text."""
        return self._scorer.token_nats((self.beginning(), tokens))

    def complete(self, requests: Sequence[Completion], advance: Advance = no_advance) -> list[Completed | str]:
        """Completions of all prompts, in the slots of the engine."""
        out: list[Completed | str] = []
        for start in range(0, len(requests), AT_ONCE):
            out += self._complete(requests[start : start + AT_ONCE], advance)
        return out

    def _complete(self, requests: Sequence[Completion], advance: Advance) -> list[Completed | str]:
        # Samples of one prompt are encoded once.
        asked = {request.prompt: request for request in requests}
        prompts = {prompt: _or_reason(self._encoded, request) for prompt, request in asked.items()}
        examples = [prompts[request.prompt] for request in requests]
        valid = [(e, _sampling(r)) for e, r in zip(examples, requests, strict=True) if not isinstance(e, str)]
        # Those that begin alike are read one after the other.
        order = sorted(range(len(valid)), key=lambda i: valid[i][0].tokens.tolist())
        prefixes = _keep_beginnings(self.engine, [example for example, _ in valid])
        try:
            answers = self.engine.answers([valid[i] for i in order], advance)
        finally:
            for prefix in prefixes:
                prefix.free()
        by_index = dict(zip(order, answers, strict=True))
        results = iter([_completed(by_index[i]) for i in range(len(valid))])
        return [e if isinstance(e, str) else next(results) for e in examples]


def _or_reason(function: Callable[[In], Out], argument: In) -> Out | str:
    try:
        return function(argument)
    except ValueError as error:
        return str(error)


def _sampling(request: Completion) -> Sampling:
    guidance = IMAGE_GUIDANCE if request.is_image else 1.0
    return Sampling(
        temperature=request.temperature,
        seed=request.seed,
        max_tokens=request.max_tokens,
        stop=request.stop,
        guidance=guidance,
        image_first=request.is_image,
    )


def _completed(answer: Answer | Exception) -> Completed | str:
    if isinstance(answer, Exception):
        return str(answer)
    parts = answer.content.parts
    text = "".join(part.text for part in parts if isinstance(part, Text))
    image = next((part.data for part in parts if isinstance(part, Image)), b"")
    return Completed(text, answer.answer_tokens, answer.finish == "length", image)


def _keep_beginnings(engine: Engine, examples: Iterable[Example]) -> list[Prefix]:
    """Keeps the pages with which several prompts begin, where the cache has room for them."""
    groups = defaultdict[bytes, list[Example]](list)
    for example in examples:
        if len(example.tokens) > PAGE and not len(example.patches) and not len(example.frames):
            groups[example.tokens[:PAGE].tobytes()].append(example)
    kept = []
    for group in groups.values():
        pages = common_beginning(*(example.tokens for example in group)) // PAGE
        if len(group) > 1 and pages:
            with suppress(ValueError):
                kept.append(engine.prefix(group[0].with_tokens(group[0].tokens[: pages * PAGE])))
    return kept
