"""Continuous batching with a draft: while few answers run, a small model proposes their next tokens (rounds.py).

    prompt  ─► target reads it ─► answer, a round a step
            └► draft reads it too, into pages of its own, beside the target or behind it ─► it proposes once it is not behind

Tokens do not depend on whether the draft proposed them. So it need not always: an answer whose form is enforced or that has guidance
gets no proposals, nor one for which the draft's cache has no room; with more than a few sequences (max_drafted) nobody does.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from alhena.batch import Example
from alhena.model.attention import native, paged_cache
from alhena.model.attention.paged_cache import PAGE, PagedCache
from alhena.serve.answer import Finish
from alhena.serve.decoding import slots as programs
from alhena.serve.decoding.batching import Owner, RunningBatch
from alhena.serve.decoding.jobs import Answering, Job
from alhena.serve.decoding.pages import Pages, plan_pages
from alhena.serve.decoding.run_inputs import Rows
from alhena.serve.decoding.slots import Emitted, Inputs, Options
from alhena.serve.decoding.speculative.draft import Draft, DraftSequence
from alhena.serve.decoding.speculative.rounds import DraftInputs, Rounds, Setting, Slots, run_rounds
from alhena.shapes import Int

# Tokens that the target reads in a round, at most: those of one sequence in any case. As many rows as a kernel of the CPU computes
# with the same bits as one (alhena/model/attention/native.py); with more, it is no longer memory that a step waits for.
MAX_ROUND_TOKENS = native.MAX_ROWS
# Of a prompt, in whose end proposals are looked up.
LOOKUP_TOKENS = 4096


def max_drafted(row_sizes: Sequence[int], tokens: int) -> int:
    """Sequences that may run together while a draft proposes so many tokens for each.

    >>> max_drafted((1, 4, 16), 3), max_drafted((1, 4, 16), 4), max_drafted((1, 4, 16), 16)
    (4, 1, 1)
    """
    return max(n for n in row_sizes if n == row_sizes[0] or n * (tokens + 1) <= MAX_ROUND_TOKENS)


class SpeculativeBatch(RunningBatch):
    """A running batch whose answers a draft proposes."""

    def __init__(self, owner: Owner, draft: Draft, budget: int) -> None:
        """``budget``: bytes of the draft's cache."""
        self._draft = draft
        self._setting = Setting(owner.config, draft.config, owner.constraints, draft.tokens)
        self._draft_pages, self._drafts = None, dict[Answering, DraftSequence]()
        self._draft_tables, self._prompt_ends = list[Int[np.ndarray, "slots T"]](), np.zeros((owner.slots, 0), np.int32)
        if draft.config is None:
            self._prompt_ends = np.zeros((owner.slots, LOOKUP_TOKENS), np.int32)
        else:
            plan = plan_pages(draft.config, owner.slots, owner.page_plan.context, PAGE, budget)
            width = -(-plan.context // PAGE) + 1
            self._draft_tables = [np.zeros((owner.slots, width), np.int32) for _ in plan.counts]
            self._draft_pages = Pages(plan)
        # Of all answers so far.
        self.proposed, self.accepted = 0, 0
        # Those that got proposals in the last run.
        self._drafted: list[Answering] = []
        super().__init__(owner)
        # Sequences that may run together while tokens are proposed.
        self.max_drafted = max_drafted(self.row_sizes, draft.tokens)

    def _clear(self) -> None:
        super()._clear()
        self._drafts.clear()
        self._draft_cache: PagedCache = ()
        if self._draft_pages and (c := self._draft.config):
            self._draft_pages.clear()
            counts = tuple(pool.count for pool in self._draft_pages.pools)
            self._draft_cache = paged_cache.empty(c.decoder, counts, c.compute_dtype)

    def acceptance(self) -> dict[str, object]:
        """The draft, and how many of its tokens were accepted since the start."""
        draft = self._draft
        return {"model": draft.name, "tokens": draft.tokens, "proposed": self.proposed, "accepted": self.accepted}

    # ── jobs ──────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self, job: Job, prompts: list[Example], need: list[int]) -> Answering:
        a = super()._start(job, prompts, need)
        if a.matcher is None and len(a.slots) == 1 and self._commit(a):
            slot, tokens = a.slots[0], job.example.tokens
            self._drafts[a] = DraftSequence(
                self._draft, job.example, self._draft_pages, [table[slot] for table in self._draft_tables]
            )
            if n := min(self._prompt_ends.shape[1], len(tokens)):
                self._prompt_ends[slot], self._prompt_ends[slot, -n:] = -1, tokens[-n:]
        return a

    def _commit(self, a: Answering, sign: int = 1) -> bool:
        """Commits the draft to the pages that it may need for an answer, or with a sign of -1 releases it; False: they do not fit."""
        if self._draft_pages is None:
            return True
        need = self._draft_pages.need(len(a.job.example.tokens) + a.max_tokens, PAGE)
        if sign > 0 and not self._draft_pages.fits(need):
            return False
        self._draft_pages.commit(need, sign)
        return True

    def _end(self, a: Answering, last: Finish | Exception) -> None:
        if d := self._drafts.pop(a, None):
            if d.pages:
                d.pages.close()
            self._commit(a, -1)
        super()._end(a, last)

    def _take(self, a: Answering, row: int, emitted: Emitted) -> None:
        if d := self._drafts.get(a):
            d.take(emitted.tokens[row, : emitted.produced[row]].tolist())
            if a in self._drafted:
                d.has_proposed()
        super()._take(a, row, emitted)

    # ── prompts ───────────────────────────────────────────────────────────────────────────────────────────

    def _read(self) -> None:
        """Reads a piece of a prompt for the target, and of what the draft has not read of one answer."""
        super()._read()
        behind = [a for a in self._running if (d := self._drafts.get(a)) and d.is_behind]
        if behind and self._is_small(self._running):
            try:
                self._read_draft(self._drafts[behind[0]])
            except Exception as error:
                self._reset(error)

    def _read_draft(self, d: DraftSequence) -> None:
        if (chunk := d.next_chunk()) and d.pages:
            (inputs, end), draft = chunk, self._draft
            assert draft.params and draft.config
            _, self._draft_cache = programs.read_chunks(
                draft.params, draft.config, self._draft_cache, inputs.tokens, inputs.at, None
            )
            d.pages.finish_chunk(end)

    def _is_small(self, jobs: list[Answering]) -> bool:
        return sum(len(a.slots) for a in jobs) <= self.max_drafted

    # ── tokens ────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self, active: list[Answering], count: int) -> Emitted:
        ready = [a for a in active if (d := self._drafts.get(a)) and not d.is_behind and a.limit() > 1]
        self._drafted = ready if self._is_small(active) else []
        if not self._drafted:
            return super()._run(active, count)
        limits = [min(a.limit(), self._setting.width) for a in active]
        self._reserve(active, [min(limit, count * (self._draft.tokens + 1)) for limit in limits])
        rows = self._rows(active)
        rounds = self._rounds(*self._arrays(active, rows, count), self._draft_inputs(active, limits, rows))
        proposed, accepted = jax.device_get((rounds.proposed, rounds.accepted))
        self.proposed, self.accepted = self.proposed + int(proposed.sum()), self.accepted + int(accepted.sum())
        return self._fetch(active, rounds.emitted)

    def _rounds(self, options: Options, inputs: Inputs, draft: DraftInputs) -> Rounds:
        params = (self._owner.params, self._draft.params)
        slots = Slots(self._state, self._cache, self._draft_cache)
        slots, rounds = run_rounds(params, self._setting, slots, options, inputs, draft)
        self._state, self._cache, self._draft_cache = slots.state, slots.cache, slots.draft_cache
        return rounds

    def warm_up(self, rows: int) -> None:
        """Compiles the steps of so many sequences, and rounds with proposals."""
        super().warm_up(rows)
        self._drafted = []
        if rows <= self.max_drafted:
            with self._lock:
                none = Rows((), rows)
                self._rounds(*self._idle_arrays(none), self._draft_inputs([], [], none))

    def _reserve(self, active: list[Answering], tokens: list[int]) -> None:
        """Takes the pages for so many more tokens of each job, but not beyond its last one."""
        for a, more in zip(active, tokens, strict=True):
            ends = [min(s.position + more, len(s.plan) + a.max_tokens) for s in a.sequences]
            new = [s.reserve(end) for s, end in zip(a.sequences, ends, strict=True)]
            if any(new):
                self._inputs = None
            if a in self._drafted and (pages := self._drafts[a].pages):
                pages.reserve(ends[0])

    def _draft_inputs(self, active: list[Answering], limits: list[int], rows: Rows) -> DraftInputs:
        last, drafting = np.zeros(rows.size, np.int32), np.zeros(rows.size, bool)
        limit_of = np.full(rows.size, self._setting.width, np.int32)
        for a, limit in zip(active, limits, strict=True):
            limit_of[rows.of_slots(a.slots)] = limit
        for a in self._drafted:
            row = rows.of_slots(a.slots)[0]
            last[row], drafting[row] = self._drafts[a].tokens[-1], True
        # The tables change while the program runs: it gets copies.
        slots = [*rows.slots, *[0] * (rows.size - len(rows.slots))]
        tables = tuple(table[slots] for table in self._draft_tables)
        arrays = (tables, self._prompt_ends[slots], last, drafting, limit_of)
        return DraftInputs(*jax.device_put(arrays))
