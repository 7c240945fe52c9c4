"""Jobs of the running batch: what is asked, and the state of an answer on the host: its parser, its matcher, its thinking budget."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from alhena.batch import Example
from alhena.content import Content, Part, Tool
from alhena.serve.answer import Answer, Finish, TokenLogprobs
from alhena.serve.decoding.buckets import MAX_OUTPUT_TOKENS
from alhena.serve.decoding.sampling.detokenize import Detokenizer
from alhena.serve.decoding.sampling.sampler import Sampling
from alhena.serve.decoding.sequence import Sequence
from alhena.serve.decoding.slots import MAX_STEPS, Emitted
from alhena.shapes import UInt32
from alhena.tokens.formats.answers import AnswerParser
from alhena.tokens.text.text_stream import join


@runtime_checkable
class Matcher(Protocol):
    """Which tokens may come next, decided on the host token by token (alhena/serve/structured/matcher.py)."""

    @property
    def finished(self) -> bool: ...

    # Whether the answer has the form that it must have.
    @property
    def is_complete(self) -> bool: ...

    def mask(self) -> UInt32[np.ndarray, " words"]: ...

    def accept(self, token: int) -> None: ...


@runtime_checkable
class Job(Protocol):
    """A request, and where the parts of its answer and then the Answer, or an error, are put."""

    @property
    def example(self) -> Example: ...

    @property
    def sampling(self) -> Sampling: ...

    # Those that the answer may call, where its form is enforced.
    @property
    def tools(self) -> tuple[Tool, ...]: ...

    # Tokens between two checks for cancellation.
    @property
    def stride(self) -> int: ...

    def put(self, item: Part | Answer | Exception) -> None: ...

    def is_cancelled(self) -> bool: ...


@dataclass(frozen=True)
class Reader:
    """What reads the tokens of an answer on the host."""

    parser: Detokenizer | AnswerParser
    matcher: Matcher | None
    # Tokens of the answer.
    max_tokens: int
    # Those that end a thought.
    thought_end: tuple[int, ...]


class Answering:
    """A job with its slots: the first has its sequence, a second one the unconditional sequence of guidance."""

    def __init__(self, job: Job, reader: Reader, sequences: Items[Sequence], slots: Items[int]) -> None:
        self.job, self.sequences, self.slots = job, sequences, slots
        self.parser, self.matcher, self.max_tokens = reader.parser, reader.matcher, reader.max_tokens
        self.parts, self.logprobs = list[Part](), list[TokenLogprobs]()
        self.is_inserted, self.forced = False, deque[int]()
        self._thought_end = reader.thought_end

    def limit(self) -> int:
        """Tokens that may be generated before the host must look at them."""
        if self.matcher or self.forced:
            return 1
        budget = self.job.sampling.thinking_budget
        return MAX_OUTPUT_TOKENS if budget is None else max(1, budget - self.parser.thought_count)

    def steps(self) -> int:
        """Steps until the host looks at the tokens, and whether the job is cancelled."""
        return min(self.job.stride, self.limit(), MAX_STEPS)

    def accept(self, token: int, logprobs: TokenLogprobs | None) -> Finish | None:
        """Takes one token: puts the parts that became final; the reason to end, if there is one."""
        job, parser = self.job, self.parser
        if self.forced:
            self.forced.popleft()
        if logprobs:
            self.logprobs.append(logprobs)
        self._put(parser.feed(token))
        if self.matcher:
            self.matcher.accept(token)
        if self.matcher and self.matcher.finished and not self.matcher.is_complete:
            # A limit of the parser of its form has cut it.
            return "length"
        if parser.finished or (self.matcher and self.matcher.finished):
            return "stop"
        budget = job.sampling.thinking_budget
        if budget is not None and not self.forced and parser.in_thought and parser.thought_count >= budget:
            self.forced.extend(self._thought_end)
        return "length" if parser.count >= self.max_tokens else None

    def _put(self, parts: Items[Part]) -> None:
        for part in parts:
            self.parts.append(part)
            self.job.put(part)

    def finish(self, reason: Finish) -> None:
        """Puts what is held back, and the Answer."""
        parser = self.parser
        self._put(parser.flush())
        answer = Answer(
            Content("model", join(self.parts)),
            "malformed call" if parser.malformed_call else reason,
            len(self.job.example.tokens),
            parser.count,
            parser.thought_count,
            tuple(self.logprobs),
            parser.image_count,
            self.sequences[0].cached_tokens,
        )
        self.job.put(answer)


def token_logprobs(emitted: Emitted, slot: int, i: int, wanted: int | None) -> TokenLogprobs | None:
    """Log-probabilities of the ``i``-th token of a slot, where they are wanted."""
    if wanted is None:
        return None
    top = zip(emitted.top[slot, i, :wanted].tolist(), emitted.top_logprobs[slot, i, :wanted].tolist(), strict=True)
    return TokenLogprobs(int(emitted.tokens[slot, i]), float(emitted.logprobs[slot, i]), tuple(top))
