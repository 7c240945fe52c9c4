"""What evaluation needs of a model: two functions, each over many requests at once.

    log_likelihoods   (prompt, continuation) ─► nats of the continuation, and whether it is the greedy one
    complete          prompt                 ─► text, greedy or sampled

A request that cannot be asked (too long, a medium that does not decode) has the reason as its result, and the others are answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from alhena.content import Part, Text
from alhena.shapes import Int

# Texts and media of one question with its shots, in order.
Prompt = tuple[Part, ...]
# Called with the number of requests answered since its last call.
Advance = Callable[[int], None]


def no_advance(done: int) -> None:
    """Progress that nobody sees."""


def prompt_text(prompt: Prompt) -> str:
    """The text of a prompt without media."""
    if not all(isinstance(part, Text) for part in prompt):
        raise ValueError("a prompt with media has no text form: ask it in turns")
    return "".join(part.text for part in prompt if isinstance(part, Text))


def common_beginning(
    first: Sequence[int] | Int[np.ndarray, " _"], *others: Sequence[int] | Int[np.ndarray, " _"]
) -> int:
    """Tokens with which all sequences begin.

    >>> common_beginning([1, 2, 3], [1, 2], [1, 2, 4])
    2
    """
    length, a = len(first), np.asarray(first)
    for other in others:
        n = min(length, len(other))
        differs = np.flatnonzero(a[:n] != np.asarray(other[:n]))
        length = int(differs[0]) if len(differs) else n
    return length


@dataclass(frozen=True)
class Continuation:
    """A text whose likelihood after a prompt is asked for."""

    prompt: Prompt
    text: str


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihood of a continuation in nats, its number of tokens, and whether each of them is the most likely one."""

    nats: float
    tokens: int
    is_greedy: bool


@dataclass(frozen=True)
class Completion:
    """A prompt to continue, until one of ``stop`` or the limit of tokens. ``temperature`` 0 is greedy; ``is_image`` asks for an image."""

    prompt: Prompt
    max_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int = 0
    is_image: bool = False


@dataclass(frozen=True)
class Completed:
    """The text of a completion, without what stopped it, and its first image; ``truncated`` at the limit of tokens."""

    text: str
    tokens: int
    truncated: bool
    image: bytes = b""


@runtime_checkable
class LanguageModel(Protocol):
    """A model that answers many requests together. A ``str`` in place of a result is the reason why there is none."""

    @property
    def name(self) -> str: ...

    def log_likelihoods(
        self, requests: Sequence[Continuation], advance: Advance = no_advance
    ) -> list[Likelihood | str]: ...

    def complete(self, requests: Sequence[Completion], advance: Advance = no_advance) -> list[Completed | str]: ...
