"""The engine: prompts in, answers out.

    1  a prompt becomes an Example: tokens, and the patches and frames of its media
    2  it joins the running batch: its prompt is read, then every step takes a token of each answer (alhena/serve/decoding/batching.py)
    3  tokens become parts again: text tokens to text, complete grids of image codes to images

``generate`` waits for the answers of many prompts, ``stream`` gives the parts of one as they come, the server's scheduler those of all
its clients: the same jobs in the same slots, and the same answers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from alhena.batch import Example
from alhena.content import Content, Image, Part, Tool
from alhena.media import encode_png
from alhena.model import image_tokenizer, model
from alhena.model.config import ImageTokenizer as ImageTokenizerConfig
from alhena.model.config import Model
from alhena.model.storage.folders import load_model
from alhena.model.storage.weights import read_config
from alhena.serve.answer import Answer, Finish, Prompt, TokenLogprobs
from alhena.serve.decoding import buckets
from alhena.serve.decoding.batching import RunningBatch
from alhena.serve.decoding.jobs import Matcher
from alhena.serve.decoding.memory import cache_budget
from alhena.serve.decoding.pages import PagePlan, plan_pages
from alhena.serve.decoding.sampling.constraints import Constraints
from alhena.serve.decoding.sampling.detokenize import Detokenizer
from alhena.serve.decoding.sampling.sampler import Sampling, sequences_per_answer
from alhena.serve.decoding.sequence import PromptPlan, max_chunk
from alhena.serve.decoding.slots import MAX_STEPS
from alhena.serve.decoding.speculative.batch import SpeculativeBatch
from alhena.serve.decoding.speculative.draft import Draft, DraftSource
from alhena.serve.structured.matcher import Compiler
from alhena.shapes import Int
from alhena.tokens.encode import Encoder
from alhena.tokens.encoders import AnyEncoder, is_own, load_encoder
from alhena.tokens.formats.answers import AnswerParser
from alhena.tokens.images import code_grid

__all__ = ["Answer", "Engine", "Finish", "ImageDecoder", "Prefix", "Prompt", "TokenLogprobs"]

# Height in pixels, larger than any grid, that stands for a requested aspect ratio.
ASPECT_HEIGHT = 1 << 12
# Sequences that are generated at a time.
SLOTS = 16
# The cache of a draft has at most this part of the bytes of that of its target.
DRAFT_CACHE = 4
_lock = threading.Lock()


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


@dataclass
class _LocalJob:
    """A job of the calling thread, which takes its items one after the other."""

    example: Example
    sampling: Sampling
    tools: tuple[Tool, ...] = ()
    stride: int = MAX_STEPS
    cancelled: bool = False
    items: deque[Part | Answer | Exception] = field(default_factory=deque)

    def put(self, item: Part | Answer | Exception) -> None:
        self.items.append(item)

    def is_cancelled(self) -> bool:
        return self.cancelled

    @property
    def is_done(self) -> bool:
        return bool(self.items) and isinstance(self.items[-1], Answer | Exception)

    @property
    def last(self) -> Answer | Exception:
        item = self.items[-1]
        assert isinstance(item, Answer | Exception)
        return item


@dataclass(frozen=True)
class Prefix:
    """The beginning of prompts whose keys and values are kept in the cache once a prompt has them, until ``free``."""

    tokens: int
    # What is kept: full pages.
    keys: tuple[bytes, ...]
    _free: Callable[[], None]

    def free(self) -> None:
        self._free()


@dataclass(frozen=True)
class Engine:
    """A loaded model that generates answers."""

    params: model.Params
    config: Model
    encoder: AnyEncoder
    # None: the model generates no images.
    image_decoder: ImageDecoder | None
    name: str
    # The batch size: every answer is generated in it, alone and in a crowd.
    slots: int = SLOTS
    # Bytes of the key-value cache; None: a share of the memory.
    cache_bytes: int | None = None
    # Its dtype: "int8" rounds keys and values, so that as many bytes hold about twice the tokens; None: that of the model.
    cache_dtype: str | None = None
    # Proposes tokens of the answers (alhena/serve/decoding/speculative/rounds.py).
    draft: Draft | None = None

    @classmethod
    def load(
        cls,
        folder: Path,
        slots: int = SLOTS,
        cache_bytes: int | None = None,
        cache_dtype: str | None = None,
        draft: DraftSource | None = None,
    ) -> Engine:
        """Raises ValueError that names the file when a folder is no complete model, or the draft's vocabulary is another."""
        params, c = load_model(folder)
        encoder, image_decoder = _load_own(folder) if is_own(folder) else (load_encoder(folder), None)
        try:
            encoder.check(c)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
        name = str(read_config(folder)[1].get("name", folder.name))
        loaded = Draft.load(draft, encoder) if draft else None
        return cls(params, c, encoder, image_decoder, name, slots, cache_bytes, cache_dtype, loaded)

    @cached_property
    def constraints(self) -> Constraints:
        return Constraints.of(self.encoder, self.config)

    @cached_property
    def _batch(self) -> RunningBatch:
        if self.draft is None:
            return RunningBatch(self)
        budget = cache_budget() // DRAFT_CACHE if self.cache_bytes is None else self.cache_bytes
        return SpeculativeBatch(self, self.draft, budget)

    @property
    def batch(self) -> RunningBatch:
        """The running batch, made when it is first used."""
        with _lock:
            return self._batch

    @cached_property
    def page_plan(self) -> PagePlan:
        context = buckets.MAX_PROMPT_TOKENS if isinstance(self.encoder, Encoder) else self.encoder.settings.context
        budget = cache_budget() if self.cache_bytes is None else self.cache_bytes
        return plan_pages(self.config, self.slots, context, max_chunk(self.config), budget, self.cache_dtype)

    @property
    def max_prompt_tokens(self) -> int:
        return self.page_plan.context

    @property
    def max_codes(self) -> int:
        return self.encoder.budget.image_out_codes if isinstance(self.encoder, Encoder) else 0

    @property
    def default_sampling(self) -> Sampling:
        """How answers are sampled where a request does not say it: greedily, or as the publisher of the weights recommends."""
        if isinstance(self.encoder, Encoder):
            return Sampling()
        s = self.encoder.settings
        return Sampling(s.temperature, s.top_k, s.top_p, max_tokens=buckets.IMPORTED_OUTPUT_TOKENS)

    # ── 1: prompts ────────────────────────────────────────────────────────────────────────────────────────

    def encode(self, prompt: Prompt | Sequence[Content], sampling: Sampling = Sampling()) -> Example:
        """The prompt of a conversation.

        Raises ValueError when its media do not decode, it is too long, the model cannot answer it in the requested way, or the form
        of the answer cannot be enforced.
        """
        if self.image_decoder is None and (
            sampling.image_first or sampling.aspect is not None or sampling.guidance != 1
        ):
            raise ValueError("this model generates no images: ask it for text only")
        example = self._example(prompt)
        self.check(example, sequences_per_answer(sampling))
        self.matcher(example, sampling, Prompt.of(prompt).tools)
        return example

    def check(self, example: Example, sequences: int = 1) -> None:
        """Raises ValueError when a prompt has media that the model does not read, or is too long for it."""
        buckets.check_fits(example, self.config, sequences, self.max_prompt_tokens)

    def _example(self, conversation: Prompt | Sequence[Content]) -> Example:
        prompt = Prompt.of(conversation)
        return self.encoder.prompt(prompt.contents, prompt.tools, prompt.thinking)

    def unconditional(self) -> Example:
        """The prompt of the second sequence of classifier-free guidance."""
        return self._example([Content("user", ())])

    def forced_tokens(self, s: Sampling) -> tuple[int, int, int]:
        """The first token, and the tokens of a grid's rows and columns, where they are requested; 0: not forced."""
        if not isinstance(self.encoder, Encoder):
            return 0, 0, 0
        v = self.encoder.vocabulary
        first = v.control("<boi_out>") if s.image_first else 0
        if s.aspect is None:
            return first, 0, 0
        rows, columns = code_grid(ASPECT_HEIGHT, round(ASPECT_HEIGHT * s.aspect), self.encoder.budget.image_out_codes)
        return first, v.rows(rows), v.columns(columns)

    def prefix(self, example: Example) -> Prefix:
        """Keeps the beginning of prompts that begin as ``example`` does. Raises ValueError when the cache has no room for it."""
        keys = tuple(PromptPlan.of(example, self.config).keys)
        self.batch.pages.pin(keys)
        return Prefix(len(example.tokens), keys, partial(self.batch.pages.unpin, keys))

    # ── 2: the running batch ──────────────────────────────────────────────────────────────────────────────

    def generate(
        self, prompts: Sequence[Prompt | Sequence[Content]], sampling: Sampling | Sequence[Sampling] = Sampling()
    ) -> list[Answer]:
        """Answers each conversation; an answer does not depend on the others."""
        samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        jobs = [_LocalJob(self.encode(p, s), s, Prompt.of(p).tools) for p, s in zip(prompts, samplings, strict=True)]
        return [_answer_of(item) for item in self._run(jobs, self.batch.add)]

    def answers(
        self, prompts: Sequence[tuple[Example, Sampling]], advance: Callable[[int], None] = lambda done: None
    ) -> list[Answer | Exception]:
        """The answer to each encoded prompt, or why there is none. ``advance`` is called with the number of answers that became ready.

        Prompts are read in groups of a fixed size, so that matmuls may round otherwise than those of a prompt that is read alone.
        """
        jobs = [_LocalJob(example, sampling) for example, sampling in prompts]

        def add(job: _LocalJob) -> None:
            try:
                self.batch.add(job)
            except ValueError as error:
                job.put(error)

        return self._run(jobs, add, advance, in_groups=True)

    def _run(
        self,
        jobs: Sequence[_LocalJob],
        add: Callable[[_LocalJob], None],
        advance: Callable[[int], None] = lambda done: None,
        in_groups: bool = False,
    ) -> list[Answer | Exception]:
        """The last item of each job, once all are done."""
        done = 0
        try:
            for job in jobs:
                add(job)
            while (ready := sum(job.is_done for job in jobs)) < len(jobs):
                advance(ready - done)
                done = ready
                self.batch.step(in_groups)
            advance(ready - done)
        finally:
            for job in jobs:
                job.cancelled = True
        return [job.last for job in jobs]

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
        example = prompt if isinstance(prompt, Example) else self.encode(prompt, sampling)
        job = _LocalJob(example, sampling, () if isinstance(prompt, Example) else Prompt.of(prompt).tools, stride)
        self.batch.add(job)
        try:
            while not cancelled():
                while job.items:
                    item = job.items.popleft()
                    if isinstance(item, Exception):
                        raise item
                    yield item
                    if isinstance(item, Answer):
                        return
                self.batch.step()
        finally:
            job.cancelled = True

    # ── 3: tokens to parts ────────────────────────────────────────────────────────────────────────────────

    def parser(self, prompt: Example, sampling: Sampling) -> Detokenizer | AnswerParser:
        if not isinstance(self.encoder, Encoder):
            return self.encoder.parser(prompt.tokens, sampling.stop)
        assert self.image_decoder is not None
        return Detokenizer(self.encoder.tokenizer, self.encoder.vocabulary, self.image_decoder, sampling.stop)

    @cached_property
    def _compiler(self) -> Compiler:
        return Compiler(self.encoder, self.config.vocabulary)

    def matcher(self, prompt: Example, sampling: Sampling, tools: tuple[Tool, ...] = ()) -> Matcher | None:
        """What enforces the form of an answer; None: it is free. Raises ValueError for a form that cannot be enforced."""
        if sampling.output is None:
            return None
        return self._compiler.matcher(sampling.output, tools, prompt.tokens.tolist())

    def thought_end(self) -> tuple[int, ...]:
        """The tokens that end a thought; none where the model does not think."""
        if isinstance(self.encoder, Encoder):
            return ()
        end, settings = self.encoder.settings.controls.get("channel_end"), self.encoder.settings
        if end is None:
            return ()
        line_end = self.encoder.tokenizer.encode("\n") if settings.variants.thought_line_end else []
        return (*line_end, end)


def _answer_of(item: Answer | Exception) -> Answer:
    if isinstance(item, Exception):
        raise item
    return item
