"""Run folders: where each stage writes its files, and how the next stage verifies that they are complete.

    runs/starter/
      raw/        corpus      documents with their ground truth, by split
      curated/    curate      clean documents, by split, and what was dropped
      tokens/     tokenize    tokenizers, image codes, encoded examples
      pretrain/   pretrain    checkpoints, metrics
      models/     base, assistant, nano: weights that serve, each folder complete in itself
      report/     evaluate    report.html, report.png, results.json
      history.jsonl           a record of every evaluation

A finished stage writes ``stage.json``: the fingerprint of its settings and inputs, and size and hash of each of its files. A stage
whose fingerprint is unchanged is not repeated (:mod:`alhena.stages`). A model folder lists its files in ``files.json``. Files are
written by atomic rename, so a killed process never leaves a partial file under a final name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST, BEGUN = "stage.json", "begun.json"
# Folder of a model folder with the files that an export writes again.
SOURCE = "source"
FILES = "files.json"
LOCK = ".lock"
_BLOCK = 1 << 20
# Hashing more bytes than this takes some seconds and shows progress.
_LARGE_BYTES = 4 << 30


def flush(path: Path) -> None:
    """Flushes a file, or the names in a folder, from the system's cache to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Creates a folder and its parents; the names of new ones are flushed to the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        flush(path.parent)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path to write to. It becomes ``path`` when the block ends without an error: flushed, renamed, its folder flushed."""
    make_folder(path.parent)
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
    """Writes a complete file, from bytes, text or chunks of bytes, or nothing."""
    with atomic(path) as partial, open(partial, "wb") as file:
        file.writelines([data.encode()] if isinstance(data, str) else [data] if isinstance(data, bytes) else data)


def copy_atomically(source: Path, path: Path) -> None:
    """Copies a complete file or nothing."""
    with atomic(path) as partial:
        shutil.copyfile(source, partial)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON with sorted keys."""
    write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def _check_fields(value: Any, types: Mapping[str, type]) -> dict[str, Any]:
    """A JSON object with at least these fields. Raises ValueError that states what is wrong."""
    if not isinstance(value, dict):
        raise ValueError(f"it is a {type(value).__name__}, not an object")
    for key, type_ in types.items():
        if key not in value:
            raise ValueError(f"it has no field {key!r}")
        item = value[key]
        is_integer = isinstance(item, int) and not isinstance(item, bool)
        matches = {float: is_integer or isinstance(item, float), int: is_integer}.get(type_, type(item) is type_)
        if not matches:
            raise ValueError(f"field {key!r} is {item!r:.40}; its type must be {type_.__name__}")
    return value


def read_json(path: Path, **types: Any) -> Any:
    """The value of a JSON file; with ``types``, an object that has these fields with values of these types.

    Raises ValueError that names the file when it is missing, not JSON, or lacks a field.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; has the stage that writes it finished?") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); delete it and run its stage again") from None
    try:
        return _check_fields(value, types) if types else value
    except ValueError as error:
        raise ValueError(f"{path}: {error}; delete it and run its stage again") from None


def read_lines(path: Path, **types: Any) -> list[dict[str, Any]]:
    """The records of a log of JSON lines, each with the fields ``types`` of these types; a missing log is empty.

    An incomplete last line of a killed process is dropped. Raises ValueError that names file and line of any other damage.
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
            records.append(_check_fields(value, types))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}; delete the line") from None
    return records


def truncate_log(path: Path, step: int) -> None:
    """Removes the records of steps after ``step``, which a resumed training writes again."""
    records = [record for record in read_lines(path, step=int) if record["step"] <= step]
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in records))


def add_line(path: Path, record: Mapping[str, Any]) -> None:
    """Appends a record to a log of JSON lines."""
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
    """A short hash of settings and earlier fingerprints.

    >>> fingerprint({"seed": 1}) == fingerprint({"seed": 1}), fingerprint({"seed": 2}) == fingerprint({"seed": 1})
    (True, False)
    """
    text = json.dumps([plain(part) for part in parts], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest(path: Path, advance: Callable[[int], object] = lambda size: None) -> str:
    """SHA-256 of a file's content, as ``sha256sum`` prints it; ``advance`` is called with the number of bytes read."""
    total = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            total.update(block)
            advance(len(block))
    return total.hexdigest()


def digests(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file, several at a time; with progress where it takes more than some seconds."""
    size = sum(path.stat().st_size for path in paths)
    with ThreadPoolExecutor(4) as pool:
        if size < _LARGE_BYTES:
            return list(pool.map(digest, paths))
        # Imported here: few programs need it, and all others start faster without it.
        from alhena.progress import progress_bar

        with progress_bar() as progress:
            bar = progress.add_task("check files (MB)", total=size // 10**6)
            advance = lambda count: progress.update(bar, advance=count / 10**6)  # noqa: E731
            return list(pool.map(lambda path: digest(path, advance), paths))


def files_under(folder: Path) -> list[str]:
    """Relative names of the files at any depth, sorted, without manifests and locks."""
    managed = {MANIFEST, BEGUN, FILES, LOCK}
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if str(path) not in managed)


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and hash of each file, by its name."""
    paths = {name: folder / name for name in names}
    hashes = zip(paths.items(), digests([*paths.values()]), strict=True)
    return {name: {"size": path.stat().st_size, "sha256": sha256} for (name, path), sha256 in hashes}


def content_fingerprint(folder: Path) -> str:
    """A fingerprint of the names and content of all files in a folder (or of one file)."""
    if folder.is_file():
        return fingerprint(folder.name, digest(folder))
    return fingerprint("content", describe_files(folder, files_under(folder)))


def flush_all(folder: Path) -> None:
    """Flushes every file under a folder, and every folder, to the disk."""
    for path in folder.rglob("*"):
        if path.is_file() or path.is_dir():
            flush(path)
    flush(folder)


def read_entries(path: Path) -> dict[str, dict[str, Any]]:
    """Size and hash by file name, as ``files.json`` and ``stage.json`` list them. Raises ValueError for anything else."""
    entries = read_json(path, files=dict)["files"]
    for name, entry in entries.items():
        inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
        try:
            _check_fields(entry, {"size": int, "sha256": str})
        except ValueError as error:
            raise ValueError(f"{path}: entry {name!r}: {error}; delete it and run its stage again") from None
        if not inside:
            raise ValueError(f"{path}: entry {name!r} leaves the folder")
    return entries


def changed_files(folder: Path, entries: Mapping[str, Mapping[str, Any]], by_content: bool = True) -> list[str]:
    """Differences from the recorded files: a line for each that is missing, or has another size or content."""
    lines: dict[Path, str] = {}
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            lines[path] = "deleted since it was written"
        elif (size := path.stat().st_size) != entry["size"]:
            lines[path] = f"{size:,} bytes, {entry['size']:,} were written"
    expected = {folder / name: entry["sha256"] for name, entry in entries.items() if folder / name not in lines}
    for path, actual in zip(expected, digests([*expected]), strict=True) if by_content else ():
        if actual != expected[path]:
            lines[path] = "its content has changed since it was written (SHA-256 differs)"
    return [f"{path}: {line}" for path, line in sorted(lines.items())]


def seal_folder(folder: Path, names: Iterable[str]) -> None:
    """Flushes the files of a folder to the disk and lists them with size and hash in its ``files.json``."""
    flush_all(folder)
    write_json(folder / FILES, {"files": describe_files(folder, sorted(names))})


def check_sealed(folder: Path) -> None:
    """Raises ValueError when a file in ``files.json`` has changed since it was written. A folder without the list is not checked."""
    if not (folder / FILES).exists():
        return
    changed = changed_files(folder, read_entries(folder / FILES))
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise ValueError(f"{changed[0]}{more}; copy the model folder again, or have its stage write it again")
