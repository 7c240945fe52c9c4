"""Parser of an answer in a format of Gemma: tokens in, one at a time; texts, thoughts and tool calls out, as soon as they are final.

    <|channel>thought\\n… ────────── \\n<channel|> text, text <|tool_call>call:NAME{…}<tool_call|> <|tool_response>
              Thought, Thought                    Text, Text  ToolCall at its last token          finished

The parts, joined, do not depend on how the tokens arrive. Stop sequences are looked for in texts only. A call that is not exactly of
the notation is a text, and a channel of another name too: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from alhena.content import Part, Text, Thought
from alhena.tokens.formats.prompts import PromptSettings
from alhena.tokens.formats.tool_format import read_call
from alhena.tokens.text.text_stream import StopSequences, TextRun
from alhena.tokens.text.tokenizer import Tokenizer

_HEADER = "thought\n"
_Mode = Enum("_Mode", ["TEXT", "HEADER", "THOUGHT"])


def begins_in_thought(settings: PromptSettings, prompt: Sequence[int]) -> bool:
    """Whether the last channel that a prompt opens is not closed."""
    opened, closed = (settings.controls.get(name, -1) for name in ("channel", "channel_end"))
    return next((token == opened for token in reversed(prompt) if token in (opened, closed)), False)


class AnswerParser:
    """State of one answer. ``finished`` after an end token or a stop sequence; ``count`` is the number of tokens so far.

    ``thought_count`` of them are in thoughts, the marks of a thought included. ``malformed_call`` after a complete call that is not of
    the notation.
    """

    image_count = 0

    def __init__(
        self, settings: PromptSettings, tokenizer: Tokenizer, stop: Sequence[str] = (), in_thought: bool = False
    ) -> None:
        self._settings, self._tokenizer = settings, tokenizer
        self._controls = {token: name for name, token in settings.controls.items()}
        self._run, self._stop = TextRun(tokenizer), StopSequences(stop)
        self._mode = _Mode.THOUGHT if in_thought else _Mode.TEXT
        # What of a channel's name was read, while it can be that of a thought.
        self._header = ""
        # A line end that the thought ends with is not part of it.
        self._line_end = ""
        # Tokens of a call.
        self._call: list[int] | None = None
        self.finished, self.count, self.thought_count, self.malformed_call = False, 0, 0, False

    @property
    def in_thought(self) -> bool:
        """Whether the next token is part of a thought whose beginning has been read."""
        return self._mode is _Mode.THOUGHT

    def feed(self, token: int) -> list[Part]:
        """Takes one token; returns the parts that became final."""
        if self.finished:
            return []
        self.count += 1
        in_thought = self._mode is not _Mode.TEXT
        out = self._feed(token)
        self.thought_count += in_thought or self._mode is not _Mode.TEXT
        return out

    def _feed(self, token: int) -> list[Part]:
        if token in self._settings.end_tokens:
            out = self.flush()
            self.finished = True
            return out
        name = self._controls.get(token)
        if self._call is not None:
            return self._call_token(token, name)
        if name == "call":
            out = self._close()
            self._call = [token]
            return out
        if name == "channel" and self._mode is _Mode.TEXT:
            out = self._close()
            self._mode, self._header = _Mode.HEADER, ""
            return out
        if name == "channel_end" and self._mode is not _Mode.TEXT:
            out = self._release(self._run.flush(), last=True)
            # A channel of another name has become a text, with both of its marks.
            if self._mode is _Mode.TEXT:
                return [*out, *self._text(self._name(name), last=False)]
            return [*out, *self._close()]
        return self._release(self._run.feed(token), last=False)

    def flush(self) -> list[Part]:
        """What is still held back at the end; the tokens of an incomplete call are a text."""
        if self.finished:
            return []
        if self._call is None:
            return self._close()
        text, self._call = self._tokenizer.decode(self._call), None
        return self._text(text, last=True)

    def _close(self) -> list[Part]:
        """Ends a run of text or a thought: no stop sequence spans another part."""
        out = self._release(self._run.flush(), last=True)
        self._mode, self._line_end = _Mode.TEXT, ""
        return out

    def _release(self, text: str, last: bool) -> list[Part]:
        if self._mode is _Mode.TEXT:
            return self._text(text, last)
        if self._mode is _Mode.HEADER:
            self._header += text
            if not self._header.startswith(_HEADER):
                if _HEADER.startswith(self._header) and not last:
                    return []
                self._mode = _Mode.TEXT
                return self._text(self._name("channel") + self._header, last)
            self._mode, text = _Mode.THOUGHT, self._header.removeprefix(_HEADER)
        text = self._line_end + text
        self._line_end = "\n" if text.endswith("\n") else ""
        text = text.removesuffix("\n")
        return [Thought(text)] if text else []

    def _name(self, control: str) -> str:
        return self._tokenizer.decode([self._settings.controls[control]])

    def _text(self, text: str, last: bool) -> list[Part]:
        if self.finished:
            return []
        text = self._stop.feed(text, last)
        self.finished = self._stop.found
        return [Text(text)] if text else []

    def _call_token(self, token: int, name: str | None) -> list[Part]:
        assert self._call is not None
        self._call.append(token)
        if name != "call_end":
            return []
        tokens, self._call = self._call, None
        runs: list[list[int]] = [[]]
        for inner in tokens[1:-1]:
            if inner == self._settings.controls["quote"]:
                runs.append([])
            else:
                runs[-1].append(inner)
        call = read_call([self._tokenizer.decode(run) for run in runs])
        self.malformed_call |= call is None
        return [call] if call else self._text(self._tokenizer.decode(tokens), last=True)
