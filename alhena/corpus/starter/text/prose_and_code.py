"""Prose and code: documentation and source of Python's standard library, in chunks of at most 500 characters.

pydoc's language reference, docstrings   ──►  source "text"       all chunks of a module (or a topic) belong to one split:
source files without their docstrings    ──►  source "code"       training contains no chunk of a test module
both of one module, whole                ──►  source "modules"    long running text, split where a sequence ends
"""

from __future__ import annotations

import ast
import inspect
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from alhena.content import Document, Text
from alhena.corpus.starter.items import ItemSpec, plain_document
from alhena.corpus.starter.splits import SPLITS, Split, hash_fraction, split_of

MAX_CHARACTERS, MIN_CHARACTERS = 500, 120
EXCLUDED_FOLDERS = {
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
MAX_FILE_BYTES = 200_000


def chunks(text: str) -> Iterator[str]:
    """Splits a text at line ends; once a chunk has 60 % of its maximum length, at the next blank line.

    >>> [len(chunk) for chunk in chunks("\\n".join(["x" * 99] * 12))]
    [499, 499, 199]
    """
    lines: list[str] = []
    size = 0
    for line in text.splitlines():
        if lines and (size + len(line) + 1 > MAX_CHARACTERS or (not line.strip() and size > MAX_CHARACTERS * 0.6)):
            yield "\n".join(lines).strip("\n")
            lines, size = [], 0
        if len(line) < MAX_CHARACTERS and (line.strip() or lines):
            lines.append(line.rstrip())
            size += len(line) + 1
    yield "\n".join(lines).strip("\n")


def _docstrings(tree: ast.Module) -> Iterator[tuple[ast.Constant, str]]:
    """Every docstring: its node, and its text without indentation."""
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
    """Name, prose and code of every topic and module, in an order that depends on their names only."""
    from pydoc_data.topics import topics

    root = Path(sysconfig.get_path("stdlib"))
    files = [p.relative_to(root) for p in root.rglob("*.py") if EXCLUDED_FOLDERS.isdisjoint(p.relative_to(root).parts)]
    names: dict[str, Path | None] = {f"topic {name}": None for name in topics}
    names |= {path.as_posix(): path for path in files if (root / path).stat().st_size < MAX_FILE_BYTES}
    for name in sorted(names, key=lambda name: hash_fraction("order", name)):
        path = names[name]
        if path is None:
            yield name, [topics[name.removeprefix("topic ")]], ""
            continue
        try:
            yield name, *prose_and_code((root / path).read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            # A file with deliberate errors, such as a template.
            continue


@lru_cache(maxsize=1)
def standard_library() -> dict[tuple[str, Split], list[tuple[str, str]]]:
    """(source, split) → chunks with the name of their module, in an order such that any run of them samples the whole library."""
    by_split: dict[tuple[str, Split], list[tuple[str, str]]] = {(s, p): [] for s in ("text", "code") for p in SPLITS}
    # Modules share text; a chunk belongs to the first one.
    seen: set[str] = set()
    for name, prose, code in _modules():
        split = split_of("module", name)
        for source, text in (("text", "\n\n".join(prose)), ("code", code)):
            new = [chunk for chunk in chunks(text) if len(chunk) >= MIN_CHARACTERS and chunk not in seen]
            by_split[source, split] += [(name, chunk) for chunk in dict.fromkeys(new)]
            seen.update(new)
    return {key: sorted(items, key=lambda item: hash_fraction("mix", *item)) for key, items in by_split.items()}


def make(spec: ItemSpec) -> Document:
    """The next chunk in order; the seed is the offset of the first."""
    items = standard_library()[spec.source, spec.split]
    name, chunk = items[(spec.index + spec.seed) % len(items)]
    return plain_document(spec, [Text(chunk)], "en" if spec.source == "text" else "und", module=name)


@lru_cache(maxsize=1)
def _whole_modules() -> dict[Split, list[tuple[str, str]]]:
    """Split → names and texts of modules, longest first."""
    by_split: dict[Split, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for name, prose, code in _modules():
        text = "\n\n".join([*prose, code]).strip()
        if len(text) >= MIN_CHARACTERS:
            by_split[split_of("module", name)].append((name, text))
    return {split: sorted(items, key=lambda item: -len(item[1])) for split, items in by_split.items()}


def make_module(spec: ItemSpec) -> Document:
    """The next longest module."""
    items = _whole_modules()[spec.split]
    name, text = items[spec.index % len(items)]
    return plain_document(spec, [Text(text)], "en", module=name)
