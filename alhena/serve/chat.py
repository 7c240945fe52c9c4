"""Terminal chat: a line may hold paths of pictures, sounds and clips; drawn pictures are saved and shown.

you    what shape is this? scene.png
model  circle
you    Draw a red star.
model  ▄▀▄  saved as alhena-001.png
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text as Line

from alhena.content import MEDIA, MIME_OF_SUFFIX, Content, Image, Part, Text
from alhena.media import check, decode_image
from alhena.serve.engine import Answer, Engine
from alhena.serve.sampler import DRAWING, Sampling

HELP = """Write a question; write paths of files into it to show or play them (png, jpg, webp, wav, flac, mp3, ogg, mp4, webm).
/reset begins a new conversation   /help shows this   /quit leaves"""


def read_line(line: str) -> tuple[Part, ...]:
    """Parts of a line: media files first, then the words. Raises ValueError that names a file that is not there or does not decode.

    >>> read_line("What is this?")
    (Text(text='What is this?'),)
    """
    try:
        words = shlex.split(line, posix=True)
    except ValueError:  # an apostrophe is no quotation
        words = line.split()
    named = [word for word in words if Path(word).suffix.lower() in MIME_OF_SUFFIX]
    media: list[Part] = []
    for word in named:
        path = Path(word).expanduser()
        if not path.is_file():
            raise ValueError(f"{word}: there is no such file here")
        mime = MIME_OF_SUFFIX[path.suffix.lower()]
        media.append(MEDIA[mime.split("/")[0]](path.read_bytes(), mime))
        try:
            check(media[-1])
        except ValueError as error:
            raise ValueError(f"{word}: {error}") from None
        line = re.sub(r"""["']?""" + re.escape(word) + r"""["']?""", "", line, count=1)
    text = " ".join(line.split())
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
    path.write_bytes(data)
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
        if line == "/quit":
            return
        if line in ("/help", "/reset"):
            contents = [] if line == "/reset" else contents
            console.print(HELP if line == "/help" else "A new conversation.")
        elif line:
            contents = _reply(engine, contents, line, console, pictures, sampling)


def _reply(
    engine: Engine, contents: list[Content], line: str, console: Console, pictures: Path, sampling: Sampling
) -> list[Content]:
    """One exchange; a line that cannot be read leaves the conversation as it was."""
    try:
        asked = [*contents, Content("user", read_line(line))]
        console.print("[bold]model[/bold]  ", end="")
        return [*asked, turn(engine, asked, console, pictures, sampling)]
    except ValueError as error:
        console.print(f"[red]{error}[/red]")
        return contents
