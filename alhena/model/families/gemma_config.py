"""Configurations of Gemma 1, 2 and 3 (text), from and to ``config.json`` in Hugging Face's layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from alhena.model import config
from alhena.model.families.hf_settings import (
    ACTIVATION,
    GLOBAL,
    LOCAL,
    Rope,
    common,
    global_every,
    layer_types,
    parse_settings,
    rope_factor,
)
from alhena.schema import parsed, shown

Family = Literal["gemma", "gemma2", "gemma3"]
MODEL_TYPES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3_text"}
# Defaults of the reference's classes, which published configurations leave out.
DEFAULTS: Mapping[Family, Mapping[str, Any]] = {
    "gemma": {"num_key_value_heads": 16, "head_dim": 256, "vocab_size": 256_000},
    "gemma2": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256_000,
               "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
               "final_logit_softcapping": 30.0},
    "gemma3": {"hidden_size": 2304, "num_hidden_layers": 26, "intermediate_size": 9216, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_208,
               "query_pre_attn_scalar": 256, "sliding_window": 4096, "rope_theta": 1_000_000.0,
               "rope_local_base_freq": 10_000.0},
}  # fmt: skip
# Keys of which only these values are implemented.
FIXED: Mapping[str, Sequence[Any]] = {
    "rms_norm_eps": (1e-6,), "attention_bias": (False,), "mlp_bias": (False,), "use_bidirectional_attention": (False, None),
}  # fmt: skip


@dataclass(frozen=True)
class Text:
    """Configuration of a text model, by the names of the file."""

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    hidden_act: str | None = None
    hidden_activation: str | None = None
    tie_word_embeddings: bool = True
    query_pre_attn_scalar: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    sliding_window: int | None = None
    sliding_window_size: int | None = None
    sliding_window_pattern: int | None = None
    _sliding_window_pattern: int | None = None
    layer_types: list[str] | None = None
    rope_theta: float | None = None
    rope_local_base_freq: float | None = None
    rope_scaling: Rope | None = None
    rope_parameters: dict[str, Any] | None = None


def _rope(text: Text, given: Text, family: Family, path: Path) -> tuple[float, float | None, float]:
    """RoPE base of the global layers, of the local ones, and scaling factor; older and newer files have other keys.

    ``given`` has only the bases in the file, ``text`` the defaults of the class too.
    """
    stored = text.rope_parameters or {}
    nested = GLOBAL in stored or LOCAL in stored
    if nested and (family == "gemma" or set(stored) > {GLOBAL, LOCAL}):
        raise ValueError(f"{path}: rope_parameters of {', '.join(map(shown, stored))}; not those of {family}")
    global_rope = parsed(Rope, stored.get(GLOBAL, {}) if nested else stored, path, "rope_parameters")
    local_rope = parsed(Rope, stored.get(LOCAL, {}), path, "rope_parameters") if nested else Rope()
    rope_factor(local_rope, path, ("default",))
    # In Gemma 2 scaling would apply to the local layers too.
    allowed = ("default",) if family == "gemma2" else ("default", "linear")
    factor = rope_factor(text.rope_scaling or global_rope, path, allowed)
    if text.rope_scaling and text.rope_parameters and factor != rope_factor(global_rope, path, allowed):
        raise ValueError(f"{path}: rope_scaling and rope_parameters differ")
    base = common(path, {"rope_theta of rope_parameters": global_rope.rope_theta, "rope_theta": given.rope_theta})
    local = common(
        path, {"rope_theta of local layers": local_rope.rope_theta, "rope_local_base_freq": given.rope_local_base_freq}
    )
    base, local = base or text.rope_theta or 10_000.0, local or text.rope_local_base_freq
    if family != "gemma3" and local not in (None, base):
        raise ValueError(f"{path}: rope_theta of local layers is {local}; {family} has one base")
    return float(base), float(local) if local is not None and family == "gemma3" else None, factor


def _global_every(text: Text, family: Family, path: Path) -> int:
    """The n for which each n-th layer is global. Raises ValueError when the layers have another pattern."""
    layers, kinds = text.num_hidden_layers, text.layer_types
    names = {
        "sliding_window_pattern": text.sliding_window_pattern,
        "_sliding_window_pattern": text._sliding_window_pattern,
    }
    every = common(path, names) or {"gemma": 1, "gemma2": 2, "gemma3": 6}[family]
    if kinds is None:
        return every
    if len(kinds) != layers:
        raise ValueError(
            f"{path}: layer_types {shown(kinds)} is no periodic pattern of {layers} local and global layers"
        )
    every = global_every(kinds, path)
    if family == "gemma" and every != 1:
        raise ValueError(f"{path}: layer_types has local layers; gemma has none")
    return every


def _check_activation(text: Text, path: Path) -> None:
    """Raises ValueError for another activation. ``hidden_activation`` takes precedence over ``hidden_act``."""
    activation = text.hidden_activation or text.hidden_act or ACTIVATION
    if activation != ACTIVATION:
        name = "hidden_activation" if text.hidden_activation else "hidden_act"
        raise ValueError(
            f"{path}: {name} is {shown(activation)}; ours has {ACTIVATION!r} (if the model was trained with that, "
            f'add "hidden_activation": "{ACTIVATION}" to the file)'
        )


def _check_nulls(text: Text, family: Family, path: Path) -> None:
    """Raises ValueError for a key that the family needs and that is null, or that it does not have."""
    for name in ("query_pre_attn_scalar", "sliding_window"):
        if family != "gemma" and getattr(text, name) is None:
            raise ValueError(f"{path}: {name} is null; {family} needs a number")
    for name in ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "sliding_window"):
        if family == "gemma" and getattr(text, name) is not None:
            raise ValueError(f"{path}: {name} is {getattr(text, name)}; gemma has none")


def read_text(section: Mapping[str, Any], path: Path, field: str) -> tuple[config.Decoder, int, bool]:
    """The decoder, the vocabulary size and whether embeddings are tied, from the section ``field`` of ``config.json`` (``path``).

    ``field`` is empty in a text model. Raises ValueError that names file and key for what is not understood or not implemented.
    """
    family: Family = {"gemma": "gemma", "gemma2": "gemma2"}.get(section["model_type"], "gemma3")  # type: ignore[assignment]
    text = parse_settings(Text, {**DEFAULTS[family], **section}, FIXED, path, field)
    given = replace(
        text, rope_theta=section.get("rope_theta"), rope_local_base_freq=section.get("rope_local_base_freq")
    )
    _check_activation(text, path)
    base, local, factor = _rope(text, given, family, path)
    is_gemma_1 = family == "gemma"
    _check_nulls(text, family, path)
    common(path, {"sliding_window_size": text.sliding_window_size, "sliding_window": text.sliding_window})
    decoder = config.Decoder(
        width=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        head_dim=text.head_dim,
        hidden=text.intermediate_size,
        kv_heads=text.num_key_value_heads,
        window=text.sliding_window if not is_gemma_1 else None,
        global_every=_global_every(text, family, path),
        rope_base=base,
        local_rope_base=local,
        rope_scaling_factor=factor,
        qk_norm=family == "gemma3",
        post_norm=not is_gemma_1,
        query_pre_attn_scalar=text.query_pre_attn_scalar if not is_gemma_1 else None,
        # The reference applies no attention soft cap in Gemma 3, and no logit soft cap inside an image model.
        attention_softcap=text.attn_logit_softcapping if family == "gemma2" else None,
        final_logit_softcap=text.final_logit_softcapping if not is_gemma_1 and not field else None,
    )
    return decoder, text.vocab_size, text.tie_word_embeddings


def family_of(c: config.Decoder) -> Family:
    """The family of a decoder. Raises ValueError when it has none."""
    kinds: dict[tuple[bool, bool], Family] = {(False, False): "gemma", (False, True): "gemma2", (True, True): "gemma3"}
    if (c.qk_norm, c.post_norm) not in kinds:
        raise ValueError("a decoder with QK-norm but without norms after its sub-layers is no Gemma model")
    return kinds[c.qk_norm, c.post_norm]


def write_text(c: config.Model) -> dict[str, Any]:
    """The ``config.json`` of a text model, or the ``text_config`` of a larger one."""
    d, family = c.decoder, family_of(c.decoder)
    out = {
        "model_type": MODEL_TYPES[family], "hidden_activation": ACTIVATION, "hidden_act": ACTIVATION, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True, "attention_bias": False, "max_position_embeddings": 32_768,
        "vocab_size": c.vocabulary, "hidden_size": d.width, "num_hidden_layers": d.layers, "head_dim": d.head_dim,
        "num_attention_heads": d.heads, "num_key_value_heads": d.kv_heads, "intermediate_size": d.hidden,
        "rope_theta": d.rope_base,
    }  # fmt: skip
    rope_scaling = (
        {"rope_type": "linear", "factor": d.rope_scaling_factor}
        if d.rope_scaling_factor != 1
        else {"rope_type": "default"}
    )
    if family == "gemma":
        out |= {"rope_scaling": rope_scaling} if d.rope_scaling_factor != 1 else {}
    else:
        window = d.window or out["max_position_embeddings"]
        scalar = d.query_pre_attn_scalar or d.head_dim
        scalar = int(scalar) if scalar == int(scalar) else scalar  # the reference expects an integer
        out |= {"sliding_window": window, "layer_types": layer_types(d), "query_pre_attn_scalar": scalar}
        out |= {"attn_logit_softcapping": d.attention_softcap, "final_logit_softcapping": d.final_logit_softcap}
    if family == "gemma3":
        local_rope = {"rope_type": "default", "rope_theta": d.local_rope_base or d.rope_base}
        out |= {"rope_local_base_freq": local_rope["rope_theta"], "sliding_window_pattern": d.global_every}
        global_rope = {**rope_scaling, "rope_theta": d.rope_base}
        out["rope_parameters"] = {GLOBAL: global_rope, LOCAL: local_rope}
    return out
