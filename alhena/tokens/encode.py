"""Documents to Examples: one token sequence with placeholders for the output vectors of the encoders.

    Content(user: image, "What is this?"), Content(model: "a circle")
    ─► <bos> <user> <boi> <img>×n <eoi> What is this? <end> <model> a circle <end>
       weight  0      0     0      0     question_weight…       0     1  1 1    1      + patches [4n, Q]

Loss weights are those of the *target*. Tokens of an answer, tool calls included, have weight 1; image codes and running text, of which there are many,
less; those of a question, of declared tools and of their results little; placeholders and the tokens that open a turn none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from alhena.batch import Example, Modality
from alhena.content import (
    Audio,
    Content,
    Document,
    Image,
    Part,
    Resolution,
    Text,
    Tool,
    ToolCall,
    ToolResult,
    Video,
    kind_of,
)  # fmt: skip
from alhena.files import write_atomically, write_json
from alhena.media import SAMPLE_RATE, decode_audio, decode_image, decode_video
from alhena.model import config
from alhena.model.storage.tensors import read_settings
from alhena.schema import bounded, parsed_whole
from alhena.shapes import Float, Int
from alhena.tokens.audio_features import HOP, count_tokens, features
from alhena.tokens.example_builder import ExampleBuilder, empty_frames
from alhena.tokens.formats.own_tools import declared_tools, encoded, signature
from alhena.tokens.formats.tool_format import write_call, write_result
from alhena.tokens.images import Pixels, code_grid, patchify, resize, resolution_budget
from alhena.tokens.text.text_file import load_tokenizer, tokenizer_file
from alhena.tokens.text.tokenizer import Tokenizer
from alhena.tokens.vocabulary import Vocabulary

# Integers [rows, columns]; images of a document differ in size.
Codes = Int[np.ndarray, "_ _"]
# Roles that open a turn by a control token.
ROLES = ("user", "model", "document")
# Parts of turns of each role.
_INPUTS: tuple[type[Part], ...] = (Text, Image, Audio, Video)
_PARTS = {"user": _INPUTS, "document": _INPUTS, "model": (*_INPUTS, ToolCall), "tool": (ToolResult,)}
ImageCodeEncoder = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


@dataclass(frozen=True)
class Budget:
    """Limits on each medium of a document, and loss weights of the kinds of targets."""

    image_tokens: int = 64
    frame_tokens: int = 16
    clip_frames: int = 8
    audio_seconds: float = 60.0
    image_out_codes: int = 64
    # Supervised tuning ignores targets of this weight or less: only answers and running text are learned there.
    question_weight: float = 0.1
    # Of an image code to be generated: much of which code comes next is chance.
    code_weight: float = 0.3
    # Running text has many more targets than an answer: a smaller weight keeps it from dominating the loss.
    text_weight: float = 0.25

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("image_tokens", "frame_tokens", "clip_frames", "image_out_codes"), (1, 2**16))
        weights = dict.fromkeys(("question_weight", "code_weight", "text_weight"), (0.0, 1e3))
        bounded(self, **counts, audio_seconds=(0.01, 86_400), **weights)


@dataclass(frozen=True)
class _Settings:
    """The content of ``vocabulary.json``."""

    num_text: int
    num_codes: int
    vision: dict[str, Any]
    audio: dict[str, Any]
    budget: dict[str, Any]


def _without_system(contents: Sequence[Content]) -> list[Content]:
    """Turns in which a system instruction, which must come first, stands before the parts of the first user turn."""
    if not contents or contents[0].role != "system":
        return list(contents)
    system, *turns = contents
    if turns and turns[0].role == "user":
        return [Content("user", (*system.parts, Text("\n"), *turns[0].parts)), *turns[1:]]
    return [Content("user", system.parts), *turns]


@dataclass(frozen=True)
class Encoder:
    """Documents and prompts to Examples. ``encode_image_codes`` gives the codes of images that the model is to generate."""

    tokenizer: Tokenizer
    vocabulary: Vocabulary
    vision: config.Vision
    audio: config.Conformer
    budget: Budget = Budget()
    encode_image_codes: ImageCodeEncoder | None = None

    # Whether the model can think before it answers.
    thinks: ClassVar[bool] = False

    # ── media ──────────────────────────────────────────────────────────────────────────────────────────────

    def _input_image(self, out: ExampleBuilder, pixels: Pixels, max_tokens: int, resolution: Resolution | None) -> None:
        v = self.vocabulary
        budget = resolution_budget(resolution, pixels, self.vision, max_tokens)
        patches, positions = patchify(pixels, self.vision, budget)
        out.add(
            [v.control("<boi>"), *[v.control("<img>")] * (len(patches) // self.vision.pool**2), v.control("<eoi>")], 0
        )
        out.add_image(patches, positions)

    def _audio(self, out: ExampleBuilder, samples: Float[np.ndarray, " samples"]) -> None:
        v, max_seconds = self.vocabulary, self.budget.audio_seconds
        # Resampling may add a few samples.
        if len(samples) > max_seconds * SAMPLE_RATE + HOP:
            seconds = len(samples) / SAMPLE_RATE
            raise ValueError(f"the audio lasts {seconds:.1f} s; this model reads at most {max_seconds:g} s")
        frames, lengths = features(samples, self.audio)
        count = count_tokens(len(samples), self.audio)
        out.add([v.control("<boa>"), *[v.control("<aud>")] * count, v.control("<eoa>")], 0)
        out.add_audio(frames, lengths)

    def _video(self, out: ExampleBuilder, part: Video) -> None:
        v, clip = self.vocabulary, decode_video(part.data, self.budget.clip_frames, excerpt=part.excerpt)
        out.notes.extend(clip.notes)
        out.add([v.control("<bov>")], 0)
        for pixels, seconds in zip(clip.frames, clip.seconds, strict=True):
            out.add([v.time(round(float(seconds) * 4))], 0)
            self._input_image(out, pixels, self.budget.frame_tokens, part.resolution)
        out.add([v.control("<eov>")], 0)
        if clip.audio is not None:
            self._audio(out, clip.audio)

    def output_image_pixels(self, data: bytes) -> Pixels:
        """An image to be generated, at the size of its code grid."""
        pixels = decode_image(data)
        rows, columns = code_grid(pixels.shape[0], pixels.shape[1], self.budget.image_out_codes)
        return resize(pixels, rows * config.CODES_STRIDE, columns * config.CODES_STRIDE)

    def _codes(self, data: bytes) -> Codes:
        pixels = self.output_image_pixels(data)
        if self.encode_image_codes is None:
            raise ValueError("an image in a model turn, but no image tokenizer to encode it")
        return self.encode_image_codes([pixels])[0]

    def _output_image(self, out: ExampleBuilder, codes: Codes) -> None:
        v, (rows, columns) = self.vocabulary, codes.shape
        grid = [v.code(int(k)) for k in codes.reshape(-1)]
        out.add([v.control("<boi_out>"), v.rows(rows), v.columns(columns)], 1)
        out.add(grid, self.budget.code_weight)
        out.add([v.control("<eoi_out>")], 1)
        out.raise_modality(Modality.IMAGE_OUT)

    # ── documents ──────────────────────────────────────────────────────────────────────────────────────────

    def _part(self, out: ExampleBuilder, part: Part, role: str, weight: float, codes: Mapping[bytes, Codes]) -> None:
        if isinstance(part, Text):
            out.add(self.tokenizer.encode(part.text), weight)
        elif isinstance(part, Image) and role == "model":
            self._output_image(out, codes[part.data] if part.data in codes else self._codes(part.data))
        elif isinstance(part, Image):
            self._input_image(out, decode_image(part.data), self.budget.image_tokens, part.resolution)
            out.raise_modality(Modality.IMAGE)
        elif isinstance(part, Audio):
            self._audio(out, decode_audio(part.data))
            out.raise_modality(Modality.AUDIO)
        elif isinstance(part, Video):
            self._video(out, part)
            out.raise_modality(Modality.VIDEO)
        elif isinstance(part, ToolCall):
            call = write_call(part, self.vocabulary.control("<quote>"))
            self._marked(out, "<call>", call, weight)
            out.add([self.vocabulary.control("<call_end>")], weight)
        elif isinstance(part, ToolResult):
            self._result(out, part, weight)

    def _marked(self, out: ExampleBuilder, control: str, pieces: Iterable[str | int], weight: float) -> None:
        """A control token, and texts and control tokens after it."""
        out.add([self.vocabulary.control(control), *encoded(pieces, self.tokenizer.encode)], weight)

    def _result(self, out: ExampleBuilder, part: ToolResult, weight: float) -> None:
        self._marked(out, "<result>", write_result(part, self.vocabulary.control("<quote>")), weight)
        for medium in part.parts:
            self._part(out, medium, "tool", weight, {})
        out.add([self.vocabulary.end], 0)

    def _tools(self, out: ExampleBuilder, tools: Iterable[Tool], weight: float) -> None:
        for tool in tools:
            self._marked(out, "<tool>", [signature(tool)], weight)
            out.add([self.vocabulary.end], 0)

    def _content(self, out: ExampleBuilder, content: Content, weight: float, codes: Mapping[bytes, Codes]) -> None:
        if content.role not in _PARTS:
            raise ValueError(
                f"a turn of the role {content.role!r} after the first; this model knows {', '.join(_PARTS)}"
            )
        for part in content.parts:
            if not isinstance(part, _PARTS[content.role]):
                raise ValueError(
                    f"a {kind_of(part)} in a turn of the role {content.role!r}: this model reads none there"
                )
        if content.role in ROLES:
            out.add([self.vocabulary.control(f"<{content.role}>")], 0)
        for part in content.parts:
            self._part(out, part, content.role, weight, codes)
        if content.role in ROLES:
            out.add([self.vocabulary.end], weight if content.role != "user" else 0)

    def _example(self, out: ExampleBuilder) -> Example:
        return out.example(self.vocabulary.pad, self.patch_values, self.no_frames)

    @property
    def patch_values(self) -> int:
        """Numbers of a patch in Examples."""
        return self.vision.patch_values

    @property
    def no_frames(self) -> Float[np.ndarray, "0 T M"]:
        """The frames of an Example without audio."""
        return empty_frames(self.audio)

    def encode(
        self,
        document: Document,
        max_tokens: int,
        codes: Mapping[bytes, Codes] | None = None,
        window: int | None = None,
        notes: list[str] | None = None,
    ) -> list[Example]:
        """One Example, or several: running text is split at ``window`` tokens, long audio without a transcript at the limits.

        ``codes`` holds image codes already computed, by the bytes of the image; others come from ``encode_image_codes``. ``notes``
        receives what could not be read of media that are used all the same. ``facts["tools"]`` declares the tools of a
        conversation. Raises ValueError when a document with media or turns is too long, or a medium cannot be decoded.
        """
        parts = list(document.parts)
        if all(content.role == "document" for content in document.contents):
            if all(isinstance(part, Text) for part in parts):
                return list(self._running_text(document, window or max_tokens))
            if len(parts) == 1 and isinstance(parts[0], Audio):
                return list(self._running_audio(parts[0], max_tokens))
        out = ExampleBuilder()
        out.add([self.vocabulary.bos], 0)
        question = self.budget.question_weight
        weights = {"model": 1.0, "document": self.budget.text_weight, "user": question, "tool": question}
        self._tools(out, declared_tools(document), question)
        for content in _without_system(document.contents):
            self._content(out, content, weights.get(content.role, 0.0), codes or {})
        if len(out.tokens) > max_tokens:
            raise ValueError(f"it takes {len(out.tokens)} tokens; at most {max_tokens} fit")
        if notes is not None:
            notes.extend(out.notes)
        return [self._example(out)]

    def _running_text(self, document: Document, max_tokens: int) -> Iterator[Example]:
        """Texts without turns, split at ``max_tokens`` tokens."""
        v = self.vocabulary
        for content in document.contents:
            texts = (part.text for part in content.parts if isinstance(part, Text))
            out = ExampleBuilder()
            out.add_header([v.bos, v.control("<document>")])
            out.add(
                [*(token for text in texts for token in self.tokenizer.encode(text)), v.end], self.budget.text_weight
            )
            yield from self._example(out).windows(max_tokens)

    def _running_audio(self, part: Audio, max_tokens: int) -> Iterator[Example]:
        """Audio without a transcript, split at chunk boundaries where it exceeds ``max_tokens`` or ``audio_seconds``."""
        v, samples = self.vocabulary, decode_audio(part.data)
        step = self._samples_per_example(len(samples), max_tokens)
        for start in range(0, len(samples), step):
            out = ExampleBuilder()
            out.add([v.bos, v.control("<document>")], 0)
            self._audio(out, samples[start : start + step])
            out.raise_modality(Modality.AUDIO)
            if start + step >= len(samples):
                out.add([v.end], self.budget.text_weight)
            yield self._example(out)

    def _samples_per_example(self, samples: int, max_tokens: int) -> int:
        """Samples of running audio in one Example. Raises ValueError when not even a chunk fits."""
        c, frames, seconds = self.audio, -(-samples // HOP), self.budget.audio_seconds
        # Beside the audio's own there are <bos>, <document>, <boa>, <eoa> and <end>.
        available = max_tokens - 5
        if frames * HOP <= seconds * SAMPLE_RATE and count_tokens(samples, c) <= available:
            return samples
        chunks, max_frames = available // c.tokens(c.chunk), int(seconds * SAMPLE_RATE / HOP)
        if chunks < 1:
            raise ValueError(f"a chunk of audio takes {c.tokens(c.chunk) + 5} tokens; at most {max_tokens} fit")
        # A model that reads less than a chunk gets as many frames as it reads.
        aligned = min(chunks, max_frames // c.chunk) * c.chunk
        return (aligned or max_frames) * HOP

    def prompt(self, contents: Sequence[Content], tools: Sequence[Tool] = (), thinking: bool = False) -> Example:
        """A conversation up to the model's next turn: the sequence ends with ``<model>``, and generation continues from there.

        Raises ValueError for thinking, which this format does not have, and for calls of tools that are left without results.
        """
        if thinking:
            raise ValueError("this model does not think before it answers")
        if contents and any(isinstance(part, ToolCall) for part in contents[-1].parts):
            raise ValueError("the last turn calls tools; add a turn of the role 'tool' with their results")
        out = ExampleBuilder()
        out.add([self.vocabulary.bos], 0)
        self._tools(out, tools, 0.0)
        for content in _without_system(contents):
            self._content(out, content, 0.0, {})
        out.add([self.vocabulary.control("<model>")], 0)
        return self._example(out)

    def check(self, c: config.Model) -> None:
        """Raises ValueError when the ids, patches or chunks of a model differ from these."""
        v = self.vocabulary
        pairs: dict[str, tuple[Any, Any]] = {
            "ids": (v.size, c.vocabulary),
            "<img>": (v.control("<img>"), c.image_token),
        }
        pairs["<aud>"] = v.control("<aud>"), c.audio_token
        for name, fields, ours, theirs in (
            ("vision", ("patch", "pool", "side", "plain", "mean_pool"), self.vision, c.vision),
            ("audio", ("mels", "chunk", "stack"), self.audio, c.audio),
        ):
            if theirs is not None:
                pairs |= {f"{name}.{field}": (getattr(ours, field), getattr(theirs, field, None)) for field in fields}
        if wrong := next((name for name, (ours, theirs) in pairs.items() if ours != theirs), None):
            raise ValueError(
                f"files of two models: {wrong} is {pairs[wrong][0]} in vocabulary.json, {pairs[wrong][1]} in model.json"
            )

    # ── stored ─────────────────────────────────────────────────────────────────────────────────────────────

    def save(self, folder: Path) -> None:
        """Writes ``vocabulary.json`` and the text tokenizer (alhena/tokens/text/text_file.py)."""
        write_atomically(folder / tokenizer_file(self.tokenizer), self.tokenizer.to_bytes())
        settings = {"num_text": self.vocabulary.num_text, "num_codes": self.vocabulary.num_codes}
        parts = {"vision": asdict(self.vision), "audio": asdict(self.audio), "budget": asdict(self.budget)}
        write_json(folder / "vocabulary.json", settings | parts)

    @classmethod
    def load(cls, folder: Path, encode_image_codes: ImageCodeEncoder | None = None) -> Encoder:
        """Reads what :meth:`save` wrote. Raises ValueError that names the file when one is missing or does not fit."""
        path = folder / "vocabulary.json"
        stored = parsed_whole(_Settings, read_settings(path), path)
        vocabulary = parsed_whole(Vocabulary, {"num_text": stored.num_text, "num_codes": stored.num_codes}, path)
        vision = parsed_whole(config.Vision, stored.vision, path, "vision")
        audio = parsed_whole(config.audio_class(stored.audio), stored.audio, path, "audio")
        if not isinstance(audio, config.Conformer):
            raise ValueError(f"{path}: audio: an encoder of log-mel frames is needed")
        budget = parsed_whole(Budget, stored.budget, path, "budget")
        tokenizer = load_tokenizer(folder, vocabulary.num_text)
        return cls(tokenizer, vocabulary, vision, audio, budget, encode_image_codes)
