"""Writes a decoder as a GGUF file of an architecture that llama.cpp knows, one tensor at a time.

    model.Params, config.Model  ─┬─ metadata      ──►  keys of the architecture
                                 ├─ _tensors      ──►  names, types and parts of all tensors: Int4 as Q4_0, Int8 as Q8_0, bit for bit
                                 └─ write_decoder ──►  model.gguf

The file is read back before the weights are written: its configuration has to be that of the model, in every field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from alhena.files import atomic
from alhena.model import config, model
from alhena.model.families.export_weights import Part, parts, without_encoders
from alhena.model.families.gguf import gemma3n, reader
from alhena.model.families.gguf.file import Q, open_gguf
from alhena.model.families.gguf.names import (
    ARCHITECTURES,
    FREQUENCIES,
    NEVER,
    OUTPUT_MATRIX,
    PREFIX,
    layer_names,
    other_names,
    stores_plus_one,
)
from alhena.model.families.gguf.output import Floats, TensorOut, kind_of, mapped, write_header, write_tensor
from alhena.model.families.model_config import WRAPPED_TYPES, check_equal, model_type, read_config
from alhena.model.families.open_weights import bfloat16_scale
from alhena.model.transformer.layer_kinds import is_global, layer_kind

DEFAULT_CONTEXT = 32_768


def architecture(c: config.Model) -> str:
    """The architecture of a model's decoder. Raises ValueError when llama.cpp has none, or we cannot write it."""
    kind = model_type(without_encoders(c))
    inner = WRAPPED_TYPES.get(kind, kind).replace("_unified", "")
    for name, theirs in ARCHITECTURES.items():
        if theirs == inner:
            return name
    raise ValueError(f"a decoder of type {kind}: {', '.join(ARCHITECTURES)} can be exported to GGUF")


def metadata(c: config.Model, context: int = DEFAULT_CONTEXT) -> dict[str, Any]:
    """The keys of a decoder, without those of its tokenizer. ``context`` is the longest sequence that a program should allow."""
    name, d = architecture(c), c.decoder
    common = {
        "context_length": context,
        "embedding_length": d.width,
        "block_count": d.layers,
        "attention.head_count": d.heads,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": d.rope_base,
        "vocab_size": c.vocabulary,
    }
    own = _gemma4(d) if name == "gemma4" else _gemma(d, name)
    if name == "gemma3n":
        own |= gemma3n.metadata(d)
    if d.final_logit_softcap is not None and name not in ("gemma", "gemma3n"):
        own["final_logit_softcapping"] = d.final_logit_softcap
    return {"general.type": "model", **{f"{name}.{key}": value for key, value in (common | own).items()}}


def _gemma(d: config.Decoder, name: str) -> dict[str, Any]:
    """The keys of Gemma 1 to 3. A field that an architecture lacks is not written, and found when the file is read back."""
    out: dict[str, Any] = {
        "feed_forward_length": d.hidden,
        "attention.head_count_kv": d.kv_heads,
        "attention.key_length": d.head_dim,
        "attention.value_length": d.head_dim,
    }
    if name != "gemma" and d.window is not None:
        out["attention.sliding_window"] = d.window
        out["attention.sliding_window_pattern"] = min(d.global_every, d.layers + 1)
        if name == "gemma3":
            out["rope.freq_base_swa"] = d.local_rope_base or d.rope_base
    if d.rope_scaling_factor != 1:
        out |= {"rope.scaling.type": "linear", "rope.scaling.factor": d.rope_scaling_factor}
    if name == "gemma2":
        if d.attention_softcap is None or d.final_logit_softcap is None:
            raise ValueError("a decoder with post_norm and without qk_norm: gemma2 in llama.cpp always has soft caps")
        out["attn_logit_softcapping"] = d.attention_softcap
    return out


def _gemma4(d: config.Decoder) -> dict[str, Any]:
    """The keys of Gemma 4."""
    kinds = [layer_kind(d, layer) for layer in range(d.layers)]
    head, local = d.global_head_dim or d.head_dim, d.head_dim
    out: dict[str, Any] = {
        "feed_forward_length": [kind.hidden for kind in kinds],
        "attention.head_count_kv": [kind.kv_heads for kind in kinds],
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.key_length_swa": local,
        "attention.value_length_swa": local,
        "rope.dimension_count": head,
        "rope.dimension_count_swa": local,
        "rope.freq_base_swa": d.local_rope_base or d.rope_base,
        "attention.sliding_window": d.window or DEFAULT_CONTEXT,
        "attention.sliding_window_pattern": [not value for value in is_global(d).tolist()],
        "attention.shared_kv_layers": d.kv_sharing_layers,
        "embedding_length_per_layer_input": d.per_layer_inputs.width if d.per_layer_inputs else 0,
    }
    if e := d.experts:
        out |= {"expert_count": e.number, "expert_used_count": e.chosen, "expert_feed_forward_length": e.hidden}
    return out


def _names(name: str) -> dict[str, str]:
    """Names of tensors in Hugging Face's files to names here, those of a layer with ``{}`` for its number."""
    of_layers = {f"layers.{{}}.{theirs}": f"blk.{{}}.{ours}" for ours, theirs in layer_names(name).items()}
    return of_layers | {theirs: ours for ours, theirs in other_names(name).items()} | OUTPUT_MATRIX


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """The name of a tensor here."""
    parts = name.removeprefix(PREFIX).split(".", 2)
    number = parts[1] if parts[0] == "layers" else ""
    pattern = f"layers.{{}}.{parts[2]}" if number else name.removeprefix(PREFIX)
    if pattern not in names:
        raise ValueError(f"this decoder cannot be exported to GGUF: its architecture has no {name}")
    return names[pattern].format(number)


def _tensors(params: model.Params, c: config.Model, floats: Floats | None) -> dict[str, TensorOut]:
    """All tensors, in the order in which they are written."""
    kind = architecture(c)
    names = _names(kind)
    grouped: dict[str, list[Part]] = {}
    for part in parts(params, c):
        larger = gemma3n.placed(part, c) if kind == "gemma3n" else None
        name, part = larger or (_renamed(part.source.names[0], names), part)
        grouped.setdefault(name, []).append(part)
    out = dict(gemma3n.more_tensors(c.decoder)) if kind == "gemma3n" else {}
    if kind == "gemma4":
        out[FREQUENCIES] = TensorOut(Q.F32, ((c.decoder.global_head_dim or c.decoder.head_dim) // 2,), ())
    for name, of_tensor in grouped.items():
        shape = of_tensor[0].source.shape or (1,)
        out[name] = TensorOut(kind_of(name, shape, of_tensor, floats), shape, tuple(of_tensor))
    return out


def _frequencies(d: config.Decoder) -> np.ndarray:
    """What the RoPE frequencies of the global layers are divided by."""
    count = (d.global_head_dim or d.head_dim) // 2
    turning = round(count * d.global_rope_fraction)
    return np.array([1.0] * turning + [10 * NEVER] * (count - turning), np.float32)


def _check_embedding_scale(c: config.Model) -> None:
    """Raises ValueError unless the embeddings are scaled by √width, or by that number rounded to bfloat16.

    Every program but the reference in bfloat16 uses the exact number, with weights of the same models.
    """
    exact = replace(c, decoder=replace(c.decoder, embedding_scale=None))
    allowed = (None, c.decoder.width**0.5, bfloat16_scale(exact).decoder.embedding_scale)
    if c.decoder.embedding_scale not in allowed:
        raise ValueError(
            f"this decoder has embedding_scale {c.decoder.embedding_scale}; llama.cpp scales by √width: it cannot be exported"
        )


def _check_readable(path: Path, c: config.Model, name: str) -> None:
    """Raises ValueError unless the file, whose weights are not written yet, holds the same decoder."""
    try:
        check_equal(c.decoder, read_config(reader.hf_config(open_gguf(path)), path).c.decoder, name)
        reader.open_file(path)
    except ValueError as error:
        message = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"this decoder cannot be exported as {name}: {message}") from None


def write_decoder(
    path: Path, params: model.Params, c: config.Model, tokenizer: Mapping[str, Any], floats: Floats | None = None
) -> str:
    """Writes the decoder with the metadata ``tokenizer``; returns its architecture. ``floats`` is the type of matrices that are not
    quantized: that of the weights where it is None.

    Raises ValueError that names what llama.cpp's architecture has not.
    """
    c = without_encoders(c)
    params = replace(params, vision=None, audio=None, special=None)
    name, tensors = architecture(c), _tensors(params, c, floats)
    _check_embedding_scale(c)
    if name == "gemma3n":
        gemma3n.check(c.decoder)
    values = metadata(c, int(tokenizer.get("context", DEFAULT_CONTEXT)))
    values |= {key: value for key, value in tokenizer.items() if key != "context"}
    with atomic(path) as partial:
        write_header(partial, name, values, tensors)
        file = open_gguf(partial)
        if FREQUENCIES in tensors:
            mapped(file, FREQUENCIES, tensors[FREQUENCIES])[:] = _frequencies(c.decoder)
        _check_readable(partial, gemma3n.with_all_rows(c) if name == "gemma3n" else c, name)
        for tensor, t in tensors.items():
            write_tensor(file, tensor, t, stores_plus_one(name, tensor))
        if name == "gemma3n":
            gemma3n.fill_table(file, tensors[gemma3n.TABLE])
    return name
