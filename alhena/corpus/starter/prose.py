"""Text: Python's own prose and code, names of things in many languages (CLDR), translation pairs, key-value lists."""

from __future__ import annotations

import ast
import re
import sysconfig
from functools import cache
from pathlib import Path

import numpy as np

from alhena.content import Document
from alhena.corpus.starter.splits import Question, Split, belongs, page, quiz

LANGUAGES = ("de", "es", "fr", "it", "pt", "ru", "el", "tr", "pl", "hi", "zh", "ja", "ko", "ar")
TRANSLATED = LANGUAGES[:2] + ("fr", "it", "ru", "el", "hi", "zh")
COUNTRIES = "DE FR ES IT GR IN CN JP BR EG TR RU PL SE NO FI KE PE CA MX".split()
CHUNK = 480  # characters of prose or code a document


@cache
def names(language: str) -> tuple[str, ...]:
    """Months, days, numbers, countries, languages by their names in one language, the same order in every language."""
    from babel import Locale
    from num2words import num2words

    locale = Locale.parse(language)
    months = [locale.months["stand-alone"]["wide"][m] for m in range(1, 13)]
    days = [locale.days["stand-alone"]["wide"][d] for d in range(7)]
    countries = [locale.territories[c] for c in COUNTRIES]
    languages = [locale.languages[code] for code in ("en", *TRANSLATED)]
    try:
        numbers = [num2words(n, lang=language) for n in range(11)]
    except NotImplementedError:  # num2words lacks some languages: their numbers are left in figures
        numbers = [str(n) for n in range(11)]
    return tuple(months + days + countries + languages + numbers)


@cache
def language_name(language: str) -> str:
    from babel import Locale

    return str(Locale.parse("en").languages[language])


def _pairs(split: Split) -> list[tuple[str, str, str, str]]:
    """(from, to, word, translation); numbers left in figures are no translation."""
    out = []
    for language in TRANSLATED:
        for english, foreign in zip(names("en"), names(language), strict=True):
            if not foreign.isdigit():
                out += [("en", language, english, foreign), (language, "en", foreign, english)]
    return [pair for pair in out if belongs(pair[:3], split, 0.12)]


pairs = cache(_pairs)


def make_translation(rng: np.random.Generator, split: Split, i: int) -> Document:
    known = pairs(split)
    chosen = [known[k] for k in rng.integers(0, len(known), 4 if split == "train" else 1)]
    asked: list[Question] = [("translation", f"Translate to {language_name(to)}: {word}", said) for _, to, word, said in chosen]
    return quiz("translation", (), asked, {"from": chosen[0][0], "to": chosen[0][1]}, "mul")


def make_names(rng: np.random.Generator, split: Split, i: int) -> Document:
    """Lists of one thing in several languages, or of many things in one."""
    english = names("en")
    if rng.random() < 0.6:
        k = int(rng.integers(len(english)))
        some = rng.permutation(len(LANGUAGES))[:6]
        body = "; ".join(f"{language_name(LANGUAGES[s])} {names(LANGUAGES[s])[k]}" for s in sorted(some))
        text = f"{english[k]}: {body}."
    else:
        language = LANGUAGES[rng.integers(len(LANGUAGES))]
        some = rng.permutation(len(english))[:6]
        text = f"{language_name(language)}: " + "; ".join(f"{english[k]} {names(language)[k]}" for k in sorted(some)) + "."
    return Document((page(text),), "", "names", "mul", {"task": "names"})


def _cut(text: str) -> list[str]:
    """Pieces of at most CHUNK characters, cut at line ends, none nearly empty."""
    pieces, piece = [], ""
    for line in text.splitlines(keepends=True):
        if len(piece) + len(line) > CHUNK and piece:
            pieces.append(piece)
            piece = ""
        piece += line[:CHUNK]
    return [p.strip("\n") for p in (*pieces, piece) if len(p.strip()) > 80]


@cache
def prose_chunks(split: Split) -> tuple[tuple[str, str], ...]:
    """(module, text): topics of Python's reference and module docstrings of its library."""
    from pydoc_data.topics import topics

    out = [(f"topic:{name}", text) for name, text in sorted(topics.items())]
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        try:
            out.append((path.stem, ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""))
        except (SyntaxError, UnicodeDecodeError):
            continue  # a file of another encoding is no prose of ours
    return tuple((name, chunk) for name, text in out if belongs(("prose", name), split) for chunk in _cut(text))


@cache
def code_chunks(split: Split) -> tuple[tuple[str, str], ...]:
    """(module, source) of the standard library's top-level modules, comments and docstrings included."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts = [(path.stem, path.read_text(encoding="utf-8", errors="replace")) for path in paths]
    return tuple((name, chunk) for name, text in texts if belongs(("code", name), split) for chunk in _cut(text))


def make_text(rng: np.random.Generator, split: Split, i: int) -> Document:
    chunks = prose_chunks(split)
    name, text = chunks[rng.integers(len(chunks))]
    return Document((page(text),), "", "text", "en", {"task": "text", "module": name})


def make_code(rng: np.random.Generator, split: Split, i: int) -> Document:
    chunks = code_chunks(split)
    name, text = chunks[rng.integers(len(chunks))]
    return Document((page(text),), "", "code", "und", {"task": "code", "module": name})


@cache
def keys() -> tuple[str, ...]:
    from pydoc_data.topics import topics

    words = sorted(set(re.findall(r"\b[a-z]{3,6}\b", " ".join(topics.values()))))
    return tuple(words[:: max(1, len(words) // 300)][:300])


def make_retrieval(rng: np.random.Generator, split: Split, i: int) -> Document:
    """A list of words and their numbers, then questions; the set of words keeps to its split."""
    while True:
        chosen = [keys()[k] for k in rng.permutation(len(keys()))[: int(rng.integers(4, 33 if split != "train" else 25))]]
        if belongs(("keys", tuple(sorted(chosen))), split):
            break
    values = [str(v) for v in rng.integers(10, 100, len(chosen))]
    context = "; ".join(f"{k} {v}" for k, v in zip(chosen, values, strict=True)) + ". "
    order = rng.permutation(len(chosen))[: 6 if split == "train" else 1]
    asked: list[Question] = [("retrieval", f"{context if n == 0 else ''}{chosen[k]}?", values[k]) for n, k in enumerate(order)]
    place = float(order[0]) / max(len(chosen) - 1, 1)
    return quiz("retrieval", (), asked, {"position": round(place, 3), "pairs": len(chosen)})
