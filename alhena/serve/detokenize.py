"""Detokenizer: tokens in, one at a time; text and complete images out, as soon as they are final.

    text, text, <boi_out> <rows n> <columns m> code × n·m <eoi_out> text <end>
    ──────────            ──────────────────────────────── ───────── ────
    Text, Text            Image at the last code                     Text      finished

Held back are bytes that may begin a UTF-8 character, and text that may begin a stop sequence. The parts, joined, do not depend
on how the tokens arrive. The cost of a token does not grow with the length of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from alhena.content import Image, Part, Text
from alhena.shapes import Int
from alhena.tokens.tokenizer import TextTokenizer
from alhena.tokens.vocabulary import Vocabulary

# The image decoder: a grid of codes to an image.
DecodeCodes = Callable[[Int[np.ndarray, "rows columns"]], Image]


class Detokenizer:
    """State of one answer. ``finished`` after the end token or a stop sequence; ``count`` is the number of tokens so far."""

    def __init__(
        self, tokenizer: TextTokenizer, vocabulary: Vocabulary, decode_codes: DecodeCodes, stop: Sequence[str] = ()
    ) -> None:
        self._vocabulary, self._decode_codes, self._stop = vocabulary, decode_codes, tuple(stop)
        self._text = _TextRun(tokenizer)
        self._pending = ""
        self._grid: list[int] | None = None
        self.finished, self.count = False, 0

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
        """Text up to a stop sequence, or up to a possible start of one."""
        text = self._pending + text
        stops = [(text.index(s) + len(s), text.index(s)) for s in self._stop if s in text]
        if stops:
            self.finished, self._pending = True, ""
            text = text[: min(stops)[1]]
        else:
            held_back = 0 if last else self._held_back(text)
            text, self._pending = text[: len(text) - held_back], text[len(text) - held_back :]
        return [Text(text)] if text else []

    def _held_back(self, text: str) -> int:
        """Characters at the end of ``text`` that may be the start of a stop sequence."""
        max_size = max((len(s) - 1 for s in self._stop), default=0)
        for size in range(min(max_size, len(text)), 0, -1):
            if any(len(s) > size and s.startswith(text[-size:]) for s in self._stop):
                return size
        return 0

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


class _TextRun:
    """A run of text tokens. Its texts, joined, equal the text of all tokens decoded together."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        # The first token of a run loses its leading space; after this token, a line end, no token does.
        self._prefix_token = tokenizer.encode("\n")[-1]
        self._prefix_text = tokenizer.decode([self._prefix_token])
        self._held_back: list[int] = []
        self._started = False

    def feed(self, token: int) -> str:
        self._held_back.append(token)
        return self._take(len(self._held_back) - _incomplete_bytes(map(self._tokenizer.byte, self._held_back[-3:])))

    def flush(self) -> str:
        """The text still held back; the next token begins a new run."""
        text = self._take(len(self._held_back))
        self._started = False
        return text

    def _take(self, size: int) -> str:
        if not size:
            return ""
        tokens, self._held_back = self._held_back[:size], self._held_back[size:]
        if self._started:
            return self._tokenizer.decode([self._prefix_token, *tokens]).removeprefix(self._prefix_text)
        self._started = True
        return self._tokenizer.decode(tokens)


def _incomplete_bytes(last: Iterable[int | None]) -> int:
    """How many of the last three bytes may begin an incomplete UTF-8 character. None is a token that is no byte.

    >>> _incomplete_bytes([None, 0xE6, 0xBC]), _incomplete_bytes([0xE6, 0xBC, 0xA2]), _incomplete_bytes([0xE6, None, 0x41])
    (2, 0, 0)
    """
    for size, byte in enumerate(reversed(list(last)), 1):
        if byte is None or byte < 0x80:
            return 0
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4 if byte < 0xF8 else 1
            return size if size < length else 0
    return 0


def join(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Parts with adjacent texts joined.

    >>> join([Text("a"), Text("b"), Image(b""), Text("c")])
    (Text(text='ab'), Image(data=b'', mime='image/png'), Text(text='c'))
    """
    out: list[Part] = []
    texts: list[str] = []

    def close() -> None:
        if texts:
            out.append(Text("".join(texts)))
            texts.clear()

    for part in parts:
        if isinstance(part, Text):
            texts.append(part.text)
        else:
            close()
            out.append(part)
    close()
    return tuple(out)
