"""Prose and code: documentation and source of Python's standard library, in chunks of at most 500 characters.

pydoc's language reference, docstrings   ──►  source "text"       all chunks of a module (or a topic) belong to one split:
source files without their docstrings    ──►  source "code"       training contains no chunk of a test module
modules and topics as they are           ──►  source "modules"    long running text, split where a sequence ends
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


@lru_cache(maxsize=1)
def _texts() -> dict[str, str]:
    """Name → text of every topic and module."""
    from pydoc_data.topics import topics

    root, texts = Path(sysconfig.get_path("stdlib")), {f"topic {name}": text for name, text in topics.items()}
    for path in root.rglob("*.py"):
        name = path.relative_to(root)
        if EXCLUDED_FOLDERS.isdisjoint(name.parts) and path.stat().st_size < MAX_FILE_BYTES:
            try:
                texts[name.as_posix()] = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                # A file that declares another encoding.
                continue
    return texts


def _modules() -> Iterator[tuple[str, list[str], str]]:
    """Name, prose and code of every topic and module, in an order that depends on their names only."""
    texts = _texts()
    for name in sorted(texts, key=lambda name: hash_fraction("order", name)):
        if name.startswith("topic "):
            yield name, [texts[name]], ""
            continue
        try:
            yield name, *prose_and_code(texts[name])
        except SyntaxError:
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


@lru_cache(maxsize=3)
def whole_modules(split: Split) -> dict[str, str]:
    """Name → text of the topics and modules of a split, those of a package one after the other."""
    texts = {name: text.strip() for name, text in sorted(_texts().items()) if split_of("module", name) == split}
    return {name: text for name, text in texts.items() if len(text) >= MIN_CHARACTERS}


def make_module(spec: ItemSpec) -> Document:
    """The next longest module."""
    modules = sorted(whole_modules(spec.split).items(), key=lambda item: -len(item[1]))
    name, text = modules[spec.index % len(modules)]
    return plain_document(spec, [Text(text)], "en", module=name)
