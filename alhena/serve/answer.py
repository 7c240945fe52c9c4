"""What is asked and what is answered: prompts, answers and their token log-probabilities; and the errors of serving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from alhena.content import Content, Tool

Finish = Literal["stop", "length", "malformed call"]


class ServingError(Exception):
    """A generation that ends without an answer; the API maps its subclasses to codes."""


class Overloaded(ServingError):
    """Too many requests wait: try again later."""


class Unavailable(ServingError):
    """The server is shutting down, or the generation was cancelled."""


class Failed(ServingError):
    """The model failed; the reason is in the log."""


class Refused(ServingError, ValueError):
    """The request cannot be answered as it is."""


@dataclass(frozen=True)
class TokenLogprobs:
    """The log-probability of a token of an answer, and those of the most likely tokens at its position, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Answer:
    """A complete answer: its parts, why it ended, and token counts; those of thoughts and images are part of ``answer_tokens``."""

    content: Content
    finish: Finish
    prompt_tokens: int
    answer_tokens: int
    thought_tokens: int = 0
    # Of each token, where the request asks for them.
    logprobs: tuple[TokenLogprobs, ...] = ()
    image_tokens: int = 0
    # Tokens of the prompt that were in the cache of an earlier one; the answer does not depend on them.
    cached_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Prompt:
    """A conversation up to the model's next turn, the tools that it may call, and whether it thinks first."""

    contents: tuple[Content, ...]
    tools: tuple[Tool, ...] = ()
    thinking: bool = False

    @classmethod
    def of(cls, conversation: Prompt | Sequence[Content]) -> Prompt:
        """A conversation without tools where only its turns are given."""
        return conversation if isinstance(conversation, Prompt) else cls(tuple(conversation))
