"""Configurations in the layout of Hugging Face, every key accounted for: read, of one value only, or known to change nothing.

stored = read_settings(folder / "config.json")
settings_of(Siglip, stored["vision_config"], ALWAYS, path, "vision_config")      ─► Siglip(hidden_size=1152, …)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from alhena.schema import parsed, shown

T = TypeVar("T")

# Keys that change nothing in what a model computes from tokens: names, ids, training, sampling, and how it is run.
IRRELEVANT = frozenset(
    """
    architectures auto_map dtype torch_dtype transformers_version _name_or_path name_or_path use_cache initializer_range initializer_factor
    attention_dropout dropout hidden_dropout max_position_embeddings cache_implementation attn_implementation _attn_implementation
    _attn_implementation_autoset bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id tokenizer_class
    boi_token_index eoi_token_index image_token_index boi_token_id eoi_token_id image_token_id boa_token_id eoa_token_id audio_token_id
    mm_tokens_per_image vision_soft_tokens_per_image audio_soft_tokens_per_image
    unsloth_fixed unsloth_version use_bfloat16 torchscript return_dict return_dict_in_generate output_attentions output_hidden_states
    output_scores chunk_size_feed_forward id2label label2id num_labels problem_type finetuning_task task_specific_params prefix
    remove_invalid_values tf_legacy_loss gradient_checkpointing bad_words_ids begin_suppress_tokens suppress_tokens
    forced_bos_token_id forced_eos_token_id diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences repetition_penalty temperature top_k top_p typical_p
    """.split()
)
# Keys of every configuration that are never what changes a model, unless they say something else.
ONLY: Mapping[str, Sequence[Any]] = {
    "add_cross_attention": (False, None), "is_encoder_decoder": (False, None), "is_decoder": (False, True, None),
    "cross_attention_hidden_size": (None,), "tie_encoder_decoder": (False, None), "pruned_heads": ({}, None),
    "quantization_config": (None,), "compression_config": (None,),
}  # fmt: skip


def settings_of(kind: type[T], stored: Any, always: Mapping[str, Sequence[Any]], path: Path, field: str = "") -> T:
    """A stored configuration as a ``kind``; ``always`` gives the values that a key may have where ours has only those.

    Raises ValueError that names file and key for any other value, and for a key that nobody knows.
    """
    if not isinstance(stored, Mapping):
        raise ValueError(f"{path}: {field}: a JSON object is needed, not {shown(stored)}")
    left = {name: value for name, value in stored.items() if name not in IRRELEVANT}
    for name, values in {**ONLY, **always}.items():
        if name in left and not any(left[name] == value and type(left[name]) in _like(value) for value in values):
            where = ".".join(filter(None, (field, name)))
            raise ValueError(f"{path}: {where} is {shown(left[name])}; ours has {' or '.join(map(repr, values))}")
        left.pop(name, None)
    return parsed(kind, left, path, field)


def _like(value: Any) -> tuple[type, ...]:
    """The types that a stored value equal to this one may have: 1 is 1.0, but not true."""
    return (int, float) if type(value) in (int, float) else (type(value),)
