"""The engine: prompts in, answers out. Told as numbered steps:

    1  a prompt becomes an Example; prompts of like length share a batch of a few fixed sizes (few compilations)
    2  prefill reads all prompts at once into the key-value cache
    3  a loop inside one jitted function samples, advances the grammar, and decodes one token a row until all rows ended
    4  tokens become parts again: pieces to text, closed grids of codes to pictures

``stream`` does the same one token at a time, and gives the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from alhena.batch import Batch, Example
from alhena.content import Content, Image, Part
from alhena.media import encode_png
from alhena.model import config, image_tokenizer, model
from alhena.model.kv_cache import Cache
from alhena.model.model import decode, prefill
from alhena.model.weights import load_model, read_config
from alhena.serve import image_grammar
from alhena.serve.detokenize import Detokenizer, join
from alhena.serve.sampler import Sampling, Settings, sample, settings
from alhena.shapes import Array, Bool, Float, Int, pytree
from alhena.tokens.encode import Encoder
from alhena.tokens.images import code_grid
from alhena.tokens.loader import padded_batch
from alhena.tokens.vocabulary import Vocabulary

TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
PATCHES = (0, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
CHUNKS = (0, 1, 2, 4, 8, 32, 128, 1024)
ROWS = (1, 8, 32)
GROWTH = (32, 128, 256, 1024, 4096)
MOST_OUTPUT = GROWTH[-1]  # tokens of one answer; who asks for more gets as many
VISION_BYTES = 1 << 30  # of the attention scores of one request's images
FINE = 1 << 12  # pixels of height, more than a grid has, when only a proportion is asked for
Finish = Literal["stop", "length"]


def _bucket(sizes: Sequence[int], needed: int, what: str) -> int:
    for size in sizes:
        if needed <= size:
            return size
    raise ValueError(f"the prompt has {needed:,} {what}; at most {sizes[-1]:,} can be read")


def most_patches(c: config.Vision | None, rows: int = 1) -> int:
    """Image patches that one prompt may have: attention of the vision encoder is squared over all its images together.

    Scores, weights and their operands are three arrays of float32 a head.

    >>> [most_patches(config.Vision(64, 2, heads, 64)) for heads in (1, 4, 12)]
    [8192, 4096, 2048]
    """
    return 0 if c is None else max(n for n in PATCHES if rows * n * n * 12 * c.heads <= VISION_BYTES)


def rows_of(sampling: Sampling) -> int:
    """Sequences of one answer: with guidance, a second one without the prompt."""
    return 1 if sampling.guidance == 1 else 2


@dataclass(frozen=True)
class Answer:
    content: Content
    finish: Finish
    prompt_tokens: int
    answer_tokens: int


@pytree
@dataclass(frozen=True)
class _Going:
    """Generation under way: R rows are R answers, or with guidance 2·R rows, the second half unconditioned."""

    hidden: Float[Array, "B D"]
    cache: Cache
    positions: Int[Array, " B"]
    grammar: image_grammar.Grammar  # [R]
    written: Int[Array, "R n"]
    done: Bool[Array, " R"]
    step: Int[Array, ""]


@partial(jax.jit, static_argnums=(1, 2, 4, 5))
def _begin(params: model.Params, c: config.Model, slots: int, batch: Batch, rows: int, most: int) -> _Going:
    hidden, cache = prefill(params, c, batch, slots)
    lengths = (batch.segments > 0).sum(1).astype(jnp.int32)
    written = jnp.zeros((rows, most), jnp.int32)
    return _Going(
        hidden, cache, lengths, image_grammar.start(rows), written, jnp.zeros(rows, bool), jnp.zeros((), jnp.int32)
    )


@pytree
@dataclass(frozen=True)
class _Options:
    """How the next tokens of R rows are chosen, and how many there may be."""

    settings: Settings
    guidance: Float[Array, " R"]
    forced: Int[Array, "R 3"]  # the first token, and those of a grid's rows and columns; 0: the model's choice
    limits: Int[Array, " R"]
    image_out_codes: int = field(metadata={"static": True})  # the most of one picture


def _choose(params: model.Params, c: config.Model, v: Vocabulary, g: _Going, options: _Options) -> Int[Array, " R"]:
    """The next token of each row; grammar, guidance and forced tokens applied."""
    logits, rows = model.logits(params, c, g.hidden), g.done.shape[0]
    if logits.shape[0] > rows:
        drawing = (g.grammar.phase == image_grammar.CODES)[:, None]
        with_, without = logits[:rows], logits[rows:]
        logits = jnp.where(drawing, without + options.guidance[:, None] * (with_ - without), with_)
    allowed = image_grammar.allowed(g.grammar, v, options.image_out_codes)
    phase, forced = g.grammar.phase, options.forced
    for i, due in enumerate((g.step == 0, phase == image_grammar.ROWS, phase == image_grammar.COLUMNS)):
        allowed = jnp.where((due & (forced[:, i] > 0))[:, None], jnp.arange(v.size) == forced[:, i, None], allowed)
    return sample(jnp.where(allowed, logits, -jnp.inf), options.settings, g.step)


def _advance(params: model.Params, c: config.Model, v: Vocabulary, g: _Going, options: _Options) -> _Going:
    token = _choose(params, c, v, g, options)
    token = jnp.where(g.done, v.pad, token)
    written = g.written.at[:, g.step].set(token)
    done = g.done | (token == v.end) | (g.step + 1 >= options.limits)
    state = image_grammar.advance(g.grammar, token, v)
    fed = jnp.tile(token, g.positions.shape[0] // token.shape[0])
    hidden, cache = decode(params, c, fed, g.positions, g.cache)
    return _Going(hidden, cache, g.positions + 1, state, written, done, g.step + 1)


@partial(jax.jit, static_argnums=(1, 2), donate_argnums=3)
def _run(
    params: model.Params, c: config.Model, v: Vocabulary, g: _Going, options: _Options, until: Int[Array, ""]
) -> _Going:
    """Writes tokens until all rows are done, or until the step ``until``."""
    return jax.lax.while_loop(
        lambda g: ~jnp.all(g.done) & (g.step < until), lambda g: _advance(params, c, v, g, options), g
    )


@dataclass(frozen=True)
class Engine:
    """A loaded model that answers."""

    params: model.Params
    config: config.Model
    encoder: Encoder
    image_decoder: image_tokenizer.Params
    image_decoder_config: config.ImageTokenizer
    name: str

    @classmethod
    def load(cls, folder: Path) -> Engine:
        """Raises ValueError that names the file when the folder is no complete model."""
        params, c = load_model(folder)
        painter, painter_config = image_tokenizer.load(folder)
        draw = partial(image_tokenizer.encode_images, painter, painter_config, batch=1)
        encoder = Encoder.load(folder, lambda images: draw(list(images)))
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

    def encode(self, contents: Sequence[Content], rows: int = 1) -> Example:
        """The prompt of a conversation. Raises ValueError when a medium cannot be read or the model has no room for it.

        ``rows`` is the number of sequences that are read at once for it; the vision encoder's memory grows with it.
        """
        example, c = self.encoder.prompt(contents), self.config
        if len(example.patches) and c.vision is None:
            raise ValueError("this model reads no images and no video")
        if len(example.frames) and c.audio is None:
            raise ValueError("this model reads no sound")
        _bucket(TOKENS, len(example.tokens), "tokens")
        _bucket(CHUNKS, len(example.frames), "chunks of sound")
        most = most_patches(c.vision, rows)
        if len(example.patches) > most:
            raise ValueError(
                f"the images of the prompt have {len(example.patches):,} patches; "
                f"at most {most:,} can be read at once: send fewer or smaller images"
            )
        return example

    def _start(self, prompts: list[Example], samplings: list[Sampling]) -> tuple[_Going, _Options]:
        rows = _bucket(ROWS, len(prompts), "rows")
        prompts = prompts + [prompts[0]] * (rows - len(prompts))
        samplings = samplings + [samplings[0]] * (rows - len(samplings))
        guided = any(s.guidance != 1 for s in samplings)
        if guided:
            prompts = prompts + [self.encoder.prompt([Content("user", ())])] * rows
        tokens = _bucket(TOKENS, max(len(e.tokens) for e in prompts), "tokens")
        patches = _bucket(PATCHES, max(len(e.patches) for e in prompts), "image patches")
        chunks = _bucket(CHUNKS, max(len(e.frames) for e in prompts), "chunks of sound")
        limits = [min(s.max_tokens, MOST_OUTPUT) for s in samplings]
        most = _bucket(GROWTH, max(limits), "tokens to write")
        batch = padded_batch(prompts, tokens, patches, chunks)
        going = _begin(self.params, self.config, tokens + most, batch, rows, most)
        options = _Options(
            settings=settings(samplings),
            guidance=jnp.array([s.guidance for s in samplings], jnp.float32),
            forced=jnp.array([self._forced(s) for s in samplings], jnp.int32),
            limits=jnp.array(limits, jnp.int32),
            image_out_codes=self.encoder.budget.image_out_codes,
        )
        return going, options

    def _forced(self, s: Sampling) -> tuple[int, int, int]:
        """The first token, and the tokens of a grid's rows and columns, where they are asked for; 0: the model's choice."""
        v, most = self.encoder.vocabulary, self.encoder.budget.image_out_codes
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
            going, options = self._start([examples[i] for i in group], [samplings[i] for i in group])
            going = _run(self.params, self.config, self.encoder.vocabulary, going, options, MOST_OUTPUT)
            for i, tokens in zip(group, np.asarray(going.written), strict=False):
                out[i] = self._answer(tokens.tolist(), samplings[i], len(examples[i].tokens))
        return [answer for answer in out if answer is not None]

    def stream(
        self,
        prompt: Sequence[Content] | Example,
        sampling: Sampling = Sampling(),
        stride: int = 1,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Part | Answer]:
        """Parts as soon as they are certain, then the whole :class:`Answer`.

        ``stride`` tokens are written between two looks at ``cancelled``; where that is true, the stream ends without an answer.
        """
        example = prompt if isinstance(prompt, Example) else self.encode(prompt, rows_of(sampling))
        going, options = self._start([example], [sampling])
        detokenizer, parts, read, done = self._detokenizer(sampling), list[Part](), 0, False
        while not (done or detokenizer.finished):
            if cancelled():
                return
            going = _run(self.params, self.config, self.encoder.vocabulary, going, options, read + stride)
            step, done = int(going.step), bool(going.done[0])
            for token in np.asarray(going.written)[0, read:step].tolist():
                news = detokenizer.feed(token)
                parts += news
                yield from news
            read = step
        rest = detokenizer.flush()
        yield from rest
        yield _answer([*parts, *rest], detokenizer, len(example.tokens))

    # ── 4: tokens to parts ────────────────────────────────────────────────────────────────────────────────

    def _detokenizer(self, sampling: Sampling) -> Detokenizer:
        return Detokenizer(self.encoder.tokenizer, self.encoder.vocabulary, self._image, sampling.stop)

    def _image(self, codes: np.ndarray) -> Image:
        return Image(encode_png(image_tokenizer.decode_codes(self.image_decoder, self.image_decoder_config, codes)))

    def _answer(self, tokens: list[int], sampling: Sampling, prompt_tokens: int) -> Answer:
        detokenizer = self._detokenizer(sampling)
        parts = [part for token in tokens[: sampling.max_tokens] for part in detokenizer.feed(token)]
        return _answer([*parts, *detokenizer.flush()], detokenizer, prompt_tokens)


def _answer(parts: Sequence[Part], detokenizer: Detokenizer, prompt_tokens: int) -> Answer:
    finish: Finish = "stop" if detokenizer.finished else "length"
    return Answer(Content("model", join(parts)), finish, prompt_tokens, detokenizer.count)
