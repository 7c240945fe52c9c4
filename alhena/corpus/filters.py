"""Filters of documents. Each returns the reason to drop one, or None; ``alhena.corpus.curate`` counts the reasons.

inspect          media that do not decode within bounds, invalid text, documents that are empty or give nothing to train on
quality          poor prose, by rules of Gopher and C4 (Rae et al. 2021, Raffel et al. 2020) adapted to short texts
Classifier       a callable of the user (a model, a word list) that returns why a document is to be blocked
Deduplicator     duplicates of earlier documents, by decoded media and text
Decontaminator   overlap with an evaluation set: a common n-gram (Brown et al. 2020), or the same question and answer
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from alhena.content import Audio, Document, Image, Media, Part, Text, ToolResult, Video, kind_of, written
from alhena.corpus.prose import Reason, is_spaceless, prose_defect, units
from alhena.corpus.records import is_unicode
from alhena.media import decode_audio, decode_image, decode_video

Classifier = Callable[[Document], str | None]
# Frames of a clip that are hashed, evenly spaced.
COMPARED_FRAMES = 8
# Of one document; no novel has as many.
MAX_CHARACTERS = 4 << 20
# An n-gram that more evaluation items contain belongs to a template, and is no overlap.
MAX_ITEMS_OF_NGRAM = 3


@dataclass(frozen=True)
class Inspected:
    """A document, the hashes of its decoded media in order, and the reason to drop it or None.

    ``notes`` name what could not be decoded of media that are used in part, such as the audio of a clip.
    """

    document: Document
    media: tuple[bytes, ...] = ()
    reason: Reason | None = None
    notes: tuple[str, ...] = ()


def media_hash(part: Media) -> tuple[bytes, tuple[str, ...]]:
    """Hash of the decoded pixels or samples (the same for a lossless copy in another format), and notes of the decoder.

    Raises ValueError when the part does not decode.
    """
    hash_ = hashlib.blake2b(type(part).__name__.encode(), digest_size=16)
    arrays: list[np.ndarray] = []
    notes: tuple[str, ...] = ()
    if isinstance(part, Image):
        arrays = [decode_image(part.data)]
    elif isinstance(part, Audio):
        arrays = [decode_audio(part.data)]
    else:
        clip = decode_video(part.data, COMPARED_FRAMES)
        notes = clip.notes
        arrays = [clip.frames, np.round(clip.seconds, 1), *(() if clip.audio is None else (clip.audio,))]
    for array in arrays:
        hash_.update(repr(array.shape).encode())
        hash_.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
    return hash_.digest(), notes


def _flat(parts: Iterable[Part]) -> Iterator[Part]:
    """Parts in order; the media of a tool result follow it."""
    for part in parts:
        yield part
        yield from part.parts if isinstance(part, ToolResult) else ()


def inspect(document: Document) -> Inspected:
    """Decodes every medium of a document."""
    media: list[bytes] = []
    notes: list[str] = []
    for number, part in enumerate(_flat(document.parts)):
        kind, text = kind_of(part), written(part)
        try:
            if isinstance(part, Media):
                hash_, part_notes = media_hash(part)
                media.append(hash_)
                notes.extend(part_notes)
            elif text is None or "\0" in text or not is_unicode(text):
                return Inspected(document, (), ("invalid text", f"part {number} contains NUL or an unpaired surrogate"))
        except ValueError as error:
            return Inspected(document, (), (f"{kind} does not decode", f"part {number}: {error}"))
        # Third-party decoders may raise anything for damaged data; one record must not end the run.
        except Exception as error:
            detail = f"part {number}: {type(error).__name__}: {error}"
            return Inspected(document, (), (f"{kind} does not decode", detail))
    return Inspected(document, tuple(media), _content_defect(document), tuple(notes))


def _content_defect(document: Document) -> Reason | None:
    """Why a document whose parts are valid gives nothing to train on, or has too much text."""
    texts = [part.text for part in document.parts if isinstance(part, Text)]
    if not any(_is_nonempty(part) for part in document.parts):
        return "empty", "only whitespace" if texts else "no text and no media"
    if (length := sum(map(len, texts))) > MAX_CHARACTERS:
        return "text too long", f"{length:,} characters; the limit is {MAX_CHARACTERS:,}: split it"
    model_parts = [part for content in document.contents if content.role == "model" for part in content.parts]
    if any(content.role == "user" for content in document.contents) and not any(map(_is_nonempty, model_parts)):
        return (
            "no model turn",
            "a chat without content in a model turn: add an answer, or write it as a plain document",
        )
    if media := next((part for part in model_parts if isinstance(part, Audio | Video)), None):
        kind = type(media).__name__.lower()
        return "media in a model turn", f"{kind}: a model turn holds text and images; put the {kind} in a user turn"
    return None


def _is_nonempty(part: Part) -> bool:
    return not isinstance(part, Text) or bool(part.text.strip())


def quality(document: Document, min_words: int) -> Reason | None:
    """Why prose is poor, or None; chats, code and documents with media pass."""
    if "code" in (document.source, document.facts.get("task")) or any(c.role != "document" for c in document.contents):
        return None
    texts = [part.text for part in document.parts if isinstance(part, Text)]
    if len(texts) < sum(1 for _ in document.parts):
        return None
    return prose_defect("\n".join(texts), min_words)


def _normalized(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def content_hash(inspected: Inspected) -> bytes:
    """Hash of roles, text with normalized whitespace, and decoded media."""
    hash_, media = hashlib.blake2b(digest_size=16), iter(inspected.media)
    for content in inspected.document.contents:
        hash_.update(content.role.encode() + b"\1")
        for part in _flat(content.parts):
            text = written(part)
            hash_.update(b"\2\3" + next(media) if text is None else b"\2" + _normalized(text).encode())
    # The same words with other tools are another document.
    if "tools" in inspected.document.facts:
        hash_.update(json.dumps(inspected.document.facts["tools"], sort_keys=True).encode())
    return hash_.digest()


class Deduplicator:
    """Exact deduplication; stores one hash of 16 bytes per document."""

    def __init__(self) -> None:
        self._hashes: set[bytes] = set()

    def __call__(self, inspected: Inspected) -> Reason | None:
        key = content_hash(inspected)
        if key in self._hashes:
            return "duplicate", "the same content as an earlier document"
        self._hashes.add(key)
        return None


def questions(inspected: Inspected) -> Iterable[tuple[bytes, ...]]:
    """Each question with its answer: the hashes of the media so far (without media, the words of the question), and the words of the answer."""
    media, shown, question = iter(inspected.media), list[bytes](), ""
    for content in inspected.document.contents:
        parts = [written(part) for part in _flat(content.parts)]
        texts = [text for text in parts if text is not None]
        shown.extend(next(media) for text in parts if text is None)
        text = " ".join(units(" ".join(texts)))
        if content.role == "user":
            question = text
        elif content.role == "model":
            yield (*(shown or [question.encode()]), text.encode())


def ngrams(document: Document, n: int) -> Iterator[int]:
    """Hashes of all n-grams of words (2 n characters in scripts without spaces); with media, those of ``document`` contents only."""
    has_media = any(written(part) is None for part in _flat(document.parts))
    contents = [c for c in document.contents if not has_media or c.role == "document"]
    for part in (part for content in contents for part in content.parts):
        if isinstance(part, Text):
            words, size = units(part.text), n * (2 if is_spaceless(part.text) else 1)
            for i in range(len(words) - size + 1):
                key = hashlib.blake2b(" ".join(words[i : i + size]).encode(), digest_size=8).digest()
                yield int.from_bytes(key, "big")


class Decontaminator:
    """Decontamination: built from evaluation sets, applied to every other document.

    A document overlaps when it has the same content, or the same media and answer to a question (in any words), or an n-gram of
    ``n`` words in common. N-grams in more than ``MAX_ITEMS_OF_NGRAM`` evaluation items are templates and do not count.
    Media are compared by decoded samples: a lossless copy in another format is the same, a copy with lossy compression is not.
    """

    def __init__(self, documents: Iterable[Inspected], n: int) -> None:
        self._n = n
        self._items: set[tuple[bytes, ...]] = set()
        self._hashes: set[bytes] = set()
        counts: Counter[int] = Counter()
        for inspected in documents:
            self._hashes.add(content_hash(inspected))
            self._items.update(questions(inspected))
            counts.update(set(ngrams(inspected.document, n)))
        self._ngrams_held_out = {ngram for ngram, count in counts.items() if count <= MAX_ITEMS_OF_NGRAM}

    def __call__(self, inspected: Inspected) -> Reason | None:
        if content_hash(inspected) in self._hashes:
            return "in an evaluation set", "the whole document"
        for item in questions(inspected):
            if item in self._items:
                return (
                    "in an evaluation set",
                    f"the same question or media with the same answer: {item[-1].decode()[:60]!r}",
                )
        for ngram in ngrams(inspected.document, self._n):
            if ngram in self._ngrams_held_out:
                return "overlaps an evaluation set", f"{self._n} consecutive words are part of an evaluation item"
        return None
