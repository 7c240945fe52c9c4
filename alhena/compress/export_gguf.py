"""Exports a model folder as a GGUF file that llama.cpp opens: the decoder, its tokenizer, and a vision encoder where the format has it.

models/mine ── export_gguf ──► mine.gguf, and mmproj-mine.gguf for a Gemma 3 or 4 with encoders
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alhena.files import SOURCE
from alhena.model import config
from alhena.model.families.export_weights import lost_encoders, without_encoders, write_encoders
from alhena.model.families.gguf.mmproj import held_encoders, write_mmproj
from alhena.model.families.gguf.output import Floats
from alhena.model.families.gguf.tokenizer import KEY
from alhena.model.families.gguf.writer import DEFAULT_CONTEXT, architecture, write_decoder
from alhena.model.lora import merged
from alhena.model.storage.folders import base_of, is_adapter, load_model
from alhena.tokens.encode import Encoder
from alhena.tokens.encoders import VOCABULARY, load_encoder
from alhena.tokens.formats.prompts import read_template
from alhena.tokens.text.gguf_vocabulary import GEMMA_TEMPLATE, imported_metadata, own_metadata
from alhena.tokens.text.hf_tokenizer import TOKENIZER


@dataclass(frozen=True)
class Exported:
    """What was written: the architecture of the decoder, and the paths of encoders beside it."""

    architecture: str
    beside: tuple[Path, ...]


def tokenizer_metadata(folder: Path, c: config.Model) -> dict[str, Any]:
    """The metadata of a folder's tokenizer and prompt format; ``context`` beside them. A folder of weights alone has none."""
    if not (folder / VOCABULARY).exists() and not (folder / TOKENIZER).exists():
        return {KEY + "model": "none"}
    encoder = load_encoder(folder)
    if isinstance(encoder, Encoder):
        return own_metadata(encoder.tokenizer, encoder.vocabulary)
    source = (base_of(folder) if is_adapter(folder) else folder) / SOURCE
    template = read_template(source) if source.is_dir() else ""
    if encoder.settings.format == "gemma3":
        template = template or GEMMA_TEMPLATE
    found = imported_metadata(encoder.tokenizer, encoder.settings.controls, c.vocabulary, template)
    return found | {"context": encoder.settings.context or DEFAULT_CONTEXT}


def export_gguf(folder: Path, out: Path, floats: Floats | None = None) -> Exported:
    """Writes the decoder of a model folder, adapters merged, and its encoders beside it.

    Raises ValueError for a file or folder that exists, and for a decoder that no architecture of llama.cpp has.
    """
    encoders, mmproj = out.with_name(f"{out.stem}-encoders"), out.with_name(f"mmproj-{out.name}")
    for path in (out, encoders, mmproj):
        if path.exists():
            raise ValueError(f"{path}: it exists; delete it, or choose another --out")
    params, c = load_model(folder)
    architecture(c)
    out.parent.mkdir(parents=True, exist_ok=True)
    name = write_decoder(out, merged(params), c, tokenizer_metadata(folder, c), floats)
    beside = []
    if held := held_encoders(c):
        write_mmproj(mmproj, merged(params), c, floats)
        beside.append(mmproj)
    if names := [name for name in lost_encoders(c, without_encoders(c)) if name not in held]:
        write_encoders(encoders, params, c, names)
        beside.append(encoders)
    return Exported(name, tuple(beside))
