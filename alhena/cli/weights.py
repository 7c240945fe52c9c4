"""Commands on weights and files: import, export, check.

``files.json`` of an output folder names the command that wrote it, so that the command can be repeated and nothing else is overwritten.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from alhena.cli.arguments import DEFAULT_RUN, Folder, model_folder
from alhena.files import (
    FILES,
    LOCK,
    changed_files,
    copy_atomically,
    describe_files,
    files_under,
    flush_all,
    read_entries,
    read_json,
    write_json,
)


def check_output(out: Path, command: str) -> bool:
    """Whether ``out`` holds the finished output of the same command; False when it is new, empty, or has an interrupted output.

    Raises ValueError that names a file which this command did not write, or which has changed since.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: a file, not a folder; choose another --out")
    names = sorted(path.name for path in out.iterdir() if path.name != LOCK) if out.exists() else []
    if not names:
        return False
    remedy = "move the files elsewhere, or choose another --out"
    listed = read_json(out / FILES) if (out / FILES).is_file() else {}
    if not isinstance(listed, dict) or listed.get("written_by") != command:
        raise ValueError(f"{out / names[0]}: not written by `alhena {command}`; {remedy}")
    if "files" not in listed:
        return False
    entries = read_entries(out / FILES)
    changes = [f"{out / name}: not written by `alhena {command}`" for name in files_under(out) if name not in entries]
    changes += changed_files(out, entries)
    if changes:
        raise ValueError(f"{changes[0]}; {remedy}")
    return True


@contextmanager
def output_folder(out: Path, command: str) -> Iterator[None]:
    """Writes inside the block go to ``out``, which lists its files at the end. An earlier output is renamed, as stages do."""
    from alhena.stages import locked, set_aside

    if check_output(out, command):
        print(f"{out} held an earlier output; it is now {set_aside(out)} (delete it when you do not need it)")
    with locked(out):
        # Without a list of files the folder counts as an interrupted output, and no command loads a model from it.
        write_json(out / FILES, {"written_by": command})
        yield
        flush_all(out)
        write_json(out / FILES, {"written_by": command, "files": describe_files(out, files_under(out))})


@dataclass(frozen=True)
class Import:
    """Import the decoder of open Gemma weights, in Hugging Face's layout, as a model folder."""

    path: Folder  # folder with config.json, *.safetensors (one or several) and, optionally, tokenizer.model
    as_: Annotated[Literal["gemma", "gemma2", "gemma3"], tyro.conf.arg(name="as")]  # the model family
    out: Path = Path("models/imported")  # the new model folder

    def __call__(self) -> None:
        from alhena.model import model
        from alhena.model.families import gemma
        from alhena.model.weights import save_model

        # Before minutes of reading.
        check_output(self.out, "import")
        params, c = gemma.read(self.path, self.as_)
        with output_folder(self.out, "import"):
            save_model(self.out, params, c, {"name": self.path.name, "imported_as": self.as_})
            tokenizer = self.path / "tokenizer.model"
            if tokenizer.exists():
                copy_atomically(tokenizer, self.out / "text.model")
        print(f"{model.count(params):,} parameters → {self.out}")


@dataclass(frozen=True)
class Export:
    """Export a model's decoder as Gemma weights in Hugging Face's layout, which transformers and others read."""

    folder: Folder = DEFAULT_RUN  # a run folder or a model folder
    name: str = "assistant"  # name of the model, in a run folder
    to: Literal["hf"] = "hf"  # the format: hf is safetensors and config.json
    out: Path = Path("models/exported")  # the new folder

    def __call__(self) -> None:
        from alhena.model.families import gemma
        from alhena.model.weights import load_model

        folder = model_folder(self.folder, self.name)
        check_output(self.out, "export")
        params, c = load_model(folder)
        with output_folder(self.out, "export"):
            gemma.write(self.out, params, c)
            if (folder / "text.model").exists():
                copy_atomically(folder / "text.model", self.out / "tokenizer.model")
        left_out = " (without its vision and audio encoders, which this format does not hold)"
        print(f"{gemma.family_of(c.decoder)} → {self.out}{left_out if params.vision or params.audio else ''}")


@dataclass(frozen=True)
class Check:
    """Verify every file of a run's finished stages and models against the size and SHA-256 recorded when it was written."""

    folder: Folder = DEFAULT_RUN  # a run folder or a model folder

    def __call__(self) -> None:
        from alhena.stages import check_run

        checked = check_run(self.folder)
        for folder in checked.unfinished:
            print(f"{folder}: begun and not finished")
        for line in checked.changes:
            print(line)
        if checked.changes:
            sys.exit(
                f"alhena: {len(checked.changes)} differences, {checked.intact} files as they were written. Put a file back, or delete "
                "the stage.json of its stage and type the command of the stage again"
            )
        print(f"{self.folder}: {checked.intact} files, all as they were written")
