"""Configurations in Hugging Face's layout, every key accounted for: read, of one implemented value, or irrelevant.

stored = read_settings(folder / "config.json")
parse_settings(Siglip, stored["vision_config"], FIXED, path, "vision_config")      ─► Siglip(hidden_size=1152, …)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from alhena.model import config
from alhena.model.transformer.layer_kinds import is_global
from alhena.schema import parsed, shown

T = TypeVar("T")
ACTIVATION = "gelu_pytorch_tanh"
LOCAL, GLOBAL = "sliding_attention", "full_attention"

# Keys that do not change what a model computes from tokens: names, ids, training, sampling, runtime options.
IRRELEVANT = frozenset(
    """
    architectures auto_map dtype torch_dtype transformers_version _name_or_path name_or_path use_cache initializer_range initializer_factor
    attention_dropout dropout hidden_dropout max_position_embeddings cache_implementation attn_implementation _attn_implementation
    _attn_implementation_autoset bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id tokenizer_class
    boi_token_index eoi_token_index image_token_index boi_token_id eoi_token_id image_token_id boa_token_id eoa_token_id eoa_token_index audio_token_id
    video_token_id mm_tokens_per_image vision_soft_tokens_per_image audio_soft_tokens_per_image
    unsloth_fixed unsloth_version use_bfloat16 torchscript return_dict return_dict_in_generate output_attentions output_hidden_states
    output_scores chunk_size_feed_forward id2label label2id num_labels problem_type finetuning_task task_specific_params prefix
    remove_invalid_values tf_legacy_loss gradient_checkpointing bad_words_ids begin_suppress_tokens suppress_tokens
    forced_bos_token_id forced_eos_token_id diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences repetition_penalty temperature top_k top_p typical_p
    """.split()
)
# Keys of any configuration of which only these values are implemented.
FIXED: Mapping[str, Sequence[Any]] = {
    "add_cross_attention": (False, None), "is_encoder_decoder": (False, None), "is_decoder": (False, True, None),
    "cross_attention_hidden_size": (None,), "tie_encoder_decoder": (False, None), "pruned_heads": ({}, None),
    "quantization_config": (None,), "compression_config": (None,),
}  # fmt: skip


def parse_settings(kind: type[T], stored: Any, fixed: Mapping[str, Sequence[Any]], path: Path, field: str = "") -> T:
    """A stored configuration as a ``kind``; ``fixed`` has the implemented values of keys that are not read.

    Raises ValueError that names file and key for any other value, and for an unknown key.
    """
    if not isinstance(stored, Mapping):
        raise ValueError(f"{path}: {field}: a JSON object is needed, not {shown(stored)}")
    remaining = {name: value for name, value in stored.items() if name not in IRRELEVANT}
    for name, values in {**FIXED, **fixed}.items():
        if name in remaining and not any(
            remaining[name] == value and type(remaining[name]) in _json_types(value) for value in values
        ):
            where = ".".join(filter(None, (field, name)))
            raise ValueError(f"{path}: {where} is {shown(remaining[name])}; ours has {' or '.join(map(repr, values))}")
        remaining.pop(name, None)
    return parsed(kind, remaining, path, field)


def _json_types(value: Any) -> tuple[type, ...]:
    """The types of JSON values equal to this one: 1 equals 1.0, but not true."""
    return (int, float) if type(value) in (int, float) else (type(value),)


@contextmanager
def located(path: Path, field: str = "") -> Iterator[None]:
    """A ValueError raised in the block names the file, and the section ``field`` of it, unless it names the file already."""
    try:
        yield
    except ValueError as error:
        message, where = str(error), f"{path}: {field}: " if field else f"{path}: "
        raise ValueError(message if message.startswith(str(path)) else where + message) from None


def common(path: Path, values: Mapping[str, Any]) -> Any:
    """The value of several keys of the same meaning, or None when all are None. Raises ValueError when they differ."""
    present = {name: value for name, value in values.items() if value is not None}
    if len(set(present.values())) > 1:
        raise ValueError(f"{path}: {' but '.join(f'{name} is {shown(value)}' for name, value in present.items())}")
    return next(iter(present.values()), None)


@dataclass(frozen=True)
class Rope:
    """RoPE of one kind of layers. Older files have ``type`` in place of ``rope_type``."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None
    factor: float | None = None
    partial_rotary_factor: float | None = None


def rope_factor(rope: Rope, path: Path, allowed: Sequence[str]) -> float:
    """The number that positions are divided by. Raises ValueError for RoPE of another type."""
    kind = common(path, {"rope_type": rope.rope_type, "type": rope.type}) or "default"
    partial = rope.partial_rotary_factor not in (None, 1.0) and kind != "proportional"
    if kind not in allowed or partial:
        of = f", partial_rotary_factor {rope.partial_rotary_factor}" if partial else ""
        raise ValueError(f"{path}: RoPE of type {kind!r}{of}; {' and '.join(allowed)} can be read here")
    if kind == "linear" and rope.factor is None:
        raise ValueError(f"{path}: RoPE of type 'linear' without a factor")
    return float(rope.factor) if kind != "default" and rope.factor is not None else 1.0


def global_every(kinds: Sequence[str], path: Path) -> int:
    """The n for which each n-th layer is global, from ``layer_types``. Raises ValueError when the layers have another pattern."""
    every = kinds.index(GLOBAL) + 1 if GLOBAL in kinds else len(kinds) + 1
    if any(kind != (GLOBAL if (i + 1) % every == 0 else LOCAL) for i, kind in enumerate(kinds)):
        raise ValueError(
            f"{path}: layer_types {shown(list(kinds))} is no periodic pattern of {len(kinds)} local and global layers"
        )
    return every


def layer_types(c: config.Decoder) -> list[str]:
    """``layer_types`` of a decoder."""
    return [GLOBAL if layer else LOCAL for layer in is_global(c)]
