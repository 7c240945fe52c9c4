"""The command line: one sub-command a stage, its flags the fields of a dataclass.

alhena demo                       the whole journey on the starter corpus
alhena chat runs/starter          talk to the result
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from alhena.memory import use_large_pages

Folder = Annotated[Path, tyro.conf.Positional]
DEFAULT = Path("runs/starter")


def _recipe(name: str):
    """``starter`` or ``starter:smoke``: a function of a module under ``recipes``."""
    if not re.fullmatch(r"\w+(:\w+)?", name):
        raise ValueError(
            f"--recipe {name!r}: write a module of recipes/, or module:function, such as starter or starter:smoke"
        )
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(f"recipes.{module}"), function or "run")()
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != f"recipes.{module}":
            raise
        raise ValueError(
            f"--recipe {name}: there is no such recipe (recipes/{module}.py with a function {function or 'run'}())"
        ) from None


@dataclass(frozen=True)
class _Staged:
    """Arguments of a stage of a run."""

    folder: Folder = DEFAULT  # the run folder
    recipe: str = "starter"  # module under recipes/, or module:function


@dataclass(frozen=True)
class Demo(_Staged):
    """The whole journey: corpus, curate, tokenise, pretrain, tune, 4-bit, report card. Interrupted, it goes on where it was."""

    def __call__(self) -> None:
        from alhena.journey import CONSOLE, travel

        travel(_recipe(self.recipe), self.folder)
        CONSOLE.print(f"\nReport card: {self.folder / 'report' / 'report.html'} and report.png")
        CONSOLE.print(f"Talk to it:  alhena chat {self.folder}")


@dataclass(frozen=True)
class Corpus(_Staged):
    """Build the starter corpus: text, pictures, speech and clips with their ground truth, offline."""

    def __call__(self) -> None:
        from alhena.journey import make_corpus

        make_corpus(_recipe(self.recipe), self.folder)


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
class Tokenise(_Staged):
    """Train the image tokeniser and the text pieces, and encode the curated documents of a run."""

    def __call__(self) -> None:
        from alhena.journey import make_curated, make_tokens

        make_curated(_recipe(self.recipe), self.folder)
        make_tokens(_recipe(self.recipe), self.folder)


@dataclass(frozen=True)
class Pretrain(_Staged):
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

        run = _recipe(self.recipe)
        if self.elastic and run.pretrain.mesh:
            mesh = with_pods_left(run.pretrain.mesh, jax.device_count())
            run = replace(run, pretrain=replace(run.pretrain, mesh=mesh))
        make_ears(run, self.folder)
        make_base(run, self.folder)


@dataclass(frozen=True)
class Launch:
    """Start a command as several processes of one training on this machine; when one is killed, start all of them again.

    alhena launch 2 -- pretrain runs/starter --recipe two_pods
    """

    processes: Annotated[int, tyro.conf.Positional]
    command: Annotated[tuple[str, ...], tyro.conf.Positional]  # what follows alhena: pretrain RUN …
    most: int = 100  # starts after losses, before it gives up
    elastic: bool = False  # go on without a process that was killed

    def __call__(self) -> None:
        from alhena.pretrain.launch import supervise

        own = [sys.executable, "-m", "alhena.cli", *self.command, *(["--elastic"] if self.elastic else [])]
        tell = lambda text: print(f"alhena launch: {text}", file=sys.stderr, flush=True)  # noqa: E731
        ended = supervise(own, self.processes, self.most, tell, elastic=self.elastic)
        if ended.code:
            sys.exit(f"alhena: the training ended with code {ended.code} after {ended.restarts} restarts")


@dataclass(frozen=True)
class Replay(_Staged):
    """Do pre-training steps again from a kept checkpoint and compare batch, loss, gradient norm and parameters, to the bit."""

    step: int = field(kw_only=True)  # the last step to do again

    def __call__(self) -> None:
        from alhena.journey import replay_base

        replayed = replay_base(_recipe(self.recipe), self.folder, self.step)
        if replayed.difference:
            sys.exit(f"alhena: {replayed}")
        print(replayed)


@dataclass(frozen=True)
class Tune(_Staged):
    """Supervised tuning. Without --data: the run's own chats. With --data: continue the finished model on your documents."""

    data: Path | None = None  # curated documents of your own
    name: str = "mine"  # the new model: RUN/models/NAME
    base: str = "assistant"  # the model to start from
    steps: int = 300
    rate: float = 1e-3  # highest learning rate

    def __call__(self) -> None:
        from alhena.journey import make_assistant, tune_on_documents

        recipe = _recipe(self.recipe)
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
class Compress(_Staged):
    """Quantise the assistant's decoder to 4 bits and report size and loss."""

    def __call__(self) -> None:
        from alhena.journey import make_nano

        make_nano(_recipe(self.recipe), self.folder)


@dataclass(frozen=True)
class Evaluate(_Staged):
    """The report card of a run; with --data, exact match, WER, CER and perplexity on held-out documents of your own."""

    data: Path | None = None  # curated held-out documents
    name: str = "assistant"  # with --data: which model of the run

    def __call__(self) -> None:
        if self.data is None:
            from alhena.journey import make_report

            make_report(_recipe(self.recipe), self.folder)
            return
        from alhena.evaluate.card import held_out_card

        held_out_card(self.data, model_folder(self.folder, self.name), self.folder / "held_out" / self.name)


@dataclass(frozen=True)
class Runs:
    """List and compare trainings: steps, losses by modality, validation, goodput, early warnings."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs"),)  # folders that hold trainings
    plot: Path | None = None  # a PNG to draw the losses by modality into

    def __call__(self) -> None:
        from rich import print as show

        from alhena.pretrain import runs

        found = runs.find(self.folders)
        show(runs.table(found))
        if self.plot:
            runs.draw(found, self.plot)


@dataclass(frozen=True)
class Fit(_Staged):
    """Train a ladder of small models on a run's tokens and fit L(N, D) = E + A/N^α + B/D^β to it, with bands and a plot."""

    budgets: tuple[float, ...] = (1e12, 2e12, 4e12)  # training FLOPs of a rung
    factors: tuple[float, ...] = (0.25, 0.35, 0.5, 0.7)  # of the recipe's widths

    def __call__(self) -> None:
        from alhena.journey import fit_scaling

        law = fit_scaling(_recipe(self.recipe), self.folder, self.budgets, self.factors)
        print(f"{law} → {self.folder / 'scaling' / 'scaling.png'}")


@dataclass(frozen=True)
class Suggest:
    """Compute-optimal parameters and tokens for a budget, by published laws and the run's own, and a smaller member for much use."""

    folder: Annotated[Path | None, tyro.conf.Positional] = None  # a run folder with a fitted ladder
    flops: float = field(kw_only=True)  # of the whole training
    served: float = 1e13  # tokens that the member for use will read and write in its life

    def __call__(self) -> None:
        from rich import print as show

        from alhena.pretrain.ladder import suggest

        show(suggest(self.flops, self.served, self.folder and self.folder / "scaling"))


@dataclass(frozen=True)
class Scale:
    """Scaling laws."""

    what: Annotated[Fit | Suggest, tyro.conf.arg(name="")]

    def __call__(self) -> None:
        self.what()


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

    def __call__(self) -> None:
        from alhena.serve.api import serve

        serve(model_folder(self.folder, self.name), self.host, self.port)


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
            shutil.copy(self.path / "tokenizer.model", self.out / "text.model")
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
            shutil.copy(found / "text.model", self.out / "tokenizer.model")
        left = " (its encoders of images and sound have no place there)" if params.vision or params.audio else ""
        print(f"{gemma.family_of(c.decoder)} → {self.out}{left}")


@dataclass(frozen=True)
class Plan:
    """What pre-training a recipe needs on a machine that is not at hand: memory, time, days. For TPUs their own compiler says so.

    alhena plan ultra --on v4:16x16x16 --pods 2          alhena plan nano_2 --on h100:64
    """

    recipe: Annotated[str, tyro.conf.Positional]  # nano_1, nano_2, pro, ultra or a module of your own under recipes/
    on: str  # chip and slice: v5e:4x4, v4:8x16x16, h100:64
    pods: int = 1  # so many slices, joined by the data-centre network
    mesh: str | None = None  # such as data=4,model=4; None: the fastest that fits
    rows: int | None = None  # of a step, in place of the recipe's; the tokens of the whole training stay
    json: Path | None = None  # also write the plan here

    def __call__(self) -> None:
        import jax
        from rich.console import Console

        from alhena.artifacts import write_json
        from alhena.pretrain import plan
        from alhena.pretrain.machines import machine
        from alhena.tokens.vocabulary import Vocabulary

        jax.config.update("jax_platforms", "cpu")  # nothing runs here: the machine planned for is only described
        run, where, console = _recipe(self.recipe), machine(self.on, self.pods), Console()
        c = run.model(Vocabulary(run.text_pieces, run.image_tokenizer.num_codes))
        training = plan.with_rows(run.pretrain, self.rows) if self.rows else run.pretrain
        mesh = plan.read_mesh(self.mesh, where) if self.mesh else None
        found = plan.make_plan(run.name, c, training, where, mesh, console.print)
        console.print(plan.as_table(found))
        if self.json:
            write_json(self.json, plan.as_json(found))


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
