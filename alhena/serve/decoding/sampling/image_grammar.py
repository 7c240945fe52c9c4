"""The image grammar: which tokens are allowed next, so that a malformed image grid cannot be generated.

    TEXT ─<boi_out>─► ROWS ─<rows n>─► COLUMNS ─<columns m>─► CODES ─ n·m codes ─► CLOSE ─<eoi_out>─► TEXT ─<end>─► …
    TEXT ─<call>─► CALL: texts and <quote> ─<call_end>─► TEXT

While a grid is open only codes are allowed; outside it none are. Tokens that occur in inputs only are never allowed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import jax.numpy as jnp
import numpy as np

from alhena.shapes import Array, Bool, Int, pytree
from alhena.tokens.vocabulary import MAX_GRID, Vocabulary

TEXT, ROWS, COLUMNS, CODES, CLOSE, CALL = range(6)
_KINDS = _TEXT, _END, _OPEN, _ROWS, _COLUMNS, _CODE, _CLOSE, _CALL, _QUOTE, _CALL_END, _NEVER = range(11)
_ALLOWED = np.zeros((6, len(_KINDS)), bool)
for _phase, _kind in (
    (TEXT, _TEXT),
    (TEXT, _END),
    (TEXT, _OPEN),
    (TEXT, _CALL),
    (CALL, _TEXT),
    (CALL, _QUOTE),
    (CALL, _CALL_END),
    (ROWS, _ROWS),
    (COLUMNS, _COLUMNS),
    (CODES, _CODE),
    (CLOSE, _CLOSE),
):
    _ALLOWED[_phase, _kind] = True


@pytree
@dataclass(frozen=True)
class Grammar:
    """State of the grammar of each sequence: its phase, the rows of the open grid, and the codes that remain."""

    phase: Int[Array, " B"]
    rows: Int[Array, " B"]
    remaining: Int[Array, " B"]


def start(batch_size: int) -> Grammar:
    """The state before the first token."""
    zero = jnp.zeros(batch_size, jnp.int32)
    return Grammar(zero, zero, zero)


@cache
def _kinds(v: Vocabulary) -> Int[np.ndarray, " V"]:
    """The kind of every token."""
    kinds = np.full(v.size, _NEVER)
    kinds[: v.num_text] = _TEXT
    # <unk> has no use with byte fallback.
    kinds[0] = _NEVER
    kinds[v.end], kinds[v.control("<boi_out>")], kinds[v.control("<eoi_out>")] = _END, _OPEN, _CLOSE
    for name, kind in (("<call>", _CALL), ("<quote>", _QUOTE), ("<call_end>", _CALL_END)):
        kinds[v.control(name)] = kind
    kinds[v.rows(1) : v.rows(MAX_GRID) + 1] = _ROWS
    kinds[v.columns(1) : v.columns(MAX_GRID) + 1] = _COLUMNS
    kinds[v.first_code :] = _CODE
    return kinds


def allowed_tokens(g: Grammar, v: Vocabulary, max_codes: int) -> Bool[Array, "B V"]:
    """Mask of the tokens that each sequence may take next; a grid never has more than ``max_codes`` codes."""
    mask = jnp.asarray(_ALLOWED)[g.phase][:, jnp.asarray(_kinds(v))]
    ids = jnp.arange(v.size)
    rows_too_large = (ids >= v.rows(1)) & (ids <= v.rows(MAX_GRID)) & (ids - v.rows(1) + 1 > max_codes)
    column_tokens = (ids >= v.columns(1)) & (ids <= v.columns(MAX_GRID))
    columns_too_large = (
        column_tokens[None]
        & ((ids[None] - v.columns(1) + 1) * g.rows[:, None] > max_codes)
        & (g.phase == COLUMNS)[:, None]
    )
    return mask & ~rows_too_large[None] & ~columns_too_large


def advance(g: Grammar, token: Int[Array, " B"], v: Vocabulary) -> Grammar:
    """The state after an allowed token."""
    rows = jnp.where(g.phase == ROWS, token - v.rows(1) + 1, g.rows)
    remaining = jnp.where(g.phase == COLUMNS, rows * (token - v.columns(1) + 1), g.remaining - (g.phase == CODES))
    opened = jnp.where(token == v.control("<boi_out>"), ROWS, jnp.where(token == v.control("<call>"), CALL, TEXT))
    after = jnp.stack([opened, jnp.full_like(token, COLUMNS), jnp.full_like(token, CODES)])
    phase = jnp.where(g.phase <= COLUMNS, jnp.take_along_axis(after, jnp.minimum(g.phase, 2)[None], 0)[0], g.phase)
    phase = jnp.where(g.phase == CODES, jnp.where(remaining == 0, CLOSE, CODES), phase)
    closed = (g.phase == CLOSE) | ((g.phase == CALL) & (token == v.control("<call_end>")))
    return Grammar(jnp.where(closed, TEXT, phase), rows, remaining)
