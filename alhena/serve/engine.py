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
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from alhena.batch import Batch, Example
from alhena.content import Content, Image, Part, Tool
from alhena.media import encode_png
from alhena.model import image_tokenizer, model
from alhena.model.config import ImageTokenizer as ImageTokenizerConfig
from alhena.model.config import Model
from alhena.model.folders import load_model
from alhena.model.kv_cache import Cache
from alhena.model.model import decode, prefill
from alhena.model.weights import read_config
from alhena.serve import buckets, image_grammar
from alhena.serve.constraints import Constraints
from alhena.serve.detokenize import Detokenizer
from alhena.serve.sampler import Sampling, SamplingArrays, sample, stack
from alhena.shapes import Array, Bool, Float, Int, pytree
from alhena.tokens.answers import AnswerParser
from alhena.tokens.encode import Encoder
from alhena.tokens.encoders import AnyEncoder, is_own, load_encoder
from alhena.tokens.images import code_grid
from alhena.tokens.text_stream import join

# Height in pixels, larger than any grid, that stands for a requested aspect ratio.
ASPECT_HEIGHT = 1 << 12
Finish = Literal["stop", "length"]


def sequences_per_answer(sampling: Sampling) -> int:
    """Sequences decoded for one answer: with guidance, a second one without the prompt."""
    return 1 if sampling.guidance == 1 else 2


@dataclass(frozen=True)
class TokenLogprobs:
    """The log-probability of a token of an answer, and those of the most likely tokens at its position, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Answer:
    """A complete answer: its parts, why it ended, and token counts; ``thought_tokens`` are part of ``answer_tokens``."""

    content: Content
    finish: Finish
    prompt_tokens: int
    answer_tokens: int
    thought_tokens: int = 0
    # Of each token, where the request asks for them.
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """A conversation up to the model's next turn, the tools that it may call, and whether it thinks first."""

    contents: tuple[Content, ...]
    tools: tuple[Tool, ...] = ()
    thinking: bool = False

    @classmethod
    def of(cls, conversation: Prompt | Sequence[Content]) -> Prompt:
        """A conversation without tools where only its turns are given."""
        return conversation if isinstance(conversation, Prompt) else cls(tuple(conversation))


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
    params: model.Params, c: Model, constraints: Constraints, state: DecodeState, options: DecodeOptions
) -> Int[Array, " R"]:
    """The next token of each answer; constraints, guidance and forced tokens applied."""
    logits, answers = model.logits(params, c, state.hidden), state.done.shape[0]
    phase, forced = state.grammar.phase, options.forced_tokens
    if logits.shape[0] > answers:
        in_image = (phase == image_grammar.CODES)[:, None]
        conditional, unconditional = logits[:answers], logits[answers:]
        guided = unconditional + options.guidance[:, None] * (conditional - unconditional)
        logits = jnp.where(in_image, guided, conditional)
    allowed_tokens = constraints.allowed_tokens(state.grammar, c.vocabulary, options.max_codes)
    if constraints.images:
        for i, due in enumerate((state.step == 0, phase == image_grammar.ROWS, phase == image_grammar.COLUMNS)):
            only_forced = jnp.arange(c.vocabulary) == forced[:, i, None]
            allowed_tokens = jnp.where((due & (forced[:, i] > 0))[:, None], only_forced, allowed_tokens)
    return sample(jnp.where(allowed_tokens, logits, -jnp.inf), options.sampling, state.step)


def _decode_step(
    params: model.Params, c: Model, constraints: Constraints, state: DecodeState, options: DecodeOptions
) -> DecodeState:
    """One more token of each answer."""
    token = _next_tokens(params, c, constraints, state, options)
    token = jnp.where(state.done, constraints.pad, token)
    tokens = state.tokens.at[:, state.step].set(token)
    done = state.done | constraints.ends(token) | (state.step + 1 >= options.max_tokens)
    grammar = constraints.advance(state.grammar, token)
    inputs = jnp.tile(token, state.positions.shape[0] // token.shape[0])
    hidden, cache = decode(params, c, inputs, state.positions, state.cache)
    return DecodeState(hidden, cache, state.positions + 1, grammar, tokens, done, state.step + 1)


@partial(jax.jit, static_argnums=(1, 2), donate_argnums=3)
def _decode(
    params: model.Params,
    c: Model,
    constraints: Constraints,
    state: DecodeState,
    options: DecodeOptions,
    end_step: int | Array,
) -> DecodeState:
    """Generates tokens until all answers are done, or until the step ``end_step``."""
    return jax.lax.while_loop(
        lambda s: ~jnp.all(s.done) & (s.step < end_step),
        lambda s: _decode_step(params, c, constraints, s, options),
        state,
    )


@dataclass(frozen=True)
class ImageDecoder:
    """The image tokenizer of a model that generates images."""

    params: image_tokenizer.Params
    config: ImageTokenizerConfig

    def __call__(self, codes: Int[np.ndarray, "rows columns"]) -> Image:
        return Image(encode_png(image_tokenizer.decode_codes(self.params, self.config, codes)))


def _load_own(folder: Path) -> tuple[Encoder, ImageDecoder]:
    """Encoder and image decoder of one of our own models. Raises ValueError when their files do not fit together."""
    params, c = image_tokenizer.load(folder)
    encode_images = partial(image_tokenizer.encode_images, params, c, batch=1)
    encoder = Encoder.load(folder, lambda images: encode_images(list(images)))
    if c.num_codes != encoder.vocabulary.num_codes:
        raise ValueError(
            f"{folder}: files of two models: image_tokenizer.json has {c.num_codes} codes, "
            f"vocabulary.json {encoder.vocabulary.num_codes}"
        )
    return encoder, ImageDecoder(params, c)


@dataclass(frozen=True)
class Engine:
    """A loaded model that generates answers."""

    params: model.Params
    config: Model
    encoder: AnyEncoder
    # None: the model generates no images.
    image_decoder: ImageDecoder | None
    name: str

    @classmethod
    def load(cls, folder: Path) -> Engine:
        """Raises ValueError that names the file when the folder is no complete model."""
        params, c = load_model(folder)
        encoder, image_decoder = _load_own(folder) if is_own(folder) else (load_encoder(folder), None)
        try:
            encoder.check(c)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
        name = str(read_config(folder)[1].get("name", folder.name))
        return cls(params, c, encoder, image_decoder, name)

    @cached_property
    def constraints(self) -> Constraints:
        return Constraints.of(self.encoder, self.config)

    @property
    def max_prompt_tokens(self) -> int:
        return buckets.MAX_PROMPT_TOKENS if isinstance(self.encoder, Encoder) else self.encoder.settings.context

    @property
    def default_sampling(self) -> Sampling:
        """How answers are sampled where a request does not say it: greedily, or as the publisher of the weights recommends."""
        if isinstance(self.encoder, Encoder):
            return Sampling()
        s = self.encoder.settings
        return Sampling(s.temperature, s.top_k, s.top_p, max_tokens=buckets.IMPORTED_OUTPUT_TOKENS)

    # ── 1: prompts to batches ─────────────────────────────────────────────────────────────────────────────

    def encode(self, prompt: Prompt | Sequence[Content], sampling: Sampling = Sampling()) -> Example:
        """The prompt of a conversation.

        Raises ValueError when its media do not decode, it is too long, or the model cannot answer it in the requested way.
        """
        self._check(sampling)
        example = self._example(prompt)
        buckets.check_fits(example, self.config, sequences_per_answer(sampling), self.max_prompt_tokens)
        return example

    def _example(self, conversation: Prompt | Sequence[Content]) -> Example:
        prompt = Prompt.of(conversation)
        return self.encoder.prompt(prompt.contents, prompt.tools, prompt.thinking)

    def _start(self, prompts: list[Example], samplings: list[Sampling]) -> tuple[DecodeState, DecodeOptions]:
        """Prefills a batch of prompts, padded to a fixed batch size with copies of the first."""
        answers = buckets.bucket(buckets.BATCH_SIZES, len(prompts), "sequences")
        prompts = prompts + [prompts[0]] * (answers - len(prompts))
        samplings = samplings + [samplings[0]] * (answers - len(samplings))
        if any(s.guidance != 1 for s in samplings):
            prompts = prompts + [self._example([Content("user", ())])] * answers
        batch = buckets.padded(prompts)
        max_tokens = [min(s.max_tokens, buckets.MAX_OUTPUT_TOKENS) for s in samplings]
        max_output = buckets.bucket(buckets.OUTPUTS, max(max_tokens), "output tokens")
        slots = batch.tokens.shape[1] + max_output
        state = _prefill(self.params, self.config, slots, batch, answers, max_output)
        options = DecodeOptions(
            sampling=stack(samplings),
            guidance=jnp.array([s.guidance for s in samplings], jnp.float32),
            forced_tokens=jnp.array([self._forced_tokens(s) for s in samplings], jnp.int32),
            max_tokens=jnp.array(max_tokens, jnp.int32),
            max_codes=self.encoder.budget.image_out_codes if isinstance(self.encoder, Encoder) else 0,
        )
        return state, options

    def _check(self, s: Sampling) -> None:
        """Raises ValueError for settings of generated images where the model generates none."""
        if self.image_decoder is None and (s.image_first or s.aspect is not None or s.guidance != 1):
            raise ValueError("this model generates no images: ask it for text only")

    def _forced_tokens(self, s: Sampling) -> tuple[int, int, int]:
        """The first token, and the tokens of a grid's rows and columns, where they are requested; 0: not forced."""
        if not isinstance(self.encoder, Encoder):
            return 0, 0, 0
        v = self.encoder.vocabulary
        first = v.control("<boi_out>") if s.image_first else 0
        if s.aspect is None:
            return first, 0, 0
        rows, columns = code_grid(ASPECT_HEIGHT, round(ASPECT_HEIGHT * s.aspect), self.encoder.budget.image_out_codes)
        return first, v.rows(rows), v.columns(columns)

    # ── 2 and 3: prefill and decode ───────────────────────────────────────────────────────────────────────

    def generate(
        self, prompts: Sequence[Prompt | Sequence[Content]], sampling: Sampling | Sequence[Sampling] = Sampling()
    ) -> list[Answer]:
        """Answers each conversation; an answer does not depend on the others in its batch."""
        samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        for s in samplings:
            self._check(s)
        examples = [self._example(prompt) for prompt in prompts]

        def cost(i: int) -> tuple[bool, int, int, int]:
            return (
                samplings[i].guidance != 1,
                len(examples[i].frames),
                len(examples[i].patches),
                len(examples[i].tokens),
            )

        order = sorted(range(len(prompts)), key=cost)
        out: list[Answer | None] = [None] * len(prompts)
        for start in range(0, len(order), buckets.BATCH_SIZES[-1]):
            group = order[start : start + buckets.BATCH_SIZES[-1]]
            state, options = self._start([examples[i] for i in group], [samplings[i] for i in group])
            state = _decode(self.params, self.config, self.constraints, state, options, buckets.MAX_OUTPUT_TOKENS)
            for i, tokens in zip(group, np.asarray(state.tokens), strict=False):
                out[i] = self._answer(tokens.tolist(), samplings[i], examples[i])
        return [answer for answer in out if answer is not None]

    def stream(
        self,
        prompt: Prompt | Sequence[Content] | Example,
        sampling: Sampling = Sampling(),
        stride: int = 1,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Part | Answer]:
        """Parts as soon as they are final, then the complete :class:`Answer`.

        ``cancelled`` is called every ``stride`` tokens; when it returns True, the stream ends without an answer.
        """
        if not isinstance(prompt, Example):
            prompt = self.encode(prompt, sampling)
        state, options = self._start([prompt], [sampling])
        parser, parts, step, done = self._parser(prompt, sampling), list[Part](), 0, False
        while not (done or parser.finished):
            if cancelled():
                return
            state = _decode(self.params, self.config, self.constraints, state, options, step + stride)
            previous, step, done = step, int(state.step), bool(state.done[0])
            for token in np.asarray(state.tokens)[0, previous:step].tolist():
                delta = parser.feed(token)
                parts += delta
                yield from delta
        rest = parser.flush()
        yield from rest
        yield _answer([*parts, *rest], parser, len(prompt.tokens))

    # ── 4: tokens to parts ────────────────────────────────────────────────────────────────────────────────

    def _parser(self, prompt: Example, sampling: Sampling) -> Detokenizer | AnswerParser:
        if not isinstance(self.encoder, Encoder):
            return self.encoder.parser(prompt.tokens, sampling.stop)
        assert self.image_decoder is not None
        return Detokenizer(self.encoder.tokenizer, self.encoder.vocabulary, self.image_decoder, sampling.stop)

    def _answer(self, tokens: list[int], sampling: Sampling, prompt: Example) -> Answer:
        parser = self._parser(prompt, sampling)
        parts = [part for token in tokens[: sampling.max_tokens] for part in parser.feed(token)]
        return _answer([*parts, *parser.flush()], parser, len(prompt.tokens))


def _answer(parts: Sequence[Part], parser: Detokenizer | AnswerParser, prompt_tokens: int) -> Answer:
    finish: Finish = "stop" if parser.finished else "length"
    return Answer(Content("model", join(parts)), finish, prompt_tokens, parser.count, parser.thought_count)
