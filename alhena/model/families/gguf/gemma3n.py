"""Gemma 3n in GGUF files: what its architecture in llama.cpp fixes, and where tensors differ from those of Hugging Face's files.

The matrices between the streams (AltUp) are one tensor each; the table of per-layer inputs has a row for every id; layers that share
keys and values of others have tensors of their own for them, which nothing reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from statistics import NormalDist
from typing import Any

from alhena.model import config
from alhena.model.families import decoder_tensors
from alhena.model.families.export_weights import Part
from alhena.model.families.gguf.file import GgufFile, GgufTensor, Q
from alhena.model.families.gguf.names import PREFIX
from alhena.model.families.gguf.output import TensorOut, mapped
from alhena.model.transformer.layer_kinds import is_global
from alhena.schema import shown

# Tensors here, and those that are stacked in them in Hugging Face's files.
STACKS = {"altup_proj.weight": "altup_projections", "altup_unembd_proj.weight": "altup_unembed_projections"}
MAX_STREAMS = 64
# Rows of ids beyond the table in Hugging Face's files are that of id 0.
TABLE = "per_layer_token_embd.weight"


def unstacked(name: str, tensor: GgufTensor) -> dict[str, GgufTensor]:
    """The tensors of Hugging Face's files that a stack holds. Raises ValueError for one of another form than a few matrices."""
    count, *shape = tensor.shape
    if len(shape) != 2 or count > MAX_STREAMS:
        raise ValueError(
            f"{tensor.path}: {name} is {shown(tensor.shape)}; a matrix for each of a few streams is needed"
        )
    size = tensor.nbytes // count
    return {
        f"{PREFIX}{STACKS[name]}.{i}.weight": replace(tensor, shape=tuple(shape), offset=tensor.offset + i * size)
        for i in range(count)
    }


def placed(part: Part, c: config.Model) -> tuple[str, Part] | None:
    """The name of the larger tensor that a tensor becomes a part of, and that part; None for a tensor that stays one."""
    assert c.decoder.altup is not None
    theirs, _, number = part.source.names[0].removeprefix(PREFIX).removesuffix(".weight").partition(".")
    shape = part.source.shape
    if theirs == "embed_tokens_per_layer":
        return TABLE, _part(part, (c.vocabulary, shape[1]), slice(0, shape[0]))
    name = next((ours for ours, other in STACKS.items() if other == theirs), None)
    if name is None:
        return None
    return name, _part(part, (c.decoder.altup.streams - 1, *shape), slice(int(number), int(number) + 1))


def _part(part: Part, shape: tuple[int, ...], rows: slice) -> Part:
    """The same part as these rows of a tensor of that shape."""
    return replace(part, source=replace(part.source, shape=shape, part=(rows,)))


def fill_table(file: GgufFile, t: TensorOut) -> None:
    """Writes the rows that the table in Hugging Face's files has not."""
    table, (rows,) = mapped(file, TABLE, t), t.parts[0].source.part or (slice(None),)
    table[rows.stop :] = table[0]


def more_tensors(d: config.Decoder) -> Iterator[tuple[str, TensorOut]]:
    """Tensors that llama.cpp loads and does not read: zeros."""
    names = {"k_proj": "attn_k", "v_proj": "attn_v", "k_norm": "attn_k_norm"}
    for u in decoder_tensors.unused(d):
        _, layer, _, theirs, _ = u.name.split(".")
        yield f"blk.{layer}.{names[theirs]}.weight", TensorOut(Q.F32, u.shape, ())


def with_all_rows(c: config.Model) -> config.Model:
    """The same model, whose table of per-layer inputs has a row for every id."""
    inputs = c.decoder.per_layer_inputs
    assert inputs is not None
    return replace(c, decoder=replace(c.decoder, per_layer_inputs=replace(inputs, vocabulary=c.vocabulary)))


def check(d: config.Decoder) -> None:
    """Raises ValueError for a decoder of other sizes than those that llama.cpp's code has."""
    a, p = d.altup, d.per_layer_inputs
    assert a is not None and p is not None
    fixed = {
        "altup.streams": (a.streams, 4),
        "altup.laurel_rank": (a.laurel_rank, 64),
        "altup.sparse_layers": (a.sparse_layers, 10),
        "altup.sparsity": (a.sparsity, 0.95),
        "per_layer_inputs.width": (p.width, 256),
        "layers with keys of their own:": (d.layers - d.kv_sharing_layers, 20),
        "global_every": (d.global_every, 5),
        "final_logit_softcap": (d.final_logit_softcap, 30.0),
    }
    for name, (ours, theirs) in fixed.items():
        if ours != theirs:
            raise ValueError(f"this decoder has {name} {ours}; llama.cpp's gemma3n has {theirs}: it cannot be exported")


def metadata(d: config.Decoder) -> dict[str, Any]:
    """The keys of a decoder beside those that it has like Gemma 3."""
    a, p = d.altup, d.per_layer_inputs
    assert a is not None and p is not None
    # -inf: the gate stays as it is.
    scale = NormalDist().inv_cdf(a.sparsity) if a.sparse_layers else 0.0
    return {
        "attention.sliding_window_pattern": [not value for value in is_global(d).tolist()],
        "attention.shared_kv_layers": d.kv_sharing_layers,
        "rope.freq_base_swa": d.local_rope_base or d.rope_base,
        "altup.active_idx": 0,
        "altup.num_inputs": a.streams,
        "embedding_length_per_layer_input": p.width,
        "activation_sparsity_scale": [scale] * a.sparse_layers + [float("-inf")] * (d.layers - a.sparse_layers),
    }


def settings(file: GgufFile, scales: list[float]) -> Mapping[str, Any]:
    """Keys of ``config.json`` that follow from tensors and constants. Raises ValueError for a tensor that is missing."""
    for name in (TABLE, "blk.0.laurel_l.weight"):
        if name not in file.tensors:
            raise ValueError(f"{file.path}: it has no tensor {name}")
    return {
        "final_logit_softcapping": 30.0,
        "vocab_size_per_layer_input": file.tensors[TABLE].shape[0],
        "laurel_rank": file.tensors["blk.0.laurel_l.weight"].shape[0],
        "activation_sparsity_pattern": [round(NormalDist().cdf(scale), 6) for scale in scales],
    }
