"""Quantizes the model of a folder to 4 bits, as a model folder beside it, and measures what is lost on running text.

models/gemma ─► models/NAME, and compressed/NAME of the run folder: sizes, bits per byte and perplexity of both
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from alhena.compress.quantize import quantize_model
from alhena.content import Document, read_documents
from alhena.evaluate.held_out import is_running_text
from alhena.evaluate.scoring import text_nats
from alhena.files import content_fingerprint, fingerprint
from alhena.model import config, model
from alhena.model.folders import is_adapter, load_model
from alhena.model.weights import WEIGHTS, read_config
from alhena.own_data import is_quantized, run_of
from alhena.serve.engine import Engine
from alhena.stages import CONSOLE, Stage, check_inputs, run_stage
from alhena.tuning import write_model_folder


@dataclass(frozen=True)
class Form:
    """How weights are stored: values that share a scale, and the dtype of the encoders' weights (None: as they are)."""

    group: int
    encoders: str | None = None

    def apply(self, params: model.Params, c: config.Model) -> model.Params:
        quantized = quantize_model(params, model.weights(c), self.group)
        if self.encoders is None:
            return quantized
        stored = jax.tree.map(lambda w: w.astype(self.encoders), (quantized.vision, quantized.audio))
        return replace(quantized, vision=stored[0], audio=stored[1])


def compress_folder(base: Path, name: str, form: Form, data: Path | None) -> dict[str, Any]:
    """Quantizes the model of folder ``base`` as NAME, beside it; returns sizes, and with ``data`` the losses of both.

    Raises ValueError for a folder that cannot be quantized, and for data without running text.
    """
    if is_adapter(base):
        raise ValueError(
            f"{base}: adapters cannot be quantized; quantize their base ({read_config(base)[1]['adapter_of']})"
        )
    if is_quantized(base):
        raise ValueError(f"{base}: its weights are quantized already")
    check_inputs(base)
    texts = None if data is None else _running_texts(data)
    print_ = fingerprint("compressed", content_fingerprint(base), form, data and content_fingerprint(data))
    out = base.parent / name

    def work() -> dict[str, Any]:
        params, c = load_model(base)
        facts = read_config(base)[1] | {"name": name, "group": form.group}
        write_model_folder(form.apply(params, c), c, base, out, facts)
        return compare(base, out, texts)

    facts = run_stage(Stage(f"compress {name}", run_of(base) / "compressed" / name, print_, models=(out,)), work)
    for measure, (before, after) in facts["measures"].items():
        CONSOLE.print(f"{measure}: {before:,} → {after:,}", highlight=False)
    return facts


def compare(base: Path, other: Path, texts: list[Document] | None) -> dict[str, Any]:
    """Measures of two models: bytes of the weights; with ``texts`` bits per byte and perplexity, and how many tokens were scored."""
    folders = (base, other)
    measures: dict[str, list[float]] = {"bytes": [(folder / WEIGHTS).stat().st_size for folder in folders]}
    if texts is None:
        return {"measures": measures}
    tokens = 0
    measures |= {"bits_per_byte": [], "perplexity": []}
    for folder in folders:
        nats, size, tokens = text_nats(Engine.load(folder), texts)
        measures["bits_per_byte"].append(round(nats / math.log(2) / size, 4))
        measures["perplexity"].append(round(math.exp(nats / tokens), 3))
    return {"measures": measures, "tokens": tokens}


def _running_texts(data: Path) -> list[Document]:
    texts = [document for document in read_documents(data) if is_running_text(document)]
    if not texts:
        raise ValueError(f"{data}: no running text (documents without turns and media)")
    return texts
