"""Detokenizer: tokens in, one at a time; text and complete images out, as soon as they are final.

    text, text, <boi_out> <rows n> <columns m> code × n·m <eoi_out> text <end>
    ──────────            ──────────────────────────────── ───────── ────
    Text, Text            Image at the last code                     Text      finished

Held back are bytes that may begin a UTF-8 character, and text that may begin a stop sequence. The parts, joined, do not depend
on how the tokens arrive. The cost of a token does not grow with the length of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from alhena.content import Image, Part, Text
from alhena.shapes import Int
from alhena.tokens.text_stream import StopSequences, TextRun
from alhena.tokens.tokenizer import Tokenizer
from alhena.tokens.vocabulary import Vocabulary

# The image decoder: a grid of codes to an image.
DecodeCodes = Callable[[Int[np.ndarray, "rows columns"]], Image]


class Detokenizer:
    """State of one answer. ``finished`` after the end token or a stop sequence; ``count`` is the number of tokens so far, none of them of thoughts."""

    def __init__(
        self, tokenizer: Tokenizer, vocabulary: Vocabulary, decode_codes: DecodeCodes, stop: Sequence[str] = ()
    ) -> None:
        self._vocabulary, self._decode_codes = vocabulary, decode_codes
        self._text, self._stop = TextRun(tokenizer), StopSequences(stop)
        self._grid: list[int] | None = None
        self.finished, self.count, self.thought_count = False, 0, 0

    def feed(self, token: int) -> list[Part]:
        """Takes one token; returns the parts that became final."""
        if self.finished:
            return []
        self.count += 1
        if token == self._vocabulary.end:
            out = self.flush()
            self.finished = True
            return out
        if self._grid is not None:
            return self._grid_token(token)
        if token == self._vocabulary.control("<boi_out>"):
            self._grid = []
            return self._close_run()
        return self._release(self._text.feed(token), last=False)

    def flush(self) -> list[Part]:
        """The text still held back at the end; an incomplete grid is dropped."""
        return [] if self.finished or self._grid is not None else self._close_run()

    def _close_run(self) -> list[Part]:
        """Ends a run of text: a stop sequence does not span an image."""
        return self._release(self._text.flush(), last=True)

    def _release(self, text: str, last: bool) -> list[Part]:
        text = self._stop.feed(text, last)
        self.finished = self._stop.found
        return [Text(text)] if text else []

    def _grid_token(self, token: int) -> list[Part]:
        """Takes a token of a grid: rows, columns, codes, then the closing token."""
        v, grid = self._vocabulary, self._grid
        assert grid is not None
        grid.append(token)
        if len(grid) < 3:
            return []
        rows, columns = grid[0] - v.rows(1) + 1, grid[1] - v.columns(1) + 1
        codes = grid[2:]
        if len(codes) > rows * columns:
            self._grid = None
        if len(codes) != rows * columns:
            return []
        return [self._decode_codes(np.array(codes).reshape(rows, columns) - v.first_code)]
