"""``config.json`` of a Gemma model and our configuration of it, in both directions: the family is found by ``model_type``.

gemma, gemma2, gemma3_text, gemma3n_text, gemma4_text, gemma4_unified_text     a decoder
gemma3, gemma3n, gemma4, gemma4_unified                                        a decoder and encoders
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from alhena.model import config
from alhena.model.families import gemma4_config, gemma_config
from alhena.model.families.encoders import gemma3n_audio, gemma4_audio, gemma4_vision, siglip
from alhena.model.families.hf_settings import located, parse_settings
from alhena.model.families.tensor_map import Table, under
from alhena.schema import parsed, shown

TEXT_TYPES = ("gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "gemma4_unified_text")
# With encoders, and the ``model_type`` of the decoder inside.
WRAPPED_TYPES = {
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_unified_text",
}
CLASSES = {
    "gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM",
    "gemma3n_text": "Gemma3nForCausalLM", "gemma4_text": "Gemma4ForCausalLM", "gemma3": "Gemma3ForConditionalGeneration",
    "gemma3n": "Gemma3nForConditionalGeneration", "gemma4": "Gemma4ForConditionalGeneration",
    "gemma4_unified": "Gemma4UnifiedForConditionalGeneration",
}  # fmt: skip
# Prefix of the decoder's tensors. Older and newer files have other prefixes: RENAMES.
DECODER_PREFIXES = {
    "gemma3": "language_model.model.",
    "gemma3n": "model.language_model.",
    "gemma4": "model.language_model.",
}
DECODER_PREFIXES |= {"gemma4_unified": "model.language_model."}
RENAMES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "gemma3": (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("vision_tower.vision_model.", "vision_tower.vision_model."),
        ("vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ),
    "gemma4_unified": (
        ("model.embed_vision.multimodal_embedder.", "model.embed_vision."),
        ("model.embed_vision.patch_", "model.vision_embedder.patch_"),
        ("model.embed_vision.pos_", "model.vision_embedder.pos_"),
    ),
}
# A text model saved with the names of a larger one.
TEXT_RENAMES = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
# Ids of the placeholders of one soft token: the reference's defaults.
PLACEHOLDERS: Mapping[str, Mapping[str, int]] = {
    "gemma3": {"image_token_id": 262_144},
    "gemma3n": {"image_token_id": 262_145, "audio_token_id": 262_273},
    "gemma4": {"image_token_id": 258_880, "audio_token_id": 258_881, "video_token_id": 258_884},
    "gemma4_unified": {"image_token_id": 258_880, "audio_token_id": 258_881, "video_token_id": 258_884},
}
# Tensors of SigLIP's attention pooling, which Gemma 3 does not use.
POOLING_HEAD = "vision_tower.vision_model.head."


@dataclass(frozen=True)
class Described:
    """What ``config.json`` says about a model."""

    model_type: str
    c: config.Model
    # Whether the output matrix is the embedding.
    tied: bool
    # Prefixes of tensors that are not read, and why, for a person.
    left_out: Mapping[str, str]
    # Of Gemma 3n: the ids of images and of audio.
    embedders: tuple[gemma3n_audio.Embedder, gemma3n_audio.Embedder] | None = None

    @property
    def decoder_prefix(self) -> str:
        return DECODER_PREFIXES.get(self.model_type, "model.")

    @property
    def output_matrix(self) -> str:
        """Name of the output matrix, where a file has one."""
        return "language_model.lm_head.weight" if self.model_type == "gemma3" else "lm_head.weight"

    @property
    def renames(self) -> tuple[tuple[str, str], ...]:
        """Prefixes in files, and those that tables have in their place."""
        return TEXT_RENAMES if self.model_type in TEXT_TYPES else RENAMES.get(self.model_type, ())

    def encoders(self) -> Table:
        """Where each weight of the encoders is."""
        c, width = self.c, self.c.decoder.width
        prefix = "" if self.model_type == "gemma3" else "model."
        out: dict[str, Any] = {}
        if c.vision:
            module = siglip if isinstance(c.vision, config.Vision) else gemma4_vision
            out |= under(prefix, module.table(c.vision, width), "vision.")  # type: ignore[arg-type]
        if c.audio:
            out |= under(prefix, _audio_module(c.audio).table(c.audio, width), "audio.")
        return out


@dataclass(frozen=True)
class _Wrapped:
    """Configuration of a decoder with encoders."""

    model_type: str
    text_config: dict[str, Any]
    vision_config: dict[str, Any] | None = None
    audio_config: dict[str, Any] | None = None
    tie_word_embeddings: bool = True


@dataclass(frozen=True)
class _Numbers:
    """Numbers of the outer configuration that name the placeholders, in either of two forms, and their counts in Gemma 3 and 3n."""

    image_token_id: int | None = None
    image_token_index: int | None = None
    audio_token_id: int | None = None
    video_token_id: int | None = None
    mm_tokens_per_image: int = 256
    audio_soft_tokens_per_image: int = 188


def _audio_module(c: config.Audio) -> ModuleType:
    return gemma3n_audio if isinstance(c, config.Usm) and c.variant == "gemma3n" else gemma4_audio


def read_config(stored: Mapping[str, Any], path: Path, without: Collection[str] = ()) -> Described:
    """The configuration of a model, without the encoders of the modalities in ``without``.

    Raises ValueError that names file and key for what is not understood or not implemented.
    """
    kind = stored.get("model_type")
    known = TEXT_TYPES if "text_config" not in stored else tuple(WRAPPED_TYPES)
    if kind not in (*known, "gemma3"):
        raise ValueError(f"{path}: a model of type {shown(kind)}; models of type {', '.join(known)} can be imported")
    with located(path):
        return _read_wrapped(stored, path, without) if "text_config" in stored else _read_text(stored, path)


def _text_module(kind: str) -> ModuleType:
    return gemma4_config if kind.startswith(("gemma3n", "gemma4")) else gemma_config


def _read_text(stored: Mapping[str, Any], path: Path) -> Described:
    kind = str(stored["model_type"])
    decoder, vocabulary, tied = _text_module(kind).read_text(stored, path, "")
    # There are no images.
    decoder = replace(decoder, image_attention="causal")
    c = config.Model(vocabulary, image_token=-1, audio_token=-1, decoder=decoder, vision=None, audio=None)
    return Described("gemma3_text" if kind == "gemma3" else kind, c, tied, {})


def _read_wrapped(stored: Mapping[str, Any], path: Path, without: Collection[str]) -> Described:
    outer = parse_settings(_Wrapped, stored, {}, path)
    kind, inner = outer.model_type, outer.text_config.get("model_type", WRAPPED_TYPES[outer.model_type])
    if inner != WRAPPED_TYPES[kind]:
        raise ValueError(f"a model of type {shown(kind)} around {shown(inner)}; {WRAPPED_TYPES[kind]} is needed inside")
    names = [field.name for field in fields(_Numbers) if field.name in stored]
    numbers = parsed(_Numbers, {name: stored[name] for name in names}, path)
    section = {**outer.text_config, "model_type": inner}
    decoder, vocabulary, tied = _text_module(inner).read_text(section, path, "text_config")
    vision, audio = _read_encoders(outer, numbers, path)
    given = {
        "image_token_id": numbers.image_token_id if numbers.image_token_id is not None else numbers.image_token_index,
        "audio_token_id": numbers.audio_token_id,
        "video_token_id": numbers.video_token_id,
    }
    ids = {**PLACEHOLDERS[kind], **{name: value for name, value in given.items() if value is not None}}
    left_out = _left_out(outer, without)
    vision, audio = (None if "image" in without else vision), (None if "audio" in without else audio)
    embedders = None
    if kind == "gemma3":
        decoder = replace(decoder, image_attention="all")
    if kind == "gemma3n":
        embedders = gemma3n_audio.embedders((outer.vision_config or {}, outer.audio_config or {}), vocabulary, path)
    c = config.Model(
        vocabulary,
        image_token=ids["image_token_id"] if vision else -1,
        audio_token=ids.get("audio_token_id", -1) if audio else -1,
        decoder=decoder if vision else replace(decoder, image_attention="causal"),
        vision=vision,
        audio=audio,
        video_token=ids.get("video_token_id", -1) if vision else -1,
        replace_placeholders=True,
        special_rows=sum(e.vocab_size for e in embedders or ()),
    )
    return Described(kind, c, tied and outer.tie_word_embeddings, left_out, embedders)


def _read_encoders(
    outer: _Wrapped, numbers: _Numbers, path: Path
) -> tuple[config.VisionEncoder | None, config.Audio | None]:
    vision: config.VisionEncoder | None = None
    audio: config.Audio | None = None
    kind = outer.model_type
    if outer.vision_config and kind == "gemma3":
        vision = siglip.read_config(outer.vision_config, numbers.mm_tokens_per_image, path)
    elif outer.vision_config and kind in ("gemma4", "gemma4_unified"):
        vision = gemma4_vision.read_config(outer.vision_config, path)
    if outer.audio_config and kind in ("gemma4", "gemma4_unified"):
        audio = gemma4_audio.read_config(outer.audio_config, path)
    elif outer.audio_config and kind == "gemma3n":
        usm = gemma3n_audio.read_config(outer.audio_config, path)
        audio = replace(usm, chunk=numbers.audio_soft_tokens_per_image * usm.frames_per_token)
    return vision, audio


def _left_out(outer: _Wrapped, without: Collection[str]) -> dict[str, str]:
    """Prefixes of tensors that are not read, with the reason."""
    image: tuple[str, ...] = ("model.vision_tower.", "model.embed_vision.", "model.vision_embedder.")
    if outer.model_type == "gemma3":
        image = ("vision_tower.", "multi_modal_projector.")
    if outer.model_type == "gemma3n":
        image = ("model.vision_tower.", "model.embed_vision.soft_embedding_norm.")
    audio = ("model.audio_tower.", "model.embed_audio.")
    out: dict[str, str] = {}
    if outer.model_type == "gemma3n":
        out |= dict.fromkeys(image, "images (MobileNetV5) are not supported")
    elif "image" in without:
        out |= dict.fromkeys(image, "--without image")
    elif outer.model_type == "gemma3":
        out[POOLING_HEAD] = "SigLIP's pooling, which Gemma 3 does not use"
    if "audio" in without:
        out |= dict.fromkeys(audio, "--without audio")
    return out


# Writing


def model_type(c: config.Model) -> str:
    """The ``model_type`` of a model. Raises ValueError when no family has such a decoder."""
    d = c.decoder
    unified = isinstance(c.vision, config.UnifiedVision) or isinstance(c.audio, config.UnifiedAudio)
    if d.altup:
        # The reference opens no Gemma 3n with an audio encoder and without its image encoder.
        return "gemma3n_text"
    if d.value_norm:
        wrapped = "gemma4_unified" if unified else "gemma4"
        return wrapped if c.vision or c.audio else "gemma4_text"
    family = gemma_config.family_of(d)
    mean_pool = isinstance(c.vision, config.Vision) and c.vision.mean_pool
    return "gemma3" if mean_pool and family == "gemma3" else gemma_config.MODEL_TYPES[family]


def described(c: config.Model) -> Described:
    """The description of a model's file."""
    return Described(model_type(c), c, True, {})


def write_config(c: config.Model, dtype: str) -> dict[str, Any]:
    """The content of ``config.json`` of a model stored in ``dtype``. Raises ValueError for a model that its family cannot express."""
    kind = model_type(c)
    common = {"architectures": [CLASSES[kind]], "torch_dtype": dtype, "tie_word_embeddings": True}
    inner = WRAPPED_TYPES.get(kind, kind)
    text = gemma_config.write_text(c) if _text_module(inner) is gemma_config else gemma4_config.write_text(c, inner)
    out = (
        {**text, **common}
        if kind in TEXT_TYPES
        else {**common, "model_type": kind, "text_config": text, **_sections(c)}
    )
    stored = read_config(out, Path("config.json")).c
    check_equal(c.decoder, stored.decoder, kind)
    return out


def _sections(c: config.Model) -> dict[str, Any]:
    """Sections of the encoders, and placeholders."""
    out: dict[str, Any] = {"image_token_id": c.image_token, "vision_config": None}
    if isinstance(c.vision, config.Vision):
        del out["image_token_id"]
        tokens = (c.vision.side // c.vision.pool) ** 2
        return {
            "vision_config": siglip.settings(c.vision),
            "image_token_index": c.image_token,
            "mm_tokens_per_image": tokens,
        }
    if c.vision:
        out["vision_config"] = gemma4_vision.settings(c.vision)
        out["video_token_id"] = c.video_token
    out["audio_config"] = _audio_module(c.audio).settings(c.audio) if c.audio else None
    return {**out, "audio_token_id": c.audio_token} if c.audio else out


def _normalized(d: config.Decoder) -> config.Decoder:
    """An equivalent decoder in which derived values are explicit: equal decoders compare equal."""
    all_global = d.window is None or d.global_every == 1
    return replace(
        d,
        window=None if all_global else d.window,
        global_every=1 if all_global else min(d.global_every, d.layers + 1),
        local_rope_base=None if all_global else d.local_rope_base or d.rope_base,
        query_pre_attn_scalar=float(d.query_pre_attn_scalar or d.head_dim),
        # Follows from the dtype of the file.
        embedding_scale=None,
        image_attention="causal",
        remat=False,
    )


def check_equal(ours: config.Decoder, stored: config.Decoder, kind: str) -> None:
    """Raises ValueError for a field that the file would not have."""
    expected, found = _normalized(ours), _normalized(stored)
    for field in fields(config.Decoder):
        a, b = getattr(expected, field.name), getattr(found, field.name)
        if a != b:
            family = kind.removesuffix("_text")
            raise ValueError(
                f"this decoder has {field.name} {a}, a {family} file would have {b}: it cannot be exported"
            )
