"""One record to one Document: a line of a manifest, or a row of a Parquet file with the same keys.

    {"text": "A plain document."}
    {"image": "cat.png", "text": "A cat on a wall."}                              parts in the order written
    {"audio": "a.wav", "question": "Transcribe.", "answer": "seven"}              a question with media, and its answer
    {"parts": [{"text": "See "}, {"image": "cat.png"}, {"text": "!"}]}
    {"turns": [{"role": "user", "text": "Hi"}, {"role": "model", "text": "Hello"}]}
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}    OpenAI's format

and optionally ``id``, ``source``, ``language``, ``facts``. A medium is a path relative to the folder and inside it, or a ``data:``
URI; in Parquet also bytes, or ``{"bytes": …, "path": …}`` as Hugging Face writes it. URLs are never fetched. The MIME type follows
from the suffix; where that is unknown or absent, from the content (``alhena.media.sniff``).
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

from alhena.content import MEDIA, MIME_OF_SUFFIX, Content, Document, Part, Role, Text
from alhena.documents import size_of
from alhena.media import LIMITS, sniff

PART_KEYS = ("text", *MEDIA)
KEYS = (*PART_KEYS, "question", "answer", "parts", "turns", "messages", "id", "source", "language", "facts")
TURN_KEYS = ("role", "parts", "content", *PART_KEYS)
ROLES: Mapping[str, Role | None] = {
    "user": "user", "model": "model", "assistant": "model", "system": None, "developer": None,
}  # fmt: skip
# Limits of one media file, and of one document with all of its media.
MAX_FILE_BYTES = LIMITS.bytes
MAX_DOCUMENT_BYTES = 192 << 20
MAX_FACTS_BYTES = 1 << 20
MAX_PATH_LENGTH = 4096
# Of an id, a source or a language.
MAX_NAME_LENGTH = 1000


class InvalidRecord(ValueError):
    """A record that cannot be used: the reason, by which records are counted, and details."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def _quoted(value: str) -> str:
    """A value for a message, at most 80 characters."""
    return repr(value if len(value) <= 80 else value[:79] + "…")


# ── media ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class MediaReader:
    """Reads the media of one document, whose total size is bounded."""

    folder: Path
    remaining: int = MAX_DOCUMENT_BYTES

    def read(self, kind: str, value: Any) -> Part:
        """The part of ``kind`` (image, audio, video) that a value of a record names or contains."""
        if isinstance(value, str) and value.startswith("data:"):
            return self._from_bytes(kind, *_data_uri(kind, value))
        if isinstance(value, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", value):
            raise InvalidRecord(
                "URL not fetched", f'"{kind}" is {_quoted(value)}: save the file in the folder and give its path'
            )
        if isinstance(value, bytes):
            return self._from_bytes(kind, value, None)
        if isinstance(value, Mapping) and (struct := _without_nulls(value)) and struct.keys() <= {"bytes", "path"}:
            return self._from_struct(kind, struct)
        if not isinstance(value, str) or not value:
            raise InvalidRecord("bad field", f'"{kind}" must be a relative path')
        return self._from_path(kind, value)

    def _from_struct(self, kind: str, struct: Mapping[str, Any]) -> Part:
        data, name = struct.get("bytes"), struct.get("path")
        if data is None:
            return self.read(kind, name)
        if not isinstance(data, bytes) or not isinstance(name, str | None):
            raise InvalidRecord("bad field", f'"{kind}" must have "bytes", and the "path" that they came from')
        return self._from_bytes(kind, data, MIME_OF_SUFFIX.get(Path(name or "").suffix.lower()))

    def _from_bytes(self, kind: str, data: bytes, mime: str | None) -> Part:
        """A part of bytes. Where the content has no known type, the default one: the filter ``inspect`` decodes it."""
        self._reserve(f'"{kind}"', len(data))
        known = _mime_type(kind, data, mime)
        return MEDIA[kind](data, known) if known else MEDIA[kind](data)

    def _reserve(self, name: str, size: int) -> None:
        if size > MAX_FILE_BYTES:
            raise InvalidRecord("file too large", f"{name} has {size:,} bytes; the limit is {MAX_FILE_BYTES:,}")
        if size > self.remaining:
            raise InvalidRecord(
                "record too large", f"with {name} it has more than {MAX_DOCUMENT_BYTES:,} bytes of media"
            )
        self.remaining -= size

    def _from_path(self, kind: str, name: str) -> Part:
        try:
            return self._inside(kind, name)
        # An invalid name, a loop of links, or no permission.
        except (OSError, RuntimeError, UnicodeError) as error:
            raise InvalidRecord("file unreadable", f"{_quoted(name)}: {error}") from None

    def _inside(self, kind: str, name: str) -> Part:
        if "\0" in name or len(name) > MAX_PATH_LENGTH:
            raise InvalidRecord("bad field", f'"{kind}" contains NUL, or has more than {MAX_PATH_LENGTH:,} characters')
        path = _resolve(self.folder, name)
        if Path(name).is_absolute() or not path.is_relative_to(self.folder.resolve()):
            raise InvalidRecord(
                "path outside the folder", f"{_quoted(name)}: media must lie inside {self.folder.name}/"
            )
        if not path.is_file():
            raise InvalidRecord("file missing", f"{_quoted(name)}: no such file in {self.folder.name}/")
        self._reserve(_quoted(name), path.stat().st_size)
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES)
        mime = _mime_type(kind, data, MIME_OF_SUFFIX.get(path.suffix.lower()))
        if mime is None:
            suffixes = ", ".join(suffix for suffix, mime in MIME_OF_SUFFIX.items() if mime.startswith(f"{kind}/"))
            raise InvalidRecord("unknown file type", f"{_quoted(name)}: not {kind} by suffix or content ({suffixes})")
        return MEDIA[kind](data, mime)


def _mime_type(kind: str, data: bytes, declared: str | None) -> str | None:
    """The declared MIME type if it is one of ``kind``, else that of the content, or None."""
    if declared and declared.startswith(f"{kind}/"):
        return declared
    detected = sniff(data)
    return detected if detected and detected.startswith(f"{kind}/") else None


def _resolve(folder: Path, name: str) -> Path:
    """The file of a relative path, with links resolved and names compared in both Unicode normal forms (macOS writes NFD)."""
    path = folder
    for step in Path(name).parts:
        forms = [path / form for form in (step, *(unicodedata.normalize(f, step) for f in ("NFC", "NFD")))]
        path = next((form for form in forms if os.path.lexists(form)), forms[0])
    return path.resolve()


def _data_uri(kind: str, value: str) -> tuple[bytes, str]:
    """Content and MIME type of a ``data:`` URI."""
    match = re.match(r"data:(\w+/[\w.+-]+)(?:;[\w=.-]+)*;base64,", value[:200])
    if match is None:
        raise InvalidRecord("bad field", f'"{kind}" is {_quoted(value)}: a data: URI must be base64 with a MIME type')
    if not match[1].startswith(f"{kind}/"):
        raise InvalidRecord("bad field", f'"{kind}" is a data: URI of {match[1]}')
    return _base64(kind, value[match.end() :]), match[1]


def _base64(kind: str, value: Any) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise InvalidRecord("bad field", f'"{kind}" is not base64: {error}') from None


# ── parts and turns ────────────────────────────────────────────────────────────────────────────────────────


def _without_nulls(item: Mapping[str, Any]) -> dict[str, Any]:
    """The items that are not null: pandas and Arrow write null for absent values."""
    return {key: value for key, value in item.items() if value is not None}


def _refuse_unknown_keys(item: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Raises InvalidRecord that names an unknown key and the most similar known one."""
    for key in item:
        if key not in keys:
            similar = difflib.get_close_matches(key[:64], keys, 1)
            raise InvalidRecord(
                "unknown key",
                _quoted(key)
                + (f'; did you mean "{similar[0]}"?' if similar else f"; known keys are {', '.join(keys)}"),
            )


def _object_list(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InvalidRecord("bad field", f"{name} must be a list of objects")
    return [_without_nulls(item) for item in value]


def _text(value: Any, key: str) -> Text:
    if not isinstance(value, str):
        raise InvalidRecord("bad field", f'"{key}" must be a string')
    return Text(value)


def _parts(media: MediaReader, item: Mapping[str, Any]) -> list[Part]:
    """Parts of plain keys, in the order written; the keys are known."""
    return [
        _text(value, key) if key == "text" else media.read(key, value)
        for key, value in item.items()
        if key in PART_KEYS
    ]


def _parts_list(media: MediaReader, items: Any) -> list[Part]:
    objects = _object_list(items, '"parts"')
    for item in objects:
        _refuse_unknown_keys(item, PART_KEYS)
    return [part for item in objects for part in _parts(media, item)]


def _openai_part(media: MediaReader, item: dict[str, Any]) -> Part:
    """One item of a ``content`` list: its ``type`` names the key of its value."""
    kind = item.pop("type", None)
    if not isinstance(kind, str) or kind not in item:
        raise InvalidRecord("bad field", f'an item of "content" has type {kind!r}, but no key of this name')
    _refuse_unknown_keys(item, (kind,))
    value = item[kind]
    if kind == "text":
        return _text(value, "text")
    if kind == "image_url":
        return media.read("image", value.get("url") if isinstance(value, dict) else value)
    if kind == "input_audio" and isinstance(value, dict):
        _refuse_unknown_keys(value, ("data", "format"))
        return media.read("audio", _base64("input_audio", value.get("data")))
    if kind in MEDIA:
        return media.read(kind, value)
    raise InvalidRecord(
        "bad field", f'an item of "content" has type {_quoted(kind)}; it must be text, image_url or input_audio'
    )


def _turn_parts(media: MediaReader, turn: Mapping[str, Any]) -> list[Part]:
    _refuse_unknown_keys(turn, TURN_KEYS)
    forms = [key for key in ("parts", "content") if key in turn]
    if len(forms) + any(key in turn for key in PART_KEYS) != 1:
        raise InvalidRecord("bad field", 'a turn needs exactly one of "parts", "content" and plain keys')
    if "parts" in turn:
        return _parts_list(media, turn["parts"])
    if "content" in turn and not isinstance(turn["content"], str):
        return [_openai_part(media, item) for item in _object_list(turn["content"], '"content"')]
    return [Text(turn["content"])] if "content" in turn else _parts(media, turn)


def _turns(media: MediaReader, value: Any, key: str) -> tuple[Content, ...]:
    """The turns of a chat. A system turn is prepended to the next user turn, as the server does with a system instruction."""
    contents: list[Content] = []
    system: list[Part] = []
    for number, turn in enumerate(_object_list(value, f'"{key}"'), 1):
        role = turn.get("role")
        if not isinstance(role, str) or role not in ROLES:
            known = ", ".join(ROLES)
            raise InvalidRecord("bad field", f"turn {number} has the role {_quoted(str(role))}; the roles are {known}")
        parts = _turn_parts(media, turn)
        our_role = ROLES[role]
        if our_role is None:
            system += [*parts, Text("\n")]
        elif our_role == "user":
            contents.append(Content("user", (*system, *parts)))
            system = []
        else:
            contents.append(Content("model", tuple(parts)))
    if system:
        raise InvalidRecord("bad field", "a system turn with no user turn after it")
    return tuple(contents)


def _contents(media: MediaReader, line: Mapping[str, Any]) -> tuple[Content, ...]:
    for key in ("turns", "messages"):
        if key in line:
            return _turns(media, line[key], key)
    parts = _parts_list(media, line["parts"]) if "parts" in line else _parts(media, line)
    if "answer" not in line:
        return (Content("document", tuple(parts)),)
    question = [_text(line["question"], "question")] if "question" in line else []
    return Content("user", (*parts, *question)), Content("model", (_text(line["answer"], "answer"),))


# ── records ────────────────────────────────────────────────────────────────────────────────────────────────


def _valid_names(names: Mapping[str, Any]) -> dict[str, str]:
    """``id``, ``source`` and ``language`` of a document; an integer id becomes a string. Raises InvalidRecord."""
    valid: dict[str, str] = {}
    for key, value in names.items():
        if key == "id" and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or (not value.isascii() and not is_unicode(value)):
            raise InvalidRecord("bad field", f'"{key}" must be a string of valid Unicode, not {_quoted(repr(value))}')
        if len(value) > MAX_NAME_LENGTH:
            raise InvalidRecord("bad field", f'"{key}" has {len(value):,} characters; the limit is {MAX_NAME_LENGTH:,}')
        valid[key] = value
    if not re.fullmatch(r"[\w-]{1,64}", valid["source"]):
        raise InvalidRecord("bad field", '"source" is used as a file name: letters, digits, - and _ only')
    return valid


def _valid_facts(facts: Any) -> dict[str, Any]:
    """Plain JSON values of bounded size. Raises InvalidRecord."""
    if not isinstance(facts, dict):
        raise InvalidRecord("bad field", '"facts" must be an object')
    try:
        data = json.dumps(facts, ensure_ascii=False, sort_keys=True, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRecord("bad field", f'"facts" must be plain JSON values: {_quoted(str(error))}') from None
    if len(data) > MAX_FACTS_BYTES:
        raise InvalidRecord("record too large", f'"facts" have {len(data):,} bytes; the limit is {MAX_FACTS_BYTES:,}')
    return facts


def _valid_size(document: Document) -> Document:
    if (size := size_of(document)) > MAX_DOCUMENT_BYTES:
        raise InvalidRecord("record too large", f"it has {size:,} bytes; the limit is {MAX_DOCUMENT_BYTES:,}")
    return document


def validate(document: Document) -> Document:
    """A document of a file whose names, facts and size can be stored; an integer id becomes a string. Raises InvalidRecord."""
    names = _valid_names({"id": document.id, "source": document.source, "language": document.language})
    _valid_facts(document.facts)
    valid = replace(document, id=names["id"], source=names["source"], language=names["language"])
    return _valid_size(valid)


def is_unicode(text: str) -> bool:
    """Whether a text has no unpaired surrogate, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def to_document(folder: Path, record: Mapping[str, Any], name: str) -> Document:
    """A Document of the keys of a record; ``name`` is its default id. Raises InvalidRecord."""
    line = _without_nulls(record)
    _refuse_unknown_keys(line, KEYS)
    forms = [key for key in ("parts", "turns", "messages") if key in line]
    if (forms and any(key in line for key in PART_KEYS)) or len(forms) > 1:
        raise InvalidRecord(
            "bad field", f'"{forms[0]}" is the complete document; text, media and other lists are not allowed beside it'
        )
    if forms and forms[0] != "parts" and ("question" in line or "answer" in line):
        raise InvalidRecord(
            "bad field", f'"{forms[0]}" is the complete chat; "question" and "answer" are not allowed beside it'
        )
    if "question" in line and "answer" not in line:
        raise InvalidRecord("bad field", '"question" without "answer": give both, or use "text"')
    defaults = {"id": name, "source": "mine", "language": "und"}
    names = _valid_names({key: line.get(key, default) for key, default in defaults.items()})
    facts = _valid_facts(line.get("facts", {}))
    return _valid_size(Document(_contents(MediaReader(folder), line), facts=facts, **names))


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises InvalidRecord for a repeated key, of which the JSON parser would use only the last."""
    value = dict(pairs)
    if len(value) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise InvalidRecord("repeated key", f'{_quoted(key)}; use "parts" for several media of one kind')
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def parse_line(folder: Path, text: str, record: str) -> Document:
    """A Document of one line of a manifest; ``record`` is its default id. Raises InvalidRecord."""
    try:
        line = json.loads(text, object_pairs_hook=_refuse_repeated_keys, parse_constant=_refuse_constant)
    except InvalidRecord:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        raise InvalidRecord("not JSON", f"{error}; each line must be a JSON object") from None
    if not isinstance(line, dict):
        raise InvalidRecord("not an object", 'each line must be a JSON object, such as {"text": "…"}')
    return to_document(folder, line, record)
