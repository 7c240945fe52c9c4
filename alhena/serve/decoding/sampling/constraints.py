"""Constraints on the next token: which tokens may be sampled, and which of them end an answer.

Our own models generate images: their tokens follow the image grammar (alhena/serve/decoding/sampling/image_grammar.py). Imported models, and those of
ours that extend one, have a fixed set of tokens that are never sampled: padding, marks of media, ids without a token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import jax.numpy as jnp
import numpy as np

from alhena.model.config import Model
from alhena.serve.decoding.sampling import image_grammar
from alhena.shapes import Array, Bool, Int, UInt32
from alhena.tokens.encode import Encoder
from alhena.tokens.encoders import AnyEncoder
from alhena.tokens.text.hf_tokenizer import HfTokenizer
from alhena.tokens.vocabulary import Vocabulary


def _ranges(never: Iterable[int], end: int) -> tuple[tuple[int, int], ...]:
    """The ids below ``end`` without some of them, as (first, last + 1) ranges."""
    excluded = sorted({-1, *(number for number in never if number < end), end})
    return tuple((a + 1, b) for a, b in pairwise(excluded) if a + 1 < b)


@dataclass(frozen=True)
class Constraints:
    """Constraints of a model. ``images`` is the vocabulary of a model that generates images, else None."""

    pad: int
    end_tokens: tuple[int, ...]
    # Ids that may be sampled, as (first, last + 1) ranges; with ``images`` none: as the grammar allows.
    sampled: tuple[tuple[int, int], ...] = ()
    images: Vocabulary | None = None

    @classmethod
    def of(cls, encoder: AnyEncoder, c: Model) -> Constraints:
        if isinstance(encoder, Encoder):
            v = encoder.vocabulary
            if not isinstance(encoder.tokenizer, HfTokenizer):
                return cls(v.pad, (v.end,), images=v)
            text = _ranges(encoder.tokenizer.controls, min(encoder.tokenizer.size, v.num_text))
            return cls(v.pad, (v.end,), (*text, (v.num_text, v.size)), v)
        sampled = _ranges(encoder.never_sampled, min(encoder.tokenizer.size, c.vocabulary))
        return cls(encoder.pad, tuple(encoder.end_tokens), sampled)

    def allowed_tokens(self, g: image_grammar.Grammar, size: int, max_codes: int) -> Bool[Array, "#B V"]:
        """Mask of the tokens that each sequence may take next, out of ``size`` ids."""
        mask = np.zeros((1, size), bool)
        for first, end in self.sampled:
            mask[:, first:end] = True
        if not self.images:
            return jnp.asarray(mask)
        allowed = image_grammar.allowed_tokens(g, self.images, max_codes)
        return allowed & mask if self.sampled else allowed

    def advance(self, g: image_grammar.Grammar, token: Int[Array, " B"]) -> image_grammar.Grammar:
        """The state after an allowed token."""
        return image_grammar.advance(g, token, self.images) if self.images else g

    def ends(self, token: Int[Array, " B"]) -> Bool[Array, " B"]:
        """Whether a token ends its answer."""
        return jnp.isin(token, jnp.array(self.end_tokens, jnp.int32))


def unpacked(masks: UInt32[Array, "B W"], size: int) -> Bool[Array, "B V"]:
    """Packed masks of alhena/serve/structured/matcher.py as one bool for each of ``size`` tokens."""
    bits = masks[:, :, None] >> jnp.arange(32, dtype=jnp.uint32) & 1
    return bits.reshape(len(masks), -1)[:, :size].astype(bool)
