"""What a document must pass: each filter says why it drops, and ``alhena.corpus.curate`` counts.

valid      every medium decodes within bounds, text is text, something is there
quality    running prose that looks like prose: Gopher's and C4's rules (Rae et al. 2021, Raffel et al. 2020), for short texts
blocked    a callable of the user's (a classifier, a word list) says why a document is harmful
Seen       not the same as an earlier document, bytes of media included
Held       shares no long run of words, and no whole question, with an evaluation set (n-gram overlap: Brown et al. 2020)
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable

from alhena.content import Document, Text
from alhena.media import check

Reason = tuple[str, str]  # reason, particulars
Blocked = Callable[[Document], str | None]


def valid(document: Document) -> Reason | None:
    """Why a document cannot be used at all, or None."""
    if not any(True for _ in document.parts):
        return "empty", "no text and no media"
    for number, part in enumerate(document.parts):
        try:
            if isinstance(part, Text) and ("\0" in part.text or not _is_unicode(part.text)):
                return "broken text", f"part {number} holds NUL or half a surrogate pair"
            check(part)
        except ValueError as error:
            return f"{type(part).__name__.lower()} does not decode", f"part {number}: {error}"
    texts = [part.text for part in document.parts if isinstance(part, Text)]
    if all(isinstance(part, Text) for part in document.parts) and not "".join(texts).strip():
        return "empty", "only spaces"
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def quality(document: Document, least_words: int) -> Reason | None:
    """Why running prose is poor, or None; chats, media and code are not judged."""
    if "code" in (document.source, document.facts.get("task")) or any(c.role != "document" for c in document.contents):
        return None
    if any(not isinstance(part, Text) for part in document.parts):
        return None
    text = "\n".join(part.text for part in document.parts if isinstance(part, Text))
    words, lines = text.split(), [line.strip() for line in text.splitlines() if line.strip()]
    spaceless = sum("\u3040" <= ch <= "\u9fff" or "\uac00" <= ch <= "\ud7af" for ch in text) > len(text) / 4
    if len(words) < least_words and not spaceless:
        return "too short", f"{len(words)} words, at least {least_words} wanted"
    if len(words) >= 20:
        letters = sum(any(ch.isalpha() for ch in word) for word in words) / len(words)
        if letters < 0.5:
            return "few words with letters", f"{letters:.0%}, at least 50 % wanted"
        top, count = Counter(words).most_common(1)[0]
        if count / len(words) > 0.4:
            return "one word repeated", f"{top[:20]!r} is {count / len(words):.0%} of all words"
    if len(lines) >= 6 and len(set(lines)) / len(lines) < 0.4:
        return "lines repeated", f"only {len(set(lines))} of {len(lines)} lines differ"
    longest = max((len(word) for word in words), default=0)
    if longest > 400 and not spaceless:
        return "no spaces", f"a word of {longest} characters"
    return None


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def digest(document: Document) -> bytes:
    """Hash of the content: roles, text without regard to spacing, and the media's bytes."""
    h = hashlib.blake2b(digest_size=16)
    for content in document.contents:
        h.update(content.role.encode() + b"\1")
        for part in content.parts:
            h.update(
                b"\2" + (_normal(part.text).encode("utf-8", "replace") if isinstance(part, Text) else b"\3" + part.data)
            )
    return h.digest()


class Seen:
    """Exact deduplication: remembers one hash a document."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def __call__(self, document: Document) -> Reason | None:
        key = digest(document)
        if key in self._digests:
            return "duplicate", "the same content came earlier"
        self._digests.add(key)
        return None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _questions(document: Document) -> Iterable[tuple[bytes, ...]]:
    """Each whole question: the media shown so far, the words asked, the words answered."""
    media: list[bytes] = []
    asked = ""
    for content in document.contents:
        for part in content.parts:
            if not isinstance(part, Text):
                media.append(hashlib.blake2b(part.data, digest_size=16).digest())
        text = " ".join(_words(" ".join(part.text for part in content.parts if isinstance(part, Text))))
        if content.role == "user":
            asked = text
        elif content.role == "model":
            yield (*(media if any(p for p in media) else ()), asked.encode(), text.encode())


class Held:
    """Removal of evaluation items: built from the evaluation sets, asked of every other document.

    A question with media is the same item only with the same media and answer, whatever its words ("What colour is the circle?"); of
    text alone, a run of ``n`` words in common is a leak whatever stands around it, unless the run is a template's (it occurs in
    more than three test items). A document that is the same to the byte is one always.
    """

    def __init__(self, documents: Iterable[Document], n: int) -> None:
        self._n = n
        self._items: set[tuple[bytes, ...]] = set()
        self._digests: set[bytes] = set()
        runs: Counter[int] = Counter()
        for document in documents:
            self._digests.add(digest(document))
            self._items.update(_questions(document))
            runs.update(set(self._runs(document)))
        self._runs_held = {run for run, count in runs.items() if count <= 3}

    def _runs(self, document: Document) -> Iterable[int]:
        """Hashes of all runs of ``n`` words; of a document with media only of its running text."""
        media = any(not isinstance(part, Text) for part in document.parts)
        contents = [c for c in document.contents if not media or c.role == "document"]
        for part in (part for content in contents for part in content.parts):
            if isinstance(part, Text):
                words = _words(part.text)
                for i in range(len(words) - self._n + 1):
                    key = hashlib.blake2b(" ".join(words[i : i + self._n]).encode(), digest_size=8).digest()
                    yield int.from_bytes(key, "big")

    def __call__(self, document: Document) -> Reason | None:
        if digest(document) in self._digests:
            return "in an evaluation set", "the whole document"
        for item in _questions(document):
            if item in self._items:
                return "in an evaluation set", f"the same question and answer: {item[-2].decode()[:60]!r}"
        for run in self._runs(document):
            if run in self._runs_held:
                return "overlaps an evaluation set", f"a run of {self._n} words is part of a test item"
        return None
