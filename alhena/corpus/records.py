"""One record to one Document: a line of a manifest, or a row of somebody's Parquet file with the same keys.

    {"text": "Running text."}
    {"image": "cat.png", "text": "A cat on a wall."}                              parts in the order written
    {"audio": "a.wav", "question": "Transcribe.", "answer": "seven"}              a question with media, and its answer
    {"parts": [{"text": "See "}, {"image": "cat.png"}, {"text": "!"}]}
    {"turns": [{"role": "user", "text": "Hi"}, {"role": "model", "text": "Hello"}]}
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}    the form of OpenAI

and optionally ``id``, ``source``, ``language``, ``facts``. A medium is a path relative to the folder, which it never leaves; a
``data:`` URI; in Parquet also bytes, or ``{"bytes": …, "path": …}`` as Hugging Face writes it. Nothing is ever fetched.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alhena.content import MEDIA, MIME_OF_SUFFIX, Content, Document, Part, Role, Text, size_of

PART_KEYS = ("text", *MEDIA)
KEYS = (*PART_KEYS, "question", "answer", "parts", "turns", "messages", "id", "source", "language", "facts")
TURN_KEYS = ("role", "parts", "content", *PART_KEYS)
ROLES: Mapping[str, Role | None] = {
    "user": "user", "model": "model", "assistant": "model", "system": None, "developer": None,
}  # fmt: skip
# Of one media file, and of one document with all of its media.
LARGEST_FILE = 256 << 20
LARGEST_DOCUMENT = 192 << 20
LARGEST_FACTS = 1 << 20
LONGEST_NAME = 4096


class Bad(ValueError):
    """A record that cannot be used; carries the reason apart from the particulars."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def _shown(value: str) -> str:
    return repr(value if len(value) <= 80 else value[:79] + "…")


# ── media ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Files:
    """Reads the media of one document, of a bounded size together."""

    folder: Path
    left: int = LARGEST_DOCUMENT

    def read(self, kind: str, value: Any) -> Part:
        if isinstance(value, str) and value.startswith("data:"):
            return self._held(kind, *_data_uri(kind, value))
        if isinstance(value, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", value):
            raise Bad("address not fetched", f'"{kind}" is {_shown(value)}: save the file in the folder and name it')
        if isinstance(value, bytes):
            return self._held(kind, value, None)
        if isinstance(value, Mapping) and (struct := _given(value)) and struct.keys() <= {"bytes", "path"}:
            return self._struct(kind, struct)
        if not isinstance(value, str) or not value:
            raise Bad("bad field", f'"{kind}" must be a relative path')
        return self._named(kind, value)

    def _struct(self, kind: str, struct: Mapping[str, Any]) -> Part:
        data, name = struct.get("bytes"), struct.get("path")
        if data is None:
            return self.read(kind, name)
        if not isinstance(data, bytes) or not isinstance(name, str | None):
            raise Bad("bad field", f'"{kind}" must hold bytes and the path that they came from')
        return self._held(kind, data, MIME_OF_SUFFIX.get(Path(name or "").suffix.lower()))

    def _held(self, kind: str, data: bytes, mime: str | None) -> Part:
        self._take(f'"{kind}"', len(data))
        return MEDIA[kind](data, mime) if mime and mime.split("/")[0] == kind else MEDIA[kind](data)

    def _take(self, name: str, size: int) -> None:
        if size > LARGEST_FILE:
            raise Bad("file too large", f"{name} has {size:,} bytes; at most {LARGEST_FILE:,} are read")
        if size > self.left:
            raise Bad("record too large", f"with {name} it has more than {LARGEST_DOCUMENT:,} bytes of media")
        self.left -= size

    def _named(self, kind: str, name: str) -> Part:
        try:
            return self._inside(kind, name)
        # An absurd name, a loop of links, no right to read.
        except (OSError, RuntimeError, UnicodeError) as error:
            raise Bad("file unreadable", f"{_shown(name)}: {error}") from None

    def _inside(self, kind: str, name: str) -> Part:
        if "\0" in name or len(name) > LONGEST_NAME:
            raise Bad("bad field", f'"{kind}" holds a NUL, or more than {LONGEST_NAME:,} characters')
        path = _located(self.folder, name)
        if Path(name).is_absolute() or not path.is_relative_to(self.folder.resolve()):
            raise Bad("path outside the folder", f"{_shown(name)}: media must lie inside {self.folder.name}/")
        mime = MIME_OF_SUFFIX.get(path.suffix.lower(), "")
        if mime.split("/")[0] != kind:
            suffixes = ", ".join(suffix for suffix, mime in MIME_OF_SUFFIX.items() if mime.startswith(kind))
            raise Bad("unknown file type", f"{_shown(name)}: {kind} files are {suffixes}")
        if not path.is_file():
            raise Bad("file missing", f"{_shown(name)}: there is no such file in {self.folder.name}/")
        self._take(_shown(name), path.stat().st_size)
        with open(path, "rb") as file:
            return MEDIA[kind](file.read(LARGEST_FILE), mime)


def _located(folder: Path, name: str) -> Path:
    """The file that a name means, links followed. A letter with an accent may be written as one character or as two (macOS)."""
    path = folder
    for step in Path(name).parts:
        forms = [path / form for form in (step, *(unicodedata.normalize(f, step) for f in ("NFC", "NFD")))]
        path = next((form for form in forms if os.path.lexists(form)), forms[0])
    return path.resolve()


def _data_uri(kind: str, value: str) -> tuple[bytes, str]:
    match = re.match(r"data:(\w+/[\w.+-]+)(?:;[\w=.-]+)*;base64,", value[:200])
    if match is None:
        raise Bad("bad field", f'"{kind}" is {_shown(value)}: a data: URI must be base64, with its media type')
    if not match[1].startswith(f"{kind}/"):
        raise Bad("bad field", f'"{kind}" is a data: URI of {match[1]}')
    return _base64(kind, value[match.end() :]), match[1]


def _base64(kind: str, value: Any) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise Bad("bad field", f'"{kind}" is not base64: {error}') from None


# ── parts and turns ────────────────────────────────────────────────────────────────────────────────────────


def _given(item: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that hold something: pandas and Arrow write null for what a record does not have."""
    return {key: value for key, value in item.items() if value is not None}


def _known(item: Mapping[str, Any], keys: Sequence[str]) -> None:
    for key in item:
        if key not in keys:
            near = difflib.get_close_matches(key[:64], keys, 1)
            raise Bad(
                "unknown key",
                _shown(key) + (f'; did you mean "{near[0]}"?' if near else f"; known are {', '.join(keys)}"),
            )


def _objects(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Bad("bad field", f"{where} must be a list of objects")
    return [_given(item) for item in value]


def _text(value: Any, key: str) -> Text:
    if not isinstance(value, str):
        raise Bad("bad field", f'"{key}" must be a string')
    return Text(value)


def _parts(files: _Files, item: Mapping[str, Any]) -> list[Part]:
    """Parts of flat keys, in the order written; the keys were checked."""
    return [
        _text(value, key) if key == "text" else files.read(key, value)
        for key, value in item.items()
        if key in PART_KEYS
    ]


def _listed(files: _Files, items: Any) -> list[Part]:
    objects = _objects(items, '"parts"')
    for item in objects:
        _known(item, PART_KEYS)
    return [part for item in objects for part in _parts(files, item)]


def _openai_part(files: _Files, item: dict[str, Any]) -> Part:
    """One item of a ``content`` list: its ``type`` names the key that holds it."""
    kind = item.pop("type", None)
    if not isinstance(kind, str) or kind not in item:
        raise Bad("bad field", f'an item of "content" has type {kind!r}, but no such key: write it inside')
    _known(item, (kind,))
    value = item[kind]
    if kind == "text":
        return _text(value, "text")
    if kind == "image_url":
        return files.read("image", value.get("url") if isinstance(value, dict) else value)
    if kind == "input_audio" and isinstance(value, dict):
        _known(value, ("data", "format"))
        return files.read("audio", _base64("input_audio", value.get("data")))
    if kind in MEDIA:
        return files.read(kind, value)
    raise Bad("bad field", f'an item of "content" has type {_shown(kind)}; it must be text, image_url or input_audio')


def _turn(files: _Files, turn: Mapping[str, Any]) -> list[Part]:
    _known(turn, TURN_KEYS)
    forms = [key for key in ("parts", "content") if key in turn]
    if len(forms) + any(key in turn for key in PART_KEYS) != 1:
        raise Bad("bad field", 'a turn with nothing in it, or with two of "parts", "content" and plain keys')
    if "parts" in turn:
        return _listed(files, turn["parts"])
    if "content" in turn and not isinstance(turn["content"], str):
        return [_openai_part(files, item) for item in _objects(turn["content"], '"content"')]
    return [Text(turn["content"])] if "content" in turn else _parts(files, turn)


def _turns(files: _Files, value: Any, key: str) -> tuple[Content, ...]:
    """The turns of a chat. A system turn is put before the words of the next user turn, as the server does with a system instruction."""
    contents: list[Content] = []
    system: list[Part] = []
    for number, turn in enumerate(_objects(value, f'"{key}"'), 1):
        role = turn.get("role")
        if not isinstance(role, str) or role not in ROLES:
            known = ", ".join(ROLES)
            raise Bad(
                "bad field", f"turn {number} has the role {_shown(str(role))}; roles that can be read are {known}"
            )
        parts = _turn(files, turn)
        named = ROLES[role]
        if named is None:
            system += [*parts, Text("\n")]
        elif named == "user":
            contents.append(Content("user", (*system, *parts)))
            system = []
        else:
            contents.append(Content("model", tuple(parts)))
    if system:
        raise Bad("bad field", "a system turn with no user turn after it")
    return tuple(contents)


def _contents(files: _Files, line: Mapping[str, Any]) -> tuple[Content, ...]:
    for key in ("turns", "messages"):
        if key in line:
            return _turns(files, line[key], key)
    parts = _listed(files, line["parts"]) if "parts" in line else _parts(files, line)
    if "answer" not in line:
        return (Content("document", tuple(parts)),)
    question = [_text(line["question"], "question")] if "question" in line else []
    return Content("user", (*parts, *question)), Content("model", (_text(line["answer"], "answer"),))


# ── records ────────────────────────────────────────────────────────────────────────────────────────────────


def check(document: Document) -> Document:
    """Names, facts and size of a document that is to be stored; an integer id becomes a string. Raises Bad."""
    if isinstance(document.id, int) and not isinstance(document.id, bool):
        document = replace(document, id=str(document.id))
    for key, value in (("id", document.id), ("source", document.source), ("language", document.language)):
        if not isinstance(value, str) or (not value.isascii() and not is_unicode(value)):
            raise Bad("bad field", f'"{key}" must be a string of valid Unicode, not {_shown(repr(value))}')
        if len(value) > 1000:
            raise Bad("bad field", f'"{key}" has {len(value):,} characters; at most 1,000 are kept')
    if not re.fullmatch(r"[\w-]{1,64}", document.source):
        raise Bad("bad field", '"source" names a file: letters, digits, - and _ only')
    if not isinstance(document.facts, dict):
        raise Bad("bad field", '"facts" must be an object')
    try:
        facts = json.dumps(document.facts, ensure_ascii=False, sort_keys=True, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Bad("bad field", f'"facts" must hold plain JSON values: {_shown(str(error))}') from None
    if len(facts) > LARGEST_FACTS:
        raise Bad("record too large", f'"facts" have {len(facts):,} bytes; at most {LARGEST_FACTS:,} are kept')
    if (size := size_of(document)) > LARGEST_DOCUMENT:
        raise Bad("record too large", f"it has {size:,} bytes; at most {LARGEST_DOCUMENT:,} are read")
    return document


def is_unicode(text: str) -> bool:
    """Whether a text holds no half of a surrogate pair, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def to_document(folder: Path, record: Mapping[str, Any], name: str) -> Document:
    """A record's keys to a Document; ``name`` is its id unless it has one. Raises Bad."""
    line = _given(record)
    _known(line, KEYS)
    forms = [key for key in ("parts", "turns", "messages") if key in line]
    if (forms and any(key in line for key in PART_KEYS)) or len(forms) > 1:
        raise Bad(
            "bad field", f'"{forms[0]}" holds the whole document; no text, media or other list may stand beside it'
        )
    if forms and forms[0] != "parts" and ("question" in line or "answer" in line):
        raise Bad("bad field", f'"{forms[0]}" holds the whole chat; no "question" or "answer" may stand beside it')
    if "question" in line and "answer" not in line:
        raise Bad("bad field", '"question" without "answer": give both, or write the words as "text"')
    names = {key: line.get(key, default) for key, default in (("id", name), ("source", "mine"), ("language", "und"))}
    return check(Document(_contents(_Files(folder), line), facts=line.get("facts", {}), **names))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object none of whose keys is written twice (JSON would keep the last and lose the others)."""
    made = dict(pairs)
    if len(made) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise Bad("key written twice", f'{_shown(key)}; use "parts" for several media of one kind')
    return made


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def parse_line(folder: Path, text: str, record: str) -> Document:
    """One manifest line to a Document. Raises Bad."""
    try:
        line = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except Bad:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        raise Bad("not JSON", f"{error}; each line must be one JSON object") from None
    if not isinstance(line, dict):
        raise Bad("not an object", 'each line must be one JSON object, such as {"text": "…"}')
    return to_document(folder, line, record)
