"""Small imported models for tests: the random weights of the golden models, with a tokenizer that has all control tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from alhena.batch import Example
from alhena.cli.weights import Import
from alhena.content import Part
from alhena.files import read_json, write_json
from alhena.serve.decoding.sampling.sampler import Sampling
from alhena.serve.engine import Engine
from alhena.tokens.formats.answers import AnswerParser
from alhena.tokens.formats.import_prompts import prompt_format
from alhena.tokens.formats.prompts import CONTROLS
from tests.tokens.small_gemma import tokenizer_of

GOLDEN = Path(__file__).parents[1] / "model" / "golden" / "open"
ENDS = {"gemma3": ("turn_end",), "gemma4": ("turn_end", "response")}
# Ids of control tokens in config.json by their names in CONTROLS.
CONFIGURED = {
    "image": ("image_token_id", "image_token_index"),
    "video": ("video_token_id",),
    "audio": ("audio_token_id",),
}


def write_source(name: str, out: Path, context: int = 1024) -> Path:
    """A folder in Hugging Face's layout: a golden model, its embedding as large as the vocabulary of a small tokenizer."""
    settings = read_json(GOLDEN / name / "config.json")
    format, text = prompt_format(settings["model_type"]), settings.get("text_config", settings)
    tokenizer = tokenizer_of(format)
    # Ids beyond the tokenizer's, as models have them.
    rows = tokenizer.size + 5
    for control, keys in CONFIGURED.items():
        settings |= {key: tokenizer.id(CONTROLS[format][control]) for key in keys if key in settings}
    vocabularies = ("vocab_size", "vocab_size_per_layer_input")
    text |= {key: rows for key in vocabularies if key in text} | {"max_position_embeddings": context}
    if text.get("final_logit_softcapping"):
        # A small one makes the largest logits almost equal, and samples depend on rounding.
        text["final_logit_softcapping"] = 30.0
    tensors = load_file(GOLDEN / name / "model.safetensors")
    ends = [1, tokenizer.id("<unused3>"), *(tokenizer.id(CONTROLS[format][name]) for name in ENDS[format])]
    for key in tensors:
        if "embed_tokens" in key:
            tensors[key] = np.resize(tensors[key], (rows, tensors[key].shape[1]))
            tensors[key] += np.random.default_rng(1).normal(size=tensors[key].shape).astype(np.float32)
            # The layers, not the token before it, decide on the next one.
            tensors[key] *= 0.3
            # Logits of zero are never among the largest: no answer ends by chance.
            tensors[key][ends] = 0
    out.mkdir(parents=True)
    save_file(tensors, out / "model.safetensors")
    write_json(out / "config.json", settings)
    generation = {"eos_token_id": ends[:2], "temperature": 0.7, "top_k": 20, "top_p": 0.9}
    write_json(out / "generation_config.json", generation)
    if format == "gemma4":
        write_json(out / "processor_config.json", {"image_processor": {"max_soft_tokens": 70}})
    tokenizer.save(out / "tokenizer.json")
    return out


def write_imported(name: str, folder: Path, context: int = 1024) -> Path:
    """The model folder of a golden model."""
    Import(write_source(name, folder / "source" / name, context), folder / "models" / name)()
    return folder / "models" / name


@dataclass(frozen=True)
class Scripted(Engine):
    """A real engine whose parser reads the tokens of a script in place of those that the model samples."""

    script: Sequence[int] = ()

    @classmethod
    def of(cls, engine: Engine, script: Sequence[int]) -> Scripted:
        return cls(**{f.name: getattr(engine, f.name) for f in fields(Engine)}, script=tuple(script))

    def parser(self, prompt: Example, sampling: Sampling) -> AnswerParser:
        parser = _ScriptedParser.__new__(_ScriptedParser)
        vars(parser).update(vars(super().parser(prompt, sampling)), script=iter(self.script))
        return parser


class _ScriptedParser(AnswerParser):
    """A real parser that is fed other tokens."""

    script: Iterator[int]

    def feed(self, token: int) -> list[Part]:
        return [] if self.finished else super().feed(next(self.script))
