"""Stages of a run: skipped when finished, resumed when interrupted, checked when read; foreign files are never overwritten.

    RUN/.lock                  held by the one command that writes in the run folder
    RUN/tokens/begun.json      the fingerprint under which the stage began
    RUN/tokens/stage.json      the stage has finished: fingerprint, facts, and size and hash of each file
    RUN/tokens.old-1/          output of the stage under other settings

A stage writes into a folder that is new or that it began under the same fingerprint. Under another fingerprint it first renames
the folder and the model folders that it writes. Nothing is ever deleted.
"""

from __future__ import annotations

import fcntl
import os
import resource
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from alhena.files import (
    BEGUN,
    FILES,
    LOCK,
    MANIFEST,
    changed_files,
    describe_files,
    digest,
    files_under,
    flush,
    flush_all,
    make_folder,
    plain,
    read_entries,
    read_json,
    write_json,
)
from alhena.processes import gather_from_processes

CONSOLE = Console()
OLD = ".old-"
# Only a resumed training reads these, and they have checksums of their own: a user may delete them to save space.
_OPTIONAL = "checkpoints/"


@dataclass(frozen=True)
class Stage:
    """Name, output folder and inputs of a stage.

    ``fingerprint`` is that of settings and inputs. ``reads`` are folders of stages and models that are checked before the stage
    begins, ``models`` the model folders that it writes. ``advice`` ends the message when the folder holds foreign files.
    """

    name: str
    folder: Path
    fingerprint: str
    reads: tuple[Path, ...] = ()
    models: tuple[Path, ...] = ()
    advice: str = "move them elsewhere, or choose another run folder"


@contextmanager
def locked(folder: Path, acquire: bool = True) -> Iterator[None]:
    """Holds the lock of a folder, so that no other command writes there. Raises ValueError that names the process that holds it.

    The lock ends with its process. ``acquire`` is False in all but one of several processes of one training.
    """
    if not acquire:
        yield
        return
    make_folder(folder)
    with open(folder / LOCK, "a+", encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(300).strip() or "another process"
            raise ValueError(
                f"{folder}: another command writes there ({holder}); wait until it ends, stop it, or choose another folder"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}: {shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}\n")
        file.flush()
        yield


def fingerprint_of(folder: Path) -> str:
    """The fingerprint of a finished stage. Raises ValueError when it has not finished."""
    return read_json(folder / MANIFEST, fingerprint=str)["fingerprint"]


def is_finished(stage: Stage) -> bool:
    """Whether the stage has finished under exactly this fingerprint."""
    return (stage.folder / MANIFEST).exists() and fingerprint_of(stage.folder) == stage.fingerprint


def _read_begun(folder: Path) -> dict[str, Any]:
    """The record that a stage wrote when it began. A damaged record matches no fingerprint, so the folder is renamed."""
    try:
        return read_json(folder / BEGUN, fingerprint=str, models=list)
    except ValueError:
        return {"fingerprint": None, "models": []}


def _names(folder: Path) -> list[str]:
    """Names in a folder, without its lock and the record of its stage."""
    return sorted(path.name for path in folder.iterdir() if path.name not in (BEGUN, LOCK)) if folder.exists() else []


def _check_ownership(stage: Stage) -> None:
    """Raises ValueError when a folder of the stage, or of its models, holds files that no stage wrote."""
    folders = [(stage.folder, any((stage.folder / name).exists() for name in (BEGUN, MANIFEST)))]
    written = _read_begun(stage.folder)["models"]
    folders += [(model, (model / FILES).exists() or model.name in written) for model in stage.models]
    for folder, is_ours in folders:
        names = _names(folder)
        if names and not is_ours:
            listed_names = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ValueError(f"{folder} holds files that no stage of this run made ({listed_names}): {stage.advice}")


def set_aside(folder: Path) -> Path:
    """Renames a folder to the next free ``NAME.old-1``, ``.old-2``, …"""
    number = 1
    while (target := folder.with_name(f"{folder.name}{OLD}{number}")).exists():
        number += 1
    folder.rename(target)
    flush(folder.parent)
    return target


def start_stage(stage: Stage) -> None:
    """Prepares the folder: a new one, or one that was begun under the same fingerprint, which the stage resumes.

    A folder of another fingerprint is renamed, with its models. Raises ValueError when a folder holds foreign files.
    """
    if _read_begun(stage.folder)["fingerprint"] != stage.fingerprint:
        _check_ownership(stage)
        for folder in (stage.folder, *stage.models):
            if _names(folder):
                renamed = set_aside(folder)
                CONSOLE.print(
                    f"{stage.name}: {folder} was made with other settings or data; it was renamed to {renamed} (delete it when you do not need it)",
                    highlight=False,
                    markup=False,
                )
        record = {"fingerprint": stage.fingerprint, "models": [folder.name for folder in stage.models]}
        write_json(stage.folder / BEGUN, record)
    (stage.folder / MANIFEST).unlink(missing_ok=True)


def finish_stage(stage: Stage, facts: Mapping[str, Any]) -> None:
    """Marks a stage as finished once all of its files are on the disk; ``facts`` (counts, seconds) are stored with the hashes."""
    flush_all(stage.folder)
    models = {folder.name: digest(folder / FILES) for folder in stage.models}
    files = describe_files(stage.folder, files_under(stage.folder))
    content = {**plain(facts), "fingerprint": stage.fingerprint, "models": models, "files": files}
    write_json(stage.folder / MANIFEST, content)


def _model_changes(stage_folder: Path, folder: Path, by_content: bool) -> list[str]:
    """Differences of a model folder from what the stage wrote."""
    sealed = folder / FILES
    if not sealed.is_file():
        return [f"{sealed}: deleted since it was written"]
    written = read_json(stage_folder / MANIFEST, models=dict)["models"].get(folder.name)
    if digest(sealed) != written:
        return [f"{sealed}: not as {stage_folder.name} wrote it; {folder} holds another model"]
    return changed_files(folder, read_entries(sealed), by_content)


def _raise_for_changes(changes: list[str], folder: Path) -> None:
    if changes:
        more = f" (and {len(changes) - 1} more: alhena check)" if len(changes) > 1 else ""
        remedy = f"put it back, or delete {folder / MANIFEST} and type the command again: the stage then writes its files again"
        raise ValueError(f"{changes[0]}{more}; {remedy}")


def _required_entries(folder: Path) -> dict[str, Any]:
    """The files that a finished stage lists, without those that a user may delete."""
    entries = read_entries(folder / MANIFEST)
    return {name: entry for name, entry in entries.items() if not name.startswith(_OPTIONAL)}


def check_inputs(folder: Path) -> None:
    """Raises ValueError when a file of a finished stage or model has changed. Other folders are not checked."""
    if (folder / MANIFEST).exists():
        _raise_for_changes(changed_files(folder, _required_entries(folder)), folder)
    elif (folder / FILES).exists():
        stages = _stage_folders(folder.parent.parent) if folder.parent.name == "models" else []
        maker = next((stage for stage in stages if folder.name in _models_of(stage)), None)
        if maker is None:
            _raise_for_changes(changed_files(folder, read_entries(folder / FILES)), folder)
        else:
            _raise_for_changes(_model_changes(maker, folder, by_content=True), maker)


def _check_outputs(stage: Stage) -> None:
    """Raises ValueError when a file of a finished stage is missing or has another size. The stage that reads it checks its content."""
    changes = changed_files(stage.folder, _required_entries(stage.folder), by_content=False)
    for folder in stage.models:
        changes += _model_changes(stage.folder, folder, by_content=False)
    _raise_for_changes(changes, stage.folder)


def run_stage(stage: Stage, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Runs a stage unless it has finished under the same fingerprint; returns the facts in its ``stage.json``.

    Of several processes the first one manages the folder. Raises ValueError when an input has changed.
    """
    is_main = jax.process_index() == 0
    if gather_from_processes(is_finished(stage) if is_main else None)[0]:
        _check_outputs(stage)
        CONSOLE.print(f"[dim]✓ {stage.name}: finished before, skipped ({stage.folder})[/dim]")
        return read_json(stage.folder / MANIFEST)
    if is_main:
        for folder in stage.reads:
            check_inputs(folder)
        start_stage(stage)
    # The other processes wait until the folder exists.
    gather_from_processes(None)
    CONSOLE.rule(f"[bold]{stage.name}[/bold]", align="left")
    began = time.monotonic()
    facts = work()
    seconds = round(time.monotonic() - began, 1)
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    # Wait until every process has finished writing.
    gather_from_processes(None)
    if is_main:
        finish_stage(stage, {"seconds": seconds, "peak_gib": peak, **facts})
    CONSOLE.print(f"✓ {stage.name}: {seconds:.0f} s → {stage.folder}")
    return facts


def _stage_folders(run: Path) -> list[Path]:
    """Folders of all stages that have finished or begun in a run, in folders of several stages too."""
    where = [
        f"{depth}/{name}"
        for depth in ("*", "extend/*", "tuned/*", "compressed/*", "reports/*")
        for name in (MANIFEST, BEGUN)
    ]
    found = {path.parent for pattern in where for path in run.glob(pattern)}
    return sorted(found)


def _models_of(stage_folder: Path) -> dict[str, str]:
    manifest = stage_folder / MANIFEST
    current = OLD not in stage_folder.name and manifest.exists()
    return read_json(manifest, models=dict)["models"] if current else {}


@dataclass(frozen=True)
class Checked:
    """Result of :func:`check_run`: number of unchanged files, a line for each changed one, folders of unfinished stages."""

    intact: int
    changes: list[str]
    unfinished: list[Path]


def check_run(run: Path) -> Checked:
    """Compares every file of every finished stage and model of a run (or of one model folder) with its recorded hash.

    Raises ValueError when there is nothing to check.
    """
    stages = _stage_folders(run)
    models = [path.parent for path in sorted({*run.glob(f"models/*/{FILES}"), *run.glob(FILES)})]
    if not stages and not models:
        raise ValueError(f"{run}: it holds no stage and no model (no {MANIFEST} or {FILES})")
    intact, changes, unfinished = 0, list[str](), list[Path]()
    for folder in (*stages, *models):
        listed = folder / (MANIFEST if folder in stages else FILES)
        if not listed.exists():
            unfinished.append(folder)
            continue
        try:
            entries = read_entries(listed)
            found = changed_files(folder, entries)
            intact += len(entries) - len(found)
            for name in _models_of(folder) if folder in stages else ():
                found += _model_changes(folder, run / "models" / name, by_content=False)
        except ValueError as error:
            changes.append(str(error))
            continue
        changes += found
    return Checked(intact, list(dict.fromkeys(changes)), unfinished)
