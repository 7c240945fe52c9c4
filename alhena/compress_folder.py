"""Quantizes the model of a folder, as a model folder beside it, and measures what each step of it costs.

    models/gemma ─► models/NAME, and compressed/NAME of the run folder: types, sizes, losses on held-out documents

Examples to calibrate and train on are those of the model's run, or encoded from documents; held-out ones likewise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alhena.align.sft import Tune, fitted_shape, run_tokens, shape_for
from alhena.compress import report
from alhena.compress.measuring import HeldOut, quantize_and_measure
from alhena.compress.steps import Quantization, Source
from alhena.content import Document
from alhena.documents import read_documents
from alhena.evaluate.held_out import is_running_text
from alhena.evaluate.scoring import text_loss
from alhena.files import content_fingerprint, fingerprint, write_json
from alhena.model import model
from alhena.model.quantized.types import type_table
from alhena.model.storage.folders import is_adapter, is_quantized, load_model
from alhena.model.storage.weights import WEIGHTS, read_config
from alhena.own_data import encode_once, run_of
from alhena.serve.engine import Engine
from alhena.stages import CONSOLE, Stage, check_inputs, fingerprint_of, run_stage
from alhena.train.mixture import Training, open_examples
from alhena.train.trainer import Folders
from alhena.tuning import trained_config, write_model_folder

# Of a training on documents of any kind: sequences, and their tokens, which grow where the documents are longer.
BATCH_SIZE, TOKENS = 4, 512


@dataclass(frozen=True)
class Documents:
    """Curated documents: those to calibrate and train on, and held-out ones. None: the examples of the model's run."""

    examples: Path | None = None
    held_out: Path | None = None

    def identity(self) -> list[str | None]:
        paths = (self.examples, self.held_out)
        return [None if path is None else content_fingerprint(path) for path in paths]


@dataclass(frozen=True)
class _Examples:
    """What is read: examples to train on, how they are read, and held-out ones."""

    folders: Folders
    training: Training | None
    held_out: HeldOut | None


def _examples(base: Path, work: Path, documents: Documents, how: Quantization) -> _Examples:
    """Encoded examples of a model folder. Raises ValueError when the method needs examples and there are none."""
    c, run = read_config(base)[0], run_tokens(base)
    tune = Tune(how.steps, shape_for(c, BATCH_SIZE, TOKENS))
    train, held_out = (run and run / split for split in ("train", "validation"))
    if documents.examples is not None:
        train = work / "examples"
        encode_once(documents.examples, train, tune.encoding(base))
    if documents.held_out is not None:
        held_out = work / "held_out"
        encode_once(documents.held_out, held_out, tune.encoding(base))
    if how.method != "round" and train is None:
        raise ValueError(
            f"{base}: the method {how.method} reads examples, and the model is in no run folder that has some: name curated documents "
            "(--examples), or choose --method round"
        )
    sources = {split: open_examples(folder) for split, folder in (("train", train), ("held out", held_out)) if folder}
    shape = fitted_shape(tune.shape, {f"{split} {name}": e for split, by in sources.items() for name, e in by.items()})
    weights = {name: float(len(examples)) for name, examples in sources.get("train", {}).items()}
    t = how.training(weights, shape) if weights else None
    return _Examples(Folders(train or work, work), t, HeldOut(held_out, shape) if held_out else None)


def compress_folder(base: Path, name: str, how: Quantization, documents: Documents) -> dict[str, Any]:
    """Quantizes the model of folder ``base`` as NAME, beside it; returns types, sizes and losses.

    Raises ValueError for a folder that cannot be quantized, and without examples where the method needs some.
    """
    if is_adapter(base):
        raise ValueError(
            f"{base}: adapters cannot be quantized; quantize their base ({read_config(base)[1]['adapter_of']})"
        )
    if is_quantized(base):
        raise ValueError(f"{base}: its weights are quantized already")
    check_inputs(base)
    table = type_table(model.weights(read_config(base)[0]), how.types)
    texts, run, out = _running_texts(documents.held_out), run_tokens(base), base.parent / name
    used = fingerprint_of(run) if run is not None else None
    print_ = fingerprint("compressed", content_fingerprint(base), how, documents.identity(), used)
    stage = Stage(f"compress {name}", run_of(base) / "compressed" / name, print_, models=(out,))

    def work() -> dict[str, Any]:
        examples = _examples(base, stage.folder, documents, how)
        params, c = load_model(base)
        source = Source(params, trained_config(base, c), base)
        last, losses = quantize_and_measure(source, how, examples.training, examples.folders, examples.held_out)
        write_model_folder(last, c, base, out, read_config(base)[1] | {"name": name, "quantized": how.method})
        facts = report.facts(table, losses) | compare(base, out, texts)
        write_json(stage.folder / report.FILE, facts)
        report.print_report(table, losses, CONSOLE)
        return facts

    facts = run_stage(stage, work)
    for measure, (before, after) in facts["measures"].items():
        CONSOLE.print(f"{measure}: {before:,} → {after:,}", highlight=False)
    return facts


def compare(base: Path, other: Path, texts: list[Document]) -> dict[str, Any]:
    """Measures of two models: bytes of the weights; of texts, if any, bits per byte and perplexity, and how many tokens were scored."""
    folders = (base, other)
    measures: dict[str, list[float]] = {"bytes": [(folder / WEIGHTS).stat().st_size for folder in folders]}
    if not texts:
        return {"measures": measures}
    tokens = 0
    measures |= {"bits_per_byte": [], "perplexity": []}
    for folder in folders:
        loss = text_loss(Engine.load(folder), texts)
        tokens = loss.tokens
        measures["bits_per_byte"].append(round(loss.bits_per_byte, 4))
        measures["perplexity"].append(round(math.exp(loss.nats / tokens), 3))
    return {"measures": measures, "tokens": tokens}


def _running_texts(data: Path | None) -> list[Document]:
    return [] if data is None else [document for document in read_documents(data) if is_running_text(document)]
