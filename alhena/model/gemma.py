"""Open weights in and out: Gemma 1, 2 and 3 (text) are configurations of our decoder, in the layout of Hugging Face.

    config.json, model-00001-of-00002.safetensors, …  ── read ──►  Params, config.Model  ── write ──►  the same again

    gemma    norms before each sub-layer                                          Gemma Team 2024, arXiv:2403.08295
    gemma2   norms before and after, capped scores, every other layer local       Gemma Team 2024, arXiv:2408.00118
    gemma3   QK-norm, five local layers to a global one, two RoPE bases           Gemma Team 2025, arXiv:2503.19786

A matrix is ``[out, in]`` there and ``[in, out]`` here. Files are read one tensor at a time into the stacked arrays of the result,
so the weights are in memory once; a pickle is never opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from alhena.artifacts import read_json, write_json
from alhena.model import config, decoder
from alhena.model.codes import lookup
from alhena.model.einsum import dense
from alhena.model.model import Params
from alhena.model.tensors import open_tensors
from alhena.model.weights import write_arrays

Family = Literal["gemma", "gemma2", "gemma3"]
PREFIXES = ("model.", "model.language_model.", "language_model.model.")  # text models; the text half of image models
MATRICES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
NORMS: Mapping[Family, Mapping[str, str]] = {
    "gemma": {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    "gemma2": {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
}
NORMS = {**NORMS, "gemma3": {**NORMS["gemma2"], "query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}}
CLASSES = {"gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM", "gemma3": "Gemma3ForCausalLM"}
MODEL_TYPES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3_text"}
# What published configurations leave out, because it is the default of their class.
DEFAULTS: Mapping[Family, Mapping[str, Any]] = {
    "gemma": {"num_key_value_heads": 16, "head_dim": 256, "vocab_size": 256_000},
    "gemma2": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256_000,
               "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
               "final_logit_softcapping": 30.0},
    "gemma3": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_208,
               "query_pre_attn_scalar": 256, "sliding_window": 4096, "rope_theta": 1_000_000.0,
               "rope_local_base_freq": 10_000.0},
}  # fmt: skip


# ── configurations ─────────────────────────────────────────────────────────────────────────────────────────


def _rotary(stored: Mapping[str, Any]) -> tuple[float, float | None, float]:
    """Base and stretch of the global layers, base of the local ones; older and newer files write them differently."""
    parameters = stored.get("rope_parameters") or {}
    far = parameters.get("full_attention", parameters)
    near = parameters.get("sliding_attention", {})
    scaling = stored.get("rope_scaling") or far
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear"):
        raise ValueError(f"rotary positions of type {kind!r}; default and linear are known")
    base = far.get("rope_theta", stored.get("rope_theta", 10_000.0))
    local = near.get("rope_theta", stored.get("rope_local_base_freq"))
    return float(base), None if local is None else float(local), float(scaling.get("factor", 1.0))


def _global_every(stored: Mapping[str, Any], family: Family, layers: int) -> int:
    """Each n-th layer is global. Raises ValueError when the layers follow another pattern."""
    every = int(stored.get("sliding_window_pattern") or {"gemma": 1, "gemma2": 2, "gemma3": 6}[family])
    kinds = stored.get("layer_types")
    if kinds and "full_attention" in kinds:
        every = kinds.index("full_attention") + 1
    elif kinds:
        every = layers + 1
    wanted = ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(layers)]
    if kinds and kinds != wanted:
        raise ValueError(f"layer_types {kinds} is no regular pattern of local and global layers")
    return every


def _configured(stored: Mapping[str, Any], family: Family) -> config.Model:
    full = {**DEFAULTS[family], **(stored.get("text_config") or stored)}
    base, local, stretch = _rotary(full)
    later, layers = family != "gemma", int(full["num_hidden_layers"])
    d = config.Decoder(
        width=full["hidden_size"],
        layers=layers,
        heads=full["num_attention_heads"],
        head_dim=full["head_dim"],
        hidden=full["intermediate_size"],
        kv_heads=full["num_key_value_heads"],
        window=full["sliding_window"] if later else None,
        global_every=_global_every(full, family, layers),
        rope_base=base,
        local_rope_base=local,
        rope_stretch=stretch,
        qk_norm=family == "gemma3",
        post_norm=later,
        query_size=full["query_pre_attn_scalar"] if later else None,
        attention_cap=full.get("attn_logit_softcapping") if later else None,
        logit_cap=full.get("final_logit_softcapping") if later else None,
    )
    return config.Model(full["vocab_size"], image_token=-1, audio_token=-1, decoder=d, vision=None, audio=None)


def family_of(c: config.Decoder) -> Family:
    """Which of the three a decoder is. Raises ValueError when it is none."""
    kinds: dict[tuple[bool, bool], Family] = {(False, False): "gemma", (False, True): "gemma2", (True, True): "gemma3"}
    if (c.qk_norm, c.post_norm) not in kinds:
        raise ValueError("a decoder with QK-norm but no norms behind its sub-layers is none of the Gemma family")
    return kinds[c.qk_norm, c.post_norm]


def _described(c: config.Model) -> dict[str, Any]:
    """The configuration as Hugging Face writes it."""
    d, family = c.decoder, family_of(c.decoder)
    out = {
        "architectures": [CLASSES[family]], "model_type": MODEL_TYPES[family], "torch_dtype": "float32",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True, "attention_bias": False, "max_position_embeddings": 32_768,
        "vocab_size": c.vocabulary, "hidden_size": d.width, "num_hidden_layers": d.layers, "head_dim": d.head_dim,
        "num_attention_heads": d.heads, "num_key_value_heads": d.kv_heads, "intermediate_size": d.hidden,
        "rope_theta": d.rope_base,
    }  # fmt: skip
    if family == "gemma":
        return out
    kinds = ["full_attention" if far else "sliding_attention" for far in decoder.is_global(d)]
    window = d.window or out["max_position_embeddings"]
    out |= {"sliding_window": window, "layer_types": kinds, "query_pre_attn_scalar": d.query_size or d.head_dim}
    out |= {"attn_logit_softcapping": d.attention_cap, "final_logit_softcapping": d.logit_cap}
    if family == "gemma3":
        stretched = (
            {"rope_type": "linear", "factor": d.rope_stretch} if d.rope_stretch != 1 else {"rope_type": "default"}
        )
        near = {"rope_type": "default", "rope_theta": d.local_rope_base or d.rope_base}
        out |= {"rope_local_base_freq": near["rope_theta"], "sliding_window_pattern": d.global_every}
        out["rope_parameters"] = {
            "full_attention": {**stretched, "rope_theta": d.rope_base},
            "sliding_attention": near,
        }
    return out


# ── weights ────────────────────────────────────────────────────────────────────────────────────────────────


def read(folder: Path, family: Family) -> tuple[Params, config.Model]:
    """A model of Hugging Face's layout, in float32.

    Raises ValueError that names the file when the folder does not hold a ``family`` model.
    """
    if family not in get_args(Family):
        raise ValueError(f"--as {family!r}: one of {', '.join(get_args(Family))}")
    stored = read_json(folder / "config.json")
    kind = str((stored.get("text_config") or stored).get("model_type", ""))
    if kind not in (MODEL_TYPES[family], family):
        raise ValueError(f"{folder / 'config.json'}: a model of type {kind!r}, not {family}")
    try:
        c = _configured(stored, family)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'}: no {error}; not a configuration of {family}") from None
    tensor = open_tensors(folder, PREFIXES, "embed_tokens.weight")
    like = jax.eval_shape(lambda: decoder.init(jax.random.key(0), c.decoder))
    stacked: dict[str, Any] = dict.fromkeys(vars(like))
    for field, there in {**MATRICES, **NORMS[family]}.items():
        layers, *shape = getattr(like, field).shape
        stacked[field] = np.empty((layers, *shape), np.float32)
        for i in range(layers):
            stacked[field][i] = tensor(f"layers.{i}.{there}.weight", tuple(reversed(shape))).T
    embedding = tensor("embed_tokens.weight", (c.vocabulary, c.decoder.width))
    norm = tensor("norm.weight", (c.decoder.width,))
    arrays: dict[str, Any] = {name: None if a is None else jnp.asarray(a) for name, a in stacked.items()}
    return Params(jnp.asarray(embedding), None, None, decoder.Layers(**arrays), jnp.asarray(norm)), c


def _tensors(params: Params, c: config.Model) -> Iterator[tuple[str, np.ndarray]]:
    yield "model.embed_tokens.weight", np.asarray(lookup(params.embedding, jnp.arange(c.vocabulary), c.code_factors))
    yield "model.norm.weight", np.asarray(params.norm)
    for field, there in {**MATRICES, **NORMS[family_of(c.decoder)]}.items():
        stacked = np.asarray(dense(getattr(params.layers, field)))
        for i, array in enumerate(stacked):
            yield f"model.layers.{i}.{there}.weight", array.T


def write(folder: Path, params: Params, c: config.Model) -> None:
    """Writes what ``transformers`` opens: the decoder and its embedding. Encoders of images and sound have no place there."""
    write_arrays(folder / "model.safetensors", dict(_tensors(params, c)))
    write_json(folder / "config.json", _described(c))
