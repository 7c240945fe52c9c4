"""Detokenizer: tokens in, one at a time; text and finished pictures out, as soon as they are certain.

    piece, piece, <boi_out> <rows n> <columns m> code × n·m <eoi_out> piece <end>
    ─────────────          ──────────────────────────────── ───────── ─────
    Text, Text             Image at the last code                     Text      finished

What is held back: bytes that may be the start of a UTF-8 character, and text that may be the start of a stop sequence. The parts
that come out, joined, do not depend on how the tokens arrive. Each token costs the same, however long the answer is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from alhena.content import Image, Part, Text
from alhena.tokens.tokenizer import TextTokenizer
from alhena.tokens.vocabulary import Vocabulary

# The image of a grid of codes, int [rows, columns].
DecodeCodes = Callable[[np.ndarray], Image]


class Detokenizer:
    """State of one answer. ``finished`` after the end token or a stop sequence; ``count`` is the number of tokens taken."""

    def __init__(
        self, pieces: TextTokenizer, vocabulary: Vocabulary, decode_codes: DecodeCodes, stop: Sequence[str] = ()
    ) -> None:
        self._vocabulary, self._decode_codes, self._stop = vocabulary, decode_codes, tuple(stop)
        self._text = _TextRun(pieces)
        self._pending = ""
        self._grid: list[int] | None = None
        self.finished, self.count = False, 0

    def feed(self, token: int) -> list[Part]:
        """Takes one token; gives what became certain."""
        if self.finished:
            return []
        self.count += 1
        if token == self._vocabulary.end:
            out = self.flush()
            self.finished = True
            return out
        if self._grid is not None:
            return self._picture(token)
        if token == self._vocabulary.control("<boi_out>"):
            self._grid = []
            return self._close_run()
        return self._release(self._text.feed(token), last=False)

    def flush(self) -> list[Part]:
        """What is still held back when no more tokens come; a grid that is not complete is left out."""
        return [] if self.finished or self._grid is not None else self._close_run()

    def _close_run(self) -> list[Part]:
        """The end of a run of text: a stop sequence does not span a picture."""
        return self._release(self._text.flush(), last=True)

    def _release(self, text: str, last: bool) -> list[Part]:
        """Text up to a stop sequence, or up to what may be the start of one."""
        text = self._pending + text
        found = [(text.index(s) + len(s), text.index(s)) for s in self._stop if s in text]
        if found:
            self.finished, self._pending = True, ""
            text = text[: min(found)[1]]
        else:
            held = 0 if last else self._held(text)
            text, self._pending = text[: len(text) - held], text[len(text) - held :]
        return [Text(text)] if text else []

    def _held(self, text: str) -> int:
        """Characters at the end of ``text`` that may be the start of a stop sequence."""
        longest = max((len(s) - 1 for s in self._stop), default=0)
        for size in range(min(longest, len(text)), 0, -1):
            if any(len(s) > size and s.startswith(text[-size:]) for s in self._stop):
                return size
        return 0

    def _picture(self, token: int) -> list[Part]:
        """Rows, columns, codes, then the closing token."""
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
    """Consecutive text tokens. Their texts, joined, are the text of all tokens decoded together."""

    def __init__(self, pieces: TextTokenizer) -> None:
        self._pieces = pieces
        # The first piece of a run loses its leading space; behind this token, a line end, no piece does.
        self._anchor = pieces.encode("\n")[-1]
        self._anchor_text = pieces.decode([self._anchor])
        self._held: list[int] = []
        self._started = False

    def feed(self, token: int) -> str:
        self._held.append(token)
        return self._take(len(self._held) - _unfinished(map(self._pieces.byte, self._held[-3:])))

    def flush(self) -> str:
        """The rest; the next token begins a new run."""
        text = self._take(len(self._held))
        self._started = False
        return text

    def _take(self, size: int) -> str:
        if not size:
            return ""
        tokens, self._held = self._held[:size], self._held[size:]
        if self._started:
            return self._pieces.decode([self._anchor, *tokens]).removeprefix(self._anchor_text)
        self._started = True
        return self._pieces.decode(tokens)


def _unfinished(last: Iterable[int | None]) -> int:
    """How many of the last three bytes may begin a UTF-8 character that is not complete. None is a token that is no byte.

    >>> _unfinished([None, 0xE6, 0xBC]), _unfinished([0xE6, 0xBC, 0xA2]), _unfinished([0xE6, None, 0x41])
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
    """Parts with neighboring texts joined.

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
