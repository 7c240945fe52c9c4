"""What each step of a quantization costs: nats of held-out text of an imported model, by method and types; report cards of a run.

    python benchmarks/bench_quantization.py text --model models/gemma --train BOOK.txt --held-out OTHER.txt
    python benchmarks/bench_quantization.py run --run runs/starter

``text`` calibrates on one book and measures on another, in windows of 512 tokens. ``run`` collects the reports of a finished run: losses
by modality after each step, and the rows of its report card. Results are added to benchmarks/results/quantization.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from alhena.batch import Batch
from alhena.compress.calibrate import is_observed, moments, on_grid
from alhena.compress.quantize import OnGrid, quantize_model
from alhena.content import Content, Document, Text
from alhena.evaluate.scoring import sequence_nats
from alhena.files import read_json, write_json
from alhena.model import config, model
from alhena.model.quantized.types import type_table
from alhena.model.spec import named
from alhena.model.storage.folders import load_model
from alhena.model.storage.weights import flatten
from alhena.tokens.encoders import load_encoder
from alhena.tokens.examples.padding import padded_batch

OUT = Path(__file__).parent / "results" / "quantization.json"
WINDOW, BATCH = 512, 2
# Types of the tensors, as settings of the table.
VARIANTS: dict[str, dict[str, str]] = {"embedding 8 bits": {}, "embedding 4 bits": {"embedding": "int4"}}


def batches(folder: Path, book: Path, start: int, tokens: int) -> list[Batch]:
    """Batches of windows of a book, from a character on."""
    text = book.read_text()[start : start + 8 * tokens]
    document = Document((Content("document", (Text(text),)),), book.stem, "book")
    windows = load_encoder(folder).encode(document, WINDOW)[: tokens // WINDOW]
    return [padded_batch(windows[i : i + BATCH], WINDOW, 0, 0) for i in range(0, len(windows), BATCH)]


def nats(params: model.Params, c: config.Model, held_out: Sequence[Batch]) -> float:
    """Mean nats a token."""
    total = sum(float(np.sum(sequence_nats(params, c, batch))) for batch in held_out)
    return round(total / sum(int((np.asarray(batch.weights) > 0).sum()) for batch in held_out), 4)


def add(key: str, value: Any) -> None:
    """Adds one result to the file."""
    write_json(OUT, (read_json(OUT) if OUT.exists() else {}) | {key: value})
    print(json.dumps({key: value}, indent=1))


@dataclass(frozen=True)
class TextOf:
    """An imported model: rounded and calibrated, with embeddings of 8 and of 4 bits."""

    model: Path  # folder of the model
    train: Path  # a text to calibrate on
    held_out: Path  # another text
    tokens: int = 4096  # of either

    def __call__(self) -> None:
        params, c = load_model(self.model)
        specs = model.weights(c)
        seen, unseen = (batches(self.model, book, 200_000, self.tokens) for book in (self.train, self.held_out))
        rows = [{"model": "full precision", "nats": nats(params, c, unseen)}]
        began = time.monotonic()
        recomputed = replace(c, decoder=replace(c.decoder, remat=True))
        observed = [name for name, entry in type_table(specs).items() if is_observed(entry)]
        found = moments(params, recomputed, seen, observed)
        calibrated: dict[str, OnGrid] = {name: on_grid(named(params)[name], 4, found[name]) for name in observed}
        seconds = round(time.monotonic() - began, 1)
        for method, values in (("rounded", {}), ("calibrated", calibrated)):
            for variant, types in VARIANTS.items():
                quantized = quantize_model(params, specs, types, values)
                size = sum(array.nbytes for array in flatten(quantized).values())
                row = {"model": f"{method}, {variant}", "bytes": size, "nats": nats(quantized, c, unseen)}
                rows.append(row)
                print(row, flush=True)
        add(self.model.name, {"tokens": self.tokens, "calibration_seconds": seconds, "rows": rows})


@dataclass(frozen=True)
class Run:
    """A finished run: losses of each step, and the report cards."""

    run: Path  # the run folder

    def __call__(self) -> None:
        steps = read_json(self.run / "compress" / "report.json")
        cards = read_json(self.run / "report" / "results.json")
        add(self.run.name, {"steps": steps, "report": cards})


if __name__ == "__main__":
    tyro.cli(
        Annotated[TextOf, tyro.conf.subcommand("text")] | Annotated[Run, tyro.conf.subcommand("run")],  # type: ignore[arg-type]
    )()
