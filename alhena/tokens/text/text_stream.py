"""Streams of text tokens: text as soon as it is final, whatever the tokens arrive with.

``TextRun`` holds back bytes that may begin a UTF-8 character, ``StopSequences`` text that may begin a stop sequence. The texts, joined,
do not depend on how the tokens arrive, and the cost of a token does not grow with the length of the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from alhena.content import Part, Text, Thought
from alhena.tokens.text.tokenizer import Tokenizer


class StopSequences:
    """Text up to the first stop sequence. ``found`` after one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop, self._pending, self.found = tuple(stop), "", False

    def feed(self, text: str, last: bool = False) -> str:
        """The text that became final: up to a stop sequence, or up to a possible start of one unless it is the ``last``."""
        text = self._pending + text
        stops = [(text.index(s) + len(s), text.index(s)) for s in self._stop if s in text]
        if stops:
            self.found, self._pending = True, ""
            return text[: min(stops)[1]]
        held_back = 0 if last else self._held_back(text)
        text, self._pending = text[: len(text) - held_back], text[len(text) - held_back :]
        return text

    def _held_back(self, text: str) -> int:
        """Characters at the end of ``text`` that may be the start of a stop sequence."""
        max_size = max((len(s) - 1 for s in self._stop), default=0)
        for size in range(min(max_size, len(text)), 0, -1):
            if any(len(s) > size and s.startswith(text[-size:]) for s in self._stop):
                return size
        return 0


class TextRun:
    """A run of text tokens. Its texts, joined, equal the text of all tokens decoded together."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # The first token of a run loses its leading space; after this token, a line end, no token does.
        self._prefix_token = tokenizer.encode("\n")[-1]
        self._prefix_text = tokenizer.decode([self._prefix_token])
        self._held_back: list[int] = []
        self._started = False

    def feed(self, token: int) -> str:
        self._held_back.append(token)
        return self._take(len(self._held_back) - incomplete_bytes(map(self._tokenizer.byte, self._held_back[-3:])))

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


def incomplete_bytes(last: Iterable[int | None]) -> int:
    """How many of the last three bytes may begin an incomplete UTF-8 character. None is a token that is no byte.

    >>> incomplete_bytes([None, 0xE6, 0xBC]), incomplete_bytes([0xE6, 0xBC, 0xA2]), incomplete_bytes([0xE6, None, 0x41])
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
    """Parts with adjacent texts, and adjacent thoughts, joined.

    >>> join([Text("a"), Text("b"), Thought("c"), Text("d")])
    (Text(text='ab'), Thought(text='c'), Text(text='d'))
    """
    out: list[Part] = []
    texts: list[str] = []
    kind: type[Text | Thought] = Text

    def close() -> None:
        if texts:
            out.append(kind("".join(texts)))
            texts.clear()

    for part in parts:
        if not isinstance(part, Text | Thought):
            close()
            out.append(part)
            continue
        if type(part) is not kind:
            close()
            kind = type(part)
        texts.append(part.text)
    close()
    return tuple(out)
