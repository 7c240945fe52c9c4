"""Distillation: a student learns, beside the targets, the distribution that a teacher predicts at every position (Hinton et al. 2015).

    batch ─► teacher ─► hidden states [B, L, E]: the complete distribution, given the teacher's embedding
                   or ─► ids and probabilities [B, L, k] of its most probable or of k sampled tokens (Gemma 3) ─► loss

Teacher and student read the same batches, media and image codes included, so they share tokenizers, vocabulary and the sizes of patches
and frames. The loss is that of alhena/train/chunk_loss.py. The teacher's outputs are computed beside each step, or read from a cache
on the disk: exactly the same arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alhena.batch import Batch
from alhena.compress.teacher_cache import TeacherCache
from alhena.files import content_fingerprint, fingerprint
from alhena.model import config, image_tokenizer, model, sharding, spec
from alhena.model.linear import dense
from alhena.model.lora import is_weight
from alhena.model.storage.folders import load_model
from alhena.recovery.checksum import checksums
from alhena.schema import bounded
from alhena.shapes import Array, Float
from alhena.tokens.encode import Encoder
from alhena.tokens.encoders import VOCABULARY, encoder_files, load_encoder
from alhena.tokens.examples.padding import BatchShape
from alhena.tokens.examples.store import Examples
from alhena.tokens.gemma_encoder import PROMPT
from alhena.tokens.text.tokenizer import Tokenizer
from alhena.tokens.vocabulary import Vocabulary
from alhena.train.chunk_loss import LossOptions, Mix, SoftTargets, TeacherHidden, TeacherTokens
from alhena.train.loss import Lesson, LossSums, Teaching, batch_loss, chunk_size
from alhena.train.monitoring.validation import validate


@dataclass(frozen=True)
class Distill:
    """Settings of a distillation.

    All ``tokens`` are the teacher's complete distribution, for which the student's steps read the teacher's embedding and E numbers a
    position. A few of them, sampled or the most probable, need 2k numbers and no embedding.
    """

    # A model folder: of full precision or 4-bit, own or imported.
    teacher: Path
    mix: Mix = Mix()
    # Tokens of the teacher's distribution that a position learns; None: all.
    tokens: int | None = None
    # Whether these are drawn from the distribution, without replacement, or its most probable ones.
    sampled: bool = True
    # Folder for the teacher's outputs, and the most that it may hold; None: they are computed in every run.
    cache: Path | None = None
    cache_bytes: int = 10 * 2**30

    def __post_init__(self) -> None:
        bounded(self, tokens=(1, 2**16), cache_bytes=(0, 2**50))

    def identity(self) -> str:
        """Fingerprint of the teacher's files and of the settings; not of the cache."""
        return fingerprint("distill", content_fingerprint(self.teacher), self.mix, self.tokens, self.sampled)


@dataclass(frozen=True)
class Teacher:
    """A model whose outputs are learned; its weights are dequantized."""

    params: model.Params
    c: config.Model


def load_teacher(folder: Path) -> Teacher:
    """The model of a folder. Raises ValueError that names the file."""
    params, c = load_model(folder)
    return Teacher(jax.tree.map(lambda w: dense(w) if is_weight(w) else w, params, is_leaf=is_weight), c)


def tokenizers_of(teacher: Path) -> tuple[Tokenizer, Vocabulary, config.ImageTokenizer]:
    """Text tokenizer, vocabulary and image tokenizer of a teacher from whose tokens a new model is trained.

    Raises ValueError when it is not of our own format.
    """
    encoder = load_encoder(teacher)
    if not isinstance(encoder, Encoder):
        raise ValueError(
            f"{teacher}: an imported model; it can teach one with the same tokenizer (alhena tune --teacher), not a new one"
        )
    return encoder.tokenizer, encoder.vocabulary, image_tokenizer.load(teacher)[1]


def tokenizers_fingerprint(teacher: Path) -> str:
    """Fingerprint of the content of a teacher's tokenizers."""
    return fingerprint("teacher", *(content_fingerprint(teacher / name) for name in _tokenizer_files(teacher)))


def _tokenizer_files(folder: Path) -> list[str]:
    """Names of the files that decide which ids a folder's documents have."""
    return [name for name in encoder_files(folder) if name not in (VOCABULARY, PROMPT)]


def check_same_tokens(teacher: Path, student: Path) -> None:
    """Raises ValueError unless two folders have the same tokenizers, byte for byte, so that an id means the same in both."""
    names, others = _tokenizer_files(teacher), _tokenizer_files(student)
    remedy = "a student needs the tokenizers of its teacher: train it on tokens made with them (Recipe.distill does), or choose another teacher"
    if names != others:
        raise ValueError(f"{teacher} has {', '.join(names)}, {student} has {', '.join(others)}; {remedy}")
    for name in names:
        if not (teacher / name).is_file():
            raise ValueError(
                f"{teacher / name}: no such file; the teacher's tokens cannot be compared with those of {student}"
            )
        if (teacher / name).read_bytes() != (student / name).read_bytes():
            raise ValueError(f"{teacher / name}: not the file in {student}; {remedy}")


def check_same_batches(teacher: config.Model, student: config.Model) -> None:
    """Raises ValueError that names the first setting by which the teacher could not read the student's batches."""
    fields: list[tuple[str, Any, Any]] = [("code_factors", teacher.code_factors, student.code_factors)]
    # Of a text model the ids of placeholders mean nothing.
    placeholders = ["image_token", "video_token"] * (student.vision is not None)
    placeholders += ["audio_token"] * (student.audio is not None)
    fields += [(name, getattr(teacher, name), getattr(student, name)) for name in placeholders]
    more_ids = teacher.vocabulary > student.vocabulary and student.code_factors is None
    if not more_ids:
        fields.append(("vocabulary", teacher.vocabulary, student.vocabulary))
    for part, names in (("vision", ("patch", "pool")), ("audio", ("frame_values", "frames_per_token", "chunk"))):
        theirs, ours = getattr(teacher, part), getattr(student, part)
        if ours is not None:
            fields += [(f"{part}.{name}", getattr(theirs, name, None), getattr(ours, name, None)) for name in names]
    for name, theirs, ours in fields:
        if theirs != ours:
            raise ValueError(
                f"the teacher's {name} is {theirs}, the student's {ours}: they cannot read the same batches; choose another teacher"
            )


@dataclass(frozen=True)
class DistillationLoss:
    """The loss of a step; ``lesson`` is what :meth:`Distillation.outputs` returned, ``table`` its constants."""

    teaching: Teaching

    def __call__(
        self, params: model.Params, c: config.Model, batch: Batch, soft: SoftTargets, table: Float[Array, "S E"] | None
    ) -> tuple[Float[Array, ""], LossSums]:
        return batch_loss(params, c, batch, Lesson(soft, table), self.teaching)


@partial(jax.jit, static_argnums=1)
def _hidden(params: model.Params, c: config.Model, batch: Batch) -> TeacherHidden:
    # Rounded as the matmul with the embedding would.
    return TeacherHidden(model.forward(params, c, batch).astype(c.compute_dtype))


@dataclass(frozen=True)
class _Choice:
    """Which tokens of a distribution: how many of the first ``ids``, sampled or not, at which temperature."""

    tokens: int
    ids: int
    sampled: bool
    temperature: float


@partial(jax.jit, static_argnums=(1, 3))
def _tokens(params: model.Params, c: config.Model, batch: Batch, choice: _Choice) -> TeacherTokens:
    """Tokens of every position. The random numbers depend on the batch alone, so that a repeated step is the same."""
    hidden = model.forward(params, c, batch)
    n, key = batch.tokens.size, jax.random.fold_in(jax.random.key(0), checksums(batch.tokens)[0])
    size = min(chunk_size(choice.ids), n)
    chunks = jnp.pad(hidden.reshape(n, -1), ((0, -n % size), (0, 0))).reshape(-1, size, hidden.shape[-1])

    def choose(number_and_chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        number, chunk = number_and_chunk
        logits = model.logits(params, c, chunk)[:, : choice.ids] / choice.temperature
        # The largest of logits with Gumbel noise are a sample without replacement.
        noise = jax.random.gumbel(jax.random.fold_in(key, number), logits.shape) if choice.sampled else 0
        ids = jax.lax.top_k(logits + noise, choice.tokens)[1]
        return ids, jax.nn.softmax(jnp.take_along_axis(logits, ids, -1))

    chosen = jax.lax.map(choose, (jnp.arange(len(chunks)), chunks))
    return TeacherTokens(*(a.reshape(-1, choice.tokens)[:n].reshape(*batch.tokens.shape, -1) for a in chosen))


@dataclass
class Distillation:
    """The objective of a student (alhena/train/objective.py). ``student`` is its configuration."""

    teacher: Teacher
    how: Distill
    student: config.Model
    identity: str = field(init=False)
    loss: DistillationLoss = field(init=False)

    def __post_init__(self) -> None:
        check_same_batches(self.teacher.c, self.student)
        how, vocabulary = self.how, self.student.vocabulary
        if how.tokens is not None and how.tokens > vocabulary:
            raise ValueError(f"Distill.tokens is {how.tokens}; the vocabulary has {vocabulary}")
        if how.cache and jax.process_count() > 1:
            raise ValueError("Distill.cache: one process can write it, this training has several; set it to None")
        self.identity = how.identity()
        options = LossOptions.of(self.teacher.c) if how.tokens is None else None
        self.loss = DistillationLoss(Teaching(how.mix, options))
        self._params = self.teacher.params
        self._cache = TeacherCache(how.cache / self.identity, how.cache_bytes) if how.cache else None

    def constants(self) -> Float[Array, "S E"] | None:
        """The teacher's embedding, where its hidden states are learned."""
        specs = model.weights(self.teacher.c)
        self._params = sharding.shard(self.teacher.params, spec.shardings(self.teacher.params, specs))
        if self.how.tokens is not None:
            return None
        table = jnp.asarray(self._params.embedding, self.teacher.c.compute_dtype)
        # Of ids that the student does not have, no more is learned.
        return table if self.student.code_factors else table[: self.student.vocabulary]

    def outputs(self, batch: Batch, sharded: Batch) -> SoftTargets:
        """The teacher's outputs for a batch, of every position that has a loss weight."""
        if self._cache is None:
            return self._computed(sharded)
        key = self._cache.key(batch)
        stored = self._cache.read(key, batch.weights)
        if stored is None:
            computed = self._computed(sharded)
            self._cache.write(key, batch.weights, jax.tree.map(np.asarray, vars(computed)))
            return computed
        soft: Any = TeacherHidden if self.how.tokens is None else TeacherTokens
        return sharding.shard_batch(soft(**stored))

    def losses(self, sources: Mapping[str, Examples], shape: BatchShape) -> dict[str, float]:
        """The teacher's loss on a validation split, by source."""
        return validate(self._params, self.teacher.c, sources, shape)

    def _computed(self, batch: Batch) -> SoftTargets:
        how, c = self.how, self.teacher.c
        if how.tokens is None:
            return _hidden(self._params, c, batch)
        return _tokens(
            self._params, c, batch, _Choice(how.tokens, self.student.vocabulary, how.sampled, how.mix.temperature)
        )


def distillation(how: Distill, tokenizers: Path, student: config.Model) -> Distillation:
    """The objective of a student whose batches were made with the ``tokenizers`` of that folder.

    Raises ValueError when teacher and student do not share them, or could not read the same batches.
    """
    check_same_tokens(how.teacher, tokenizers)
    return Distillation(load_teacher(how.teacher), how, student)
