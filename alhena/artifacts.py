"""Run folders: where each stage leaves its artefact, and how the next one knows that it is whole.

    runs/starter/
      raw/        corpus      documents with their ground truth, by split
      curated/    curate      clean documents, by split, and what was dropped
      tokens/     tokenise    text pieces, image codes, encoded examples
      pretrain/   pretrain    checkpoints, metrics
      models/     base, assistant, nano: weights that serve, each folder complete in itself
      report/     evaluate    report.html, report.png, results.json

A finished stage leaves ``stage.json`` with the fingerprint of its settings and inputs; a stage whose fingerprint is unchanged
is not repeated. Files appear by atomic rename only, so a killed process never leaves half a file under a final name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

MANIFEST = "stage.json"


def flush(path: Path) -> None:
    """Flushes a file, or the names in a folder, from the system's cache to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path to write to. It becomes ``path`` when the block ends without an error: flushed, renamed, its folder flushed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush(partial)
    partial.replace(path)
    flush(path.parent)


def write_atomically(path: Path, data: bytes | str | Iterable[bytes | memoryview]) -> None:
    """Writes a whole file (or its chunks in turn) or nothing."""
    with atomic(path) as partial, open(partial, "wb") as file:
        file.writelines([data.encode()] if isinstance(data, str) else [data] if isinstance(data, bytes) else data)


def copy_atomically(source: Path, path: Path) -> None:
    """Copies a whole file or nothing."""
    with atomic(path) as partial:
        shutil.copyfile(source, partial)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def _checked(value: Any, kinds: Mapping[str, type]) -> dict[str, Any]:
    """A JSON object with at least these fields. Raises ValueError that says what is wrong."""
    if not isinstance(value, dict):
        raise ValueError(f"it is a {type(value).__name__}, not an object")
    for key, kind in kinds.items():
        if key not in value:
            raise ValueError(f"it has no field {key!r}")
        found = value[key]
        number = isinstance(found, int) and not isinstance(found, bool)
        if not (
            number or isinstance(found, float) if kind is float else number if kind is int else type(found) is kind
        ):
            raise ValueError(f"field {key!r} is {found!r:.40}, a value of type {kind.__name__} is wanted")
    return value


def read_json(path: Path, **kinds: type) -> Any:
    """The value of a JSON file; with ``kinds``, an object that has these fields with values of these types.

    Raises ValueError that names the file when it is missing, no JSON, or lacks a field.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; has the stage that writes it finished?") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); delete it and run its stage again") from None
    try:
        return _checked(value, kinds) if kinds else value
    except ValueError as error:
        raise ValueError(f"{path}: {error}; delete it and run its stage again") from None


def read_lines(path: Path, **kinds: type) -> list[dict[str, Any]]:
    """The records of a log of JSON lines, each with the fields ``kinds`` and values of these types; no log is an empty one.

    A last line that a killed process was writing is left out. Raises ValueError that names file and line of any other damage.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    while lines and not lines[-1].strip():
        lines.pop()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line.decode("utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: not valid JSON ({error}); delete the line") from None
            continue
        try:
            records.append(_checked(value, kinds))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}; delete the line") from None
    return records


def cut_lines(path: Path, step: int) -> None:
    """Drops the records of steps after ``step``: what comes now will write them again."""
    kept = [record for record in read_lines(path, step=int) if record["step"] <= step]
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))


def add_line(path: Path, record: Mapping[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def plain(value: Any) -> Any:
    """Dataclasses, paths and tuples as JSON values."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def fingerprint(*parts: Any) -> str:
    """A short hash of settings and of earlier fingerprints.

    >>> fingerprint({"seed": 1}) == fingerprint({"seed": 1}), fingerprint({"seed": 2}) == fingerprint({"seed": 1})
    (True, False)
    """
    text = json.dumps([plain(part) for part in parts], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_finished(folder: Path, print_: str) -> bool:
    """Whether the stage that writes ``folder`` has finished with exactly these settings and inputs."""
    manifest = folder / MANIFEST
    return manifest.exists() and read_json(manifest)["fingerprint"] == print_


def start_stage(folder: Path, print_: str) -> None:
    """Empties ``folder`` unless it holds work begun under the same fingerprint (which the stage may resume)."""
    begun = folder / "begun.json"
    if folder.exists() and not (begun.exists() and read_json(begun)["fingerprint"] == print_):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(begun, {"fingerprint": print_})


def finish_stage(folder: Path, print_: str, facts: Mapping[str, Any]) -> None:
    """Marks a stage as whole; ``facts`` (counts, seconds, versions) are kept beside the fingerprint."""
    write_json(folder / MANIFEST, {"fingerprint": print_, **plain(facts)})
