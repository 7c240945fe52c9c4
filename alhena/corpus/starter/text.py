"""Prose and code: documentation and source of the running Python's standard library, in pieces of at most 500 letters.

pydoc's language reference, docstrings   ──►  source "text"       a module (or a topic) belongs to one split whole, so
source files without their docstrings    ──►  source "code"       no piece of a test module was ever read in training
"""

from __future__ import annotations

import ast
import inspect
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from alhena.content import Document, Text
from alhena.corpus.starter.items import Order, running
from alhena.corpus.starter.splits import SPLITS, Split, share, split_of

LONGEST, SHORTEST = 500, 120
LEFT_OUT = {
    "test",
    "tests",
    "site-packages",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "encodings",
    "pydoc_data",
    "ensurepip",
}
LARGEST_FILE = 200_000


def pieces(text: str) -> Iterator[str]:
    """Cuts at line ends, and before a blank line where there is one.

    >>> [len(p) for p in pieces("\\n".join(["x" * 99] * 12))]
    [499, 499, 199]
    """
    lines: list[str] = []
    size = 0
    for line in text.splitlines():
        if lines and (size + len(line) + 1 > LONGEST or (not line.strip() and size > LONGEST * 0.6)):
            yield "\n".join(lines).strip("\n")
            lines, size = [], 0
        if len(line) < LONGEST and (line.strip() or lines):
            lines.append(line.rstrip())
            size += len(line) + 1
    yield "\n".join(lines).strip("\n")


def _docstrings(tree: ast.Module) -> Iterator[tuple[ast.Constant, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                yield first.value, inspect.cleandoc(first.value.value)


def prose_and_code(source: str) -> tuple[list[str], str]:
    """The docstrings of a module, and its source without them.

    >>> prose_and_code('\"\"\"Adds.\"\"\"\\nx = 1 + 1')
    (['Adds.'], 'x = 1 + 1')
    """
    prose, lines = [], source.splitlines()
    for node, text in _docstrings(ast.parse(source)):
        prose.append(text)
        assert node.end_lineno is not None
        if node.col_offset == len(lines[node.lineno - 1]) - len(lines[node.lineno - 1].lstrip()):
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    code = "\n".join(line for i, line in enumerate(lines) if line.strip() or (i and lines[i - 1].strip()))
    return prose, code.strip("\n")


def _modules() -> Iterator[tuple[str, list[str], str]]:
    """Name, prose and code of everything, in an order that depends on names alone."""
    from pydoc_data.topics import topics

    root = Path(sysconfig.get_path("stdlib"))
    files = [p.relative_to(root) for p in root.rglob("*.py") if LEFT_OUT.isdisjoint(p.relative_to(root).parts)]
    names: dict[str, Path | None] = {f"topic {name}": None for name in topics}
    names |= {path.as_posix(): path for path in files if (root / path).stat().st_size < LARGEST_FILE}
    for name in sorted(names, key=lambda name: share("order", name)):
        path = names[name]
        if path is None:
            yield name, [topics[name.removeprefix("topic ")]], ""
            continue
        try:
            yield name, *prose_and_code((root / path).read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # a file that is there to be broken, such as a template


@lru_cache(maxsize=1)
def library() -> dict[tuple[str, Split], list[tuple[str, str]]]:
    """(source, split) → pieces with their module, mixed so that a few of them sample the whole library."""
    found: dict[tuple[str, Split], list[tuple[str, str]]] = {(s, p): [] for s in ("text", "code") for p in SPLITS}
    seen: set[str] = set()  # modules copy from one another; a piece belongs to the first
    for name, prose, code in _modules():
        split = split_of("module", name)
        for source, text in (("text", "\n\n".join(prose)), ("code", code)):
            new = [piece for piece in pieces(text) if len(piece) >= SHORTEST and piece not in seen]
            found[source, split] += [(name, piece) for piece in dict.fromkeys(new)]
            seen.update(new)
    return {key: sorted(items, key=lambda item: share("mix", *item)) for key, items in found.items()}


def make(order: Order) -> Document:
    """The pieces come one after the other; the seed shifts where the first is taken."""
    items = library()[order.source, order.split]
    name, piece = items[(order.index + order.seed) % len(items)]
    return running(order, [Text(piece)], "en" if order.source == "text" else "und", module=name)
