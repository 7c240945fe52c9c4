"""Reads Gemma 1 to 4 and 3n (text) from GGUF files, as llama.cpp's converter and ``writer`` write them: the same as a Hugging Face folder.

    model.gguf  ─┬─ read        ──►  Params, config.Model
                 ├─ hf_config   ──►  the content of config.json
                 ├─ hf_tensors  ──►  tensors by the names of model.safetensors, read as they are needed
                 └─ tokenizer.tokenizer_json

Every key of the architecture and every tensor is understood, or refused by name. The converter leaves out numbers that llama.cpp
knows by the size of the model; they are added here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from alhena.model.families.gguf import gemma3n
from alhena.model.families.gguf.file import GgufFile, GgufTensor, open_gguf
from alhena.model.families.gguf.names import (
    ARCHITECTURES,
    DEFAULT_PATTERNS,
    FREQUENCIES,
    GEMMA2_DEFAULTS,
    NEVER,
    OUTPUT_MATRIX,
    PREFIX,
    SCALED_BY_WIDTH,
    layer_names,
    other_names,
    stores_plus_one,
)
from alhena.model.families.hf_settings import GLOBAL, LOCAL
from alhena.model.families.model_config import read_config
from alhena.model.families.open_weights import OpenWeights, account
from alhena.schema import shown

MAX_LAYERS = 2**12


def _architecture(file: GgufFile) -> str:
    """The family. Raises ValueError for another one, and for a file that is not a complete text model."""
    if file.architecture not in ARCHITECTURES:
        raise ValueError(
            f"{file.path}: a model of architecture {shown(file.architecture)}; {', '.join(ARCHITECTURES)} can be read"
        )
    if (kind := file.get("general.type", str, "model")) != "model":
        raise ValueError(f"{file.path}: general.type is {shown(kind)}: not a language model")
    return file.architecture


def open_file(path: Path) -> OpenWeights:
    """The model of a file: every tensor accounted for, no values read. Raises ValueError that names the file."""
    file = open_gguf(path)
    return account(path, read_config(hf_config(file), path), hf_tensors(file))


def hf_tensors(file: GgufFile) -> dict[str, GgufTensor]:
    """The tensors by the names of Hugging Face's files, with the same values. Raises ValueError for an unknown tensor.

    The norms of Gemma 1 to 3 are stored with the one already added.
    """
    architecture = _architecture(file)
    names, of_layers = other_names(architecture), layer_names(architecture)
    out: dict[str, GgufTensor] = {}
    for name, tensor in file.tensors.items():
        if architecture == "gemma4" and name == FREQUENCIES:
            continue
        if architecture == "gemma3n" and name in gemma3n.STACKS:
            out |= gemma3n.unstacked(name, tensor)
            continue
        layer = re.fullmatch(r"blk\.(\d{1,4})\.(.+)", name, re.ASCII)
        theirs = of_layers.get(layer[2]) if layer else names.get(name)
        if layer and theirs:
            theirs = f"layers.{int(layer[1])}.{theirs}"
        full = PREFIX + theirs if theirs else OUTPUT_MATRIX.get(name)
        if full is None or full in out:
            raise ValueError(f"{file.path}: unknown tensor {shown(name)}: {file.architecture} has no such weight")
        out[full] = replace(tensor, shift=1.0, dtype="F32") if stores_plus_one(architecture, name) else tensor
    return out


class _Keys:
    """The keys of a file's architecture, each of which has to be read."""

    def __init__(self, file: GgufFile) -> None:
        self._file, self._prefix = file, file.architecture + "."
        self._unread = {key for key in file.metadata if key.startswith(self._prefix)}

    def __contains__(self, key: str) -> bool:
        return self._prefix + key in self._file.metadata

    def _get(self, key: str, kind: Any, default: Any) -> Any:
        self._unread.discard(self._prefix + key)
        return self._file.get(self._prefix + key, kind, default)

    def number(self, key: str, default: int | None = None) -> int:
        return self._get(key, int, default)

    def real(self, key: str, default: float | None = None) -> float:
        return float(self._get(key, (int, float), default))

    def text(self, key: str, default: str) -> str:
        return self._get(key, str, default)

    def each_layer(self, key: str, layers: int, default: int | None = None) -> list[Any]:
        """A number for each layer, where the file has one for all or one for each."""
        value = self._get(key, (int, np.ndarray), default)
        values = value.tolist() if isinstance(value, np.ndarray) else [value] * min(layers, MAX_LAYERS)
        if len(values) != layers:
            raise ValueError(f"{self._file.path}: {self._prefix}{key} has {len(values)} values for {layers} layers")
        return values

    def is_array(self, key: str) -> bool:
        return isinstance(self._file.metadata.get(self._prefix + key), np.ndarray)

    def same(self, key: str, expected: Any) -> None:
        """Raises ValueError when a key that only repeats another one differs from it."""
        if key in self and (value := self._get(key, object, None)) != expected:
            raise ValueError(f"{self._file.path}: {self._prefix}{key} is {shown(value)}; only {expected} can be read")

    def finish(self) -> None:
        if self._unread:
            raise ValueError(
                f"{self._file.path}: unknown key {shown(min(self._unread))}: this model has no such option"
            )


def hf_config(file: GgufFile) -> dict[str, Any]:
    """The content of ``config.json`` of the same model. Raises ValueError that names file and key for what is not understood."""
    architecture, keys = _architecture(file), _Keys(file)
    if "token_embd.weight" not in file.tensors:
        raise ValueError(f"{file.path}: it has no tensor token_embd.weight")
    out: dict[str, Any] = {
        "model_type": ARCHITECTURES[architecture],
        "hidden_size": keys.number("embedding_length"),
        "num_hidden_layers": keys.number("block_count"),
        "num_attention_heads": keys.number("attention.head_count"),
        "vocab_size": (vocabulary := file.tensors["token_embd.weight"].shape[0]),
        "max_position_embeddings": keys.number("context_length"),
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh",
    }
    keys.same("vocab_size", vocabulary)
    if architecture == "gemma4":
        out |= _gemma4(file, keys, out["num_hidden_layers"])
    elif architecture == "gemma3n":
        out |= _gemma3n(file, keys, out["num_hidden_layers"])
    else:
        out |= _gemma(keys, architecture)
        if architecture == "gemma2":
            out |= _gemma2(keys, out)
        if architecture == "gemma3":
            out |= _gemma3(keys, out)
    keys.finish()
    return out


def _gemma(keys: _Keys, architecture: str) -> dict[str, Any]:
    """What Gemma 1 to 3 have beside what all have."""
    head = keys.number("attention.key_length")
    keys.same("attention.value_length", head)
    keys.same("rope.dimension_count", head)
    out: dict[str, Any] = {
        "intermediate_size": keys.number("feed_forward_length"),
        "num_key_value_heads": keys.number("attention.head_count_kv"),
        "head_dim": head,
        "rope_theta": keys.real("rope.freq_base", 10_000.0),
    }
    if (kind := keys.text("rope.scaling.type", "none")) != "none":
        out["rope_scaling"] = {"rope_type": kind, "factor": keys.real("rope.scaling.factor")}
    return out


def _score_scale(shared: Mapping[str, Any], architecture: str) -> int:
    """The number whose square root divides the scores."""
    by_width = shared["num_hidden_layers"] == SCALED_BY_WIDTH[architecture]
    return shared["hidden_size"] // shared["num_attention_heads"] if by_width else shared["head_dim"]


def _gemma2(keys: _Keys, shared: Mapping[str, Any]) -> dict[str, Any]:
    """What is in Gemma 2's configuration beside ``shared``."""
    window, attention_cap, logit_cap = GEMMA2_DEFAULTS
    return {
        "query_pre_attn_scalar": _score_scale(shared, "gemma2"),
        "sliding_window": keys.number("attention.sliding_window", window),
        "attn_logit_softcapping": keys.real("attn_logit_softcapping", attention_cap),
        "final_logit_softcapping": keys.real("final_logit_softcapping", logit_cap),
        **_pattern(keys, shared, "gemma2"),
    }


def _gemma3(keys: _Keys, shared: Mapping[str, Any]) -> dict[str, Any]:
    """What is in Gemma 3's configuration beside ``shared``."""
    has_window = "attention.sliding_window" in keys
    return {
        "query_pre_attn_scalar": _score_scale(shared, "gemma3"),
        "sliding_window": keys.number("attention.sliding_window", shared["max_position_embeddings"]),
        "rope_local_base_freq": keys.real("rope.freq_base_swa", 10_000.0),
        "final_logit_softcapping": keys.real("final_logit_softcapping", 0.0) or None,
        **(_pattern(keys, shared, "gemma3") if has_window else {"sliding_window_pattern": 1}),
    }


def _pattern(keys: _Keys, shared: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """Which layers are local, from the n of which each n-th is global, or from a bool for each layer."""
    layers, key = shared["num_hidden_layers"], "attention.sliding_window_pattern"
    if not keys.is_array(key):
        return {"sliding_window_pattern": keys.number(key, DEFAULT_PATTERNS[architecture])}
    return {"layer_types": _layer_types(keys, layers)}


def _layer_types(keys: _Keys, layers: int) -> list[str]:
    local = keys.each_layer("attention.sliding_window_pattern", layers)
    return [LOCAL if value else GLOBAL for value in local]


def _gemma3n(file: GgufFile, keys: _Keys, layers: int) -> dict[str, Any]:
    """What is in Gemma 3n's configuration beside what all have."""
    head = keys.number("attention.key_length")
    keys.same("attention.value_length", head)
    keys.same("altup.active_idx", 0)
    return {
        "head_dim": head,
        "intermediate_size": keys.each_layer("feed_forward_length", layers),
        "num_key_value_heads": keys.number("attention.head_count_kv"),
        "sliding_window": keys.number("attention.sliding_window"),
        "layer_types": _layer_types(keys, layers),
        "num_kv_shared_layers": keys.number("attention.shared_kv_layers"),
        "hidden_size_per_layer_input": keys.number("embedding_length_per_layer_input"),
        "altup_num_inputs": keys.number("altup.num_inputs"),
        "rope_theta": keys.real("rope.freq_base"),
        "rope_local_base_freq": keys.real("rope.freq_base_swa", 10_000.0),
        **gemma3n.settings(file, keys.each_layer("activation_sparsity_scale", layers)),
    }


def _gemma4(file: GgufFile, keys: _Keys, layers: int) -> dict[str, Any]:
    """What is in Gemma 4's configuration beside what both have."""
    head, local_head = keys.number("attention.key_length"), keys.number("attention.key_length_swa")
    keys.same("attention.value_length", head)
    keys.same("attention.value_length_swa", local_head)
    keys.same("rope.dimension_count", head)
    keys.same("rope.dimension_count_swa", local_head)
    kinds = _layer_types(keys, layers)
    local = [kind == LOCAL for kind in kinds]
    kv_heads = keys.each_layer("attention.head_count_kv", layers)
    hidden = keys.each_layer("feed_forward_length", layers)
    shared = keys.number("attention.shared_kv_layers", 0)
    own = hidden[: max(layers - shared, 1)]
    if hidden not in ([own[0]] * layers, [own[0]] * (layers - shared) + [2 * own[0]] * shared):
        raise ValueError(f"{file.path}: {shown(hidden)} is no feed_forward_length of a gemma4")
    out: dict[str, Any] = {
        "intermediate_size": own[0],
        "final_logit_softcapping": keys.real("final_logit_softcapping", 0.0) or None,
        "use_double_wide_mlp": hidden[-1] != own[0],
        "num_kv_shared_layers": shared,
        "head_dim": local_head,
        "global_head_dim": head,
        "num_key_value_heads": _one(file, "local", kv_heads, local),
        "sliding_window": keys.number("attention.sliding_window"),
        "layer_types": kinds,
        "hidden_size_per_layer_input": keys.number("embedding_length_per_layer_input", 0),
        "rope_parameters": {
            GLOBAL: {
                "rope_type": "proportional",
                "rope_theta": keys.real("rope.freq_base"),
                "partial_rotary_factor": _rope_fraction(file, head),
            },
            LOCAL: {"rope_type": "default", "rope_theta": keys.real("rope.freq_base_swa", 10_000.0)},
        },
    }
    if "per_layer_token_embd.weight" in file.tensors:
        out["vocab_size_per_layer_input"] = file.tensors["per_layer_token_embd.weight"].shape[0]
    if _takes_keys_as_values(file, layers):
        global_heads = _one(file, "global", kv_heads, [not kind for kind in local])
        out |= {"attention_k_eq_v": True, "num_global_key_value_heads": global_heads}
    return out | _experts(keys)


def _takes_keys_as_values(file: GgufFile, layers: int) -> bool:
    """Whether there are layers without a value projection that have keys."""
    return any(
        f"blk.{i}.attn_k.weight" in file.tensors and f"blk.{i}.attn_v.weight" not in file.tensors
        for i in range(min(layers, MAX_LAYERS))
    )


def _experts(keys: _Keys) -> dict[str, Any]:
    if not (experts := keys.number("expert_count", 0)):
        return {}
    return {
        "enable_moe_block": True,
        "num_experts": experts,
        "top_k_experts": keys.number("expert_used_count"),
        "moe_intermediate_size": keys.number("expert_feed_forward_length"),
    }


def _one(file: GgufFile, kind: str, values: list[int], chosen: list[bool]) -> int:
    """The value that all layers of a kind have."""
    found = {value for value, is_chosen in zip(values, chosen, strict=True) if is_chosen}
    if len(found) != 1:
        raise ValueError(f"{file.path}: the {kind} layers have {shown(found or 'no')} key and value heads")
    return found.pop()


def _rope_fraction(file: GgufFile, head: int) -> float:
    """Share of the RoPE frequencies of the global layers that are not zero."""
    tensor = file.tensors.get(FREQUENCIES)
    if tensor is None or tensor.shape != (head // 2,):
        raise ValueError(f"{file.path}: {FREQUENCIES} with {head // 2} numbers is needed")
    divisors = tensor.map()
    turning = int((divisors == 1).sum())
    if not ((divisors[:turning] == 1).all() and (divisors[turning:] > NEVER).all()):
        raise ValueError(f"{file.path}: the numbers of {FREQUENCIES} are not ones and then infinities")
    return turning / len(divisors)
