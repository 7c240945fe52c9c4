"""Configurations of Gemma 1, 2 and 3 (text), from and to ``config.json`` of Hugging Face's layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from alhena.model import config
from alhena.model.families.hf_settings import settings_of
from alhena.model.kv_cache import is_global
from alhena.schema import parsed, shown

Family = Literal["gemma", "gemma2", "gemma3"]
CLASSES = {"gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM", "gemma3": "Gemma3ForCausalLM"}
MODEL_TYPES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3_text"}
ACTIVATION = "gelu_pytorch_tanh"
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
# What the decoder has only one of.
ALWAYS: Mapping[str, Sequence[Any]] = {
    "rms_norm_eps": (1e-6,), "attention_bias": (False,), "mlp_bias": (False,), "use_bidirectional_attention": (False, None),
}  # fmt: skip


@dataclass(frozen=True)
class _Rope:
    """Rotary positions of one kind of layers. Older files say ``type`` for ``rope_type``."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None
    factor: float | None = None
    partial_rotary_factor: float | None = None


@dataclass(frozen=True)
class Text:
    """What a text model's configuration holds, by the names of the file."""

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
    rope_scaling: _Rope | None = None
    rope_parameters: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Wrapped:
    """A configuration of images and text, of which the text half is read."""

    model_type: str
    text_config: dict[str, Any]
    vision_config: dict[str, Any] | None = None
    tie_word_embeddings: bool = True


def _same(path: Path, values: Mapping[str, Any]) -> Any:
    """The value that several keys agree on, those without one aside; None when none has any. Raises ValueError when they differ."""
    there = {name: value for name, value in values.items() if value is not None}
    if len(set(there.values())) > 1:
        raise ValueError(f"{path}: {' but '.join(f'{name} is {shown(value)}' for name, value in there.items())}")
    return next(iter(there.values()), None)


def _kind(rope: _Rope, path: Path, allowed: Sequence[str]) -> float:
    """By how much positions are divided. Raises ValueError for positions of another kind."""
    kind = _same(path, {"rope_type": rope.rope_type, "type": rope.type}) or "default"
    if kind not in allowed or rope.partial_rotary_factor not in (None, 1.0):
        part = f" of a part ({rope.partial_rotary_factor}) of each head" if rope.partial_rotary_factor else ""
        raise ValueError(f"{path}: rotary positions of type {kind!r}{part}; {' and '.join(allowed)} can be read here")
    if kind == "linear" and rope.factor is None:
        raise ValueError(f"{path}: rotary positions of type 'linear' without a factor")
    return float(rope.factor) if kind == "linear" and rope.factor is not None else 1.0


def _rotary(text: Text, given: Text, family: Family, path: Path) -> tuple[float, float | None, float]:
    """Base and stretch of the global layers, base of the local ones; older and newer files write them differently.

    ``given`` has only what the file says, ``text`` the defaults of the class too.
    """
    stored = text.rope_parameters or {}
    nested = "full_attention" in stored or "sliding_attention" in stored
    if nested and (family == "gemma" or set(stored) > {"full_attention", "sliding_attention"}):
        raise ValueError(f"{path}: rope_parameters of {', '.join(map(shown, stored))}; not those of {family}")
    far = parsed(_Rope, stored.get("full_attention", {}) if nested else stored, path, "rope_parameters")
    near = parsed(_Rope, stored.get("sliding_attention", {}), path, "rope_parameters") if nested else _Rope()
    _kind(near, path, ("default",))
    # In Gemma 2 a stretch would hold for the local layers too.
    allowed = ("default",) if family == "gemma2" else ("default", "linear")
    stretch = _kind(text.rope_scaling or far, path, allowed)
    if text.rope_scaling and text.rope_parameters and stretch != _kind(far, path, allowed):
        raise ValueError(f"{path}: rope_scaling and rope_parameters say different things")
    base = _same(path, {"rope_theta of rope_parameters": far.rope_theta, "rope_theta": given.rope_theta})
    local = _same(
        path, {"rope_theta of local layers": near.rope_theta, "rope_local_base_freq": given.rope_local_base_freq}
    )
    base, local = base or text.rope_theta or 10_000.0, local or text.rope_local_base_freq
    if family != "gemma3" and local not in (None, base):
        raise ValueError(f"{path}: rotary positions of local layers with base {local}; {family} has one base")
    return float(base), float(local) if local is not None and family == "gemma3" else None, stretch


def _global_every(text: Text, family: Family, path: Path) -> int:
    """Each n-th layer is global. Raises ValueError when the layers follow another pattern."""
    layers, kinds = text.num_hidden_layers, text.layer_types
    names = {
        "sliding_window_pattern": text.sliding_window_pattern,
        "_sliding_window_pattern": text._sliding_window_pattern,
    }
    every = _same(path, names) or {"gemma": 1, "gemma2": 2, "gemma3": 6}[family]
    if kinds is None:
        return every
    every = kinds.index("full_attention") + 1 if "full_attention" in kinds else layers + 1
    if len(kinds) != layers or any(
        kind != ("full_attention" if (i + 1) % every == 0 else "sliding_attention") for i, kind in enumerate(kinds)
    ):
        raise ValueError(
            f"{path}: layer_types {shown(kinds)} is no regular pattern of {layers} local and global layers"
        )
    if family == "gemma" and every != 1:
        raise ValueError(f"{path}: layer_types has local layers; gemma has none")
    return every


def _activation(text: Text, path: Path) -> None:
    """Raises ValueError for another activation. ``hidden_activation`` counts where both are there."""
    said = text.hidden_activation or text.hidden_act or ACTIVATION
    if said != ACTIVATION:
        name = "hidden_activation" if text.hidden_activation else "hidden_act"
        raise ValueError(
            f"{path}: {name} is {shown(said)}; ours has {ACTIVATION!r} (if the model was trained with that, "
            f'add "hidden_activation": "{ACTIVATION}" to the file)'
        )


def _text_half(stored: Mapping[str, Any], family: Family, path: Path) -> tuple[Mapping[str, Any], bool | None]:
    """The text model's part of a configuration, and what a larger one around it says of tied embeddings."""
    if "text_config" not in stored:
        kind = stored.get("model_type")
        if kind not in (MODEL_TYPES[family], family):
            raise ValueError(f"{path}: a model of type {shown(kind)}, not {family}")
        return stored, None
    around = settings_of(_Wrapped, stored, {}, path)
    inside = around.text_config.get("model_type")
    if family != "gemma3" or around.model_type != "gemma3" or inside != MODEL_TYPES[family]:
        raise ValueError(f"{path}: a model of type {shown(around.model_type)} around {shown(inside)}, not {family}")
    return around.text_config, around.tie_word_embeddings


def configured(stored: Mapping[str, Any], family: Family, path: Path) -> tuple[config.Model, bool]:
    """Our configuration of what ``config.json`` (``path``) holds, and whether its embedding is tied.

    Raises ValueError that names file and key for what is not understood or is computed otherwise here.
    """
    if family not in get_args(Family):
        raise ValueError(f"--as {family!r}: one of {', '.join(get_args(Family))}")
    own, tied = _text_half(stored, family, path)
    field = "" if tied is None else "text_config"
    text = settings_of(Text, {**DEFAULTS[family], **own}, ALWAYS, path, field)
    given = replace(text, rope_theta=own.get("rope_theta"), rope_local_base_freq=own.get("rope_local_base_freq"))
    _activation(text, path)
    base, local, stretch = _rotary(text, given, family, path)
    later = family != "gemma"
    for name in ("query_pre_attn_scalar", "sliding_window") if later else ():
        if getattr(text, name) is None:
            raise ValueError(f"{path}: {name} is null; {family} needs a number")
    if not later:
        for name in ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "sliding_window"):
            if getattr(text, name) is not None:
                raise ValueError(f"{path}: {name} is {getattr(text, name)}; gemma has none")
    _same(path, {"sliding_window_size": text.sliding_window_size, "sliding_window": text.sliding_window})
    try:
        d = config.Decoder(
            width=text.hidden_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            head_dim=text.head_dim,
            hidden=text.intermediate_size,
            kv_heads=text.num_key_value_heads,
            window=text.sliding_window if later else None,
            global_every=_global_every(text, family, path),
            rope_base=base,
            local_rope_base=local,
            rope_scaling_factor=stretch,
            qk_norm=family == "gemma3",
            post_norm=later,
            query_pre_attn_scalar=text.query_pre_attn_scalar if later else None,
            # The reference never caps scores in Gemma 3, nor logits where its text model is part of a larger one.
            attention_softcap=text.attn_logit_softcapping if family == "gemma2" else None,
            final_logit_softcap=text.final_logit_softcapping if later and tied is None else None,
        )
        c = config.Model(text.vocab_size, image_token=-1, audio_token=-1, decoder=d, vision=None, audio=None)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    return c, text.tie_word_embeddings and tied is not False


def family_of(c: config.Decoder) -> Family:
    """Which of the three a decoder is. Raises ValueError when it is none."""
    kinds: dict[tuple[bool, bool], Family] = {(False, False): "gemma", (False, True): "gemma2", (True, True): "gemma3"}
    if (c.qk_norm, c.post_norm) not in kinds:
        raise ValueError("a decoder with QK-norm but no norms behind its sub-layers is none of the Gemma family")
    return kinds[c.qk_norm, c.post_norm]


def _said(d: config.Decoder) -> config.Decoder:
    """The same decoder, with what follows from other fields made explicit."""
    everywhere = d.window is None or d.global_every == 1
    return replace(
        d,
        window=None if everywhere else d.window,
        global_every=1 if everywhere else min(d.global_every, d.layers + 1),
        local_rope_base=None if everywhere else d.local_rope_base or d.rope_base,
        query_pre_attn_scalar=float(d.query_pre_attn_scalar or d.head_dim),
        remat=False,
    )


def described(c: config.Model) -> dict[str, Any]:
    """The configuration as Hugging Face writes it. Raises ValueError for a decoder that its family does not have."""
    d, family = c.decoder, family_of(c.decoder)
    out = {
        "architectures": [CLASSES[family]], "model_type": MODEL_TYPES[family], "torch_dtype": "float32",
        "hidden_activation": ACTIVATION, "hidden_act": ACTIVATION, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True, "attention_bias": False, "max_position_embeddings": 32_768,
        "vocab_size": c.vocabulary, "hidden_size": d.width, "num_hidden_layers": d.layers, "head_dim": d.head_dim,
        "num_attention_heads": d.heads, "num_key_value_heads": d.kv_heads, "intermediate_size": d.hidden,
        "rope_theta": d.rope_base,
    }  # fmt: skip
    stretched = (
        {"rope_type": "linear", "factor": d.rope_scaling_factor}
        if d.rope_scaling_factor != 1
        else {"rope_type": "default"}
    )
    if family == "gemma":
        out |= {"rope_scaling": stretched} if d.rope_scaling_factor != 1 else {}
    else:
        kinds = ["full_attention" if far else "sliding_attention" for far in is_global(d)]
        window = d.window or out["max_position_embeddings"]
        scalar = d.query_pre_attn_scalar or d.head_dim
        scalar = int(scalar) if scalar == int(scalar) else scalar  # the reference expects an integer
        out |= {"sliding_window": window, "layer_types": kinds, "query_pre_attn_scalar": scalar}
        out |= {"attn_logit_softcapping": d.attention_softcap, "final_logit_softcapping": d.final_logit_softcap}
    if family == "gemma3":
        near = {"rope_type": "default", "rope_theta": d.local_rope_base or d.rope_base}
        out |= {"rope_local_base_freq": near["rope_theta"], "sliding_window_pattern": d.global_every}
        far = {**stretched, "rope_theta": d.rope_base}
        out["rope_parameters"] = {"full_attention": far, "sliding_attention": near}
    again, wanted = _said(configured(out, family, Path("config.json"))[0].decoder), _said(d)
    for field in fields(d):
        ours, theirs = getattr(wanted, field.name), getattr(again, field.name)
        if ours != theirs:
            raise ValueError(
                f"this decoder has {field.name} {ours}, a {family} file would say {theirs}: it cannot be exported"
            )
    return out
