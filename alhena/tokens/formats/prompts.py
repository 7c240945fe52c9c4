"""Prompt formats of imported models: ids of control tokens, variants of the format, sampling defaults, media budgets.

    a Hugging Face folder, or the metadata of a GGUF file ──► PromptSettings ──► prompt.json

Three formats are known, each with its control tokens (``CONTROLS``): Gemma 3, Gemma 3n, Gemma 4. Chat templates are programs, and
nothing here runs one: the format is implemented in ``alhena/tokens/formats/conversation.py``, and of a template only those strings are looked
for in which the templates of Gemma 4 differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alhena.model.storage.tensors import read_settings, regular
from alhena.schema import bounded, shown
from alhena.tokens.text.hf_tokenizer import HfTokenizer

_SEQUENCE = {"pad": "<pad>", "eos": "<eos>", "bos": "<bos>"}
_GEMMA3 = _SEQUENCE | {"turn": "<start_of_turn>", "turn_end": "<end_of_turn>"}
# Control tokens of each format by our name of them.
CONTROLS: Mapping[str, Mapping[str, str]] = {
    "gemma3": _GEMMA3
    | {"image_start": "<start_of_image>", "image": "<image_soft_token>", "image_end": "<end_of_image>"},
    "gemma3n": _GEMMA3
    | {"image_start": "<start_of_image>", "image": "<image_soft_token>", "image_end": "<end_of_image>"}
    | {"audio_start": "<start_of_audio>", "audio": "<audio_soft_token>", "audio_end": "<end_of_audio>"},
    "gemma4": _SEQUENCE
    | {"turn": "<|turn>", "turn_end": "<turn|>", "think": "<|think|>"}
    | {"channel": "<|channel>", "channel_end": "<channel|>", "quote": '<|"|>'}
    | {"tool": "<|tool>", "tool_end": "<tool|>", "call": "<|tool_call>", "call_end": "<tool_call|>"}
    | {"response": "<|tool_response>", "response_end": "<tool_response|>"}
    | {"image_start": "<|image>", "image": "<|image|>", "image_end": "<image|>", "video": "<|video|>"}
    | {"audio_start": "<|audio>", "audio": "<|audio|>", "audio_end": "<audio|>"},
}
# Placeholders and marks of media; a tokenizer of a model without media may lack them.
MEDIA_CONTROLS = ("image_start", "image", "image_end", "audio_start", "audio", "audio_end", "video")
# Those that end an answer, whatever the folder says.
_ENDS = {"gemma3": ("turn_end",), "gemma3n": ("turn_end",), "gemma4": ("turn_end", "response")}
_IMAGE_TOKENS = {"gemma3": 256, "gemma3n": 256, "gemma4": 280}
GEMMA4_IMAGE_TOKENS = (70, 140, 280, 560, 1120)
# Of Hugging Face's classes, for files that leave it out.
_CONTEXT = {"gemma3": 131_072, "gemma3n": 32_768, "gemma4": 131_072}
EMPTY_THOUGHT = ("never", "turn", "always")


@dataclass(frozen=True)
class Variants:
    """What templates of the same format do in different ways; the defaults are those of the newest."""

    # A line end after <|think|>.
    think_line_end: bool = True
    # Images and videos stand in paragraphs of their own.
    media_paragraphs: bool = False
    # Without thinking, an answer begins with an empty thought: never, in a new turn only, or after tool results too.
    empty_thought: str = "never"
    # A line end between a thought and its end.
    thought_line_end: bool = True
    # With thinking, what follows tool results begins with a thought.
    thought_after_results: bool = False

    def __post_init__(self) -> None:
        if self.empty_thought not in EMPTY_THOUGHT:
            raise ValueError(
                f"Variants.empty_thought is {shown(self.empty_thought)}; one of {', '.join(EMPTY_THOUGHT)}"
            )

    @classmethod
    def of_template(cls, template: str) -> Variants:
        """The variants by strings of a chat template.

        >>> Variants.of_template("{{- '<|turn>model\\\\n' -}}{%- if not enable_thinking -%}{{- '<|channel>thought\\\\n<channel|>' -}}")
        Variants(think_line_end=False, media_paragraphs=False, empty_thought='turn', thought_line_end=True, thought_after_results=False)
        """
        text = template.replace("\\n", "\n")
        compact = re.sub(r"\s+", "", text)
        is_always = "<|turn>model'-}}{%-endif-%}{%-ifnotenable_thinking" in compact
        return cls(
            think_line_end="<|think|>\n" in text,
            media_paragraphs="\n\n<|image|>\n\n" in text,
            empty_thought=("always" if is_always else "turn") if "<|channel>thought\n<channel|>" in text else "never",
            thought_line_end="'\n<channel|>'" in text or "reasoning" not in text,
            thought_after_results="=='tool_response'andenable_thinking" in compact,
        )


@dataclass(frozen=True)
class Budgets:
    """Limits of each medium: soft tokens of an image and of a video frame, frames of a video, seconds of an audio item."""

    image_tokens: int
    frame_tokens: int = 70
    clip_frames: int = 32
    audio_seconds: float = 30.0

    def __post_init__(self) -> None:
        bounded(
            self, image_tokens=(1, 2**16), frame_tokens=(1, 2**16), clip_frames=(1, 2**12), audio_seconds=(0.01, 86_400)
        )


@dataclass(frozen=True)
class PromptSettings:
    """What a prompt format needs to know of a model."""

    format: str
    # Ids of the control tokens by their names in CONTROLS.
    controls: dict[str, int]
    end_tokens: tuple[int, ...]
    budgets: Budgets
    context: int
    variants: Variants = Variants()
    # Ids that the folder forbids, beside those of never_sampled.
    suppressed: tuple[int, ...] = ()
    temperature: float = 1.0
    top_k: int = 64
    top_p: float = 0.95

    def __post_init__(self) -> None:
        bounded(self, context=(1, 2**24), temperature=(0.0, 5.0), top_k=(0, 2**24), top_p=(1e-6, 1.0))
        if self.format not in CONTROLS:
            raise ValueError(f"the prompt format is {shown(self.format)}; one of {', '.join(CONTROLS)}")
        names = CONTROLS[self.format].keys()
        if missing := sorted(names - self.controls.keys() - set(MEDIA_CONTROLS)) or sorted(
            self.controls.keys() - names
        ):
            raise ValueError(f"controls: {missing[0]!r} is missing, or is no control token of {self.format}")
        ids = [*self.controls.values(), *self.end_tokens, *self.suppressed]
        if min(ids) < 0 or max(ids) >= 2**24 or len(set(self.controls.values())) < len(self.controls):
            raise ValueError(
                f"controls: ids must be different and from 0 to {2**24 - 1}; they are {shown(self.controls)}"
            )
        if not self.end_tokens:
            raise ValueError("end_tokens: an answer must be able to end")

    @property
    def never_sampled(self) -> tuple[int, ...]:
        """Ids that no answer may contain: padding, the begin of a sequence, placeholders and marks of media."""
        named = (self.controls.get(name) for name in ("pad", "bos", *MEDIA_CONTROLS))
        return tuple(sorted({*self.suppressed, *(token for token in named if token is not None)}))

    @classmethod
    def from_tokenizer(
        cls, format: str, tokenizer: HfTokenizer, template: str = "", facts: Facts | None = None
    ) -> PromptSettings:
        """Settings of a model by its tokenizer, its chat template and what else is known of it (``facts``)."""
        if format not in CONTROLS:
            raise ValueError(f"the prompt format is {shown(format)}; one of {', '.join(CONTROLS)}")
        facts = facts or Facts()
        controls = _ids(tokenizer, CONTROLS[format])
        # A file may not name this token yet; its reference then adds the name when it loads the file.
        if "video" in CONTROLS[format] and facts.video_token is not None:
            controls.setdefault("video", facts.video_token)
        ends = {controls["eos"], *facts.end_tokens, *(controls[name] for name in _ENDS[format])}
        for kind, count in (("images", facts.image_tokens), ("frames", facts.frame_tokens)):
            if format == "gemma4" and count not in (None, *GEMMA4_IMAGE_TOKENS):
                raise ValueError(f"{kind} of {count} tokens; one of {', '.join(map(str, GEMMA4_IMAGE_TOKENS))}")
        return cls(
            format,
            controls,
            tuple(sorted(ends)),
            Budgets(facts.image_tokens or _IMAGE_TOKENS[format], facts.frame_tokens, facts.clip_frames),
            facts.context or _CONTEXT[format],
            Variants.of_template(template) if template and format == "gemma4" else Variants(),
            facts.suppressed,
            facts.temperature,
            facts.top_k,
            facts.top_p,
        )

    @classmethod
    def from_folder(cls, folder: Path, format: str) -> PromptSettings:
        """Settings of a Hugging Face folder. Raises ValueError that names the file and what is wrong in it."""
        tokenizer = HfTokenizer.load(folder / "tokenizer.json")
        return cls.from_tokenizer(format, tokenizer, read_template(folder), read_facts(folder))


@dataclass(frozen=True)
class Facts:
    """What the files beside a tokenizer say; the defaults are those of all published models."""

    end_tokens: tuple[int, ...] = ()
    suppressed: tuple[int, ...] = ()
    temperature: float = 1.0
    top_k: int = 64
    top_p: float = 0.95
    # None: that of the format.
    context: int | None = None
    image_tokens: int | None = None
    frame_tokens: int = 70
    clip_frames: int = 32
    video_token: int | None = None


def _ids(tokenizer: HfTokenizer, names: Mapping[str, str]) -> dict[str, int]:
    """Ids of control tokens; those of media may be absent. Raises ValueError that names an absent one."""
    ids: dict[str, int] = {}
    for name, token in names.items():
        try:
            ids[name] = tokenizer.id(token)
        except ValueError as error:
            if name not in MEDIA_CONTROLS:
                raise ValueError(f"{error}, which this prompt format needs") from None
    return ids


# ── files of a Hugging Face folder ─────────────────────────────────────────────────────────────────────────


def read_template(folder: Path) -> str:
    """The chat template of a folder; empty where it has none, as folders of pretrained models."""
    if (path := folder / "chat_template.jinja").exists():
        if regular(path).stat().st_size > 1 << 20:
            raise ValueError(f"{path}: {path.stat().st_size:,} bytes; a template of at most 1 MiB is read")
        return path.read_text(encoding="utf-8", errors="replace")
    for path in (folder / "tokenizer_config.json", folder / "chat_template.json"):
        template = read_settings(path).get("chat_template") if path.exists() else None
        if isinstance(template, str):
            return template
        if template is not None:
            raise ValueError(f"{path}: chat_template is {shown(template)}; one template, a string, is read")
    return ""


# Keys of generation_config.json that do not concern the choice of tokens here, or that are read.
_GENERATION = frozenset(
    """
    _from_model_config transformers_version cache_implementation bos_token_id pad_token_id eos_token_id do_sample temperature top_k top_p
    suppress_tokens max_length max_new_tokens
    """.split()
)


def read_facts(folder: Path) -> Facts:
    """Facts of the files of a folder that exist: generation, context, media budgets."""
    generation = _settings(folder / "generation_config.json")
    if unknown := sorted(name for name, value in generation.items() if name not in _GENERATION and value is not None):
        raise ValueError(f"{folder / 'generation_config.json'}: {unknown[0]} is not supported; remove it")
    numbers = {name: generation[name] for name in ("temperature", "top_k", "top_p") if generation.get(name) is not None}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int if name == "top_k" else int | float):
            raise ValueError(f"{folder / 'generation_config.json'}: {name} is {shown(value)}; a number is needed")
    if generation.get("do_sample") is False:
        numbers["temperature"] = 0.0
    model = _settings(folder / "config.json")
    text = model.get("text_config") or model
    image, video = _processors(folder)
    sizes = {
        "context": text.get("max_position_embeddings"),
        "image_tokens": image.get("max_soft_tokens") or model.get("mm_tokens_per_image"),
        "frame_tokens": video.get("max_soft_tokens"),
        "clip_frames": video.get("num_frames"),
        "video_token": model.get("video_token_id"),
    }
    if wrong := next((n for n, v in sizes.items() if v is not None and (type(v) is not int or v < 1)), None):
        raise ValueError(f"{folder}: {wrong} is {shown(sizes[wrong])} in the configuration files; a number is needed")
    return Facts(
        _tokens(folder, generation, "eos_token_id"),
        _tokens(folder, generation, "suppress_tokens"),
        **{name: value for name, value in (numbers | sizes).items() if value is not None},
    )


def _settings(path: Path) -> dict[str, Any]:
    return read_settings(path) if path.exists() else {}


def _processors(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Settings of the image and of the video processor, from one file or from two."""
    both = _settings(folder / "processor_config.json")
    image = both.get("image_processor") or _settings(folder / "preprocessor_config.json")
    return image, both.get("video_processor") or _settings(folder / "video_preprocessor_config.json")


def _tokens(folder: Path, generation: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Ids that are stored as one number or as a list."""
    value = generation.get(name)
    ids: Sequence[Any] = () if value is None else value if isinstance(value, list) else [value]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise ValueError(f"{folder / 'generation_config.json'}: {name} is {shown(value)}; ids of tokens are needed")
    return tuple(ids)
