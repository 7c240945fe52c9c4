"""The command line: one sub-command a stage, its flags the fields of a dataclass.

alhena demo                       the whole journey on the starter corpus
alhena chat runs/starter          talk to the result
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from alhena.arguments import DEFAULT, Folder, Staged, recipe_of
from alhena.artifacts import copy_atomically
from alhena.at_scale import Launch, Plan, Replay, Runs, Scale
from alhena.memory import use_large_pages


@dataclass(frozen=True)
class Demo(Staged):
    """The whole journey: corpus, curate, tokenise, pretrain, tune, 4-bit, report card. Interrupted, it goes on where it was."""

    def __call__(self) -> None:
        from alhena.journey import CONSOLE, travel

        travel(recipe_of(self.recipe), self.folder)
        CONSOLE.print(f"\nReport card: {self.folder / 'report' / 'report.html'} and report.png")
        CONSOLE.print(f"Talk to it:  alhena chat {self.folder}")


@dataclass(frozen=True)
class Corpus(Staged):
    """Build the starter corpus: text, pictures, speech and clips with their ground truth, offline."""

    def __call__(self) -> None:
        from alhena.journey import make_corpus

        make_corpus(recipe_of(self.recipe), self.folder)


@dataclass(frozen=True)
class Curate:
    """Read raw documents, drop what is broken, doubled, poor or part of an evaluation set, and write Parquet.

    INPUT is a folder with manifest.jsonl (see docs/your-data.md), a .jsonl file, a Parquet file or a folder of them.
    """

    input: Folder
    out: Path  # folder for the clean documents and report.json
    evaluation: tuple[Path, ...] = ()  # curated evaluation sets: documents that overlap them are removed

    def __call__(self) -> None:
        from alhena.corpus import curate

        curate.curate(self.input, self.out, curate.Curate(), self.evaluation)


@dataclass(frozen=True)
class Tokenise(Staged):
    """Train the image tokeniser and the text pieces, and encode the curated documents of a run."""

    def __call__(self) -> None:
        from alhena.journey import make_curated, make_tokens

        make_curated(recipe_of(self.recipe), self.folder)
        make_tokens(recipe_of(self.recipe), self.folder)


@dataclass(frozen=True)
class Pretrain(Staged):
    """Train the base model on the encoded corpus; continues from the last checkpoint.

    As one process of several when ALHENA_COORDINATOR says so (docs/scale-out.md; alhena launch does).
    """

    elastic: bool = False  # with fewer chips than the recipe's mesh has, go on with the pods that are left

    def __call__(self) -> None:
        from alhena.pretrain.launch import join

        join()
        import jax

        from alhena.journey import make_base, make_ears
        from alhena.model.sharding import with_pods_left

        run = recipe_of(self.recipe)
        if self.elastic and run.pretrain.mesh:
            mesh = with_pods_left(run.pretrain.mesh, jax.device_count())
            run = replace(run, pretrain=replace(run.pretrain, mesh=mesh))
        make_ears(run, self.folder)
        make_base(run, self.folder)


@dataclass(frozen=True)
class Tune(Staged):
    """Supervised tuning. Without --data: the run's own chats. With --data: continue the finished model on your documents."""

    data: Path | None = None  # curated documents of your own
    name: str = "mine"  # the new model: RUN/models/NAME
    base: str = "assistant"  # the model to start from
    steps: int = 300
    rate: float = 1e-3  # highest learning rate

    def __call__(self) -> None:
        from alhena.journey import make_assistant, tune_on_documents

        recipe = recipe_of(self.recipe)
        if self.data is None:
            make_assistant(recipe, self.folder)
            return
        if not re.fullmatch(r"[\w-]+", self.name) or self.name == self.base:
            raise ValueError(
                f"--name {self.name!r}: give the new model a name of its own, of letters, digits and dashes"
            )
        t = replace(
            recipe.tune, steps=self.steps, weights=None, optimizer=replace(recipe.tune.optimizer, rate=self.rate)
        )
        models = self.folder / "models"
        tune_on_documents(models / self.base, self.data, self.folder / "tuned" / self.name, models / self.name, t)


@dataclass(frozen=True)
class Compress(Staged):
    """Quantise the assistant's decoder to 4 bits and report size and loss."""

    def __call__(self) -> None:
        from alhena.journey import make_nano

        make_nano(recipe_of(self.recipe), self.folder)


@dataclass(frozen=True)
class Evaluate(Staged):
    """The report card of a run; with --data, exact match, WER, CER and perplexity on held-out documents of your own."""

    data: Path | None = None  # curated held-out documents
    name: str = "assistant"  # with --data: which model of the run

    def __call__(self) -> None:
        if self.data is None:
            from alhena.journey import make_report

            make_report(recipe_of(self.recipe), self.folder)
            return
        from alhena.evaluate.card import held_out_card

        held_out_card(self.data, model_folder(self.folder, self.name), self.folder / "held_out" / self.name)


@dataclass(frozen=True)
class Chat:
    """Talk to a model in the terminal; write paths of pictures, sounds and clips into a line, get drawn pictures saved."""

    folder: Folder = DEFAULT  # a run folder or a model folder
    name: str = "assistant"  # which model of the run
    ask: str | None = None  # ask one question and leave

    def __call__(self) -> None:
        from alhena.serve.chat import chat

        chat(model_folder(self.folder, self.name), ask=self.ask)


@dataclass(frozen=True)
class Serve:
    """Answer the Gemini API (generateContent, streamGenerateContent) on this machine."""

    folder: Folder = DEFAULT  # a run folder or a model folder
    name: str = "assistant"  # which model of the run
    host: str = "127.0.0.1"
    port: int = 8000
    allow_host: tuple[str, ...] = ()  # more names that the Host header of a request may have
    limit_concurrency: int = 256  # requests answered or waiting at a time; more are refused

    def __call__(self) -> None:
        from alhena.serve.api import Listening, serve

        where = Listening(self.host, self.port, self.allow_host, self.limit_concurrency)
        serve(model_folder(self.folder, self.name), where)


@dataclass(frozen=True)
class Import:
    """Read open Gemma weights in Hugging Face's layout into a model folder of ours (the decoder: weights and configuration)."""

    path: Folder  # config.json and *.safetensors, sharded or not; tokenizer.model if it is there
    as_: Annotated[Literal["gemma", "gemma2", "gemma3"], tyro.conf.arg(name="as")]  # the family
    out: Path = Path("models/imported")  # the new model folder

    def __call__(self) -> None:
        from alhena.model import gemma, model
        from alhena.model.weights import save_model

        params, c = gemma.read(self.path, self.as_)
        save_model(self.out, params, c, {"name": self.path.name, "imported_as": self.as_})
        if (self.path / "tokenizer.model").exists():
            copy_atomically(self.path / "tokenizer.model", self.out / "text.model")
        print(f"{model.count(params):,} parameters → {self.out}")


@dataclass(frozen=True)
class Export:
    """Write a model's decoder as Gemma weights in Hugging Face's layout, for transformers and what reads the same files."""

    folder: Folder = DEFAULT  # a run folder, or a model's
    model: str = "assistant"  # which of the run's models
    to: Literal["hf"] = "hf"
    out: Path = Path("models/exported")

    def __call__(self) -> None:
        from alhena.model import gemma
        from alhena.model.weights import load_model

        found = model_folder(self.folder, self.model)
        params, c = load_model(found)
        gemma.write(self.out, params, c)
        if (found / "text.model").exists():
            copy_atomically(found / "text.model", self.out / "tokenizer.model")
        left = " (its encoders of images and sound have no place there)" if params.vision or params.audio else ""
        print(f"{gemma.family_of(c.decoder)} → {self.out}{left}")


Command = (
    Demo
    | Corpus
    | Curate
    | Tokenise
    | Pretrain
    | Launch
    | Replay
    | Tune
    | Compress
    | Evaluate
    | Runs
    | Scale
    | Plan
    | Chat
    | Serve
    | Import
    | Export
)


def model_folder(folder: Path, name: str) -> Path:
    """The folder of a model, given a run folder or the model folder itself. Raises ValueError when there is none."""
    for found in (folder, folder / "models" / name):
        if (found / "model.json").exists():
            return found
    models = sorted(path.parent.name for path in folder.glob("models/*/model.json"))
    there = f"it has {', '.join(models)}" if models else "no model is there yet: make one with `alhena demo`"
    raise ValueError(f"{folder}: no model {name!r}; {there}")


def _prepare() -> None:
    """Compiled programs are kept between runs: a second start compiles nothing."""
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "alhena" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def main() -> None:
    """Entry point: one clear line for every foreseeable error, no traceback."""
    use_large_pages()
    command = tyro.cli(Command, prog="alhena", description=__doc__)
    try:
        _prepare()
        command()
    except (ValueError, OSError) as error:
        if os.environ.get("ALHENA_TRACEBACK"):
            raise
        sys.exit(f"alhena: {error}")
    except KeyboardInterrupt:
        sys.exit("\nalhena: interrupted; type the same command again to go on where it was")


if __name__ == "__main__":
    main()
