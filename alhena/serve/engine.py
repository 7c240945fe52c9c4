"""The engine: prompts in, answers out.

    1  prompts become Examples; prompts of similar length share a batch of a few fixed shapes (few compilations)
    2  prefill reads all prompts at once into the key-value cache
    3  a jitted loop samples, advances the image grammar, and decodes one token of each sequence until all have ended
    4  tokens become parts again: text tokens to text, complete grids of image codes to images

``stream`` does the same a few tokens at a time, and gives the same answer.
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
from alhena.model import image_tokenizer, model
from alhena.model.config import ImageTokenizer as ImageTokenizerConfig
from alhena.model.config import Model, Vision
from alhena.model.kv_cache import Cache
from alhena.model.model import decode, prefill
from alhena.model.weights import load_model, read_config
from alhena.serve import image_grammar
from alhena.serve.detokenize import Detokenizer, join
from alhena.serve.sampler import Sampling, SamplingArrays, sample, stack
from alhena.shapes import Array, Bool, Float, Int, pytree
from alhena.tokens.encode import Encoder
from alhena.tokens.images import code_grid
from alhena.tokens.loader import padded_batch
from alhena.tokens.vocabulary import Vocabulary

# Sizes to which prompts, batches and outputs are padded: one compilation for each combination in use.
TOKEN_BUCKETS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
PATCH_BUCKETS = (0, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
CHUNK_BUCKETS = (0, 1, 2, 4, 8, 32, 128, 1024)
BATCH_SIZES = (1, 8, 32)
OUTPUT_BUCKETS = (32, 128, 256, 1024, 4096)
# A request for more output tokens gets this many.
MAX_OUTPUT_TOKENS = OUTPUT_BUCKETS[-1]
# Bytes of the attention scores of one request's images.
MAX_VISION_BYTES = 1 << 30
# Height in pixels, larger than any grid, that stands for a requested aspect ratio.
ASPECT_HEIGHT = 1 << 12
Finish = Literal["stop", "length"]


def _bucket(sizes: Sequence[int], needed: int, what: str) -> int:
    """The smallest size that holds ``needed``. Raises ValueError when none does."""
    for size in sizes:
        if needed <= size:
            return size
    raise ValueError(f"the prompt has {needed:,} {what}; at most {sizes[-1]:,} can be read")


def max_patches(c: Vision | None, sequences: int = 1) -> int:
    """Image patches that one prompt may have: attention of the vision encoder is squared over all its images together.

    Scores, weights and their operands are three arrays of float32 a head.

    >>> [max_patches(Vision(96, 2, heads, 64)) for heads in (1, 4, 12)]
    [8192, 4096, 2048]
    """
    return 0 if c is None else max(n for n in PATCH_BUCKETS if sequences * n * n * 12 * c.heads <= MAX_VISION_BYTES)


def sequences_per_answer(sampling: Sampling) -> int:
    """Sequences decoded for one answer: with guidance, a second one without the prompt."""
    return 1 if sampling.guidance == 1 else 2


@dataclass(frozen=True)
class Answer:
    """A complete answer: its parts, why it ended, and token counts."""

    content: Content
    finish: Finish
    prompt_tokens: int
    answer_tokens: int


@pytree
@dataclass(frozen=True)
class DecodeState:
    """State of generation: R answers, B sequences. B is R, or with guidance 2·R, the second half unconditioned."""

    hidden: Float[Array, "B D"]
    cache: Cache
    positions: Int[Array, " B"]
    # Of R sequences.
    grammar: image_grammar.Grammar
    # Generated tokens, up to O of each answer.
    tokens: Int[Array, "R O"]
    done: Bool[Array, " R"]
    step: Int[Array, ""]


@partial(jax.jit, static_argnums=(1, 2, 4, 5))
def _prefill(params: model.Params, c: Model, slots: int, batch: Batch, answers: int, max_output: int) -> DecodeState:
    hidden, cache = prefill(params, c, batch, slots)
    lengths = (batch.segments > 0).sum(1).astype(jnp.int32)
    tokens = jnp.zeros((answers, max_output), jnp.int32)
    grammar, done = image_grammar.start(answers), jnp.zeros(answers, bool)
    return DecodeState(hidden, cache, lengths, grammar, tokens, done, jnp.zeros((), jnp.int32))


@pytree
@dataclass(frozen=True)
class DecodeOptions:
    """How the next tokens of R answers are chosen, and how many there may be."""

    sampling: SamplingArrays
    guidance: Float[Array, " R"]
    # The first token, and those of a grid's rows and columns; 0: not forced.
    forced_tokens: Int[Array, "R 3"]
    max_tokens: Int[Array, " R"]
    # Codes of one image.
    max_codes: int = field(metadata={"static": True})


def _next_tokens(
    params: model.Params, c: Model, v: Vocabulary, state: DecodeState, options: DecodeOptions
) -> Int[Array, " R"]:
    """The next token of each answer; grammar, guidance and forced tokens applied."""
    logits, answers = model.logits(params, c, state.hidden), state.done.shape[0]
    phase, forced = state.grammar.phase, options.forced_tokens
    if logits.shape[0] > answers:
        in_image = (phase == image_grammar.CODES)[:, None]
        conditional, unconditional = logits[:answers], logits[answers:]
        guided = unconditional + options.guidance[:, None] * (conditional - unconditional)
        logits = jnp.where(in_image, guided, conditional)
    allowed_tokens = image_grammar.allowed_tokens(state.grammar, v, options.max_codes)
    for i, due in enumerate((state.step == 0, phase == image_grammar.ROWS, phase == image_grammar.COLUMNS)):
        only_forced = jnp.arange(v.size) == forced[:, i, None]
        allowed_tokens = jnp.where((due & (forced[:, i] > 0))[:, None], only_forced, allowed_tokens)
    return sample(jnp.where(allowed_tokens, logits, -jnp.inf), options.sampling, state.step)


def _decode_step(
    params: model.Params, c: Model, v: Vocabulary, state: DecodeState, options: DecodeOptions
) -> DecodeState:
    """One more token of each answer."""
    token = _next_tokens(params, c, v, state, options)
    token = jnp.where(state.done, v.pad, token)
    tokens = state.tokens.at[:, state.step].set(token)
    done = state.done | (token == v.end) | (state.step + 1 >= options.max_tokens)
    grammar = image_grammar.advance(state.grammar, token, v)
    inputs = jnp.tile(token, state.positions.shape[0] // token.shape[0])
    hidden, cache = decode(params, c, inputs, state.positions, state.cache)
    return DecodeState(hidden, cache, state.positions + 1, grammar, tokens, done, state.step + 1)


@partial(jax.jit, static_argnums=(1, 2), donate_argnums=3)
def _decode(
    params: model.Params, c: Model, v: Vocabulary, state: DecodeState, options: DecodeOptions, end_step: int | Array
) -> DecodeState:
    """Generates tokens until all answers are done, or until the step ``end_step``."""
    return jax.lax.while_loop(
        lambda s: ~jnp.all(s.done) & (s.step < end_step), lambda s: _decode_step(params, c, v, s, options), state
    )


@dataclass(frozen=True)
class Engine:
    """A loaded model that generates answers."""

    params: model.Params
    config: Model
    encoder: Encoder
    image_decoder: image_tokenizer.Params
    image_decoder_config: ImageTokenizerConfig
    name: str

    @classmethod
    def load(cls, folder: Path) -> Engine:
        """Raises ValueError that names the file when the folder is no complete model."""
        params, c = load_model(folder)
        image_decoder, image_config = image_tokenizer.load(folder)
        encode_images = partial(image_tokenizer.encode_images, image_decoder, image_config, batch=1)
        encoder = Encoder.load(folder, lambda images: encode_images(list(images)))
        try:
            encoder.check(c)
            if image_config.num_codes != encoder.vocabulary.num_codes:
                raise ValueError(
                    f"files of two models: image_tokenizer.json has {image_config.num_codes} codes, "
                    f"vocabulary.json {encoder.vocabulary.num_codes}"
                )
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
        name = str(read_config(folder)[1].get("name", folder.name))
        return cls(params, c, encoder, image_decoder, image_config, name)

    # ── 1: prompts to batches ─────────────────────────────────────────────────────────────────────────────

    def encode(self, contents: Sequence[Content], sequences: int = 1) -> Example:
        """The prompt of a conversation. Raises ValueError when its media do not decode, or it is too long for the model.

        ``sequences`` are prefilled at once for it; the memory of the vision encoder grows with their number.
        """
        example, c = self.encoder.prompt(contents), self.config
        if len(example.patches) and c.vision is None:
            raise ValueError("this model reads no images and no video")
        if len(example.frames) and c.audio is None:
            raise ValueError("this model reads no audio")
        _bucket(TOKEN_BUCKETS, len(example.tokens), "tokens")
        _bucket(CHUNK_BUCKETS, len(example.frames), "audio chunks")
        limit = max_patches(c.vision, sequences)
        if len(example.patches) > limit:
            raise ValueError(
                f"the images of the prompt have {len(example.patches):,} patches; "
                f"at most {limit:,} can be read at once: send fewer or smaller images"
            )
        return example

    def _start(self, prompts: list[Example], samplings: list[Sampling]) -> tuple[DecodeState, DecodeOptions]:
        """Prefills a batch of prompts, padded to a fixed batch size with copies of the first."""
        answers = _bucket(BATCH_SIZES, len(prompts), "sequences")
        prompts = prompts + [prompts[0]] * (answers - len(prompts))
        samplings = samplings + [samplings[0]] * (answers - len(samplings))
        if any(s.guidance != 1 for s in samplings):
            prompts = prompts + [self.encoder.prompt([Content("user", ())])] * answers
        tokens = _bucket(TOKEN_BUCKETS, max(len(e.tokens) for e in prompts), "tokens")
        patches = _bucket(PATCH_BUCKETS, max(len(e.patches) for e in prompts), "image patches")
        chunks = _bucket(CHUNK_BUCKETS, max(len(e.frames) for e in prompts), "audio chunks")
        max_tokens = [min(s.max_tokens, MAX_OUTPUT_TOKENS) for s in samplings]
        max_output = _bucket(OUTPUT_BUCKETS, max(max_tokens), "output tokens")
        batch = padded_batch(prompts, tokens, patches, chunks)
        state = _prefill(self.params, self.config, tokens + max_output, batch, answers, max_output)
        options = DecodeOptions(
            sampling=stack(samplings),
            guidance=jnp.array([s.guidance for s in samplings], jnp.float32),
            forced_tokens=jnp.array([self._forced_tokens(s) for s in samplings], jnp.int32),
            max_tokens=jnp.array(max_tokens, jnp.int32),
            max_codes=self.encoder.budget.image_out_codes,
        )
        return state, options

    def _forced_tokens(self, s: Sampling) -> tuple[int, int, int]:
        """The first token, and the tokens of a grid's rows and columns, where they are requested; 0: not forced."""
        v = self.encoder.vocabulary
        first = v.control("<boi_out>") if s.image_first else 0
        if s.aspect is None:
            return first, 0, 0
        rows, columns = code_grid(ASPECT_HEIGHT, round(ASPECT_HEIGHT * s.aspect), self.encoder.budget.image_out_codes)
        return first, v.rows(rows), v.columns(columns)

    # ── 2 and 3: prefill and decode ───────────────────────────────────────────────────────────────────────

    def generate(
        self, prompts: Sequence[Sequence[Content]], sampling: Sampling | Sequence[Sampling] = Sampling()
    ) -> list[Answer]:
        """Answers each conversation; an answer does not depend on the others in its batch."""
        samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        examples = [self.encoder.prompt(contents) for contents in prompts]

        def cost(i: int) -> tuple[bool, int, int, int]:
            return (
                samplings[i].guidance != 1,
                len(examples[i].frames),
                len(examples[i].patches),
                len(examples[i].tokens),
            )

        order = sorted(range(len(prompts)), key=cost)
        out: list[Answer | None] = [None] * len(prompts)
        for start in range(0, len(order), BATCH_SIZES[-1]):
            group = order[start : start + BATCH_SIZES[-1]]
            state, options = self._start([examples[i] for i in group], [samplings[i] for i in group])
            state = _decode(self.params, self.config, self.encoder.vocabulary, state, options, MAX_OUTPUT_TOKENS)
            for i, tokens in zip(group, np.asarray(state.tokens), strict=False):
                out[i] = self._answer(tokens.tolist(), samplings[i], len(examples[i].tokens))
        return [answer for answer in out if answer is not None]

    def stream(
        self,
        prompt: Sequence[Content] | Example,
        sampling: Sampling = Sampling(),
        stride: int = 1,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Part | Answer]:
        """Parts as soon as they are final, then the complete :class:`Answer`.

        ``cancelled`` is called every ``stride`` tokens; when it returns True, the stream ends without an answer.
        """
        example = prompt if isinstance(prompt, Example) else self.encode(prompt, sequences_per_answer(sampling))
        state, options = self._start([example], [sampling])
        detokenizer, parts, step, done = self._detokenizer(sampling), list[Part](), 0, False
        while not (done or detokenizer.finished):
            if cancelled():
                return
            state = _decode(self.params, self.config, self.encoder.vocabulary, state, options, step + stride)
            previous, step, done = step, int(state.step), bool(state.done[0])
            for token in np.asarray(state.tokens)[0, previous:step].tolist():
                delta = detokenizer.feed(token)
                parts += delta
                yield from delta
        rest = detokenizer.flush()
        yield from rest
        yield _answer([*parts, *rest], detokenizer, len(example.tokens))

    # ── 4: tokens to parts ────────────────────────────────────────────────────────────────────────────────

    def _detokenizer(self, sampling: Sampling) -> Detokenizer:
        return Detokenizer(self.encoder.tokenizer, self.encoder.vocabulary, self._decode_image, sampling.stop)

    def _decode_image(self, codes: Int[np.ndarray, "rows columns"]) -> Image:
        return Image(encode_png(image_tokenizer.decode_codes(self.image_decoder, self.image_decoder_config, codes)))

    def _answer(self, tokens: list[int], sampling: Sampling, prompt_tokens: int) -> Answer:
        detokenizer = self._detokenizer(sampling)
        parts = [part for token in tokens[: sampling.max_tokens] for part in detokenizer.feed(token)]
        return _answer([*parts, *detokenizer.flush()], detokenizer, prompt_tokens)


def _answer(parts: Sequence[Part], detokenizer: Detokenizer, prompt_tokens: int) -> Answer:
    finish: Finish = "stop" if detokenizer.finished else "length"
    return Answer(Content("model", join(parts)), finish, prompt_tokens, detokenizer.count)
