"""Reads Gemma 3 and Gemma 4 (text) from GGUF files, as llama.cpp's converter writes them: the same as a Hugging Face folder.

    model.gguf  ─┬─ read        ──►  Params, config.Model
                 ├─ hf_config   ──►  the content of config.json
                 ├─ hf_tensors  ──►  tensors by the names of model.safetensors, read as they are needed
                 └─ gguf_tokenizer.tokenizer_json

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

from alhena.model.families.gguf_file import GgufFile, GgufTensor, open_gguf
from alhena.model.families.model_config import read_config
from alhena.model.families.open_weights import OpenWeights, account
from alhena.schema import shown

PREFIX = "model."
NAMES = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
OUTPUT_MATRIX = {"output.weight": "lm_head.weight"}
LAYER_NAMES = {
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
}
# What Gemma 4 has beside that.
NAMES_4 = {
    "per_layer_token_embd.weight": "embed_tokens_per_layer.weight",
    "per_layer_model_proj.weight": "per_layer_model_projection.weight",
    "per_layer_proj_norm.weight": "per_layer_projection_norm.weight",
}
LAYER_NAMES_4 = {
    "layer_output_scale.weight": "layer_scalar",
    "inp_gate.weight": "per_layer_input_gate.weight",
    "proj.weight": "per_layer_projection.weight",
    "post_norm.weight": "post_per_layer_input_norm.weight",
    "ffn_gate_inp.weight": "router.proj.weight",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_down_exps.scale": "router.per_expert_scale",
    "ffn_gate_up_exps.weight": "experts.gate_up_proj",
    "ffn_down_exps.weight": "experts.down_proj",
    "pre_ffw_norm_2.weight": "pre_feedforward_layernorm_2.weight",
    "post_ffw_norm_1.weight": "post_feedforward_layernorm_1.weight",
    "post_ffw_norm_2.weight": "post_feedforward_layernorm_2.weight",
}
# The RoPE frequencies of Gemma 4's global layers are divided by these numbers: 1, or so many that nothing turns.
FREQUENCIES, NEVER = "rope_freqs.weight", 1e29
LAYERS_27B = 62
MAX_LAYERS = 2**12
ARCHITECTURES = ("gemma3", "gemma4")


def _architecture(file: GgufFile) -> str:
    """The family. Raises ValueError for another one, and for a file that is not a complete text model."""
    if file.architecture not in ARCHITECTURES:
        raise ValueError(
            f"{file.path}: a model of architecture {shown(file.architecture)}; {' and '.join(ARCHITECTURES)} can be read"
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

    Gemma 3's norms are stored with the one already added.
    """
    gemma4 = _architecture(file) == "gemma4"
    names = {**NAMES, **(NAMES_4 if gemma4 else {})}
    layer_names = {**LAYER_NAMES, **(LAYER_NAMES_4 if gemma4 else {})}
    out = {}
    for name, tensor in file.tensors.items():
        if gemma4 and name == FREQUENCIES:
            continue
        layer = re.fullmatch(r"blk\.(\d{1,4})\.(.+)", name, re.ASCII)
        theirs = layer_names.get(layer[2]) if layer else names.get(name)
        if layer and theirs:
            theirs = f"layers.{int(layer[1])}.{theirs}"
        full = PREFIX + theirs if theirs else OUTPUT_MATRIX.get(name)
        if full is None or full in out:
            raise ValueError(f"{file.path}: unknown tensor {shown(name)}: {file.architecture} has no such weight")
        stored_plus_one = not gemma4 and name.endswith("norm.weight")
        out[full] = replace(tensor, shift=1.0, dtype="F32") if stored_plus_one else tensor
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
    gemma4, keys = _architecture(file) == "gemma4", _Keys(file)
    if "token_embd.weight" not in file.tensors:
        raise ValueError(f"{file.path}: it has no tensor token_embd.weight")
    out: dict[str, Any] = {
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
    cap = keys.real("final_logit_softcapping", 0.0)
    out["final_logit_softcapping"] = cap or None
    out |= _gemma4(file, keys, out["num_hidden_layers"]) if gemma4 else _gemma3(keys, out)
    keys.finish()
    return out


def _gemma3(keys: _Keys, shared: Mapping[str, Any]) -> dict[str, Any]:
    """What is in Gemma 3's configuration beside ``shared``."""
    head, layers = keys.number("attention.key_length"), shared["num_hidden_layers"]
    keys.same("attention.value_length", head)
    keys.same("rope.dimension_count", head)
    every = 6 if "attention.sliding_window" in keys else 1
    keys.same("attention.sliding_window_pattern", every)
    out: dict[str, Any] = {
        "model_type": "gemma3_text",
        "intermediate_size": keys.number("feed_forward_length"),
        "num_key_value_heads": keys.number("attention.head_count_kv"),
        "head_dim": head,
        # llama.cpp knows the one model with another scale by its number of layers.
        "query_pre_attn_scalar": shared["hidden_size"] // shared["num_attention_heads"]
        if layers == LAYERS_27B
        else head,
        "sliding_window": keys.number("attention.sliding_window", shared["max_position_embeddings"]),
        "sliding_window_pattern": every,
        "rope_theta": keys.real("rope.freq_base"),
        "rope_local_base_freq": keys.real("rope.freq_base_swa", 10_000.0),
    }
    if (kind := keys.text("rope.scaling.type", "none")) != "none":
        out["rope_scaling"] = {"rope_type": kind, "factor": keys.real("rope.scaling.factor")}
    return out


def _gemma4(file: GgufFile, keys: _Keys, layers: int) -> dict[str, Any]:
    """What is in Gemma 4's configuration beside what both have."""
    head, local_head = keys.number("attention.key_length"), keys.number("attention.key_length_swa")
    keys.same("attention.value_length", head)
    keys.same("attention.value_length_swa", local_head)
    keys.same("rope.dimension_count", head)
    keys.same("rope.dimension_count_swa", local_head)
    local = [bool(value) for value in keys.each_layer("attention.sliding_window_pattern", layers)]
    kv_heads = keys.each_layer("attention.head_count_kv", layers)
    hidden = keys.each_layer("feed_forward_length", layers)
    shared = keys.number("attention.shared_kv_layers", 0)
    own = hidden[: max(layers - shared, 1)]
    if hidden not in ([own[0]] * layers, [own[0]] * (layers - shared) + [2 * own[0]] * shared):
        raise ValueError(f"{file.path}: {shown(hidden)} is no feed_forward_length of a gemma4")
    out: dict[str, Any] = {
        "model_type": "gemma4_text",
        "intermediate_size": own[0],
        "use_double_wide_mlp": hidden[-1] != own[0],
        "num_kv_shared_layers": shared,
        "head_dim": local_head,
        "global_head_dim": head,
        "num_key_value_heads": _one(file, "local", kv_heads, local),
        "sliding_window": keys.number("attention.sliding_window"),
        "layer_types": ["sliding_attention" if kind else "full_attention" for kind in local],
        "hidden_size_per_layer_input": keys.number("embedding_length_per_layer_input", 0),
        "rope_parameters": {
            "full_attention": {
                "rope_type": "proportional",
                "rope_theta": keys.real("rope.freq_base"),
                "partial_rotary_factor": _rope_fraction(file, head),
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": keys.real("rope.freq_base_swa", 10_000.0)},
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
