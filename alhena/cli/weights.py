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
    SOURCE,
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


# Files beside the weights that an export writes again, in the folder SOURCE of a model folder.
SIDECARS = (
    "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "chat_template.jinja", "chat_template.json", "processor_config.json", "preprocessor_config.json",
    "video_preprocessor_config.json", "LICENSE", "README.md",
)  # fmt: skip
# Of an export: encoders that its format does not hold.
ENCODERS = "encoders"
MAX_SIDECAR_BYTES = 64 * 2**20


def _copy_sidecars(source: Path, out: Path) -> None:
    """Copies the small files beside the weights, for an export."""
    from alhena.model.storage.tensors import regular

    for name in SIDECARS:
        if not (source / name).exists():
            continue
        if (size := regular(source / name).stat().st_size) > MAX_SIDECAR_BYTES:
            raise ValueError(f"{source / name}: {size:,} bytes; at most {MAX_SIDECAR_BYTES:,} are copied")
        copy_atomically(source / name, out / SOURCE / name)


@dataclass(frozen=True)
class Import:
    """Import an open Gemma (1, 2, 3, 3n or 4) as a model folder, from a folder in Hugging Face's layout or a GGUF file."""

    path: Folder  # folder with config.json, *.safetensors and tokenizer.json, or a .gguf file
    out: Path = Path("models/imported")  # the new model folder
    # of the matrices; as in the files when left out. int4: rounded to 4 bits, the embedding to 8, as by `alhena compress --method round`,
    # in a little memory; `alhena compress` with examples costs less quality
    weights: Literal["bfloat16", "float32", "int4"] | None = None
    # with --weights int4, the type of a tensor, of all below a name or of a pattern, as in vision=bfloat16 or embedding=int4; repeatable
    type: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    without: tuple[Literal["image", "audio"], ...] = ()  # modalities whose encoder is left out

    def __call__(self) -> None:
        from alhena.compress.report import types_table
        from alhena.model import model
        from alhena.model.families.gguf import reader
        from alhena.model.families.import_weights import import_weights, types_of
        from alhena.model.families.open_weights import open_folder
        from alhena.model.quantized.types import read_types
        from alhena.stages import CONSOLE
        from alhena.tokens.formats.import_prompts import import_prompts

        # Before minutes of reading.
        check_output(self.out, "import")
        is_file = self.path.is_file()
        opened = reader.open_file(self.path) if is_file else open_folder(self.path, self.without)
        table = types_of(opened, self.weights, types := read_types(self.type))
        for line in opened.left_out:
            print(f"not read: {line}")
        with output_folder(self.out, "import"):
            c = import_weights(opened, self.out, self.weights, types)
            if not import_prompts(self.path, self.out, opened.model_type, c):
                print(
                    f"{self.path}: no tokenizer of an open model: weights alone, which can only be exported or quantized"
                )
            if not is_file:
                _copy_sidecars(self.path, self.out)
        if self.weights == "int4":
            CONSOLE.print(types_table(table))
        print(f"{opened.model_type}, {model.count(model.weights(c)):,} parameters → {self.out}")


@dataclass(frozen=True)
class Export:
    """Export a model as Gemma weights: a folder that transformers and others read, or a GGUF file that llama.cpp reads.

    Adapters are merged. Weights of 4 and 8 bits go into a GGUF file as they are (types Q4_0 and Q8_0). Encoders that the format does not
    hold are written beside it, in a folder of their own (docs/open-weights.md).
    """

    folder: Folder = DEFAULT_RUN  # a run folder or a model folder
    name: str = "assistant"  # name of the model, in a run folder
    to: Literal["hf", "gguf"] = "hf"  # the format: hf is safetensors and config.json, gguf one file for llama.cpp
    out: Path | None = None  # the new folder or file; models/exported, or models/exported.gguf
    floats: Literal["f32", "bf16", "f16"] | None = (
        None  # gguf: type of matrices that are not quantized; left out, as they are
    )

    def __call__(self) -> None:
        folder = model_folder(self.folder, self.name)
        if self.to == "gguf":
            self._gguf(folder, self.out or Path("models/exported.gguf"))
        elif self.floats:
            raise ValueError("--floats belongs to --to gguf")
        else:
            self._hf(folder, self.out or Path("models/exported"))

    def _gguf(self, folder: Path, out: Path) -> None:
        from alhena.compress.export_gguf import export_gguf

        done = export_gguf(folder, out, self.floats)
        for path in done.beside:
            print(f"encoders → {path}")
        print(f"{done.architecture} → {out}")

    def _hf(self, folder: Path, out: Path) -> None:
        from alhena.model.families.export_weights import exported, lost_encoders, write, write_encoders
        from alhena.model.families.model_config import model_type
        from alhena.model.lora import merged
        from alhena.model.storage.folders import base_of, is_adapter, load_model

        check_output(out, "export")
        params, c = load_model(folder)
        lost = lost_encoders(c, exported(c))
        with output_folder(out, "export"):
            write(out, merged(params), c)
            if lost:
                write_encoders(out / ENCODERS, params, c, lost)
            for path in sorted(((base_of(folder) if is_adapter(folder) else folder) / SOURCE).glob("*")):
                copy_atomically(path, out / path.name)
            for ours, theirs in (("tokenizer.json", "tokenizer.json"), ("text.model", "tokenizer.model")):
                if (folder / ours).exists():
                    copy_atomically(folder / ours, out / theirs)
        without = f" (without its {' and '.join(lost)} encoder{'s' * (len(lost) > 1)}, which are in {out / ENCODERS})"
        print(f"{model_type(exported(c))} → {out}{without if lost else ''}")


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
