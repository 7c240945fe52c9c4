"""Writes encoders of Gemma 3 and 4 as the second GGUF file that llama.cpp reads beside the decoder's: ``mmproj``.

model.gguf, mmproj-model.gguf  ──  llama-server --model model.gguf --mmproj mmproj-model.gguf
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alhena.files import atomic
from alhena.model import config, model
from alhena.model.families.export_weights import Part, parts
from alhena.model.families.gguf import audio, vision
from alhena.model.families.gguf.file import Q, open_gguf
from alhena.model.families.gguf.output import Floats, TensorOut, kind_of, write_header, write_tensor


def held_encoders(c: config.Model) -> tuple[str, ...]:
    """The encoders of a model that llama.cpp has."""
    known = {"vision": vision.is_known(c.vision), "audio": audio.is_known(c.audio)}
    return tuple(name for name, is_known in known.items() if is_known)


def metadata(c: config.Model) -> dict[str, Any]:
    """The keys of the encoders."""
    out: dict[str, Any] = {"general.type": "mmproj"}
    if vision.is_known(c.vision):
        out |= vision.metadata(c.vision, c.decoder.width)  # type: ignore[arg-type]
    if audio.is_known(c.audio):
        out |= audio.metadata(c.audio, c.decoder.width)  # type: ignore[arg-type]
    return out


def _placed(params: model.Params, c: config.Model) -> Iterator[tuple[str, Part, int]]:
    """Tensors of the encoders that llama.cpp has: name, part, and which of the part's tensors it is."""
    held = held_encoders(c)
    for part in parts(params, c):
        for i, theirs in enumerate(part.source.names):
            if "vision" in held and (name := vision.renamed(theirs)):
                yield name, vision.as_written(part, c.vision), i  # type: ignore[arg-type]
            elif "audio" in held and (name := audio.renamed(theirs)):
                yield name, audio.as_written(part), i


def _kind(name: str, part: Part, floats: Floats | None) -> Q:
    """The type of a tensor; weights of an encoder are written as floats."""
    if name in vision.FLOAT32 or audio.FLOAT32.fullmatch(name):
        return Q.F32
    kind = kind_of(name, part.source.shape, [part], floats)
    return kind if kind in (Q.F32, Q.BF16, Q.F16) else Q.F32


def write_mmproj(path: Path, params: model.Params, c: config.Model, floats: Floats | None = None) -> None:
    """Writes the encoders that llama.cpp has, at least one (:func:`held_encoders`)."""
    tensors = {
        name: TensorOut(_kind(name, part, floats), part.source.shape, (part,), i)
        for name, part, i in _placed(params, c)
    }
    with atomic(path) as partial:
        write_header(partial, "clip", metadata(c), tensors)
        file = open_gguf(partial)
        for name, t in tensors.items():
            write_tensor(file, name, t, plus_one=name == "mm.soft_emb_norm.weight")
