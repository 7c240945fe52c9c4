"""Documents and prompts to Examples in the formats of imported models: the counterpart of ``encode.Encoder``.

    contents ─ conversation.render ─► texts, control tokens, media ─ media to placeholders ─► texts, control tokens ─ tokenizer ─► Example

Adjacent texts are joined, then encoded. The loss weight of a token is 1 where the model writes its first character, in its own turns,
and 0 elsewhere. Running text, in contents of the role ``document``, has no turns.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np

from alhena.batch import Example, Modality
from alhena.content import Audio, Content, Document, Image, Media, Resolution, Text, Thought, Tool, Video
from alhena.files import write_json
from alhena.media import SAMPLE_RATE, decode_audio, decode_image, decode_video
from alhena.media.video import evenly_spaced
from alhena.model import config
from alhena.model.storage.tensors import read_settings
from alhena.schema import parsed_whole, shown
from alhena.shapes import Float, Int
from alhena.tokens.audio_features import HOP, features
from alhena.tokens.example_builder import ExampleBuilder, empty_frames
from alhena.tokens.formats.answers import AnswerParser, begins_in_thought
from alhena.tokens.formats.conversation import Item, check_medium, marks, paragraph, render
from alhena.tokens.formats.own_tools import declared_tools
from alhena.tokens.formats.prompts import PromptSettings
from alhena.tokens.images import Pixels, frame_indices, preprocess, resolution_budget
from alhena.tokens.text.hf_tokenizer import TOKENIZER, HfTokenizer

PROMPT = "prompt.json"
# A text, or the id of a token, and its loss weight.
Piece = tuple[str | int, float]
# Of the targets of running text, as in encode.Budget.
TEXT_WEIGHT = 0.25
# Numbers of a patch, and shape of the frames, where the model has no encoder for them.
NO_PATCH_VALUES, NO_FRAME_SHAPE = 1, (0, 1, 1)


@dataclass(frozen=True)
class _Stored:
    """The content of ``prompt.json``."""

    settings: dict[str, Any]
    vision: dict[str, Any] | None
    audio: dict[str, Any] | None


@dataclass(frozen=True)
class GemmaEncoder:
    """Documents and prompts of an imported model to Examples."""

    tokenizer: HfTokenizer
    settings: PromptSettings
    # None: the model reads no images, or no audio.
    vision: config.VisionEncoder | None = None
    audio: config.Audio | None = None

    @classmethod
    def create(cls, tokenizer: HfTokenizer, settings: PromptSettings, c: config.Model) -> GemmaEncoder:
        """The encoder of a model. No text becomes a control token, whatever the tokenizer's file says of them."""
        controls = set(settings.controls.values())
        if not controls <= tokenizer.controls:
            tokenizer = HfTokenizer.from_bytes(tokenizer.to_bytes(), controls)
        encoder = cls(tokenizer, settings, c.vision, c.audio)
        encoder.check(c)
        return encoder

    @property
    def end_tokens(self) -> tuple[int, ...]:
        return self.settings.end_tokens

    @property
    def pad(self) -> int:
        return self.settings.controls["pad"]

    @property
    def thinks(self) -> bool:
        """Whether the model can think before it answers."""
        return "think" in self.settings.controls

    @property
    def placeholders(self) -> dict[str, int]:
        """The ids that stand for soft tokens, by the kind of their medium."""
        kinds = ("image", "video", "audio")
        return {kind: self.settings.controls[kind] for kind in kinds if kind in self.settings.controls}

    @property
    def never_sampled(self) -> tuple[int, ...]:
        return self.settings.never_sampled

    # ── media ──────────────────────────────────────────────────────────────────────────────────────────────

    def _medium(self, out: ExampleBuilder, part: Media) -> list[str | int]:
        """Adds the patches or frames of a medium; returns its marks and placeholders."""
        if isinstance(part, Image):
            out.raise_modality(Modality.IMAGE)
            before, after = marks(self.settings, "image")
            count = self._patches(out, decode_image(part.data), part.resolution)
            return [*before, *[self.settings.controls["image"]] * count, *after]
        if isinstance(part, Audio):
            out.raise_modality(Modality.AUDIO)
            return self._audio(out, decode_audio(part.data))
        out.raise_modality(Modality.VIDEO)
        return self._video(out, part)

    def _patches(
        self, out: ExampleBuilder, pixels: Pixels, resolution: Resolution | None, is_frame: bool = False
    ) -> int:
        """Adds the patches of an image or of a frame of a video; returns the number of its soft tokens."""
        if self.vision is None:
            raise ValueError("an image, but this model has no vision encoder")
        budgets = self.settings.budgets
        default = budgets.frame_tokens if is_frame else budgets.image_tokens
        budget = resolution_budget(resolution, pixels, self.vision, default, is_frame)
        patches, positions = preprocess(pixels, self.vision, budget)
        out.add_image(patches, positions)
        return len(patches) // self.vision.pool**2

    def _audio(self, out: ExampleBuilder, samples: Float[np.ndarray, " samples"]) -> list[str | int]:
        if self.audio is None:
            raise ValueError("audio, but this model has no audio encoder")
        limit = self.settings.budgets.audio_seconds
        # Resampling may add a few samples.
        if len(samples) > limit * SAMPLE_RATE + HOP:
            seconds = len(samples) / SAMPLE_RATE
            raise ValueError(f"the audio lasts {seconds:.1f} s; this model reads at most {limit:g} s: split it")
        frames, lengths = features(samples, self.audio)
        out.add_audio(frames, lengths)
        before, after = marks(self.settings, "audio")
        count = sum(self.audio.tokens(int(length)) for length in lengths)
        return [*before, *[self.settings.controls["audio"]] * count, *after]

    def _video(self, out: ExampleBuilder, part: Video) -> list[str | int]:
        """Frames as images (Gemma 3); with their times before them and placeholders of their own (Gemma 4)."""
        s, is_timed = self.settings, self.settings.format == "gemma4"
        select = frame_indices if is_timed else evenly_spaced
        clip = decode_video(part.data, s.budgets.clip_frames, select=select, excerpt=part.excerpt)
        out.notes.extend(clip.notes)
        if clip.audio is not None:
            out.notes.append("the audio track was left out: this model reads the frames of a video")
        if not is_timed:
            return [value for pixels in clip.frames for value in self._frame(out, pixels, part.resolution, "image", "")]
        around = paragraph(s, "video")
        frames: list[str | int] = [around] if around else []
        for number, (pixels, time) in enumerate(zip(clip.frames, clip.seconds, strict=True)):
            stamp = f"{' ' if number else ''}{int(time // 60):02d}:{int(time % 60):02d} "
            frames.extend(self._frame(out, pixels, part.resolution, "video", stamp))
        return [*frames, *filter(None, [around])]

    def _frame(
        self, out: ExampleBuilder, pixels: Pixels, resolution: Resolution | None, kind: str, stamp: str
    ) -> list[str | int]:
        controls, count = self.settings.controls, self._patches(out, pixels, resolution, kind == "video")
        if kind == "image":
            before, after = marks(self.settings, "image")
        else:
            before, after = [stamp, controls["image_start"]], [controls["image_end"]]
        return [*before, *[controls[kind]] * count, *after]

    # ── items ──────────────────────────────────────────────────────────────────────────────────────────────

    def _add(self, out: ExampleBuilder, items: Iterable[Item], weight: float) -> None:
        """Adds items; what the model writes itself has the loss weight ``weight``."""
        pieces: list[Piece] = []
        for item in items:
            if isinstance(item.value, str | int):
                pieces.append((item.value, weight * item.learned))
            else:
                pieces.extend((value, 0.0) for value in self._medium(out, item.value))
        for is_text, run in groupby(pieces, key=lambda piece: isinstance(piece[0], str)):
            if is_text:
                self._add_texts(out, [*run])
            else:
                for token, of_token in run:
                    out.add([int(token)], of_token)

    def _add_texts(self, out: ExampleBuilder, pieces: Sequence[Piece]) -> None:
        """Encodes adjacent texts as one."""
        texts = [str(text) for text, _ in pieces]
        starts = [0, *accumulate(map(len, texts))][:-1]
        ids, offsets = self.tokenizer.encode_with_offsets("".join(texts))
        for token, offset in zip(ids, offsets, strict=True):
            out.add([token], pieces[bisect_right(starts, offset) - 1][1])

    @property
    def patch_values(self) -> int:
        """Numbers of a patch in Examples."""
        return self.vision.patch_values if self.vision else NO_PATCH_VALUES

    @property
    def no_frames(self) -> Float[np.ndarray, "0 T M"]:
        """The frames of an Example without audio."""
        return np.zeros(NO_FRAME_SHAPE, np.float16) if self.audio is None else empty_frames(self.audio)

    def _example(self, out: ExampleBuilder) -> Example:
        return out.example(self.settings.controls["pad"], self.patch_values, self.no_frames)

    # ── prompts and documents ──────────────────────────────────────────────────────────────────────────────

    def prompt(self, contents: Sequence[Content], tools: Sequence[Tool] = (), thinking: bool = False) -> Example:
        """A conversation up to the model's next turn, or up to what it writes after the results of its tool calls."""
        out = ExampleBuilder()
        self._add(out, render(self.settings, contents, tools, thinking), 0.0)
        return self._example(out)

    def parser(self, prompt: Int[np.ndarray, " L"], stop: Sequence[str] = ()) -> AnswerParser:
        """A parser of the answer to a prompt."""
        in_thought = begins_in_thought(self.settings, prompt.tolist())
        return AnswerParser(self.settings, self.tokenizer, stop, in_thought)

    def encode(
        self,
        document: Document,
        max_tokens: int,
        codes: Mapping[bytes, Int[np.ndarray, "_ _"]] | None = None,
        window: int | None = None,
        notes: list[str] | None = None,
    ) -> list[Example]:
        """One Example, or several: running text is split at ``window`` tokens. See ``encode.Encoder.encode``.

        ``facts["tools"]`` declares the tools of a conversation; thinking is on where an answer to the last user turn has a thought.
        """
        if codes:
            raise ValueError("image codes, but this model generates no images")
        roles = {content.role for content in document.contents}
        if roles == {"document"} and all(isinstance(part, Text) for part in document.parts):
            return list(self._running_text(document, window or max_tokens))
        out = ExampleBuilder()
        if roles == {"document"}:
            self._add(out, self._page(document), TEXT_WEIGHT)
        else:
            tools, thinking = declared_tools(document), thinks(document.contents)
            self._add(out, render(self.settings, document.contents, tools, thinking, ask=False), 1.0)
        if len(out.tokens) > max_tokens:
            raise ValueError(f"it takes {len(out.tokens)} tokens; at most {max_tokens} fit")
        if notes is not None:
            notes.extend(out.notes)
        return [self._example(out)]

    def _page(self, document: Document) -> Iterator[Item]:
        """Running text with media."""
        yield Item(self.settings.controls["bos"])
        for part in document.parts:
            check_medium(self.settings, part, "a document")
            if isinstance(part, Text):
                yield Item(part.text, True)
            elif isinstance(part, Media):
                yield Item(part)
            else:
                raise ValueError("running text holds texts and media only")
        yield Item(self.settings.controls["eos"], True)

    def _running_text(self, document: Document, max_tokens: int) -> Iterator[Example]:
        """Texts without turns, split at ``max_tokens`` tokens."""
        controls = self.settings.controls
        for content in document.contents:
            ids = self.tokenizer.encode("".join(part.text for part in content.parts if isinstance(part, Text)))
            out = ExampleBuilder()
            out.add_header([controls["bos"]])
            out.add([*ids, controls["eos"]], TEXT_WEIGHT)
            yield from self._example(out).windows(max_tokens)

    def check(self, c: config.Model) -> None:
        """Raises ValueError when the ids or encoders of a model differ from these."""
        s, pairs = self.settings, dict[str, tuple[Any, Any]]()
        if c.vision is not None:
            pairs["image_token"] = s.controls.get("image"), c.image_token
            if c.video_token != -1:
                pairs["video_token"] = s.controls.get("video"), c.video_token
        if c.audio is not None:
            pairs["audio_token"] = s.controls.get("audio"), c.audio_token
        pairs |= {"vision": (self.vision, c.vision), "audio": (self.audio, c.audio)}
        if wrong := next((name for name, (ours, theirs) in pairs.items() if ours != theirs), None):
            ours, theirs = pairs[wrong]
            raise ValueError(
                f"files of two models: {wrong} is {shown(ours)} in {PROMPT}, {shown(theirs)} in model.json"
            )
        # Tokenizers of models without media may have placeholders beyond the vocabulary: nothing makes them.
        beyond = sum(token >= c.vocabulary for token in self.tokenizer.controls)
        if self.tokenizer.size - beyond > c.vocabulary or max(self.end_tokens) >= c.vocabulary:
            raise ValueError(f"{TOKENIZER} has {self.tokenizer.size} tokens, but the model {c.vocabulary}")

    # ── stored ─────────────────────────────────────────────────────────────────────────────────────────────

    def save(self, folder: Path) -> None:
        """Writes ``tokenizer.json`` and ``prompt.json``."""
        self.tokenizer.save(folder / TOKENIZER)
        encoders = {"vision": self.vision and asdict(self.vision), "audio": self.audio and asdict(self.audio)}
        write_json(folder / PROMPT, {"settings": asdict(self.settings)} | encoders)

    @classmethod
    def load(cls, folder: Path) -> GemmaEncoder:
        """Reads what :meth:`save` wrote. Raises ValueError that names the file when one is missing or does not fit."""
        path = folder / PROMPT
        stored = parsed_whole(_Stored, read_settings(path), path)
        settings = parsed_whole(PromptSettings, stored.settings, path, "settings")
        vision, audio = stored.vision, stored.audio
        tokenizer = HfTokenizer.load(folder / TOKENIZER, settings.controls.values())
        return cls(
            tokenizer,
            settings,
            None if vision is None else parsed_whole(config.vision_class(vision), vision, path, "vision"),
            None if audio is None else parsed_whole(config.audio_class(audio), audio, path, "audio"),
        )


def thinks(contents: Sequence[Content]) -> bool:
    """Whether the model thinks after the last user turn."""
    last_user = max((i for i, content in enumerate(contents) if content.role == "user"), default=-1)
    return any(isinstance(part, Thought) for content in contents[last_user + 1 :] for part in content.parts)
