"""The engine: prompts in, answers out. Told as numbered steps:

    1  a prompt becomes an Example; prompts of like length share a batch of a few fixed sizes (few compilations)
    2  prefill reads all prompts at once into the key-value cache
    3  a loop inside one jitted function samples, advances the grammar, and decodes one token a row until all rows ended
    4  tokens become parts again: pieces to text, closed grids of codes to pictures

``stream`` does the same one token at a time, and gives the same answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from alhena.content import Content, Image, Part, Text
from alhena.media import encode_png
from alhena.model import config, image_tokenizer, model
from alhena.model.cache import Cache, decode, prefill
from alhena.model.weights import load_model, read_config
from alhena.serve import grammar
from alhena.serve.sampler import Sampling, Settings, sample, settings
from alhena.shapes import Array, Bool, Float, Int
from alhena.tokens.batch import Batch, Example
from alhena.tokens.encode import Encoder
from alhena.tokens.images import code_grid
from alhena.tokens.loader import plain_batch
from alhena.tokens.vocabulary import Vocabulary

TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
PATCHES = (0, 64, 128, 256, 512, 1024, 4096, 16384)
CHUNKS = (0, 1, 2, 4, 8, 32, 128, 1024)
ROWS = (1, 8, 32)
GROWTH = (32, 128, 256, 1024, 4096)
FINE = 1 << 12  # pixels of height, more than a grid has, when only a proportion is asked for
Finish = Literal["stop", "length"]


def _bucket(sizes: Sequence[int], needed: int, what: str) -> int:
    for size in sizes:
        if needed <= size:
            return size
    raise ValueError(f"the prompt has {needed:,} {what}; at most {sizes[-1]:,} can be read")


@dataclass(frozen=True)
class Answer:
    content: Content
    finish: Finish
    prompt_tokens: int
    answer_tokens: int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Going:
    """Generation under way: R rows are R answers, or with guidance 2·R rows, the second half unconditioned."""

    hidden: Float[Array, "B D"]
    cache: Cache
    positions: Int[Array, B]
    grammar: grammar.Grammar  # [R]
    written: Int[Array, "R n"]
    done: Bool[Array, R]
    step: Int[Array, ""]


@partial(jax.jit, static_argnums=(1, 2, 4, 5))
def _begin(params: model.Params, c: config.Model, slots: int, batch: Batch, rows: int, most: int) -> _Going:
    hidden, cache = prefill(params, c, batch, slots)
    lengths = (batch.segments > 0).sum(1).astype(jnp.int32)
    written = jnp.zeros((rows, most), jnp.int32)
    return _Going(hidden, cache, lengths, grammar.start(rows), written, jnp.zeros(rows, bool), jnp.zeros((), jnp.int32))


def _choose(
    params, c: config.Model, v: Vocabulary, g: _Going, s: Settings, guidance: Array, wish: Array, most_codes: int
):
    """The next token of each row; grammar, guidance and wishes applied."""
    logits, rows = model.logits(params, c, g.hidden), g.done.shape[0]
    if logits.shape[0] > rows:
        drawing = (g.grammar.phase == grammar.CODES)[:, None]
        with_, without = logits[:rows], logits[rows:]
        logits = jnp.where(drawing, without + guidance[:, None] * (with_ - without), with_)
    may = grammar.allowed(g.grammar, v, most_codes)
    phase = g.grammar.phase
    for i, due in enumerate((g.step == 0, phase == grammar.ROWS, phase == grammar.COLUMNS)):
        may = jnp.where((due & (wish[:, i] > 0))[:, None], jnp.arange(v.size) == wish[:, i, None], may)
    return sample(jnp.where(may, logits, -jnp.inf), s, g.step)


def _advance(params, c, v, g: _Going, s: Settings, guidance, wish, limits, most_codes: int) -> _Going:
    token = _choose(params, c, v, g, s, guidance, wish, most_codes)
    token = jnp.where(g.done, v.pad, token)
    written = g.written.at[:, g.step].set(token)
    done = g.done | (token == v.end) | (g.step + 1 >= limits)
    state = grammar.advance(g.grammar, token, v)
    fed = jnp.tile(token, g.positions.shape[0] // token.shape[0])
    hidden, cache = decode(params, c, fed, g.positions, g.cache)
    return _Going(hidden, cache, g.positions + 1, state, written, done, g.step + 1)


@partial(jax.jit, static_argnums=(1, 2, 8), donate_argnums=3)
def _finish(params, c, v, g: _Going, s: Settings, guidance, wish, limits, most_codes: int) -> _Going:
    return jax.lax.while_loop(
        lambda g: ~jnp.all(g.done), lambda g: _advance(params, c, v, g, s, guidance, wish, limits, most_codes), g
    )


_one = partial(jax.jit, static_argnums=(1, 2, 8), donate_argnums=3)(_advance)


@dataclass(frozen=True)
class Engine:
    """A loaded model that answers."""

    params: model.Params
    config: config.Model
    encoder: Encoder
    painter: image_tokenizer.Params
    painter_config: config.ImageTokenizer
    name: str

    @classmethod
    def load(cls, folder: Path) -> Engine:
        """Raises ValueError that names the file when the folder is no complete model."""
        params, c = load_model(folder)
        painter, painter_config = image_tokenizer.load(folder)
        encoder = Encoder.load(folder)
        try:
            encoder.check(c)
            if painter_config.num_codes != encoder.vocabulary.num_codes:
                raise ValueError(
                    f"files of two models: image_tokenizer.json has {painter_config.num_codes} codes, "
                    f"vocabulary.json {encoder.vocabulary.num_codes}"
                )
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
        return cls(params, c, encoder, painter, painter_config, str(read_config(folder)[1].get("name", folder.name)))

    # ── 1: prompts to batches ─────────────────────────────────────────────────────────────────────────────

    def _start(self, prompts: list[Example], samplings: list[Sampling]) -> tuple[_Going, tuple]:
        rows = _bucket(ROWS, len(prompts), "rows")
        prompts = prompts + [prompts[0]] * (rows - len(prompts))
        samplings = samplings + [samplings[0]] * (rows - len(samplings))
        guided = any(s.guidance != 1 for s in samplings)
        if guided:
            prompts = prompts + [self.encoder.prompt([Content("user", ())])] * rows
        tokens = _bucket(TOKENS, max(len(e.tokens) for e in prompts), "tokens")
        patches = _bucket(PATCHES, max(len(e.patches) for e in prompts), "image patches")
        chunks = _bucket(CHUNKS, max(len(e.frames) for e in prompts), "chunks of sound")
        most = _bucket(GROWTH, max(s.max_tokens for s in samplings), "tokens to write")
        batch = plain_batch(prompts, tokens, patches, chunks)
        going = _begin(self.params, self.config, tokens + most, batch, rows, most)
        extra = (
            settings(samplings),
            jnp.array([s.guidance for s in samplings], jnp.float32),
            jnp.array([self._wish(s) for s in samplings], jnp.int32),
            jnp.array([s.max_tokens for s in samplings], jnp.int32),
            self.encoder.budget.drawn_codes,
        )
        return going, extra

    def _wish(self, s: Sampling) -> tuple[int, int, int]:
        """The first token, and the tokens of a grid's rows and columns, where they are asked for; 0: the model's choice."""
        v, most = self.encoder.vocabulary, self.encoder.budget.drawn_codes
        opening = v.control("<boi_out>") if s.image_first else 0
        if s.aspect is None:
            return opening, 0, 0
        rows, columns = code_grid(FINE, round(FINE * s.aspect), most)
        return opening, v.rows(rows), v.columns(columns)

    # ── 2 and 3: read and write ───────────────────────────────────────────────────────────────────────────

    def generate(
        self, prompts: Sequence[Sequence[Content]], sampling: Sampling | Sequence[Sampling] = Sampling()
    ) -> list[Answer]:
        """Answers each conversation; an answer does not depend on the others in its batch."""
        samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        examples = [self.encoder.prompt(contents) for contents in prompts]
        order = sorted(
            range(len(prompts)),
            key=lambda i: (
                samplings[i].guidance != 1,
                len(examples[i].frames),
                len(examples[i].patches),
                len(examples[i].tokens),
            ),
        )
        out: list[Answer | None] = [None] * len(prompts)
        for start in range(0, len(order), ROWS[-1]):
            group = order[start : start + ROWS[-1]]
            going, extra = self._start([examples[i] for i in group], [samplings[i] for i in group])
            going = _finish(self.params, self.config, self.encoder.vocabulary, going, *extra)
            for i, tokens in zip(group, np.asarray(going.written), strict=False):
                out[i] = self._answer(tokens.tolist(), samplings[i], len(examples[i].tokens))
        return [answer for answer in out if answer is not None]

    def stream(self, contents: Sequence[Content], sampling: Sampling = Sampling()) -> Iterator[Part | Answer]:
        """Parts as soon as they are certain, then the whole :class:`Answer`."""
        example = self.encoder.prompt(contents)
        going, extra = self._start([example], [sampling])
        sent, tokens = 0, list[int]()
        while True:
            going = _one(self.params, self.config, self.encoder.vocabulary, going, *extra)
            tokens.append(int(going.written[0, len(tokens)]))
            answer = self._answer(tokens, sampling, len(example.tokens))
            finished = bool(going.done[0]) or answer.finish == "stop"
            ready = _certain(answer.content.parts, finished, sampling.stop)
            yield from _news(ready, sent)
            sent = _amount(ready)
            if finished:
                yield answer
                return

    # ── 4: tokens to parts ────────────────────────────────────────────────────────────────────────────────

    def _answer(self, tokens: list[int], sampling: Sampling, prompt_tokens: int) -> Answer:
        v = self.encoder.vocabulary
        ended = v.end in tokens
        tokens = tokens[: tokens.index(v.end)] if ended else tokens[: sampling.max_tokens]
        parts = self._parts(tokens)
        for k, part in enumerate(parts):
            cuts = [part.text.index(s) for s in sampling.stop if s in part.text] if isinstance(part, Text) else []
            if cuts and isinstance(part, Text):
                parts, ended = [*parts[:k], Text(part.text[: min(cuts)])], True
                break
        return Answer(Content("model", tuple(parts)), "stop" if ended else "length", prompt_tokens, len(tokens) + ended)

    def _parts(self, tokens: list[int]) -> list[Part]:
        """Runs of text pieces become text, closed grids pictures; a grid cut off by the token limit is left out."""
        v, i = self.encoder.vocabulary, 0
        parts: list[Part] = []
        pieces: list[int] = []
        while i < len(tokens):
            if tokens[i] != v.control("<boi_out>"):
                pieces.append(tokens[i])
                i += 1
                continue
            if pieces:
                parts.append(Text(self.encoder.pieces.decode(pieces)))
                pieces = []
            grid = tokens[i + 1 : i + 3]
            if len(grid) < 2:
                break
            rows, columns = grid[0] - v.rows(1) + 1, grid[1] - v.columns(1) + 1
            codes = tokens[i + 3 : i + 3 + rows * columns]
            if len(codes) < rows * columns:
                break
            pixels = image_tokenizer.decode_codes(
                self.painter, self.painter_config, np.array(codes).reshape(rows, columns) - v.first_code
            )
            parts.append(Image(encode_png(pixels)))
            i += 4 + rows * columns
        return [*parts, Text(self.encoder.pieces.decode(pieces))] if pieces else parts


def _certain(parts: tuple[Part, ...], finished: bool, stop: tuple[str, ...]) -> tuple[Part, ...]:
    """What of an answer can be shown: unfinished UTF-8 at the end waits, and so does what might begin a stop word."""
    if finished or not parts or not isinstance(parts[-1], Text):
        return parts
    hold = max([0, *(len(s) - 1 for s in stop)])
    text = parts[-1].text.rstrip("\ufffd")
    return (*parts[:-1], Text(text[: len(text) - hold] if hold else text))


def _amount(parts: tuple[Part, ...]) -> int:
    """Characters of text, a picture counting as one."""
    return sum(len(part.text) if isinstance(part, Text) else 1 for part in parts)


def _news(parts: tuple[Part, ...], sent: int) -> Iterator[Part]:
    """What lies behind the first ``sent`` characters."""
    for part in parts:
        size = len(part.text) if isinstance(part, Text) else 1
        if sent < size:
            yield Text(part.text[sent:]) if isinstance(part, Text) else part
        sent = max(0, sent - size)
