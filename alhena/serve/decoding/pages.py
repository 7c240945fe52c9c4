"""Pages of the KV cache on the host: which are free, which sequences hold, and which begin prompts that may come again.

    free ─take─► held by sequences ─release─► free
                      │ register(key)            ▲
                      ▼                          │ the longest unused one is taken when no page is free
                 known by the hash of all tokens and media up to its end, and shared by every prompt that begins with them

A sequence commits itself to the pages that it may need at most before it starts, so that it never waits in the middle.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alhena.model import config
from alhena.model.attention.paged_cache import PAGE, kinds, page_bytes

# Tokens of a slot that the cache is made for, beside one context of full length.
SLOT_TOKENS = 2048
# Pages of local layers kept for prompts that may come again.
PREFIX_PAGES = 64


class PagePool:
    """The pages of one kind of layers; ``window``: None where a layer attends to all of them."""

    def __init__(self, count: int, window: int | None) -> None:
        self.count, self.window = count, window
        self._free, self._holders = list(range(count)), [0] * count
        # The page of each key, the longest unused first; and the key of each page.
        self._known, self._keys = OrderedDict[bytes, int](), dict[int, bytes]()

    def first_page(self, position: int) -> int:
        """The first page that the token at a position attends to."""
        return 0 if self.window is None else max(position - self.window + 1, 0) // PAGE

    def need(self, tokens: int, at_once: int) -> int:
        """Pages that a sequence of that many tokens holds at most, if up to ``at_once`` are written together."""
        total = math.ceil(tokens / PAGE)
        return total if self.window is None else min(total, math.ceil((self.window + at_once) / PAGE) + 1)

    def take(self, pinned: Counter[bytes]) -> int:
        """A page, without contents. Sequences that keep to what they committed always get one."""
        if not self._free:
            key = next(k for k, page in self._known.items() if not self._holders[page] and not pinned[k])
            self._forget(key)
        page = self._free.pop()
        self._holders[page] = 1
        return page

    def find(self, key: bytes) -> int | None:
        return self._known.get(key)

    def share(self, key: bytes) -> int:
        """The page of a key, held once more."""
        page = self._known[key]
        self._known.move_to_end(key)
        self._holders[page] += 1
        return page

    def release(self, page: int) -> None:
        self._holders[page] -= 1
        if not self._holders[page] and page not in self._keys:
            self._free.append(page)

    def register(self, key: bytes, page: int) -> None:
        """Makes a complete page known, unless another one has its contents."""
        if key not in self._known:
            self._known[key], self._keys[page] = page, key

    def _forget(self, key: bytes) -> None:
        page = self._known.pop(key)
        del self._keys[page]
        self._free.append(page)

    @property
    def held(self) -> int:
        return sum(map(bool, self._holders))


class Pages:
    """The pools of all kinds of layers."""

    def __init__(self, plan: PagePlan) -> None:
        self._plan, self._pins, self._pinning = plan, Counter[bytes](), threading.Lock()
        self.clear()
        self._max_pins = max(0, min(pool.count - n for pool, n in zip(self.pools, plan.minimum, strict=True)))

    def clear(self) -> None:
        """All pages are free and without contents; what is pinned stays so."""
        self.pools = [PagePool(n, w) for n, w in zip(self._plan.counts, self._plan.windows, strict=True)]
        self._committed = [0] * len(self.pools)

    def need(self, tokens: int, at_once: int) -> list[int]:
        return [pool.need(tokens, at_once) for pool in self.pools]

    def fits(self, need: Sequence[int], alone: bool = False) -> bool:
        """Whether that many pages can be committed now, or with ``alone`` if nothing else were running."""
        committed = [0] * len(need) if alone else self._committed
        pinned = self._max_pins if alone else len(self._pins)
        return all(n + c + pinned <= pool.count for n, c, pool in zip(need, committed, self.pools, strict=True))

    def commit(self, need: Sequence[int], sign: int = 1) -> None:
        self._committed = [c + sign * n for c, n in zip(self._committed, need, strict=True)]

    def take(self, kind: int) -> int:
        return self.pools[kind].take(self._pins)

    def known(self, keys: Sequence[bytes], start: int, ends: Iterable[int]) -> int:
        """The largest of ``ends`` (numbers of pages) beyond ``start`` up to which the pages of a prompt are known; else ``start``."""
        n = start
        while n < len(keys) and self.pools[0].find(keys[n]) is not None:
            n += 1
        fitting = (end for end in ends if start < end <= n and self._complete(keys, end))
        return max(fitting, default=start)

    def _complete(self, keys: Sequence[bytes], end: int) -> bool:
        """Whether all pages are known that a token after the first ``end`` pages attends to."""
        return all(pool.find(key) is not None for pool in self.pools for key in keys[pool.first_page(end * PAGE) : end])

    def pin(self, keys: Sequence[bytes]) -> None:
        """Keeps pages of these keys from now on; from any thread. Raises ValueError when the cache has no room for them."""
        with self._pinning:
            if len(self._pins.keys() | set(keys)) > self._max_pins:
                raise ValueError(
                    f"the cache has room for {self._max_pins * PAGE:,} tokens of kept prompts, of which "
                    f"{len(self._pins) * PAGE:,} are in use; delete some first"
                )
            self._pins = self._pins + Counter(keys)

    def unpin(self, keys: Sequence[bytes]) -> None:
        with self._pinning:
            self._pins = self._pins - Counter(keys)


@dataclass(frozen=True)
class PagePlan:
    """How many pages each kind of layers has, how many one context needs, and the windows of the kinds."""

    counts: tuple[int, ...]
    minimum: tuple[int, ...]
    windows: tuple[int | None, ...]
    # Tokens of a sequence, prompt and answer.
    context: int


def plan_pages(
    c: config.Model, slots: int, context: int, at_once: int, budget: int, dtype: str | None = None
) -> PagePlan:
    """Pages for ``slots`` sequences within a budget of bytes; the context is shortened where one alone exceeds it.

    ``dtype`` is that of the cache, by default the one that the model computes in.

    >>> decoder = config.Decoder(width=64, layers=6, heads=1, head_dim=64, hidden=64, window=512, global_every=6)
    >>> plan = plan_pages(config.Model(9, 1, 2, decoder, None, None), 16, 32768, 128, 1 << 30)
    >>> plan.counts, plan.minimum, plan.context
    ((512, 160), (256, 6), 32768)
    """
    of_kind = kinds(c.decoder)
    windows = tuple(None if k.is_global else c.decoder.window for k in of_kind)
    size = [page_bytes(k, dtype or c.compute_dtype) for k in of_kind]

    def one(tokens: int) -> tuple[int, ...]:
        return tuple(PagePool(0, window).need(tokens, at_once) for window in windows)

    def total(counts: Iterable[int]) -> int:
        return sum(n * s for n, s in zip(counts, size, strict=True))

    while total(one(context)) > budget and context > PAGE:
        context //= 2
    minimum = one(context)
    wanted = [
        slots * n + (context // PAGE if window is None else PREFIX_PAGES)
        for n, window in zip(one(min(context, SLOT_TOKENS)), windows, strict=True)
    ]
    wanted = [max(n, low) for n, low in zip(wanted, minimum, strict=True)]
    share = min(1.0, (budget - total(minimum)) / max(1, total(wanted) - total(minimum)))
    counts = tuple(low + int(max(share, 0) * (n - low)) for n, low in zip(wanted, minimum, strict=True))
    return PagePlan(counts, minimum, windows, context)
