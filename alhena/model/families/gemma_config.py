"""Configurations of Gemma 1, 2 and 3 (text), from and to ``config.json`` in Hugging Face's layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from alhena.model import config
from alhena.model.families.hf_settings import parse_settings
from alhena.model.kv_cache import is_global
from alhena.schema import parsed, shown

Family = Literal["gemma", "gemma2", "gemma3"]
CLASSES = {"gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM", "gemma3": "Gemma3ForCausalLM"}
MODEL_TYPES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3_text"}
ACTIVATION = "gelu_pytorch_tanh"
# Defaults of the reference's classes, which published configurations leave out.
DEFAULTS: Mapping[Family, Mapping[str, Any]] = {
    "gemma": {"num_key_value_heads": 16, "head_dim": 256, "vocab_size": 256_000},
    "gemma2": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256_000,
               "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
               "final_logit_softcapping": 30.0},
    "gemma3": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_208,
               "query_pre_attn_scalar": 256, "sliding_window": 4096, "rope_theta": 1_000_000.0,
               "rope_local_base_freq": 10_000.0},
}  # fmt: skip
# Keys of which only these values are implemented.
FIXED: Mapping[str, Sequence[Any]] = {
    "rms_norm_eps": (1e-6,), "attention_bias": (False,), "mlp_bias": (False,), "use_bidirectional_attention": (False, None),
}  # fmt: skip


@dataclass(frozen=True)
class _Rope:
    """RoPE of one kind of layers. Older files have ``type`` in place of ``rope_type``."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None
    factor: float | None = None
    partial_rotary_factor: float | None = None


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
    rope_scaling: _Rope | None = None
    rope_parameters: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Wrapped:
    """Configuration of an image and text model, of which the text part is read."""

    model_type: str
    text_config: dict[str, Any]
    vision_config: dict[str, Any] | None = None
    tie_word_embeddings: bool = True


def _common(path: Path, values: Mapping[str, Any]) -> Any:
    """The value of several keys of the same meaning, or None when all are None. Raises ValueError when they differ."""
    present = {name: value for name, value in values.items() if value is not None}
    if len(set(present.values())) > 1:
        raise ValueError(f"{path}: {' but '.join(f'{name} is {shown(value)}' for name, value in present.items())}")
    return next(iter(present.values()), None)


def _scaling_factor(rope: _Rope, path: Path, allowed: Sequence[str]) -> float:
    """The number that positions are divided by. Raises ValueError for RoPE of another type."""
    kind = _common(path, {"rope_type": rope.rope_type, "type": rope.type}) or "default"
    if kind not in allowed or rope.partial_rotary_factor not in (None, 1.0):
        partial = f", partial_rotary_factor {rope.partial_rotary_factor}" if rope.partial_rotary_factor else ""
        raise ValueError(f"{path}: RoPE of type {kind!r}{partial}; {' and '.join(allowed)} can be read here")
    if kind == "linear" and rope.factor is None:
        raise ValueError(f"{path}: RoPE of type 'linear' without a factor")
    return float(rope.factor) if kind == "linear" and rope.factor is not None else 1.0


def _rope(text: Text, given: Text, family: Family, path: Path) -> tuple[float, float | None, float]:
    """RoPE base of the global layers, of the local ones, and scaling factor; older and newer files have other keys.

    ``given`` has only the bases in the file, ``text`` the defaults of the class too.
    """
    stored = text.rope_parameters or {}
    nested = "full_attention" in stored or "sliding_attention" in stored
    if nested and (family == "gemma" or set(stored) > {"full_attention", "sliding_attention"}):
        raise ValueError(f"{path}: rope_parameters of {', '.join(map(shown, stored))}; not those of {family}")
    global_rope = parsed(_Rope, stored.get("full_attention", {}) if nested else stored, path, "rope_parameters")
    local_rope = parsed(_Rope, stored.get("sliding_attention", {}), path, "rope_parameters") if nested else _Rope()
    _scaling_factor(local_rope, path, ("default",))
    # In Gemma 2 scaling would apply to the local layers too.
    allowed = ("default",) if family == "gemma2" else ("default", "linear")
    factor = _scaling_factor(text.rope_scaling or global_rope, path, allowed)
    if text.rope_scaling and text.rope_parameters and factor != _scaling_factor(global_rope, path, allowed):
        raise ValueError(f"{path}: rope_scaling and rope_parameters differ")
    base = _common(path, {"rope_theta of rope_parameters": global_rope.rope_theta, "rope_theta": given.rope_theta})
    local = _common(
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
    every = _common(path, names) or {"gemma": 1, "gemma2": 2, "gemma3": 6}[family]
    if kinds is None:
        return every
    every = kinds.index("full_attention") + 1 if "full_attention" in kinds else layers + 1
    if len(kinds) != layers or any(
        kind != ("full_attention" if (i + 1) % every == 0 else "sliding_attention") for i, kind in enumerate(kinds)
    ):
        raise ValueError(
            f"{path}: layer_types {shown(kinds)} is no periodic pattern of {layers} local and global layers"
        )
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


def _text_settings(stored: Mapping[str, Any], family: Family, path: Path) -> tuple[Mapping[str, Any], bool | None]:
    """The text model's section, and tie_word_embeddings of the enclosing configuration (None: there is none)."""
    if "text_config" not in stored:
        kind = stored.get("model_type")
        if kind not in (MODEL_TYPES[family], family):
            raise ValueError(f"{path}: a model of type {shown(kind)}, not {family}")
        return stored, None
    outer = parse_settings(_Wrapped, stored, {}, path)
    inner_type = outer.text_config.get("model_type")
    if family != "gemma3" or outer.model_type != "gemma3" or inner_type != MODEL_TYPES[family]:
        raise ValueError(f"{path}: a model of type {shown(outer.model_type)} around {shown(inner_type)}, not {family}")
    return outer.text_config, outer.tie_word_embeddings


def to_model_config(stored: Mapping[str, Any], family: Family, path: Path) -> tuple[config.Model, bool]:
    """The model's configuration from the content of ``config.json`` (``path``), and whether its embedding is tied.

    Raises ValueError that names file and key for what is not understood or not implemented.
    """
    if family not in get_args(Family):
        raise ValueError(f"--as {family!r}: one of {', '.join(get_args(Family))}")
    section, tied = _text_settings(stored, family, path)
    field = "" if tied is None else "text_config"
    text = parse_settings(Text, {**DEFAULTS[family], **section}, FIXED, path, field)
    given = replace(
        text, rope_theta=section.get("rope_theta"), rope_local_base_freq=section.get("rope_local_base_freq")
    )
    _check_activation(text, path)
    base, local, factor = _rope(text, given, family, path)
    is_gemma_1 = family == "gemma"
    for name in ("query_pre_attn_scalar", "sliding_window") if not is_gemma_1 else ():
        if getattr(text, name) is None:
            raise ValueError(f"{path}: {name} is null; {family} needs a number")
    if is_gemma_1:
        for name in ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "sliding_window"):
            if getattr(text, name) is not None:
                raise ValueError(f"{path}: {name} is {getattr(text, name)}; gemma has none")
    _common(path, {"sliding_window_size": text.sliding_window_size, "sliding_window": text.sliding_window})
    try:
        d = config.Decoder(
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
            final_logit_softcap=text.final_logit_softcapping if not is_gemma_1 and tied is None else None,
        )
        c = config.Model(text.vocab_size, image_token=-1, audio_token=-1, decoder=d, vision=None, audio=None)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    return c, text.tie_word_embeddings and tied is not False


def family_of(c: config.Decoder) -> Family:
    """The family of a decoder. Raises ValueError when it has none."""
    kinds: dict[tuple[bool, bool], Family] = {(False, False): "gemma", (False, True): "gemma2", (True, True): "gemma3"}
    if (c.qk_norm, c.post_norm) not in kinds:
        raise ValueError("a decoder with QK-norm but without norms after its sub-layers is no Gemma model")
    return kinds[c.qk_norm, c.post_norm]


def _normalized(d: config.Decoder) -> config.Decoder:
    """An equivalent decoder in which derived values are explicit: equal decoders compare equal."""
    all_global = d.window is None or d.global_every == 1
    return replace(
        d,
        window=None if all_global else d.window,
        global_every=1 if all_global else min(d.global_every, d.layers + 1),
        local_rope_base=None if all_global else d.local_rope_base or d.rope_base,
        query_pre_attn_scalar=float(d.query_pre_attn_scalar or d.head_dim),
        remat=False,
    )


def to_hf_config(c: config.Model) -> dict[str, Any]:
    """The content of ``config.json``. Raises ValueError for a decoder that its family cannot express."""
    d, family = c.decoder, family_of(c.decoder)
    out = {
        "architectures": [CLASSES[family]], "model_type": MODEL_TYPES[family], "torch_dtype": "float32",
        "hidden_activation": ACTIVATION, "hidden_act": ACTIVATION, "rms_norm_eps": 1e-6,
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
        kinds = ["full_attention" if layer else "sliding_attention" for layer in is_global(d)]
        window = d.window or out["max_position_embeddings"]
        scalar = d.query_pre_attn_scalar or d.head_dim
        scalar = int(scalar) if scalar == int(scalar) else scalar  # the reference expects an integer
        out |= {"sliding_window": window, "layer_types": kinds, "query_pre_attn_scalar": scalar}
        out |= {"attn_logit_softcapping": d.attention_softcap, "final_logit_softcapping": d.final_logit_softcap}
    if family == "gemma3":
        local_rope = {"rope_type": "default", "rope_theta": d.local_rope_base or d.rope_base}
        out |= {"rope_local_base_freq": local_rope["rope_theta"], "sliding_window_pattern": d.global_every}
        global_rope = {**rope_scaling, "rope_theta": d.rope_base}
        out["rope_parameters"] = {"full_attention": global_rope, "sliding_attention": local_rope}
    stored = _normalized(to_model_config(out, family, Path("config.json"))[0].decoder)
    expected = _normalized(d)
    for field in fields(d):
        ours, theirs = getattr(expected, field.name), getattr(stored, field.name)
        if ours != theirs:
            raise ValueError(
                f"this decoder has {field.name} {ours}, a {family} file would have {theirs}: it cannot be exported"
            )
    return out
