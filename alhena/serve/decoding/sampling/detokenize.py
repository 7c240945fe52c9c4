"""Detokenizer: tokens in, one at a time; text, complete images and tool calls out, as soon as they are final.

    text, text, <boi_out> <rows n> <columns m> code × n·m <eoi_out> text <call> call:NAME{…} <call_end> <end>
    ──────────            ──────────────────────────────── ───────── ──── ────────────────── ────────── ─────
    Text, Text            Image at the last code                     Text                    ToolCall   finished

Held back are bytes that may begin a UTF-8 character, and text that may begin a stop sequence. The parts, joined, do not depend
on how the tokens arrive. The cost of a token does not grow with the length of the answer. A call that is not exactly of the
notation (alhena/tokens/formats/own_tools.py) is a text: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from alhena.content import Image, Part, Text, ToolCall
from alhena.shapes import Int
from alhena.tokens.formats.own_tools import call_of
from alhena.tokens.text.text_stream import StopSequences, TextRun
from alhena.tokens.text.tokenizer import Tokenizer
from alhena.tokens.vocabulary import Vocabulary

# The image decoder: a grid of codes to an image.
DecodeCodes = Callable[[Int[np.ndarray, "rows columns"]], Image]


class Detokenizer:
    """State of one answer. ``finished`` after the end token or a stop sequence; ``count`` is the number of tokens so far.

    ``image_count`` of them are of images, the marks of an image included; none are of thoughts. ``malformed_call`` after a complete
    call that is not of the notation.
    """

    thought_count, in_thought = 0, False

    def __init__(
        self, tokenizer: Tokenizer, vocabulary: Vocabulary, decode_codes: DecodeCodes, stop: Sequence[str] = ()
    ) -> None:
        self._tokenizer, self._vocabulary, self._decode_codes = tokenizer, vocabulary, decode_codes
        self._text, self._stop = TextRun(tokenizer), StopSequences(stop)
        self._grid: list[int] | None = None
        # Tokens of a call.
        self._call: list[int] | None = None
        self.finished, self.count, self.image_count, self.malformed_call = False, 0, 0, False

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
            self.image_count += 1
            return self._grid_token(token)
        if self._call is not None:
            return self._call_token(token)
        if token == self._vocabulary.control("<boi_out>"):
            self.image_count += 1
            self._grid = []
            return self._close_run()
        if token == self._vocabulary.control("<call>"):
            self._call = []
            return self._close_run()
        return self._release(self._text.feed(token), last=False)

    def flush(self) -> list[Part]:
        """The text still held back at the end, that of an incomplete call included; an incomplete grid is dropped."""
        if self.finished or self._grid is not None:
            return []
        return self._close_run() if self._call is None else self._close_call()

    def _call_token(self, token: int) -> list[Part]:
        assert self._call is not None
        if token == self._vocabulary.control("<call_end>"):
            out = self._close_call()
            self.malformed_call |= not any(isinstance(part, ToolCall) for part in out)
            return out
        self._call.append(token)
        return []

    def _close_call(self) -> list[Part]:
        """The call, or its text where it is none of the notation."""
        tokens, self._call = self._call or [], None
        call = call_of(tokens, self._vocabulary.control("<quote>"), self._tokenizer.decode)
        return self._release(call, last=True) if isinstance(call, str) else [call]

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
