"""Continuous batching: jobs join and leave a running batch of slots; every step reads a piece of a prompt and takes a token of each slot.

    add(job) ─► waiting ─► slots and pages committed ─► prompt read, a piece a step ─► answering, a token a step ─► Answer
                              in order of arrival          at most 128 tokens or one medium between two tokens of the others

``step`` may be called by any thread; whoever calls it advances all jobs. An error of one job is its last item; the others continue.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import replace
from itertools import accumulate
from typing import Protocol, runtime_checkable

import jax
import numpy as np

from alhena.batch import Example
from alhena.content import Tool
from alhena.model import model
from alhena.model.attention.paged_cache import PAGE, PagedCache
from alhena.model.config import Model
from alhena.serve.answer import Failed, Finish, Refused, ServingError, Unavailable
from alhena.serve.decoding import slots as programs
from alhena.serve.decoding.buckets import MAX_OUTPUT_TOKENS
from alhena.serve.decoding.group_reading import GROUP, groups
from alhena.serve.decoding.jobs import Answering, Job, Matcher, Reader, token_logprobs
from alhena.serve.decoding.pages import PagePlan, Pages
from alhena.serve.decoding.run_inputs import Rows, make_inputs, make_options
from alhena.serve.decoding.sampling.constraints import Constraints
from alhena.serve.decoding.sampling.detokenize import Detokenizer
from alhena.serve.decoding.sampling.sampler import Sampling, sequences_per_answer
from alhena.serve.decoding.sequence import Media, PromptPlan, Sequence, max_chunk
from alhena.serve.decoding.slots import Emitted, Inputs, Options
from alhena.tokens.formats.answers import AnswerParser

# Tokens of prompts that are read between two tokens of running answers.
READ_TOKENS = PAGE
# So many prompts that wait to be read have one more piece read: each step has a fixed cost, and few answers are running then.
WAITING_FOR_A_PIECE = 4
log = logging.getLogger("alhena.serve")


@runtime_checkable
class Owner(Protocol):
    """What the batch needs of its engine."""

    @property
    def params(self) -> model.Params: ...

    @property
    def config(self) -> Model: ...

    @property
    def constraints(self) -> Constraints: ...

    @property
    def slots(self) -> int: ...

    @property
    def cache_dtype(self) -> str | None: ...

    @property
    def page_plan(self) -> PagePlan: ...

    @property
    def max_codes(self) -> int: ...

    def unconditional(self) -> Example: ...

    def forced_tokens(self, s: Sampling) -> tuple[int, int, int]: ...

    def thought_end(self) -> tuple[int, ...]: ...

    def parser(self, prompt: Example, sampling: Sampling) -> Detokenizer | AnswerParser: ...

    def matcher(self, prompt: Example, sampling: Sampling, tools: tuple[Tool, ...]) -> Matcher | None: ...


class RunningBatch:
    """The slots of an engine, their cache, and the jobs in them."""

    def __init__(self, owner: Owner) -> None:
        self._owner, self._c = owner, owner.config
        plan = owner.page_plan
        self._context, self._at_once = plan.context, max_chunk(self._c)
        self._lock = threading.RLock()
        self._waiting, self._running = deque[Job](), list[Answering]()
        self.pages = Pages(plan)
        width = -(-plan.context // PAGE) + 1
        self._tables = [np.zeros((owner.slots, width), np.int32) for _ in plan.counts]
        self._is_stepping = self._in_groups = False
        self.row_sizes = programs.row_sizes(owner.params, self._c, owner.slots)
        self._clear()

    def _clear(self) -> None:
        """An empty cache and free slots."""
        self.pages.clear()
        self._free = list(range(self._owner.slots))[::-1]
        counts = tuple(pool.count for pool in self.pages.pools)
        dtype = self._owner.cache_dtype or self._c.compute_dtype
        self._state, self._cache = programs.empty(self._c, self._owner.slots, counts, dtype)
        self._changed()

    def _changed(self) -> None:
        """Arrays on the device that depend on which jobs run are made again."""
        self._options: Options | None = None
        self._inputs: Inputs | None = None

    # ── jobs ──────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, job: Job) -> None:
        """Appends a job to those that wait. Raises Refused when the cache can never hold it."""
        if sequences_per_answer(job.sampling) > self._owner.slots:
            raise Refused("guidance needs two slots, and this engine has one")
        if not self.pages.fits(self._need(job), alone=True):
            raise Refused(
                f"the prompt has {len(job.example.tokens):,} tokens, and the answer up to {self._max_tokens(job):,}; "
                f"the cache has room for {self._context:,}"
            )
        self._waiting.append(job)

    def warm_up(self, rows: int) -> None:
        """Compiles the steps of so many sequences: runs one without any sequence."""
        with self._lock:
            self._state, self._cache, _ = self._steps(*self._idle_arrays(Rows((), rows)))

    def _idle_arrays(self, rows: Rows) -> tuple[Options, Inputs]:
        """Options and inputs of a step without any sequence."""
        return make_options(self._owner, [], rows), make_inputs([], rows, self._tables, self._c.vocabulary)

    @property
    def has_free_slot(self) -> bool:
        """Whether a job that is added now could start soon."""
        return len(self._free) > len(self._waiting)

    @property
    def slots_in_use(self) -> int:
        return self._owner.slots - len(self._free)

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._running

    def cancel_all(self) -> None:
        """Ends all jobs with an error."""
        with self._lock:
            for job in self._waiting:
                job.put(Unavailable("the generation was cancelled"))
            self._waiting.clear()
            for a in [*self._running]:
                self._end(a, Unavailable("the generation was cancelled"))

    def step(self, in_groups: bool = False) -> bool:
        """Reads a piece of a prompt, and generates tokens of all answers; False: there is nothing to do.

        ``in_groups``: nobody waits for a next token, so that prompts are read together, several at a time (group_reading.py).
        """
        with self._lock:
            self._in_groups = in_groups
            if self._is_stepping:
                # An interrupt ended the last step in the middle, and arrays that it had given away are lost.
                self._reset(Unavailable("the generation was interrupted"))
            self._is_stepping = True
            self._drop_cancelled()
            self._start_waiting()
            self._read()
            self._generate()
            self._is_stepping = False
            return not self.is_idle

    def _max_tokens(self, job: Job) -> int:
        """Tokens of the answer: what is asked for, within what is left of the context."""
        return max(1, min(job.sampling.max_tokens, MAX_OUTPUT_TOKENS, self._context - len(job.example.tokens)))

    def _prompts(self, job: Job) -> list[Example]:
        return [job.example] if sequences_per_answer(job.sampling) == 1 else [job.example, self._owner.unconditional()]

    def _need(self, job: Job) -> list[int]:
        longest = self._max_tokens(job)
        of_each = [self.pages.need(len(e.tokens) + longest, self._at_once) for e in self._prompts(job)]
        return [sum(of_kind) for of_kind in zip(*of_each, strict=True)]

    def _drop_cancelled(self) -> None:
        for a in [a for a in self._running if a.job.is_cancelled()]:
            self._end(a, Unavailable("the generation was cancelled"))

    def _start_waiting(self) -> None:
        """Gives slots and pages to jobs in order of arrival, until the first that does not fit."""
        while self._waiting:
            job = self._waiting[0]
            if job.is_cancelled():
                self._waiting.popleft().put(Unavailable("the generation was cancelled"))
                continue
            prompts, need = self._prompts(job), self._need(job)
            if len(prompts) > len(self._free) or not self.pages.fits(need):
                return
            self._waiting.popleft()
            try:
                self._running.append(self._start(job, prompts, need))
            except Exception as error:
                job.put(_as_error(error))

    def _start(self, job: Job, prompts: list[Example], need: list[int]) -> Answering:
        plans = [PromptPlan.of(e, self._c) for e in prompts]
        numbers = self._free[-len(prompts) :][::-1]
        sequences = []
        for plan, slot in zip(plans, numbers, strict=True):
            media = Media(plan, self._owner.params, self._c)
            sequences.append(Sequence(plan, media, self.pages, [table[slot] for table in self._tables]))
        answering = Answering(job, self._reader(job), sequences, numbers)
        sequences[0].need = need
        self._free = self._free[: -len(prompts)]
        self.pages.commit(need)
        return answering

    def _reader(self, job: Job) -> Reader:
        owner = self._owner
        parser = owner.parser(job.example, job.sampling)
        matcher = owner.matcher(job.example, job.sampling, job.tools)
        return Reader(parser, matcher, self._max_tokens(job), owner.thought_end())

    def _end(self, a: Answering, last: Finish | Exception) -> None:
        """Frees the slots and pages of a job after its last item."""
        for sequence in a.sequences:
            sequence.close()
        self.pages.commit(a.sequences[0].need, -1)
        self._free += a.slots[::-1]
        self._running.remove(a)
        self._changed()
        if isinstance(last, Exception):
            a.job.put(last)
            return
        try:
            a.finish(last)
        except Exception as error:
            a.job.put(_as_error(error))

    # ── prompts ───────────────────────────────────────────────────────────────────────────────────────────

    def _read(self) -> None:
        """Reads pieces of the prompts that wait for it, in turn: the tokens of one page, of more where many wait."""
        if self._in_groups:
            self._read_groups()
            return
        waiting = sum(not a.is_inserted for a in self._running)
        left = READ_TOKENS * max(1, waiting // WAITING_FOR_A_PIECE)
        while left > 0 and (reading := [a for a in self._running if not a.is_inserted]):
            a = reading[0]
            try:
                left -= self._read_piece(next(s for s in a.sequences if not s.is_read))
                if all(s.is_read for s in a.sequences):
                    self._insert(a)
            except Exception as error:
                self._fail(a, error)
            # The next one is another's.
            if a in self._running and not a.is_inserted:
                self._running.remove(a)
                self._running.append(a)

    def _read_piece(self, sequence: Sequence) -> int:
        """Reads a piece of a prompt; what it counts for in tokens."""
        sequence.skip_known()
        if sequence.encode_next():
            return READ_TOKENS
        chunk, end = sequence.next_chunk()
        sequence.hidden, self._cache = programs.read_chunks(
            self._owner.params, self._c, self._cache, chunk.tokens, chunk.at, chunk.media
        )
        sequence.finish_chunk(end)
        return int(chunk.tokens.shape[1])

    def _insert(self, a: Answering) -> None:
        for sequence, slot in zip(a.sequences, a.slots, strict=True):
            at = jax.device_put((np.array([slot], np.int32), np.array([sequence.position], np.int32)))
            assert sequence.hidden is not None
            self._state = programs.insert(self._state, at[0], sequence.hidden, at[1])
            sequence.hidden = None
        a.is_inserted = True
        self._changed()

    def _read_groups(self) -> None:
        """Reads all prompts that wait for it, once they are enough for a group or no other answer can be generated meanwhile."""
        unread = [a for a in self._running if not a.is_inserted]
        if not unread or (self._waiting and len(unread) < min(len(self._running), GROUP)):
            return
        try:
            slots = {s: slot for a in unread for s, slot in zip(a.sequences, a.slots, strict=True)}
            while unread_sequences := [s for s in slots if not s.is_read]:
                for group in groups(unread_sequences, self._owner.params, self._c):
                    hidden, self._cache = programs.read_chunks(
                        self._owner.params, self._c, self._cache, group.chunk.tokens, group.chunk.at, group.chunk.media
                    )
                    at = jax.device_put(group.finish(slots, self._owner.slots))
                    self._state = programs.insert(self._state, at[0], hidden, at[1])
        except Exception as error:
            self._reset(error)
        for a in unread:
            a.is_inserted = True
        self._changed()

    def _fail(self, a: Answering, error: Exception) -> None:
        """Ends a job whose piece failed. Arrays given to a failed program are lost, and with them all jobs."""
        self._end(a, _as_error(error))
        if any(leaf.is_deleted() for leaf in jax.tree.leaves((self._state, self._cache))):
            self._reset(error)

    def _reset(self, error: Exception) -> None:
        """Ends all jobs in slots, and begins with an empty cache."""
        for a in self._running:
            a.job.put(_as_error(error))
        self._running.clear()
        self._clear()

    # ── tokens ────────────────────────────────────────────────────────────────────────────────────────────

    def _generate(self) -> None:
        """Generates tokens of all answers, more than one where nothing needs the host in between."""
        active = [a for a in self._running if a.is_inserted]
        if not active:
            return
        is_reading = len(active) < len(self._running) or (self._waiting and self._free)
        count = 1 if is_reading and not self._in_groups else min(a.steps() for a in active)
        try:
            emitted = self._run(active, count)
        except Exception as error:
            self._reset(error)
            return
        starts = accumulate((len(a.slots) for a in active), initial=0)
        for a, row in zip(active, starts, strict=False):
            try:
                self._take(a, row, emitted)
            except Exception as error:
                self._end(a, _as_error(error))

    def _run(self, active: list[Answering], count: int) -> Emitted:
        new = [s.reserve(min(s.position + count, self._context)) for a in active for s in a.sequences]
        if any(new):
            self._inputs = None
        self._state, self._cache, emitted = self._steps(*self._arrays(active, self._rows(active), count))
        return self._fetch(active, emitted)

    def _rows(self, active: list[Answering]) -> Rows:
        return Rows.of([slot for a in active for slot in a.slots], self.row_sizes)

    def _arrays(self, active: list[Answering], rows: Rows, count: int) -> tuple[Options, Inputs]:
        """Options and inputs of a run of up to ``count`` steps."""
        if self._options is None:
            self._options = make_options(self._owner, active, rows)
        return self._options, replace(self._make_inputs(active, rows), count=jax.device_put(np.int32(count)))

    @staticmethod
    def _fetch(active: list[Answering], emitted: Emitted) -> Emitted:
        """The tokens of a run on the host, and where a job wants them the log-probabilities."""
        wants_logprobs = any(a.job.sampling.logprobs is not None for a in active)
        tokens, produced = jax.device_get((emitted.tokens, emitted.produced))
        rest = (emitted.logprobs, emitted.top, emitted.top_logprobs)
        return Emitted(tokens, produced, *(jax.device_get(rest) if wants_logprobs else rest))

    def _steps(self, options: Options, inputs: Inputs) -> tuple[programs.State, PagedCache, Emitted]:
        params, constraints = self._owner.params, self._owner.constraints
        return programs.run_steps(params, self._c, constraints, (self._state, self._cache), options, inputs)

    def _make_inputs(self, active: list[Answering], rows: Rows) -> Inputs:
        """The inputs of a run; those of the last one where nothing has changed."""
        is_special = any(a.forced or a.matcher for a in active)
        if self._inputs is not None and not is_special:
            return self._inputs
        inputs = make_inputs(active, rows, self._tables, self._c.vocabulary)
        self._inputs = None if is_special else inputs
        return inputs

    def _take(self, a: Answering, row: int, emitted: Emitted) -> None:
        """Gives a job its tokens of a run; ends it where they end its answer."""
        reason = None
        tokens = emitted.tokens[row, : emitted.produced[row]].tolist()
        for i, token in enumerate(tokens):
            reason = a.accept(token, token_logprobs(emitted, row, i, a.job.sampling.logprobs))
            if reason:
                return self._end(a, reason)
        for sequence in a.sequences:
            sequence.move(sequence.position + len(tokens))
        return None


def _as_error(error: Exception) -> Exception:
    """The last item of a job that failed: what is wrong with the request, or that the model failed."""
    if isinstance(error, ServingError):
        return error
    if isinstance(error, ValueError) and not isinstance(error, jax.errors.JAXTypeError):
        return error
    log.error("a generation failed", exc_info=error)
    return Failed("the model failed to answer")
