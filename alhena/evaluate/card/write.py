"""Writes a report card: report.html, report.png, report.md and report.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alhena.evaluate.card.card import Card, make_card
from alhena.evaluate.card.chart import plot_card
from alhena.evaluate.card.markdown import markdown
from alhena.evaluate.card.page import page
from alhena.evaluate.card.sources import Source, read_source, result_files
from alhena.files import write_atomically, write_json

FILES = ("report.html", "report.png", "report.md", "report.json")


def split_label(source: str | Path) -> tuple[str, Path]:
    """The label and the path of ``NAME=PATH``; a path that exists has no label.

    >>> split_label("gemma=runs/a")
    ('gemma', PosixPath('runs/a'))
    """
    label, sign, path = str(source).partition("=")
    if not sign or Path(source).exists():
        return "", Path(source)
    return label.strip(), Path(path)


def read_sources(paths: Sequence[str | Path]) -> list[Source]:
    """The sources at paths, each a file, a folder or a run, or NAME=PATH. Raises ValueError that names what cannot be read."""
    out = []
    for given in paths:
        label, path = split_label(given)
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder of results")
        out += [read_source(file, label) for file in result_files(path) if file.name not in FILES]
    return out


def write_card(paths: Sequence[str | Path], out: Path) -> Card:
    """Reads results, and writes the card of all of them to a folder."""
    card = make_card(read_sources(paths))
    write_json(out / "report.json", card.to_json())
    write_atomically(out / "report.md", markdown(card))
    write_atomically(out / "report.html", page(card))
    plot_card(card, out / "report.png")
    return card
