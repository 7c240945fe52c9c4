"""The command line: one sub-command a stage, its flags the fields of a dataclass.

alhena demo                       the whole journey on the starter corpus
alhena chat runs/starter          talk to the result
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from alhena.cli.arguments import DEFAULT, Folder, StageCommand
from alhena.cli.scale import Check, Launch, Plan, Replay, Runs, Scale
from alhena.files import FILES, check_sealed, copy_atomically, seal_folder
from alhena.large_pages import use_large_pages


@dataclass(frozen=True)
class Demo(StageCommand):
    """The whole journey: corpus, curate, tokenize, pretrain, tune, 4-bit, report card. Interrupted, it goes on where it was."""

    def __call__(self) -> None:
        from alhena.pipeline import CONSOLE, run_pipeline

        with self.begin(new=True) as run:
            run_pipeline(run, self.folder)
        CONSOLE.print(f"\nReport card: {self.folder / 'report' / 'report.html'} and report.png")
        CONSOLE.print(f"Talk to it:  alhena chat {self.folder}")


@dataclass(frozen=True)
class Corpus(StageCommand):
    """Build the starter corpus: text, pictures, speech and clips with their ground truth, offline."""

    def __call__(self) -> None:
        from alhena.pipeline import make_corpus

        with self.begin(new=True) as run:
            make_corpus(run, self.folder)


@dataclass(frozen=True)
class Curate:
    """Read raw documents, drop what is broken, doubled, poor or part of an evaluation set, and write Parquet.

    INPUT is a folder with manifest.jsonl (see docs/your-data.md), a .jsonl file, a Parquet file or a folder of them.
    """

    input: Folder
    out: Path  # folder for the clean documents and report.json
    evaluation: tuple[Path, ...] = ()  # curated evaluation sets: documents that overlap them are removed
    held_out: bool = False  # the input is an evaluation set: items that repeat are kept and counted

    def __call__(self) -> None:
        from alhena.corpus import curate
        from alhena.stages import locked

        if not self.input.exists():
            raise ValueError(f"{self.input}: nothing to read: no such file or folder")
        with locked(self.out):
            curate.curate(self.input, self.out, curate.Curate(held_out=self.held_out), self.evaluation)


@dataclass(frozen=True)
class Tokenize(StageCommand):
    """Train the image tokenizer and the text pieces, and encode the curated documents of a run."""

    def __call__(self) -> None:
        from alhena.pipeline import make_curated, make_tokens

        with self.begin() as run:
            make_curated(run, self.folder)
            make_tokens(run, self.folder)


@dataclass(frozen=True)
class Pretrain(StageCommand):
    """Train the base model on the encoded corpus; continues from the last checkpoint.

    As one process of several when ALHENA_COORDINATOR says so (docs/scale-out.md; alhena launch does).
    """

    elastic: bool = False  # with fewer chips than the recipe's mesh has, go on with the pods that are left

    def __call__(self) -> None:
        from alhena.recovery.supervisor import initialize_distributed

        initialize_distributed()
        import jax

        from alhena.model.sharding import surviving_mesh
        from alhena.pipeline import make_base, pretrain_audio_encoder_stage

        # Several processes of one training write in one folder: the first one holds the lock for all.
        with self.begin(take=jax.process_index() == 0) as run:
            if self.elastic and run.pretrain.mesh:
                mesh = surviving_mesh(run.pretrain.mesh, jax.device_count())
                run = replace(run, pretrain=replace(run.pretrain, mesh=mesh))
            pretrain_audio_encoder_stage(run, self.folder)
            make_base(run, self.folder)


@dataclass(frozen=True)
class Tune(StageCommand):
    """Supervised tuning. Without --data: the run's own chats. With --data: continue the finished model on your documents."""

    data: Path | None = None  # curated documents of your own
    name: str = "mine"  # the new model: RUN/models/NAME
    base: str = "assistant"  # the model to start from
    steps: int = 300
    learning_rate: float = 2e-4  # highest learning rate

    def __call__(self) -> None:
        from alhena.own_data import tune_on_documents
        from alhena.pipeline import ASSISTANT, BASE, NANO, make_assistant

        if self.data is None:
            with self.begin() as run:
                make_assistant(run, self.folder)
            return
        taken = (BASE, ASSISTANT, NANO, self.base)
        if not re.fullmatch(r"[\w-]+", self.name) or self.name in taken:
            raise ValueError(
                f"--name {self.name!r}: give the new model a name of its own, of letters, digits and dashes "
                f"(not {', '.join(dict.fromkeys(taken))})"
            )
        base = model_folder(self.folder, self.base)
        with self.begin() as run:
            optimizer = replace(run.tune.optimizer, learning_rate=self.learning_rate)
            t = replace(run.tune, steps=self.steps, weights=None, optimizer=optimizer)
            facts = tune_on_documents(self.folder, base, self.data, self.name, t)
        self._tell(facts)

    def _tell(self, facts: Mapping[str, Any]) -> None:
        """What was used, what was left out and why, and what to do next."""
        left = [f"{n} × {name}: {why}" for name, some in facts["left_out"].items() for why, n in some.items()]
        left += [f"{count} × {reason}" for reason, count in facts["encoded"]["dropped"].items()]
        losses = facts["validation_nats"]
        print(f"used: {facts['examples']} examples, about {facts['epochs']:g} epochs in {facts['tuned_steps']} steps")
        print(f"left out: {'; '.join(left) or 'none'}")
        for name, nats in losses["before"].items():
            print(f"loss on the run's validation split, {name}: {nats:.3f} → {losses['after'][name]:.3f}")
        print(f"the model: {self.folder / 'models' / self.name}")
        print(f"next: alhena evaluate {self.folder} --name {self.name} --data HELD_OUT")
        print(f"      alhena chat {self.folder} --name {self.name}")


@dataclass(frozen=True)
class Compress(StageCommand):
    """Quantize the assistant's decoder to 4 bits and report size and loss."""

    def __call__(self) -> None:
        from alhena.pipeline import make_nano

        with self.begin() as run:
            make_nano(run, self.folder)


@dataclass(frozen=True)
class Evaluate(StageCommand):
    """The report card of a run, or with --name of one of its models.

    With --data, exact match, WER, CER and perplexity on held-out documents of your own.
    """

    data: Path | None = None  # curated held-out documents
    name: str | None = None  # which model of the run; with --data the assistant unless said otherwise

    def __call__(self) -> None:
        from alhena.own_data import report_on
        from alhena.pipeline import ASSISTANT, make_report

        if self.data is None and self.name is None:
            with self.begin() as run:
                make_report(run, self.folder)
            return
        name = self.name or ASSISTANT
        found = model_folder(self.folder, name)
        with self.begin():
            if self.data is None:
                print(f"Report card: {report_on(self.folder, found) / 'report.html'} and report.png")
                return
            from alhena.evaluate.held_out import evaluate_held_out

            evaluate_held_out(self.data, found, self.folder / "held_out" / name)


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
        from alhena.serve.gemini.app import Listening, serve

        where = Listening(self.host, self.port, self.allow_host, self.limit_concurrency)
        serve(model_folder(self.folder, self.name), where)


@dataclass(frozen=True)
class Import:
    """Read open Gemma weights in Hugging Face's layout into a model folder of ours (the decoder: weights and configuration)."""

    path: Folder  # config.json and *.safetensors, sharded or not; tokenizer.model if it is there
    as_: Annotated[Literal["gemma", "gemma2", "gemma3"], tyro.conf.arg(name="as")]  # the family
    out: Path = Path("models/imported")  # the new model folder

    def __call__(self) -> None:
        from alhena.model import model
        from alhena.model.families import gemma
        from alhena.model.weights import save_model

        params, c = gemma.read(self.path, self.as_)
        save_model(self.out, params, c, {"name": self.path.name, "imported_as": self.as_})
        tokenizer = self.path / "tokenizer.model"
        if tokenizer.exists():
            copy_atomically(tokenizer, self.out / "text.model")
        seal_folder(self.out, ["weights.safetensors", "model.json", *(["text.model"] if tokenizer.exists() else [])])
        print(f"{model.count(params):,} parameters → {self.out}")


@dataclass(frozen=True)
class Export:
    """Write a model's decoder as Gemma weights in Hugging Face's layout, for transformers and what reads the same files."""

    folder: Folder = DEFAULT  # a run folder, or a model's
    model: str = "assistant"  # which of the run's models
    to: Literal["hf"] = "hf"
    out: Path = Path("models/exported")

    def __call__(self) -> None:
        from alhena.model.families import gemma
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
    | Tokenize
    | Pretrain
    | Launch
    | Replay
    | Check
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
    """The folder of a model, given a run folder or the model folder itself.

    Raises ValueError when there is none, or when a file of it is not as it was written.
    """
    for found in (folder, folder / "models" / name):
        if (found / "model.json").exists() or (found / FILES).exists():
            check_sealed(found)
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


class _Terminated(KeyboardInterrupt):
    """SIGTERM: ends a command in the same way as Ctrl-C does."""


def _terminate(*_: object) -> None:
    raise _Terminated


def main() -> None:
    """Entry point: one clear line for every foreseeable error, no traceback."""
    signal.signal(signal.SIGTERM, _terminate)
    use_large_pages()
    try:
        command = tyro.cli(Command, prog="alhena", description=__doc__)
        _prepare()
        command()
    except (ValueError, OSError, MemoryError, BrokenProcessPool) as error:
        if os.environ.get("ALHENA_TRACEBACK"):
            raise
        sys.exit(f"alhena: {_line_of(error)}")
    except KeyboardInterrupt as error:
        print("\nalhena: interrupted; type the same command again to go on where it was", file=sys.stderr)
        sys.exit(128 + (signal.SIGTERM if isinstance(error, _Terminated) else signal.SIGINT))


def _line_of(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return (
            f"out of memory ({error or 'no more could be allocated'}); give the process more, or less to do at a time"
        )
    if isinstance(error, BrokenProcessPool):
        return "a worker process was killed (for memory, most often); what had finished is kept, type the command again"
    return str(error)


if __name__ == "__main__":
    main()
