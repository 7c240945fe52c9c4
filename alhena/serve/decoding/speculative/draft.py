"""What proposes tokens in speculative decoding: a small model with the vocabulary of its target, or the text so far.

A model drafts from text only: it reads the placeholders of media as tokens. Without a model what is proposed is what followed the last
tokens where they occurred before: that costs nothing, and is right where an answer repeats its prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from alhena.batch import Example
from alhena.model import model
from alhena.model.config import Model
from alhena.model.storage.folders import load_model
from alhena.serve.decoding.pages import Pages
from alhena.serve.decoding.sequence import Chunk, Media, PromptPlan
from alhena.serve.decoding.sequence import Sequence as PagedSequence
from alhena.shapes import Int
from alhena.tokens.encode import Encoder
from alhena.tokens.encoders import AnyEncoder, load_encoder

# Tokens that a draft proposes in a round, where nothing else is asked.
DRAFT_TOKENS = 4
MAX_DRAFT_TOKENS = 16


# In place of a folder: no model drafts.
LOOKUP = "lookup"


@dataclass(frozen=True)
class DraftSource:
    """What drafts, and how many tokens in a round. ``folder`` None: proposals are looked up in the text so far."""

    folder: Path | None
    tokens: int = DRAFT_TOKENS

    def __post_init__(self) -> None:
        if not 1 <= self.tokens <= MAX_DRAFT_TOKENS:
            raise ValueError(f"draft tokens: {self.tokens}; 1 to {MAX_DRAFT_TOKENS} can be proposed in a round")


@dataclass(frozen=True)
class Draft:
    """What drafts: a model, or with neither params nor configuration the text so far."""

    params: model.Params | None
    config: Model | None
    tokens: int
    name: str

    @classmethod
    def load(cls, source: DraftSource, encoder: AnyEncoder) -> Draft:
        """Raises ValueError when the folder is no complete model, or its vocabulary is not that of ``encoder``, the target's."""
        if source.folder is None:
            return cls(None, None, source.tokens, LOOKUP)
        params, c = load_model(source.folder)
        if not has_vocabulary(load_encoder(source.folder), encoder):
            raise ValueError(
                f"{source.folder}: a draft must have the vocabulary of the model that it drafts for; "
                f"this one has another: use a smaller model of the same family, one distilled from it, or {LOOKUP}"
            )
        return cls(*text_only(params, c), source.tokens, source.folder.name)


def text_only(params: model.Params, c: Model) -> tuple[model.Params, Model]:
    """A model without its encoders."""
    return replace(params, vision=None, audio=None), replace(c, vision=None, audio=None)


def has_vocabulary(draft: AnyEncoder, target: AnyEncoder) -> bool:
    """Whether the ids of two encoders have the same meaning."""
    own = [e.vocabulary if isinstance(e, Encoder) else None for e in (draft, target)]
    return own[0] == own[1] and draft.tokenizer.to_bytes() == target.tokenizer.to_bytes()


class DraftSequence:
    """The tokens of one answer and of its prompt; with a model that drafts the pages that it holds, and how far it has read."""

    def __init__(
        self, draft: Draft, prompt: Example, pages: Pages | None, rows: Sequence[Int[np.ndarray, " T"]]
    ) -> None:
        self._c, self._prompt = draft.config, prompt
        # Of the prompt and of the answer.
        self.tokens, self.pages = prompt.tokens.tolist(), None
        if pages and draft.params and draft.config:
            plan = self._plan(draft.config)
            self.pages = PagedSequence(plan, Media(plan, draft.params, draft.config), pages, rows)

    def _plan(self, c: Model) -> PromptPlan:
        """All tokens as a prompt without media."""
        return PromptPlan.of(self._prompt.emptied().with_tokens(np.array(self.tokens, np.int32)), c)

    @property
    def is_behind(self) -> bool:
        """Whether more than the last token is to be read before the next can be proposed."""
        return self.pages is not None and self.pages.position < len(self.tokens) - 1

    def next_chunk(self) -> tuple[Chunk, int] | None:
        """What is to be read next, and its end; None: known pages were taken in its place, and all is read."""
        assert self.pages and self._c
        if self.pages.is_read:
            self.pages.plan = self._plan(self._c)
        self.pages.skip_known()
        return None if self.pages.is_read else self.pages.next_chunk()

    def take(self, tokens: Sequence[int]) -> None:
        """More tokens of the answer."""
        self.tokens += tokens

    def has_proposed(self) -> None:
        """After a run in which the draft proposed tokens: it has all that were taken, but perhaps the last one."""
        if self.pages:
            self.pages.move(max(self.pages.position, len(self.tokens) - 1))
