"""Conversations in the prompt formats of imported models: contents to texts, control tokens and media.

    gemma3   <bos><start_of_turn>user\\nBe brief.\\n\\nHello<end_of_turn>\\n<start_of_turn>model\\n
    gemma4   <bos><|turn>system\\n<|think|>\\nBe brief.<|tool>…<tool|><turn|>\\n<|turn>user\\nHello<turn|>\\n<|turn>model\\n

The result is a list of items; what the model is to write itself is marked as learned. Texts remain texts until all of them are joined
and encoded: no text of a user becomes a control token, and line ends at the seams merge as in the references.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from alhena.content import Audio, Content, Image, Media, Part, Text, Thought, Tool, ToolCall, ToolResult, Video, kind_of
from alhena.tokens.formats.prompts import PromptSettings
from alhena.tokens.formats.tool_format import write_call, write_declaration, write_result
from alhena.tokens.text.text_stream import join


@dataclass(frozen=True)
class Item:
    """A text, the id of a control token, or a medium."""

    value: str | int | Media
    # Whether the model writes it, in training.
    learned: bool = False


def render(
    settings: PromptSettings,
    contents: Sequence[Content],
    tools: Sequence[Tool] = (),
    thinking: bool = False,
    ask: bool = True,
) -> list[Item]:
    """A conversation, and with ``ask`` the beginning of the model's answer.

    Raises ValueError for what the format does not have, and for turns in an order that it cannot express.
    """
    if not contents:
        raise ValueError("a conversation needs at least one turn")
    if ask and contents[-1].role == "model" and any(isinstance(part, ToolCall) for part in contents[-1].parts):
        raise ValueError("the last turn calls tools; add a turn of the role 'tool' with their results")
    _check(settings, contents)
    if settings.format == "gemma4":
        return _Gemma4(settings, thinking).render(contents, tools, ask)
    if tools or thinking:
        raise ValueError(f"{settings.format} has no {'tools' if tools else 'thinking'}; Gemma 4 has")
    return _Gemma3(settings).render(contents, ask)


# ── what the formats can express ───────────────────────────────────────────────────────────────────────────

_PARTS: dict[str, tuple[type[Part], ...]] = {
    "system": (Text,),
    "user": (Text, Image, Audio, Video),
    "model": (Text, Thought, ToolCall),
    "tool": (ToolResult,),
}


def _check(settings: PromptSettings, contents: Sequence[Content]) -> None:
    """Raises ValueError for parts that a turn cannot have, and for media that the model does not read."""
    for number, content in enumerate(contents, 1):
        where = f"turn {number} ({content.role})"
        if content.role not in _PARTS:
            raise ValueError(f"{where}: a conversation has turns of the roles {', '.join(_PARTS)} only")
        if content.role == "system" and number > 1:
            raise ValueError(f"{where}: only the first turn can be a system turn")
        for part in content.parts:
            if not isinstance(part, _PARTS[content.role]):
                raise ValueError(f"{where}: a {kind_of(part)} cannot be part of it")
            if settings.format != "gemma4" and isinstance(part, Thought | ToolCall | ToolResult):
                raise ValueError(f"{where}: {settings.format} has no {kind_of(part)}; Gemma 4 has")
            for medium in part.parts if isinstance(part, ToolResult) else (part,):
                check_medium(settings, medium, where)


def check_medium(settings: PromptSettings, part: Part, where: str) -> None:
    """Raises ValueError for a medium that the format has no tokens for, or that its encoder cannot read."""
    if isinstance(part, Image | Video) and settings.format == "gemma3n":
        raise ValueError(f"{where}: images and videos of Gemma 3n need MobileNetV5, which is not implemented")
    needed = {Image: "image", Audio: "audio", Video: "video" if settings.format == "gemma4" else "image"}.get(
        type(part)
    )
    if needed is not None and needed not in settings.controls:
        raise ValueError(f"{where}: this model reads no {kind_of(part)}")


class _Items:
    """Items under construction."""

    def __init__(self, settings: PromptSettings) -> None:
        self._settings, self.out = settings, list[Item]()

    def text(self, text: str, learned: bool = False) -> None:
        if text:
            self.out.append(Item(text, learned))

    def control(self, name: str, learned: bool = False) -> None:
        self.out.append(Item(self._settings.controls[name], learned))

    def medium(self, part: Media) -> None:
        self.out.append(Item(part))

    def pieces(self, pieces: Iterable[str | int], learned: bool = False) -> None:
        """Texts and ids of control tokens."""
        self.out.extend(Item(piece, learned) for piece in pieces if piece != "")


# ── Gemma 3 and 3n ─────────────────────────────────────────────────────────────────────────────────────────


class _Gemma3(_Items):
    """There is no system turn: its text stands before that of the first user turn."""

    def render(self, contents: Sequence[Content], ask: bool) -> list[Item]:
        prefix = ""
        if contents[0].role == "system":
            prefix = "".join(part.text for part in contents[0].parts if isinstance(part, Text)) + "\n\n"
            contents = contents[1:]
        if not contents:
            raise ValueError(f"a system turn alone: {self._settings.format} needs a user turn after it")
        self.control("bos")
        for number, content in enumerate(contents):
            if (content.role == "user") != (number % 2 == 0):
                raise ValueError(
                    f"{self._settings.format} needs turns of user and model in alternation, from a user turn on"
                )
            self._turn(content, "" if number else prefix)
        if ask:
            self.control("turn")
            self.text("model\n")
        return self.out

    def _turn(self, content: Content, prefix: str) -> None:
        learned = content.role == "model"
        self.control("turn")
        self.text(f"{content.role}\n{prefix}")
        for part in join(content.parts):
            if isinstance(part, Text):
                self.text(part.text.strip(), learned)
            elif isinstance(part, Media):
                self.medium(part)
        self.control("turn_end", learned)
        self.text("\n")


# ── Gemma 4 ────────────────────────────────────────────────────────────────────────────────────────────────


class _Gemma4(_Items):
    """A model turn holds thoughts, texts, calls and their results, in the order in which they were written."""

    def __init__(self, settings: PromptSettings, thinking: bool) -> None:
        super().__init__(settings)
        self._thinking, self._variants = thinking, settings.variants

    def render(self, contents: Sequence[Content], tools: Sequence[Tool], ask: bool) -> list[Item]:
        self.control("bos")
        system = (
            [part.text for part in contents[0].parts if isinstance(part, Text)] if contents[0].role == "system" else []
        )
        if self._thinking or tools or contents[0].role == "system":
            self._system("".join(system), tools)
        numbered = list(enumerate(contents))[contents[0].role == "system" :]
        last_user = max((i for i, content in numbered if content.role == "user"), default=-1)
        open_calls = False
        # The results of tools, and what the model writes after them, belong to the turn of its calls.
        for is_model, turn in groupby(numbered, lambda item: item[1].role != "user"):
            if open_calls:
                raise ValueError(
                    "a user turn after calls of tools; put a turn of the role 'tool' with their results before it"
                )
            if is_model:
                group = list(turn)
                is_last = group[-1][0] == len(contents) - 1
                open_calls = self._model([c for _, c in group], group[0][0] > last_user, is_last and ask, is_last)
            else:
                for _, content in turn:
                    self._user(content)
        if ask and contents[-1].role != "tool":
            self.control("turn")
            self.text("model\n")
            if not self._thinking and self._variants.empty_thought != "never":
                self._thought("", False)
        return self.out

    def _system(self, text: str, tools: Sequence[Tool]) -> None:
        self.control("turn")
        self.text("system\n")
        if self._thinking:
            self.control("think")
            self.text("\n" if self._variants.think_line_end else "")
        self.text(text.strip())
        for tool in tools:
            self.control("tool")
            self.pieces(write_declaration(tool, self._settings.controls["quote"]))
            self.control("tool_end")
        self._end(False)

    def _end(self, learned: bool) -> None:
        self.control("turn_end", learned)
        self.text("\n")

    def _user(self, content: Content) -> None:
        self.control("turn")
        self.text("user\n")
        for part in join(content.parts):
            if isinstance(part, Text):
                self.text(part.text.strip())
            elif isinstance(part, Media):
                self.medium(part)
        self._end(False)

    def _thought(self, text: str, learned: bool) -> None:
        self.control("channel", learned)
        line_end = "\n" if text and self._variants.thought_line_end else ""
        self.text(f"thought\n{text}{line_end}", learned)
        self.control("channel_end", learned)

    def _model(self, contents: Sequence[Content], thoughts: bool, ask: bool, is_last: bool) -> bool:
        """One turn of the model; ``thoughts`` are kept or removed. Returns whether calls are left without results."""
        if contents[0].role == "tool":
            raise ValueError("results of tools that no turn of the model before them calls")
        parts = join(part for content in contents for part in content.parts)
        self.control("turn")
        self.text("model\n")
        has_thought = any(isinstance(part, Thought) for part in parts)
        # As it will be asked: an answer without a thought follows the empty one.
        if is_last and not ask and not has_thought and self._variants.empty_thought != "never":
            self._thought("", False)
        called, answered = list[str](), 0
        for part in parts:
            if isinstance(part, ToolResult):
                if part.name not in called:
                    raise ValueError(f"a result of the tool {part.name!r}, which the turn before it does not call")
                self._result(part, answered == 0)
                called.remove(part.name)
                answered += 1
            elif called and answered:
                raise ValueError(f"the call of the tool {called[0]!r} has no result")
            else:
                answered = 0
                self._written(part, thoughts)
            if isinstance(part, ToolCall):
                called.append(part.name)
        if called and answered:
            raise ValueError(f"the call of the tool {called[0]!r} has no result")
        if called:
            # This token ends a call.
            self.control("response", True)
        elif not (ask and contents[-1].role == "tool"):
            self._end(contents[-1].role == "model")
        elif self._thinking and self._variants.thought_after_results:
            self.control("channel")
            self.text("thought\n")
        elif not self._thinking and self._variants.empty_thought == "always":
            self._thought("", False)
        return bool(called)

    def _written(self, part: Part, thoughts: bool) -> None:
        """What the model writes itself."""
        if isinstance(part, Text):
            self.text(part.text.strip(), True)
        elif isinstance(part, Thought) and thoughts:
            self._thought(part.text, True)
        elif isinstance(part, ToolCall):
            self.control("call", True)
            self.pieces(write_call(part, self._settings.controls["quote"]), True)
            self.control("call_end", True)

    def _result(self, part: ToolResult, is_first: bool) -> None:
        # With the first of these tokens the model ends its calls.
        self.control("response", is_first)
        self.pieces(write_result(part, self._settings.controls["quote"]))
        self.control("response_end")
        for medium in part.parts:
            self.medium(medium)


# ── media ──────────────────────────────────────────────────────────────────────────────────────────────────


def marks(settings: PromptSettings, kind: str) -> tuple[list[str | int], list[str | int]]:
    """What stands before and after the placeholders of an ``image`` or an ``audio`` item, line ends included."""
    around: list[str | int] = [*filter(None, [paragraph(settings, kind)])]
    return [*around, settings.controls[f"{kind}_start"]], [settings.controls[f"{kind}_end"], *around]


def paragraph(settings: PromptSettings, kind: str) -> str:
    """The line ends before and after a medium."""
    is_apart = settings.format != "gemma4" or (settings.variants.media_paragraphs and kind != "audio")
    return "\n\n" if is_apart else ""
