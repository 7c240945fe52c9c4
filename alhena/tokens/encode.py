"""Documents become Examples: one token stream with placeholders for what the encoders will say.

    Content(user: picture, "What is this?"), Content(model: "a circle")
    ─► <bos> <user> <boi> <img>×n <eoi> What is this? <end> <model> a circle <end>
       weight  0      0     0      0     question_weight…       0     1  1 1    1      + patches [4n, Q]

Loss weights are those of the *target*: what the model is to say counts fully (drawn codes and running text, of which there are
many, by a share), a question's words a little, placeholders and the tokens that open a turn not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from alhena.batch import Example, Modality
from alhena.content import Audio, Content, Document, Image, Part, Text, Video
from alhena.files import write_atomically, write_json
from alhena.media import SAMPLE_RATE, decode_audio, decode_image, decode_video
from alhena.model import config
from alhena.model.tensors import read_settings, regular
from alhena.schema import bounded, parsed_whole
from alhena.tokens.audio_features import HOP, chunk, log_mel
from alhena.tokens.images import code_grid, patchify, resize
from alhena.tokens.tokenizer import TextTokenizer
from alhena.tokens.vocabulary import Vocabulary

Codes = np.ndarray  # int [rows, columns]
ImageCodeEncoder = Callable[[Sequence[np.ndarray]], list[Codes]]


@dataclass(frozen=True)
class Budget:
    """How much of each medium is read, and how much a question's words count."""

    image_tokens: int = 64
    frame_tokens: int = 16
    clip_frames: int = 8
    audio_seconds: float = 60.0
    image_out_codes: int = 64
    question_weight: float = (
        0.1  # tuning leaves out what weighs no more than this: only answers and running text count there
    )
    code_weight: float = 0.3  # of a drawn image code: much of which one comes next is chance
    text_weight: float = 0.25  # running text has many more targets than an answer; this keeps it from drowning the rest

    def __post_init__(self) -> None:
        some, share = (1, 2**16), (0.0, 1e3)
        bounded(
            self,
            image_tokens=some,
            frame_tokens=some,
            clip_frames=some,
            audio_seconds=(0.01, 86_400),
            image_out_codes=some,
        )
        bounded(self, question_weight=share, code_weight=share, text_weight=share)


@dataclass(frozen=True)
class _Settings:
    """What ``vocabulary.json`` holds."""

    num_text: int
    num_codes: int
    vision: dict[str, Any]
    audio: dict[str, Any]
    budget: dict[str, Any]


@dataclass
class _Stream:
    """An Example being written."""

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)  # of each token, as a target
    patches: list[np.ndarray] = field(default_factory=list)
    places: list[np.ndarray] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)
    lengths: list[np.ndarray] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what of its media could not be read
    modality: Modality = Modality.TEXT

    def add(self, tokens: Sequence[int], weight: float) -> None:
        self.tokens.extend(tokens)
        self.weights.extend([weight] * len(tokens))

    def saw(self, modality: Modality) -> None:
        self.modality = max(self.modality, modality)


@dataclass(frozen=True)
class Encoder:
    """Everything that turns Documents into Examples. ``draw`` gives the image codes of pictures that the model is to draw."""

    tokenizer: TextTokenizer
    vocabulary: Vocabulary
    vision: config.Vision
    audio: config.Audio
    budget: Budget = Budget()
    draw: ImageCodeEncoder | None = None

    # ── media ──────────────────────────────────────────────────────────────────────────────────────────────

    def _image(self, out: _Stream, pixels: np.ndarray, budget: int) -> None:
        v = self.vocabulary
        patches, places = patchify(pixels, self.vision, budget)
        out.add(
            [v.control("<boi>"), *[v.control("<img>")] * (len(patches) // self.vision.pool**2), v.control("<eoi>")], 0
        )
        out.images.append(np.full(len(patches), len(out.images) + 1, np.int32))
        out.patches.append(patches)
        out.places.append(places)

    def _sound(self, out: _Stream, samples: np.ndarray) -> None:
        v, most = self.vocabulary, self.budget.audio_seconds
        # A resampled sound may be a few samples longer than its original.
        if len(samples) > most * SAMPLE_RATE + HOP:
            raise ValueError(f"the sound lasts {len(samples) / SAMPLE_RATE:.1f} s; this model reads at most {most:g} s")
        frames, lengths = chunk(log_mel(samples, self.audio), self.audio)
        count = self._sound_tokens(int(lengths.sum()))
        out.add([v.control("<boa>"), *[v.control("<aud>")] * count, v.control("<eoa>")], 0)
        out.frames.append(frames)
        out.lengths.append(lengths)

    def _sound_tokens(self, frames: int) -> int:
        """Soft tokens of a sound in chunks."""
        whole, rest = divmod(frames, self.audio.chunk)
        return whole * self.audio.tokens(self.audio.chunk) + self.audio.tokens(rest)

    def _clip(self, out: _Stream, data: bytes) -> None:
        v, clip = self.vocabulary, decode_video(data, self.budget.clip_frames)
        out.notes.extend(clip.notes)
        out.add([v.control("<bov>")], 0)
        for pixels, seconds in zip(clip.frames, clip.seconds, strict=True):
            out.add([v.time(round(float(seconds) * 4))], 0)
            self._image(out, pixels, self.budget.frame_tokens)
        out.add([v.control("<eov>")], 0)
        if clip.audio is not None:
            self._sound(out, clip.audio)

    def output_image_pixels(self, data: bytes) -> np.ndarray:
        """A picture to be drawn, at the size of its code grid."""
        pixels = decode_image(data)
        rows, columns = code_grid(pixels.shape[0], pixels.shape[1], self.budget.image_out_codes)
        return resize(pixels, rows * config.CODES_STRIDE, columns * config.CODES_STRIDE)

    def _codes(self, data: bytes) -> Codes:
        pixels = self.output_image_pixels(data)
        if self.draw is None:
            raise ValueError("a picture in a model turn, but no image tokenizer to encode it")
        return self.draw([pixels])[0]

    def _drawing(self, out: _Stream, codes: Codes) -> None:
        v, (rows, columns) = self.vocabulary, codes.shape
        grid = [v.code(int(k)) for k in codes.reshape(-1)]
        out.add([v.control("<boi_out>"), v.rows(rows), v.columns(columns)], 1)
        out.add(grid, self.budget.code_weight)
        out.add([v.control("<eoi_out>")], 1)
        out.saw(Modality.IMAGE_OUT)

    # ── documents ──────────────────────────────────────────────────────────────────────────────────────────

    def _part(self, out: _Stream, part: Part, role: str, weight: float, codes: Mapping[bytes, Codes]) -> None:
        if isinstance(part, Text):
            out.add(self.tokenizer.encode(part.text), weight)
        elif isinstance(part, Image) and role == "model":
            self._drawing(out, codes[part.data] if part.data in codes else self._codes(part.data))
        elif isinstance(part, Image):
            self._image(out, decode_image(part.data), self.budget.image_tokens)
            out.saw(Modality.IMAGE)
        elif isinstance(part, Audio):
            self._sound(out, decode_audio(part.data))
            out.saw(Modality.AUDIO)
        elif isinstance(part, Video):
            self._clip(out, part.data)
            out.saw(Modality.VIDEO)

    def _content(self, out: _Stream, content: Content, weight: float, codes: Mapping[bytes, Codes]) -> None:
        out.add([self.vocabulary.control(f"<{content.role}>")], 0)
        for part in content.parts:
            self._part(out, part, content.role, weight, codes)
        out.add([self.vocabulary.end], weight if content.role != "user" else 0)

    def _example(self, out: _Stream) -> Example:
        c, length = self.vision, len(out.tokens)
        join = lambda parts, empty: np.concatenate(parts) if parts else empty  # noqa: E731
        return Example(
            tokens=np.array(out.tokens, np.int32),
            targets=np.array([*out.tokens[1:], self.vocabulary.pad], np.int32),
            weights=np.array([*out.weights[1:], 0], np.float32),
            modality=np.full(length, int(out.modality), np.int32),
            patches=join(out.patches, np.zeros((0, c.patch_values), np.uint8)),
            patch_positions=join(out.places, np.zeros((0, 2), np.int32)),
            patch_images=join(out.images, np.zeros(0, np.int32)),
            frames=join(out.frames, np.zeros((0, self.audio.chunk, self.audio.mels), np.float16)),
            frame_lengths=join(out.lengths, np.zeros(0, np.int32)),
        )

    def encode(
        self,
        document: Document,
        max_tokens: int,
        codes: Mapping[bytes, Codes] | None = None,
        window: int | None = None,
        notes: list[str] | None = None,
    ) -> list[Example]:
        """One Example, or several: running text is split at ``window`` tokens, a long sound without words at what can be read.

        ``codes`` holds image codes already computed, by the picture's bytes; others are asked of ``draw``. ``notes`` gets what could
        not be read of media that are used all the same. Raises ValueError when a document with media or turns is too long, or a medium cannot be decoded.
        """
        parts = list(document.parts)
        if all(content.role == "document" for content in document.contents):
            if all(isinstance(part, Text) for part in parts):
                return list(self._running_text(document, window or max_tokens))
            if len(parts) == 1 and isinstance(parts[0], Audio):
                return list(self._running_sound(parts[0], max_tokens))
        out = _Stream()
        out.add([self.vocabulary.bos], 0)
        for content in document.contents:
            weight = {"model": 1.0, "document": self.budget.text_weight, "user": self.budget.question_weight}[
                content.role
            ]
            self._content(out, content, weight, codes or {})
        if len(out.tokens) > max_tokens:
            raise ValueError(f"it takes {len(out.tokens)} tokens; at most {max_tokens} fit")
        if notes is not None:
            notes.extend(out.notes)
        return [self._example(out)]

    def _running_text(self, document: Document, max_tokens: int) -> Iterator[Example]:
        v = self.vocabulary
        for content in document.contents:
            ids = [
                piece for part in content.parts if isinstance(part, Text) for piece in self.tokenizer.encode(part.text)
            ]
            room = max_tokens - 3
            for start in range(0, max(len(ids), 1), room):
                out = _Stream()
                out.add([v.bos, v.control("<document>")], 0)
                out.add(ids[start : start + room], self.budget.text_weight)
                if start + room >= len(ids):
                    out.add([v.end], self.budget.text_weight)
                yield self._example(out)

    def _running_sound(self, part: Audio, max_tokens: int) -> Iterator[Example]:
        """A sound without a transcript, split at whole chunks where it is longer than what can be read at once."""
        v, c, samples = self.vocabulary, self.audio, decode_audio(part.data)
        frames, seconds = -(-len(samples) // HOP), self.budget.audio_seconds
        # Beside the sound's own there are <bos>, <document>, <boa>, <eoa> and <end>.
        room = max_tokens - 5
        piece = len(samples)
        if frames * HOP > seconds * SAMPLE_RATE or self._sound_tokens(frames) > room:
            chunks, longest = room // c.tokens(c.chunk), int(seconds * SAMPLE_RATE / HOP)
            if chunks < 1:
                raise ValueError(f"a chunk of sound takes {c.tokens(c.chunk) + 5} tokens; at most {max_tokens} fit")
            # Whole chunks, where the model reads as much as one.
            whole = min(chunks, longest // c.chunk) * c.chunk
            piece = (whole or longest) * HOP
        for start in range(0, len(samples), piece):
            out = _Stream()
            out.add([v.bos, v.control("<document>")], 0)
            self._sound(out, samples[start : start + piece])
            out.saw(Modality.AUDIO)
            if start + piece >= len(samples):
                out.add([v.end], self.budget.text_weight)
            yield self._example(out)

    def prompt(self, contents: Sequence[Content]) -> Example:
        """A conversation up to the model's next turn: the stream ends with ``<model>``, generation goes on from there."""
        out = _Stream()
        out.add([self.vocabulary.bos], 0)
        for content in contents:
            self._content(out, content, 0.0, {})
        out.add([self.vocabulary.control("<model>")], 0)
        return self._example(out)

    def check(self, c: config.Model) -> None:
        """Raises ValueError when a model reads other ids, patches or chunks than these."""
        v = self.vocabulary
        pairs = {"ids": (v.size, c.vocabulary), "<img>": (v.control("<img>"), c.image_token)}
        pairs["<aud>"] = v.control("<aud>"), c.audio_token
        for name, fields, ours, theirs in (
            ("vision", ("patch", "pool", "side", "plain"), self.vision, c.vision),
            ("audio", ("mels", "chunk", "stack"), self.audio, c.audio),
        ):
            if theirs is not None:
                pairs |= {f"{name}.{field}": (getattr(ours, field), getattr(theirs, field)) for field in fields}
        if wrong := next((name for name, (ours, theirs) in pairs.items() if ours != theirs), None):
            raise ValueError(
                f"files of two models: {wrong} is {pairs[wrong][0]} in vocabulary.json, {pairs[wrong][1]} in model.json"
            )

    # ── at rest ────────────────────────────────────────────────────────────────────────────────────────────

    def save(self, folder: Path) -> None:
        """Writes ``text.model`` and ``vocabulary.json``."""
        write_atomically(folder / "text.model", self.tokenizer.to_bytes())
        settings = {"num_text": self.vocabulary.num_text, "num_codes": self.vocabulary.num_codes}
        parts = {"vision": asdict(self.vision), "audio": asdict(self.audio), "budget": asdict(self.budget)}
        write_json(folder / "vocabulary.json", settings | parts)

    @classmethod
    def load(cls, folder: Path, draw: ImageCodeEncoder | None = None) -> Encoder:
        """Reads what :meth:`save` wrote. Raises ValueError that names the file when one is missing or does not fit."""
        path = folder / "vocabulary.json"
        stored = parsed_whole(_Settings, read_settings(path), path)
        vocabulary = parsed_whole(Vocabulary, {"num_text": stored.num_text, "num_codes": stored.num_codes}, path)
        vision = parsed_whole(config.Vision, stored.vision, path, "vision")
        audio = parsed_whole(config.audio_class(stored.audio), stored.audio, path, "audio")
        budget = parsed_whole(Budget, stored.budget, path, "budget")
        model = regular(folder / "text.model")
        try:
            pieces = TextTokenizer.from_bytes(model.read_bytes())
        except ValueError as error:
            raise ValueError(f"{model}: {error}") from None
        if pieces.size != vocabulary.num_text:
            raise ValueError(
                f"{folder}: text.model has {pieces.size} pieces but vocabulary.json says {vocabulary.num_text}"
            )
        return cls(pieces, vocabulary, vision, audio, budget, draw)
