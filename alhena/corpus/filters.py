"""What a document must pass: each filter says why it drops, and ``alhena.corpus.curate`` counts.

inspect    every medium decodes within bounds, text is text, something is there and something can be learned
quality    running prose that looks like prose: Gopher's and C4's rules (Rae et al. 2021, Raffel et al. 2020), for short texts
blocked    a callable of the user's (a classifier, a word list) says why a document is harmful
Seen       not the same as an earlier document, decoded media included
Held       shares no long run of words, and no whole question, with an evaluation set (n-gram overlap: Brown et al. 2020)
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from alhena.content import Audio, Document, Image, Part, Text, Video
from alhena.corpus.prose import is_spaceless, judge_prose, units
from alhena.corpus.records import is_unicode
from alhena.media import decode_audio, decode_image, decode_video

Reason = tuple[str, str]  # reason, particulars
Blocked = Callable[[Document], str | None]
# Frames of a clip that are compared, spread evenly over it.
COMPARED_FRAMES = 8
# Characters of one document: longer than any novel.
LONGEST_TEXT = 4 << 20


@dataclass(frozen=True)
class Inspected:
    """A document, the hash of each of its media once decoded, in order, and why it cannot be used, if so.

    ``notes`` says what of its media could not be read though the rest could, such as the sound of a clip.
    """

    document: Document
    media: tuple[bytes, ...] = ()
    reason: Reason | None = None
    notes: tuple[str, ...] = ()


def media_hash(part: Image | Audio | Video) -> tuple[bytes, tuple[str, ...]]:
    """Hash of the decoded pixels or samples (the same for a lossless copy in another format), and the notes of the decoder.

    Raises ValueError when the part does not decode.
    """
    h = hashlib.blake2b(type(part).__name__.encode(), digest_size=16)
    arrays: list[np.ndarray] = []
    notes: tuple[str, ...] = ()
    if isinstance(part, Image):
        arrays = [decode_image(part.data)]
    elif isinstance(part, Audio):
        arrays = [decode_audio(part.data)]
    else:
        clip = decode_video(part.data, COMPARED_FRAMES)
        notes = clip.notes
        arrays = [clip.frames, np.round(clip.seconds, 1), *(() if clip.sound is None else (clip.sound,))]
    for array in arrays:
        h.update(repr(array.shape).encode())
        h.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
    return h.digest(), notes


def inspect(document: Document) -> Inspected:
    """Decodes every medium and says why a document cannot be used at all, if so."""
    media: list[bytes] = []
    notes: list[str] = []
    for number, part in enumerate(document.parts):
        kind = type(part).__name__.lower()
        try:
            if not isinstance(part, Text):
                hash_, more = media_hash(part)
                media.append(hash_)
                notes.extend(more)
            elif "\0" in part.text or not is_unicode(part.text):
                return Inspected(document, (), ("broken text", f"part {number} holds NUL or half a surrogate pair"))
        except ValueError as error:
            return Inspected(document, (), (f"{kind} does not decode", f"part {number}: {error}"))
        # The decoders are other people's: whatever else one of them raises is about this record, and ends no run.
        except Exception as error:
            where = f"part {number}: {type(error).__name__}: {error}"
            return Inspected(document, (), (f"{kind} does not decode", where))
    return Inspected(document, tuple(media), _unusable(document), tuple(notes))


def _unusable(document: Document) -> Reason | None:
    """Why a document whose parts are all sound holds nothing to learn, or too much."""
    texts = [part.text for part in document.parts if isinstance(part, Text)]
    if not any(_is_something(part) for part in document.parts):
        return "empty", "only spaces" if texts else "no text and no media"
    if (length := sum(map(len, texts))) > LONGEST_TEXT:
        return "text too long", f"{length:,} characters; at most {LONGEST_TEXT:,} are read: split it"
    said = [part for content in document.contents if content.role == "model" for part in content.parts]
    if any(content.role == "user" for content in document.contents) and not any(map(_is_something, said)):
        return (
            "no model turn",
            "a chat in which the model says nothing: give it an answer, or write it as running material",
        )
    if heard := next((part for part in said if isinstance(part, Audio | Video)), None):
        kind = type(heard).__name__.lower()
        return "media in a model turn", f"{kind}: a model turn holds text and images; put the {kind} in a user turn"
    return None


def _is_something(part: Part) -> bool:
    return not isinstance(part, Text) or bool(part.text.strip())


def quality(document: Document, least_words: int) -> Reason | None:
    """Why running prose is poor, or None; chats, media and code are not judged."""
    if "code" in (document.source, document.facts.get("task")) or any(c.role != "document" for c in document.contents):
        return None
    texts = [part.text for part in document.parts if isinstance(part, Text)]
    if len(texts) < sum(1 for _ in document.parts):
        return None
    return judge_prose("\n".join(texts), least_words)


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def digest(inspected: Inspected) -> bytes:
    """Hash of the content: roles, text without regard to spacing, and the decoded media."""
    h, media = hashlib.blake2b(digest_size=16), iter(inspected.media)
    for content in inspected.document.contents:
        h.update(content.role.encode() + b"\1")
        for part in content.parts:
            h.update(b"\2" + _normal(part.text).encode() if isinstance(part, Text) else b"\2\3" + next(media))
    return h.digest()


class Seen:
    """Exact deduplication: remembers one hash a document."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def __call__(self, inspected: Inspected) -> Reason | None:
        key = digest(inspected)
        if key in self._digests:
            return "duplicate", "the same content came earlier"
        self._digests.add(key)
        return None


def _questions(inspected: Inspected) -> Iterable[tuple[bytes, ...]]:
    """Each whole question: the media shown so far, or else the words asked; and the words answered."""
    media, shown, asked = iter(inspected.media), list[bytes](), ""
    for content in inspected.document.contents:
        texts = [part.text for part in content.parts if isinstance(part, Text)]
        shown.extend(next(media) for part in content.parts if not isinstance(part, Text))
        text = " ".join(units(" ".join(texts)))
        if content.role == "user":
            asked = text
        elif content.role == "model":
            yield (*(shown or [asked.encode()]), text.encode())


class Held:
    """Removal of evaluation items: built from the evaluation sets, asked of every other document.

    A question with media is the same item with the same media and answer, whatever its words ("What colour is the circle?"); of
    text alone, a run of ``n`` words in common is a leak whatever stands around it, unless the run is a template's (it occurs in
    more than three test items). A document with the same content is one always. Media are compared once decoded, sample by sample:
    a lossless copy in another format is the same, one that was compressed with loss is not.
    """

    def __init__(self, documents: Iterable[Inspected], n: int) -> None:
        self._n = n
        self._items: set[tuple[bytes, ...]] = set()
        self._digests: set[bytes] = set()
        runs: Counter[int] = Counter()
        for inspected in documents:
            self._digests.add(digest(inspected))
            self._items.update(_questions(inspected))
            runs.update(set(self._runs(inspected.document)))
        self._runs_held = {run for run, count in runs.items() if count <= 3}

    def _runs(self, document: Document) -> Iterable[int]:
        """Hashes of all runs of ``n`` words (2 n characters without spaces); of a document with media only of its running text."""
        media = any(not isinstance(part, Text) for part in document.parts)
        contents = [c for c in document.contents if not media or c.role == "document"]
        for part in (part for content in contents for part in content.parts):
            if isinstance(part, Text):
                words, n = units(part.text), self._n * (2 if is_spaceless(part.text) else 1)
                for i in range(len(words) - n + 1):
                    key = hashlib.blake2b(" ".join(words[i : i + n]).encode(), digest_size=8).digest()
                    yield int.from_bytes(key, "big")

    def __call__(self, inspected: Inspected) -> Reason | None:
        if digest(inspected) in self._digests:
            return "in an evaluation set", "the whole document"
        for item in _questions(inspected):
            if item in self._items:
                return (
                    "in an evaluation set",
                    f"the same question or media, and the same answer: {item[-1].decode()[:60]!r}",
                )
        for run in self._runs(inspected.document):
            if run in self._runs_held:
                return "overlaps an evaluation set", f"a run of {self._n} words is part of a test item"
        return None
