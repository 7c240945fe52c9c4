"""One sequence in a slot: its prompt is read a piece at a time, and its pages follow its position.

    prompt   │ 128 │ 128 │ 128 │ rest │            chunks end at multiples of 128, so that a prompt that begins with known pages
              known page ─┘                        is computed in the same chunks as if they were not known

Where the tokens of an image attend to each other in both directions, a chunk that would end inside an image ends after it. An image, and
a chunk of audio, is encoded alone: its vectors do not depend on the other media of its prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import jax
import numpy as np

from alhena.batch import Example
from alhena.model import model
from alhena.model.attention.paged_cache import PAGE, Tokens
from alhena.model.config import Model
from alhena.serve.decoding import buckets
from alhena.serve.decoding.pages import Pages
from alhena.serve.decoding.slots import encode_audio, encode_images
from alhena.shapes import Array, Bool, Float, Int

# Lengths to which chunks are padded. Those beyond a page hold images whose tokens attend to each other.
CHUNK_TOKENS = (32, PAGE, 512, 2048, 8192)


def max_chunk(c: Model) -> int:
    """The longest chunk of a prompt."""
    return PAGE if c.decoder.image_attention == "causal" else CHUNK_TOKENS[3]


@dataclass(frozen=True)
class PromptPlan:
    """Where the chunks of a prompt end, and the hashes of its pages."""

    example: Example
    # For each token the end of its image, or itself: the last position that it attends to.
    limits: Int[np.ndarray, " L"]
    # For each token the index of its vector among those of all images, or of all audio; -1: none.
    image_vectors: Int[np.ndarray, " L"]
    audio_vectors: Int[np.ndarray, " L"]
    bidirectional: bool

    @classmethod
    def of(cls, example: Example, c: Model) -> PromptPlan:
        tokens = example.tokens
        image, audio = (tokens == c.image_token) | (tokens == c.video_token), tokens == c.audio_token
        # Where images are text to the model, and no encoder output takes the place of their tokens.
        image, audio = image & bool(len(example.patches)), audio & bool(len(example.frames))
        index, bidirectional = np.arange(len(tokens)), c.decoder.image_attention != "causal"
        limits = index
        if bidirectional:
            ends = np.where(image & ~np.append(image[1:], False), index, len(tokens))
            limits = np.where(image, np.minimum.accumulate(ends[::-1])[::-1], index)
        number = [np.where(mask, np.cumsum(mask) - 1, -1) for mask in (image, audio)]
        return cls(example, limits.astype(np.int32), number[0], number[1], bidirectional)

    def __len__(self) -> int:
        return len(self.example.tokens)

    def chunk_end(self, start: int) -> int:
        """End of the chunk that begins at a position."""
        end = min((start // PAGE + 1) * PAGE, len(self))
        return max(end, int(self.limits[end - 1]) + 1)

    @cached_property
    def resumable(self) -> list[int]:
        """Numbers of pages after which reading can begin: a chunk ends there, and a token remains."""
        end, out = 0, list[int]()
        while (end := self.chunk_end(end)) < len(self):
            if end % PAGE == 0:
                out.append(end // PAGE)
        return out

    @cached_property
    def keys(self) -> list[bytes]:
        """A hash for each full page: of all tokens up to its end, and of their media."""
        out, state = list[bytes](), hashlib.blake2b(digest_size=20)
        media = self._media_hashes()
        for start in range(0, len(self) - PAGE + 1, PAGE):
            part = slice(start, start + PAGE)
            state.update(np.ascontiguousarray(self.example.tokens[part]).tobytes())
            for number in sorted({int(n) for n in media[part] if n}):
                state.update(self._digests[number])
            out.append(state.copy().digest())
        return out

    @cached_property
    def images(self) -> list[slice]:
        """Patches of each image."""
        ids = self.example.patch_images
        starts = [0, *(np.flatnonzero(np.diff(ids)) + 1).tolist(), len(ids)] if len(ids) else [0]
        return [slice(a, b) for a, b in pairwise(starts)]

    @cached_property
    def _digests(self) -> dict[int, bytes]:
        """Hashes of the images, numbered from 1, and of all audio together: -1."""
        e = self.example

        def digest(*arrays: np.ndarray) -> bytes:
            return hashlib.blake2b(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays), digest_size=20).digest()

        out = {i + 1: digest(e.patches[part], e.patch_positions[part]) for i, part in enumerate(self.images)}
        return out | {-1: digest(e.frames, e.frame_lengths)}

    def _media_hashes(self) -> Int[np.ndarray, " L"]:
        """For each token the number of its hash; 0: none."""
        numbers = np.where(self.audio_vectors >= 0, -1, 0)
        for i, (first, end) in enumerate(self.image_ranges):
            numbers[(self.image_vectors >= first) & (self.image_vectors < end)] = i + 1
        return numbers

    @cached_property
    def image_ranges(self) -> list[tuple[int, int]]:
        """The vectors of each image: first, last + 1. As many for each patch in all images of a prompt."""
        total, patches = int(self.image_vectors.max(initial=-1)) + 1, len(self.example.patches)
        return [(p.start * total // patches, p.stop * total // patches) for p in self.images]


@dataclass(frozen=True)
class Medium:
    """An image or a chunk of audio of a prompt, alone in an example."""

    index: int
    example: Example

    @property
    def is_audio(self) -> bool:
        return bool(len(self.example.frames))


def encode_media(params: model.Params, c: Model, media: Items[Medium], size: int = 1) -> list[Float[np.ndarray, "W D"]]:
    """Vectors of media of one kind, in a batch of that size; where they have a placeholder."""
    batch = buckets.padded([medium.example for medium in media] + [media[0].example] * (size - len(media)))
    if not media[0].is_audio:
        return [*np.asarray(encode_images(params, c, batch))[: len(media)]]
    vectors, valid = map(np.asarray, encode_audio(params, c, batch))
    return [vectors[i][valid[i]] for i in range(len(media))]


class Media:
    """Vectors of the images and of the audio of a prompt, encoded one after the other when a chunk needs them."""

    def __init__(self, plan: PromptPlan, params: model.Params, c: Model) -> None:
        self._plan, self._params, self._c = plan, params, c
        self._images: dict[int, Float[np.ndarray, "W D"]] = {}
        self._audio: dict[int, Float[np.ndarray, "A D"]] = {}

    def missing(self, start: int, end: int) -> Iterator[Medium]:
        """Images and chunks of audio that the tokens from ``start`` to ``end`` need and that are not encoded."""
        needed = self._plan.image_vectors[start:end]
        for i, (first, after) in enumerate(self._plan.image_ranges):
            if i not in self._images and np.any((needed >= first) & (needed < after)):
                yield Medium(i, self._image(self._plan.images[i]))
        if np.any(self._plan.audio_vectors[start:end] >= 0):
            chunks = range(len(self._plan.example.frames))
            yield from (Medium(i, self._audio_chunk(i)) for i in chunks if i not in self._audio)

    def put(self, medium: Medium, vectors: Float[np.ndarray, "W D"]) -> None:
        """Keeps the vectors of a medium."""
        (self._audio if medium.is_audio else self._images)[medium.index] = vectors

    def encode_next(self, start: int, end: int) -> bool:
        """Encodes one image or chunk of audio that the tokens from ``start`` to ``end`` need; False: all are encoded."""
        medium = next(self.missing(start, end), None)
        if medium is None:
            return False
        self.put(medium, encode_media(self._params, self._c, [medium])[0])
        return True

    def _image(self, part: slice) -> Example:
        e = self._plan.example
        ones = np.ones(part.stop - part.start, np.int32)
        return replace(e.emptied(), patches=e.patches[part], patch_positions=e.patch_positions[part], patch_images=ones)

    def _audio_chunk(self, i: int) -> Example:
        e, part = self._plan.example, slice(i, i + 1)
        return replace(e.emptied(), frames=e.frames[part], frame_lengths=e.frame_lengths[part])

    def at(self, start: int, end: int, length: int) -> model.Media | None:
        """The vectors of the tokens from ``start`` to ``end``, padded; None for a model without encoders."""
        if self._c.vision is None and self._c.audio is None:
            return None
        vectors, mask = np.zeros((1, length, self._c.decoder.width), np.float32), np.zeros((1, length), bool)
        for i, (first, after) in enumerate(self._plan.image_ranges):
            self._place(vectors, mask, self._plan.image_vectors[start:end] - first, self._images.get(i), after - first)
        if self._audio:
            audio = np.concatenate([self._audio[i] for i in sorted(self._audio)])
            self._place(vectors, mask, self._plan.audio_vectors[start:end], audio, len(audio))
        return model.Media(*jax.device_put((vectors, mask)))

    @staticmethod
    def _place(
        vectors: Float[np.ndarray, "1 L D"],
        mask: Bool[np.ndarray, "1 L"],
        index: Int[np.ndarray, " tokens"],
        source: Float[np.ndarray, "W D"] | None,
        count: int,
    ) -> None:
        here = np.flatnonzero((index >= 0) & (index < count))
        if len(here):
            assert source is not None
            vectors[0, here], mask[0, here] = source[index[here]], True


@dataclass(frozen=True)
class Chunk:
    """The inputs of ``slots.read_chunks``."""

    tokens: Int[Array, "B L"]
    at: Tokens
    media: model.Media | None


class Sequence:
    """The sequence of a slot: its position, the pages it holds, and their numbers in ``rows``, one row for each kind of layers."""

    def __init__(self, plan: PromptPlan, media: Media, pages: Pages, rows: Items[Int[np.ndarray, " T"]]) -> None:
        self.plan, self.media, self._pages, self._rows = plan, media, pages, rows
        self._held: list[dict[int, int]] = [{} for _ in pages.pools]
        self.position, self.cached_tokens, self.need = 0, 0, list[int]()
        # Of the last token of the prompt, once it is read.
        self.hidden: Float[Array, "1 D"] | None = None

    @property
    def is_read(self) -> bool:
        return self.position >= len(self.plan)

    def skip_known(self) -> None:
        """Takes the next pages of the prompt from those that are known."""
        start = self.position // PAGE
        if self.position % PAGE:
            return
        end = self._pages.known(self.plan.keys, start, self.plan.resumable)
        if end == start:
            return
        for kind, pool in enumerate(self._pages.pools):
            for number in range(max(start, pool.first_page(end * PAGE)), end):
                self._hold(kind, number, pool.share(self.plan.keys[number]))
        self.cached_tokens += end * PAGE - self.position
        self.move(end * PAGE)

    def encode_next(self) -> bool:
        """Encodes a medium that the next chunk needs; False: it has all."""
        return self.media.encode_next(self.position, self.plan.chunk_end(self.position))

    def missing(self) -> Iterator[Medium]:
        """Media that the next chunk needs and that are not encoded."""
        return self.media.missing(self.position, self.plan.chunk_end(self.position))

    @property
    def next_key(self) -> bytes | None:
        """The hash of the page that the next chunk completes; None: it completes none."""
        number = self.position // PAGE
        return self.plan.keys[number] if number < len(self.plan.keys) else None

    def next_chunk(self) -> tuple[Chunk, int]:
        """The next chunk of the prompt, and its end."""
        start, end = self.position, self.plan.chunk_end(self.position)
        self.reserve(end)
        length = buckets.bucket(CHUNK_TOKENS, end - start, "tokens of one image")
        tokens = np.zeros((1, length), np.int32)
        tokens[0, : end - start] = self.plan.example.tokens[start:end]
        positions = np.minimum(start + np.arange(length, dtype=np.int32), end - 1)[None]
        limits = self.plan.limits[positions[0]][None]
        valid = np.arange(length)[None] < end - start
        # The tables change while the program runs: it gets copies.
        tables = tuple(row[None].copy() for row in self._rows)
        tokens, *at = jax.device_put((tokens, tables, positions, limits, valid))
        return Chunk(tokens, Tokens(*at), self.media.at(start, end, length)), end

    def finish_chunk(self, end: int) -> None:
        """After a chunk was computed: its complete pages are known from now on."""
        for kind, pool in enumerate(self._pages.pools):
            for number in range(self.position // PAGE, min(end // PAGE, len(self.plan.keys))):
                pool.register(self.plan.keys[number], self._held[kind][number])
        self.move(end)

    def reserve(self, end: int) -> bool:
        """Takes the pages of the positions up to ``end``; whether there were new ones."""
        new = False
        for kind, held in enumerate(self._held):
            for number in range(self.position // PAGE, (end - 1) // PAGE + 1):
                if number not in held:
                    self._hold(kind, number, self._pages.take(kind))
                    new = True
        return new

    def _hold(self, kind: int, number: int, page: int) -> None:
        self._held[kind][number] = page
        self._rows[kind][number] = page

    def move(self, position: int) -> None:
        """Sets the position; pages that no later token attends to are released."""
        self.position = position
        for pool, held in zip(self._pages.pools, self._held, strict=True):
            for number in [n for n in held if n < pool.first_page(position)]:
                pool.release(held.pop(number))

    def close(self) -> None:
        """Releases all pages."""
        for pool, held in zip(self._pages.pools, self._held, strict=True):
            for page in held.values():
                pool.release(page)
            held.clear()
