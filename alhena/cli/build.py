"""Commands that build a model from raw documents: demo, corpus, curate, tokenize, pretrain, compress."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from alhena.cli.arguments import Folder, StageCommand, check_name, model_folder


@dataclass(frozen=True)
class Demo(StageCommand):
    """Run every stage on the starter corpus: corpus, curate, tokenize, pretrain, tune, compress, evaluate.

    You can stop it at any moment; the same command resumes. Finished stages are skipped.
    """

    def __call__(self) -> None:
        from alhena.pipeline import CONSOLE, run_pipeline

        with self.open_run(create=True) as run:
            run_pipeline(run, self.folder)
        CONSOLE.print(f"\nReport card: {self.folder / 'report' / 'report.html'} and report.png")
        CONSOLE.print(f"Chat with the model: alhena chat {self.folder}")


@dataclass(frozen=True)
class Corpus(StageCommand):
    """Build the starter corpus under RUN/raw: text, images, speech and video clips with their ground truth, without a network."""

    def __call__(self) -> None:
        from alhena.pipeline import make_corpus

        with self.open_run(create=True) as run:
            make_corpus(run, self.folder)


@dataclass(frozen=True)
class Curate:
    """Clean raw documents and write them as Parquet. Damaged, duplicate and low-quality documents are dropped and counted.

    INPUT is a folder with manifest.jsonl, a .jsonl file, a Parquet file or a folder of Parquet files (docs/your-data.md).
    """

    input: Folder  # raw documents
    out: Path  # folder for the clean documents and for report.json, which counts what was dropped
    evaluation: tuple[Path, ...] = ()  # curated evaluation sets: documents that overlap with them are removed
    held_out: bool = False  # the input is itself an evaluation set: duplicates are kept and counted

    def __call__(self) -> None:
        from alhena.corpus import curate
        from alhena.stages import locked

        if not self.input.exists():
            raise ValueError(f"{self.input}: nothing to read: no such file or folder")
        with locked(self.out):
            curate.curate(self.input, self.out, curate.Curate(held_out=self.held_out), self.evaluation)


@dataclass(frozen=True)
class Tokenize(StageCommand):
    """Train the text tokenizer and the image tokenizer, and encode the curated documents of a run to RUN/tokens."""

    def __call__(self) -> None:
        from alhena.pipeline import make_curated, make_tokens

        with self.open_run() as run:
            make_curated(run, self.folder)
            make_tokens(run, self.folder)


@dataclass(frozen=True)
class Pretrain(StageCommand):
    """Train the base model on the encoded corpus; resumes from the last checkpoint. Writes RUN/pretrain and RUN/models/base.

    With the environment variable ALHENA_COORDINATOR, this is one process of several (docs/scale-out.md; `alhena launch` sets it).
    """

    elastic: bool = False  # with fewer devices than the recipe's mesh has, train on the complete pods that remain

    def __call__(self) -> None:
        from alhena.recovery.supervisor import initialize_distributed

        # Before anything initializes JAX's backend.
        initialize_distributed()
        import jax

        from alhena.model.sharding import surviving_mesh
        from alhena.pipeline import make_audio_encoder, make_base

        # Several processes of one training write in one folder: the first one holds the lock for all.
        with self.open_run(lock=jax.process_index() == 0) as run:
            if self.elastic and run.pretrain.mesh:
                mesh = surviving_mesh(run.pretrain.mesh, jax.device_count())
                run = replace(run, pretrain=replace(run.pretrain, mesh=mesh))
            make_audio_encoder(run, self.folder)
            make_base(run, self.folder)


@dataclass(frozen=True)
class Compress(StageCommand):
    """Quantize a model: 4 bits in groups of 32 weights, 8 for the embedding. Prints which tensor has which type, and the loss of each step.

    Without --name: the run's assistant, as its recipe says, as RUN/models/nano. With --name: any finished model, as a model folder NAME
    beside it; FOLDER is then a run folder or a model folder, such as an imported one. The flags below need --name.

    The methods, each of which contains the ones before it: round to nearest; calibrated, which looks at the inputs of every weight on
    a few batches; qat, which trains the model with rounded weights to answer as it did before.
    """

    name: str | None = None  # name of the new model
    base: str = "assistant"  # name of the model to start from, in a run folder
    method: Literal["round", "calibrated", "qat"] = "calibrated"  # how weights are rounded
    # the type of a tensor, of all below a name or of a pattern, as in vision=bfloat16 or *.down=int8: int4, int8, bfloat16, float
    type: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    examples: Path | None = None  # curated documents to calibrate or train on; left out: those of the model's run
    data: Path | None = (
        None  # held-out documents to measure losses on; left out: the validation split of the model's run
    )
    steps: int = 100  # training steps of qat

    def __call__(self) -> None:
        from alhena.stages import locked

        if self.name is None:
            from alhena.pipeline import make_nano

            if self.data is not None or self.examples is not None or self.type:
                raise ValueError("--data, --examples and --type need --name, the name of the new model")
            with self.open_run() as run:
                make_nano(run, self.folder)
            return
        from alhena.compress.steps import Quantization
        from alhena.compress_folder import Documents, compress_folder
        from alhena.model.quantized.types import read_types
        from alhena.own_data import run_of

        base = model_folder(self.folder, self.base)
        check_name(self.name, base)
        how = Quantization(self.method, read_types(self.type), steps=self.steps)
        with locked(run_of(base)):
            compress_folder(base, self.name, how, Documents(self.examples, self.data))
