"""Terminal chat: a line may hold paths of pictures, sounds and clips; drawn pictures are saved and shown.

you    what shape is this? scene.png
model  circle
you    Draw a red star.
model  ▄▀▄  saved as alhena-001.png
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text as Line

from alhena.content import MEDIA, MIME_OF_SUFFIX, Content, Image, Part, Text
from alhena.files import write_atomically
from alhena.media import LIMITS, check, decode_image
from alhena.serve.engine import Answer, Engine
from alhena.serve.sampler import DRAWING, Sampling

HELP = """Write a question; write paths of files into it to show or play them (png, jpg, webp, wav, flac, mp3, ogg, mp4, webm).
/reset begins a new conversation   /help shows this   /quit leaves"""

KINDS = {suffix: (mime.split("/")[0], mime) for suffix, mime in MIME_OF_SUFFIX.items()}

# Words in quotes of any kind, which an apostrophe inside a word is not; else a word, in which a backslash keeps a space.
WORD = re.compile(r"(?:\\.|[^\s\\])+|\\")
ITEM = re.compile(r"""(?<!\w)(?:"([^"]+)"|'([^']+)'|“([^”]+)”|‘([^’]+)’|«([^»]+)»|`([^`]+)`)(?!\w)|""" + WORD.pattern)


def _is_file(name: str) -> bool:
    try:
        return Path(name).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # a name that is too long, holds a NUL, or has a home that is not there
        return False


def _kind_of(name: str) -> tuple[str, str] | None:
    return KINDS.get(Path(name).suffix.lower())


def _path_in(word: str) -> str | None:
    """The path that a word without quotes holds: all of it, or what is left without punctuation around it.

    A file that exists wins; else what ends like a media file. None: the word is no path.
    """
    start = len(word) - len(word.lstrip("([{<\"'“‘«"))
    ends = [len(word), *(match.end() for match in re.finditer(r"\w(?=\W|$)", word))]
    found = [word[start:end] for end in sorted(set(ends), reverse=True) if end > start]
    for name in found:
        if _is_file(_unescaped(name)) and (set("./~") & set(name)):
            return name
    return next((name for name in found if _kind_of(_unescaped(name))), None)


def _unescaped(word: str) -> str:
    return re.sub(r"\\(.)", r"\1", word)


def _paths(line: str) -> Iterator[tuple[int, int, str]]:
    """Where paths are in a line, quotes included, and their names."""
    for match in ITEM.finditer(line):
        quoted = next((name for name in match.groups() if name is not None), None)
        inside = [(word, name) for word in WORD.finditer(match[0]) if (name := _path_in(word[0])) is not None]
        there = any(_is_file(_unescaped(name)) for _, name in inside)
        if quoted is not None and (_is_file(quoted) or (_kind_of(quoted) and not there)):
            yield match.start(), match.end(), quoted
            continue
        for word, name in inside:
            start = match.start() + word.start() + word[0].index(name)
            yield start, start + len(name), _unescaped(name)


def _read_file(name: str) -> Part:
    """Raises ValueError that names the file when it is not there or cannot be read."""
    path, kind = Path(name).expanduser(), _kind_of(name)
    if not _is_file(name):
        raise ValueError(f"{name}: there is no such file here (a name with spaces needs quotes)")
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
    """Parts of a line: media files first, then the words. Raises ValueError that names a file that is not there or does not decode.

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


def blocks(pixels: np.ndarray) -> Line:
    """A picture in half-block characters, two pixels of height a line."""
    out = Line()
    for top, bottom in zip(pixels[::2], pixels[1::2], strict=False):
        for a, b in zip(top, bottom, strict=True):
            out.append("▀", style=f"rgb({a[0]},{a[1]},{a[2]}) on rgb({b[0]},{b[1]},{b[2]})")
        out.append("\n")
    return out


def save(data: bytes, folder: Path) -> Path:
    """Saves a drawn picture under the next free name."""
    number = 1
    while (path := folder / f"alhena-{number:03d}.png").exists():
        number += 1
    write_atomically(path, data)
    return path


def turn(engine: Engine, contents: list[Content], console: Console, folder: Path, sampling: Sampling) -> Content:
    """Streams one answer to the console; pictures are saved under ``folder``."""
    answer: Answer | None = None
    for news in engine.stream(contents, sampling):
        if isinstance(news, Answer):
            answer = news
        elif isinstance(news, Text):
            console.print(news.text, end="", markup=False, highlight=False, soft_wrap=True)
        elif isinstance(news, Image):
            path = save(news.data, folder)
            if console.is_terminal:
                console.print(blocks(decode_image(news.data)))
            console.print(f"saved as {path}", highlight=False)
    assert answer is not None  # a stream ends with its answer
    console.print("" if answer.finish == "stop" else " …")
    return answer.content


def chat(
    folder: Path,
    ask: str | None = None,
    pictures: Path = Path("."),
    sampling: Sampling = Sampling(max_tokens=128, guidance=DRAWING),
) -> None:
    """Talks until ``/quit`` or the end of input; with ``ask``, answers once."""
    console, engine = Console(), Engine.load(folder)
    contents: list[Content] = []
    if ask is not None:
        turn(engine, [Content("user", read_line(ask))], console, pictures, sampling)
        return
    if sys.stdin.isatty():
        console.print(f"[bold]{engine.name}[/bold] of {folder}. {HELP}")
    while True:
        try:
            line = console.input("[bold]you[/bold]    " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except UnicodeDecodeError as error:
            _complain(console, f"the line is not text: {error}")
            continue
        if line == "/quit":
            return
        if line in ("/help", "/reset"):
            contents = [] if line == "/reset" else contents
            console.print(HELP if line == "/help" else "A new conversation.")
        elif line:
            contents = _reply(engine, contents, line, console, pictures, sampling)


def _complain(console: Console, message: str) -> None:
    console.print(message.encode("utf-8", "backslashreplace").decode(), style="red", markup=False, highlight=False)


def _reply(
    engine: Engine, contents: list[Content], line: str, console: Console, pictures: Path, sampling: Sampling
) -> list[Content]:
    """One exchange; a line that cannot be read or answered leaves the conversation as it was."""
    try:
        asked = [*contents, Content("user", read_line(line))]
        console.print("[bold]model[/bold]  ", end="")
        return [*asked, turn(engine, asked, console, pictures, sampling)]
    except (ValueError, OSError, RuntimeError) as error:
        hint = "; /reset begins a new conversation" if contents and "at most" in str(error) else ""
        _complain(console, f"{error}{hint}")
    except KeyboardInterrupt:
        _complain(console, " (stopped)")
    return contents
