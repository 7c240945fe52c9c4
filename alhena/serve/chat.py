"""Terminal chat: a line may hold paths of images, audio and video; generated images are saved and shown.

you    what shape is this? scene.png
model  circle
you    Draw a red star.
model  ▄▀▄  saved as alhena-001.png
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text as Line

from alhena.content import MEDIA, MIME_OF_SUFFIX, Content, Image, Part, Text, Thought, ToolCall, call_text
from alhena.files import write_atomically
from alhena.media import LIMITS, check, decode_image
from alhena.serve.decoding.sampling.sampler import IMAGE_GUIDANCE, Sampling
from alhena.serve.decoding.speculative.draft import DraftSource
from alhena.serve.decoding.warm_up import keep_compiled
from alhena.serve.engine import Answer, Engine, Prompt
from alhena.shapes import UInt8

HELP = """Write a question. Paths of files in it are sent with it (png, jpg, webp, wav, flac, mp3, ogg, mp4, webm).
/reset begins a new conversation   /help shows this   /quit ends the chat"""

# Of one answer.
MAX_TOKENS = 1024

KINDS = {suffix: (mime.split("/")[0], mime) for suffix, mime in MIME_OF_SUFFIX.items()}

# Words in quotes of any kind (an apostrophe inside a word is none); else a word, in which a backslash escapes a space.
WORD = re.compile(r"(?:\\.|[^\s\\])+|\\")
ITEM = re.compile(r"""(?<!\w)(?:"([^"]+)"|'([^']+)'|“([^”]+)”|‘([^’]+)’|«([^»]+)»|`([^`]+)`)(?!\w)|""" + WORD.pattern)


def _is_file(name: str) -> bool:
    try:
        return Path(name).expanduser().is_file()
    # A name that is too long, holds a NUL, or is below the home of an unknown user.
    except (OSError, ValueError, RuntimeError):
        return False


def _kind_of(name: str) -> tuple[str, str] | None:
    return KINDS.get(Path(name).suffix.lower())


def _path_in(word: str) -> str | None:
    """The path in a word without quotes: the word with or without the punctuation around it.

    An existing file comes first, then a name with the suffix of a media file. None: the word is no path.
    """
    start = len(word) - len(word.lstrip("([{<\"'“‘«"))
    ends = [len(word), *(match.end() for match in re.finditer(r"\w(?=\W|$)", word))]
    candidates = [word[start:end] for end in sorted(set(ends), reverse=True) if end > start]
    for name in candidates:
        if _is_file(_unescaped(name)) and (set("./~") & set(name)):
            return name
    return next((name for name in candidates if _kind_of(_unescaped(name))), None)


def _unescaped(word: str) -> str:
    return re.sub(r"\\(.)", r"\1", word)


def _paths(line: str) -> Iterator[tuple[int, int, str]]:
    """Start and end of each path in a line, quotes included, and its name."""
    for match in ITEM.finditer(line):
        quoted = next((name for name in match.groups() if name is not None), None)
        matches = [(word, name) for word in WORD.finditer(match[0]) if (name := _path_in(word[0])) is not None]
        has_file = any(_is_file(_unescaped(name)) for _, name in matches)
        if quoted is not None and (_is_file(quoted) or (_kind_of(quoted) and not has_file)):
            yield match.start(), match.end(), quoted
            continue
        for word, name in matches:
            start = match.start() + word.start() + word[0].index(name)
            yield start, start + len(name), _unescaped(name)


def _read_file(name: str) -> Part:
    """Raises ValueError that names the file when it does not exist or cannot be read."""
    path, kind = Path(name).expanduser(), _kind_of(name)
    if not _is_file(name):
        raise ValueError(f"{name}: there is no such file (a name with spaces needs quotes)")
    if kind is None:
        raise ValueError(f"{name}: this kind of file cannot be read; {', '.join(KINDS)} can be")
    try:
        with path.open("rb") as file:
            part = MEDIA[kind[0]](file.read(LIMITS.bytes + 1), kind[1])
        check(part)
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return part


def read_line(line: str) -> tuple[Part, ...]:
    """Parts of a line: media files first, then the text. Raises ValueError that names a file that does not exist or decode.

    >>> read_line("What is this?")
    (Text(text='What is this?'),)
    """
    media: list[Part] = []
    text, end = "", 0
    for start, after, name in _paths(line):
        media.append(_read_file(name))
        text, end = text + line[end:start], after
    text = " ".join((text + line[end:]).split())
    return (*media, Text(text)) if text else tuple(media)


def half_blocks(pixels: UInt8[np.ndarray, "height width 3"]) -> Line:
    """An image in half-block characters, two rows of pixels in a line of text."""
    out = Line()
    for top, bottom in zip(pixels[::2], pixels[1::2], strict=False):
        for upper, lower in zip(top, bottom, strict=True):
            foreground, background = (f"rgb({r},{g},{b})" for r, g, b in (upper, lower))
            out.append("▀", style=f"{foreground} on {background}")
        out.append("\n")
    return out


def save(data: bytes, folder: Path) -> Path:
    """Saves a generated image under the next free name."""
    number = 1
    while (path := folder / f"alhena-{number:03d}.png").exists():
        number += 1
    write_atomically(path, data)
    return path


@dataclass(frozen=True)
class Chat:
    """A chat in the terminal: the engine, where its answers are printed and its images saved, and how they are sampled."""

    engine: Engine
    console: Console
    sampling: Sampling
    image_folder: Path = Path(".")
    system: str | None = None
    thinking: bool = False

    def prompt(self, contents: Sequence[Content]) -> Prompt:
        system = (Content("system", (Text(self.system),)),) if self.system else ()
        return Prompt((*system, *contents), thinking=self.thinking)

    def stream_answer(self, contents: Sequence[Content]) -> Content:
        """Streams one answer to the console; images are saved. Returns the turn of the model."""
        answer: Answer | None = None
        previous: Part | None = None
        for item in self.engine.stream(self.prompt(contents), self.sampling):
            if isinstance(item, Answer):
                answer = item
                continue
            if previous is not None and type(previous) is not type(item):
                self.console.print()
            self._print(item)
            previous = item
        # A stream ends with its answer.
        assert answer is not None
        self.console.print("" if answer.finish == "stop" else " …")
        return answer.content

    def _print(self, part: Part) -> None:
        if isinstance(part, Text | Thought):
            style = "dim" if isinstance(part, Thought) else None
            self.console.print(part.text, end="", style=style, markup=False, highlight=False, soft_wrap=True)
        elif isinstance(part, Image):
            path = save(part.data, self.image_folder)
            if self.console.is_terminal:
                self.console.print(half_blocks(decode_image(part.data)))
            self.console.print(f"saved as {path}", highlight=False)
        elif isinstance(part, ToolCall):
            self.console.print(f"calls {call_text(part)}", style="cyan", markup=False, highlight=False, end="")

    def reply(self, contents: list[Content], line: str) -> list[Content]:
        """The conversation with one more turn; unchanged when the line cannot be read or answered."""
        try:
            conversation = [*contents, Content("user", read_line(line))]
            self.console.print("[bold]model[/bold]  ", end="")
            answer = self.stream_answer(conversation)
            if any(isinstance(part, ToolCall) for part in answer.parts):
                raise ValueError("this chat runs no tools: the turn is left out of the conversation")
            return [*conversation, answer]
        except (ValueError, OSError, RuntimeError) as error:
            hint = "; /reset begins a new conversation" if contents and "at most" in str(error) else ""
            _print_error(self.console, f"{error}{hint}")
        except KeyboardInterrupt:
            _print_error(self.console, " (stopped)")
        return contents

    def run(self, folder: Path) -> None:
        """Reads and answers lines until ``/quit`` or the end of input."""
        contents: list[Content] = []
        if sys.stdin.isatty():
            self.console.print(f"[bold]{self.engine.name}[/bold] of {folder}. {HELP}")
        while True:
            try:
                line = self.console.input("[bold]you[/bold]    " if sys.stdin.isatty() else "").strip()
            except EOFError:
                return
            except UnicodeDecodeError as error:
                _print_error(self.console, f"the line is not text: {error}")
                continue
            if line == "/quit":
                return
            if line in ("/help", "/reset"):
                contents = [] if line == "/reset" else contents
                self.console.print(HELP if line == "/help" else "A new conversation.")
            elif line:
                contents = self.reply(contents, line)


def chat(
    folder: Path,
    ask: str | None = None,
    system: str | None = None,
    thinking: bool = False,
    draft: DraftSource | None = None,
    cache_dtype: str | None = None,
) -> None:
    """Chats with the model of a folder; with ``ask``, answers that question only.

    ``system`` is the instruction before the first turn; with ``thinking`` the model thinks before it answers;
    ``draft`` proposes tokens; ``cache_dtype`` is that of keys and values (None: the model's).
    """
    keep_compiled()
    engine = Engine.load(folder, slots=2, draft=draft, cache_dtype=cache_dtype)
    guidance = 1.0 if engine.image_decoder is None else IMAGE_GUIDANCE
    sampling = replace(engine.default_sampling, max_tokens=MAX_TOKENS, guidance=guidance)
    session = Chat(engine, Console(), sampling, system=system, thinking=thinking)
    if ask is not None:
        session.stream_answer([Content("user", read_line(ask))])
    else:
        session.run(folder)


def _print_error(console: Console, message: str) -> None:
    console.print(message.encode("utf-8", "backslashreplace").decode(), style="red", markup=False, highlight=False)
