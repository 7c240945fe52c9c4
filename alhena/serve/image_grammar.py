"""What may be sampled next, so that a malformed image grid cannot be written.

    TEXT ─<boi_out>─► ROWS ─<rows n>─► COLUMNS ─<columns m>─► CODES ─ n·m codes ─► CLOSE ─<eoi_out>─► TEXT ─<end>─► …

While a grid is open only codes can be sampled; outside it none can. Tokens that only inputs contain can never be.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import jax.numpy as jnp
import numpy as np

from alhena.shapes import Array, Bool, Int, pytree
from alhena.tokens.vocabulary import MAX_GRID, Vocabulary

TEXT, ROWS, COLUMNS, CODES, CLOSE = range(5)
_KINDS = _PIECE, _END, _OPEN, _ROWS, _COLUMNS, _CODE, _SHUT, _NEVER = range(8)
_ALLOWED = np.zeros((5, len(_KINDS)), bool)
for _phase, _kind in (
    (TEXT, _PIECE),
    (TEXT, _END),
    (TEXT, _OPEN),
    (ROWS, _ROWS),
    (COLUMNS, _COLUMNS),
    (CODES, _CODE),
    (CLOSE, _SHUT),
):
    _ALLOWED[_phase, _kind] = True


@pytree
@dataclass(frozen=True)
class Grammar:
    """Where each row stands."""

    phase: Int[Array, " B"]
    rows: Int[Array, " B"]  # of the open grid
    left: Int[Array, " B"]  # codes still to come


def start(rows: int) -> Grammar:
    zero = jnp.zeros(rows, jnp.int32)
    return Grammar(zero, zero, zero)


@cache
def _kinds(v: Vocabulary) -> np.ndarray:
    """The kind of every token, int [V]."""
    kinds = np.full(v.size, _NEVER)
    kinds[: v.num_text] = _PIECE
    kinds[0] = _NEVER  # <unk>: byte fallback leaves it without use
    kinds[v.end], kinds[v.control("<boi_out>")], kinds[v.control("<eoi_out>")] = _END, _OPEN, _SHUT
    kinds[v.rows(1) : v.rows(MAX_GRID) + 1] = _ROWS
    kinds[v.columns(1) : v.columns(MAX_GRID) + 1] = _COLUMNS
    kinds[v.first_code :] = _CODE
    return kinds


def allowed(g: Grammar, v: Vocabulary, most_codes: int) -> Bool[Array, "B V"]:
    """Tokens that each row may take next; a grid never has more than ``most_codes`` codes."""
    mask = jnp.asarray(_ALLOWED)[g.phase][:, jnp.asarray(_kinds(v))]
    ids = jnp.arange(v.size)
    tall = (ids >= v.rows(1)) & (ids <= v.rows(MAX_GRID)) & (ids - v.rows(1) + 1 > most_codes)
    wide = (ids >= v.columns(1)) & (ids <= v.columns(MAX_GRID))
    too_many = (
        wide[None] & ((ids[None] - v.columns(1) + 1) * g.rows[:, None] > most_codes) & (g.phase == COLUMNS)[:, None]
    )
    return mask & ~tall[None] & ~too_many


def advance(g: Grammar, token: Int[Array, " B"], v: Vocabulary) -> Grammar:
    """The state after a token that was allowed."""
    rows = jnp.where(g.phase == ROWS, token - v.rows(1) + 1, g.rows)
    left = jnp.where(g.phase == COLUMNS, rows * (token - v.columns(1) + 1), g.left - (g.phase == CODES))
    opened = jnp.where(token == v.control("<boi_out>"), ROWS, TEXT)
    after = jnp.stack([opened, jnp.full_like(token, COLUMNS), jnp.full_like(token, CODES)])
    phase = jnp.where(g.phase <= COLUMNS, jnp.take_along_axis(after, jnp.minimum(g.phase, 2)[None], 0)[0], g.phase)
    phase = jnp.where(g.phase == CODES, jnp.where(left == 0, CLOSE, CODES), phase)
    return Grammar(jnp.where(g.phase == CLOSE, TEXT, phase), rows, left)
