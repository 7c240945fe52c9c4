"""Raw files to Documents: Parquet, JSONL, or a folder of media with ``manifest.jsonl``. A bad record is reported, nothing else is lost.

One line of a manifest is one document. Media are paths relative to the folder, and never leave it:

    {"text": "Running text."}
    {"image": "cat.png", "text": "A cat on a wall."}                              parts in the order written
    {"audio": "a.wav", "question": "Transcribe.", "answer": "seven"}              a question with media, and its answer
    {"parts": [{"text": "See "}, {"image": "cat.png"}, {"text": "!"}]}
    {"turns": [{"role": "user", "text": "Hi"}, {"role": "model", "text": "Hello"}]}

and optionally ``id``, ``source``, ``language``, ``facts``.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alhena.content import MEDIA, Content, Document, Part, Text, from_row

MIMES = {
    "image": {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif", ".bmp": "image/bmp"},
    "audio": {".wav": "audio/wav", ".flac": "audio/flac", ".ogg": "audio/ogg", ".mp3": "audio/mpeg"},
    "video": {".mp4": "video/mp4", ".webm": "video/webm", ".mov": "video/quicktime"},
}  # fmt: skip
PART_KEYS = ("text", *MEDIA)
KEYS = (*PART_KEYS, "question", "answer", "parts", "turns", "id", "source", "language", "facts")
LONGEST_LINE = 16 << 20
LARGEST_FILE = 256 << 20


@dataclass(frozen=True)
class Dropped:
    """A record that did not become (or stay) a Document: where it was, why, and the particulars."""

    record: str
    reason: str
    detail: str = ""
    source: str = "?"


class Bad(ValueError):
    """A record that cannot be used; carries the reason apart from the particulars."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def _media(folder: Path, kind: str, name: Any) -> Part:
    if not isinstance(name, str) or not name:
        raise Bad("bad field", f'"{kind}" must be a relative path')
    try:
        return _inside(folder, kind, name)
    except (OSError, RuntimeError, UnicodeError) as error:  # an absurd name, a loop of links, no right to read
        raise Bad("file unreadable", f"{name[:80]!r}: {error}") from None


def _inside(folder: Path, kind: str, name: str) -> Part:
    if "\0" in name:
        raise Bad("bad field", f'"{kind}" holds a NUL')
    path = (folder / name).resolve()
    if Path(name).is_absolute() or not path.is_relative_to(folder.resolve()):
        raise Bad("path outside the folder", f"{name!r}: media must lie inside {folder.name}/")
    mime = MIMES[kind].get(path.suffix.lower())
    if mime is None:
        raise Bad("unknown file type", f"{name}: {kind} files are {', '.join(MIMES[kind])}")
    if not path.is_file():
        raise Bad("file missing", f"{name}: there is no such file in {folder.name}/")
    if path.stat().st_size > LARGEST_FILE:
        raise Bad("file too large", f"{name} has {path.stat().st_size:,} bytes; at most {LARGEST_FILE:,} are read")
    return MEDIA[kind](path.read_bytes(), mime)


def _text(value: Any, key: str) -> Text:
    if not isinstance(value, str):
        raise Bad("bad field", f'"{key}" must be a string')
    return Text(value)


def _parts(folder: Path, item: Mapping[str, Any]) -> list[Part]:
    """Parts of flat keys, in the order written; the keys were checked."""
    return [
        _text(value, key) if key == "text" else _media(folder, key, value)
        for key, value in item.items()
        if key in PART_KEYS
    ]


def _listed(folder: Path, items: Any) -> list[Part]:
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise Bad("bad field", '"parts" must be a list of objects such as {"text": "…"}')
    for item in items:
        _known(item, PART_KEYS)
    return [part for item in items for part in _parts(folder, item)]


def _contents(folder: Path, line: Mapping[str, Any]) -> tuple[Content, ...]:
    if "turns" in line:
        turns = line["turns"]
        if not isinstance(turns, list) or not all(
            isinstance(t, dict) and t.get("role") in ("user", "model") for t in turns
        ):
            raise Bad("bad field", '"turns" must be a list of objects with "role": "user" or "model"')
        for t in turns:
            _known(t, ("role", "parts", *PART_KEYS))
            if not any(key in t for key in ("parts", *PART_KEYS)):
                raise Bad("bad field", "a turn with nothing in it")
        return tuple(
            Content(t["role"], tuple(_listed(folder, t["parts"]) if "parts" in t else _parts(folder, t))) for t in turns
        )
    parts = _listed(folder, line["parts"]) if "parts" in line else _parts(folder, line)
    if "answer" not in line:
        return (Content("document", tuple(parts)),)
    question = [_text(line["question"], "question")] if "question" in line else []
    return Content("user", (*parts, *question)), Content("model", (_text(line["answer"], "answer"),))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object none of whose keys is written twice (JSON would keep the last and lose the others)."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise Bad("key written twice", f'{max(keys, key=keys.count)!r}; use "parts" for several media of one kind')
    return dict(pairs)


def _known(item: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in item:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, 1)
            raise Bad(
                "unknown key",
                f'"{key}"' + (f'; did you mean "{near[0]}"?' if near else f"; known are {', '.join(keys)}"),
            )


def check_names(names: Mapping[str, Any]) -> None:
    """Id, source and language are strings; a source names a file later, so it holds no path. Raises Bad."""
    if not all(isinstance(value, str) for value in names.values()):
        raise Bad("bad field", '"id", "source" and "language" must be strings')
    if not re.fullmatch(r"[\w-]{1,64}", names["source"]):
        raise Bad("bad field", '"source" names a file: letters, digits, - and _ only')


def parse_line(folder: Path, text: str, record: str) -> Document:
    """One manifest line to a Document. Raises Bad."""
    try:
        line = json.loads(text, object_pairs_hook=_once)
    except Bad:
        raise
    except (ValueError, RecursionError) as error:
        raise Bad("not JSON", f"{error}; each line must be one JSON object") from None
    if not isinstance(line, dict):
        raise Bad("not an object", 'each line must be one JSON object, such as {"text": "…"}')
    _known(line, KEYS)
    if ("parts" in line or "turns" in line) and any(key in line for key in PART_KEYS):
        raise Bad("bad field", '"parts" and "turns" hold the whole document; no text or media may stand beside them')
    if "question" in line and "answer" not in line:
        raise Bad("bad field", '"question" without "answer": give both, or write the words as "text"')
    facts = line.get("facts", {})
    names = {key: line.get(key, default) for key, default in (("id", record), ("source", "mine"), ("language", "und"))}
    if not isinstance(facts, dict):
        raise Bad("bad field", '"facts" must be an object')
    check_names(names)
    return Document(_contents(folder, line), names["id"], names["source"], names["language"], facts)


def _manifest(folder: Path, file: Path) -> Iterator[Document | Dropped]:
    with open(file, "rb") as lines:
        number = 0
        while raw := lines.readline(LONGEST_LINE + 1):
            number += 1
            record = f"{file.name}:{number}"
            if len(raw) > LONGEST_LINE:
                yield Dropped(record, "line too long", f"more than {LONGEST_LINE:,} bytes")
                while raw and not raw.endswith(b"\n"):
                    raw = lines.readline(LONGEST_LINE)
                continue
            try:
                if text := raw.decode("utf-8-sig" if number == 1 else "utf-8").strip():
                    yield parse_line(folder, text, record)
            except UnicodeDecodeError as error:
                yield Dropped(record, "not UTF-8", str(error))
            except Bad as error:
                yield Dropped(record, error.reason, error.detail)


def _parquet(file: Path) -> Iterator[Document | Dropped]:
    try:
        table = pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file}: not a readable Parquet file ({error}); write it again or leave it out") from None
    row = 0
    for batch in table.iter_batches(batch_size=64):
        for item in batch.to_pylist():
            row += 1
            try:
                document = from_row(item)
                check_names({"id": document.id, "source": document.source, "language": document.language})
                if any(
                    not isinstance(part.text if isinstance(part, Text) else part.data, str | bytes)
                    for part in document.parts
                ):
                    raise TypeError("a part without content")
                yield document
            except (KeyError, TypeError, ValueError) as error:
                yield Dropped(f"{file.name}:{row}", "not a document", f"{type(error).__name__}: {error}")


def read(path: Path) -> Iterator[Document | Dropped]:
    """Documents of a manifest folder, a ``.jsonl`` file, a Parquet file or a folder of Parquet files, in order."""
    if path.is_dir() and (path / "manifest.jsonl").exists():
        yield from _manifest(path, path / "manifest.jsonl")
    elif path.is_dir() and (files := sorted(path.glob("*.parquet"))):
        for file in files:
            yield from _parquet(file)
    elif path.suffix == ".jsonl" and path.is_file():
        yield from _manifest(path.parent, path)
    elif path.suffix == ".parquet" and path.is_file():
        yield from _parquet(path)
    else:
        raise ValueError(
            f"{path}: nothing to read; give a folder with manifest.jsonl, a .jsonl file, a .parquet file or a folder of them"
        )
