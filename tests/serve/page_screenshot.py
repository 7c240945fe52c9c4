"""Takes the screenshots of the docs: opens the page of a running server, asks, and saves what it then shows.

    alhena serve runs/starter &
    python -m tests.serve.page_screenshot http://127.0.0.1:8000 docs/page.png "What shape is red? @scene.png" "Draw a red circle."

A message may name a file to attach after ``@``. ``--phone`` and ``--dark`` change the screen.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

from PIL import Image

from tests.serve.chromium import Page, browser

# Of a font that looks alike on every machine, where it is installed.
FONT = "document.documentElement?.style.setProperty('--body', 'Inter, system-ui')"
DONE = "document.getElementById('stop').hidden && document.querySelectorAll('.turn.model').length"


def ask(page: Page, message: str) -> None:
    text, _, file = message.partition("@")
    if file:
        page.attach("#files", [Path(file).resolve()])
        page.wait("!document.getElementById('attachments').hidden")
    page.type("#prompt", text.strip())
    page.run("document.getElementById('composer').requestSubmit()")
    page.wait("document.getElementById('prompt').value === ''")
    page.wait(DONE, 600)
    # The tokens of the conversation are counted and its pictures loaded.
    page.wait("document.getElementById('count').textContent && [...document.images].every((image) => image.complete)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("png", type=Path)
    parser.add_argument("messages", nargs="*")
    parser.add_argument("--phone", action="store_true")
    parser.add_argument("--dark", action="store_true")
    arguments = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, browser(Path(folder)) as page:
        width, height, scale = (390, 780, 1.5) if arguments.phone else (1280, 920, 1.5)
        page.emulate(width, height, "dark" if arguments.dark else "light", scale)
        page.open(arguments.url)
        page.run(FONT)
        page.wait("document.getElementById('model').value")
        for message in arguments.messages:
            ask(page, message)
        page.run("document.activeElement.blur(); new Promise((done) => setTimeout(done, 500))")
        save(page.screenshot(), arguments.png)


def save(png: bytes, path: Path) -> None:
    """Saves with a palette of 256 colors, which such a picture hardly exceeds: a third of the bytes."""
    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(path, optimize=True)
    print(f"{path}: {image.width} x {image.height}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
