"""Data loader: sources are shuffled, mixed by weight, packed first-fit into sequences with three budgets, and batched by grain.

    scenes ─ shuffle ─┐                                 long running text is a window at a time
    speech ─ shuffle ─┼─ mix by weight ─ first-fit packing (tokens, patches, chunks) ─ stack ─► Batch
    text ─── shuffle ─┘

The state of an iterator is a small JSON value; an iterator restored from it continues with exactly the same batches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice

import grain
import numpy as np

from alhena.batch import Batch
from alhena.shapes import Int
from alhena.tokens.examples.padding import (
    CHUNK_FIELDS,
    PATCH_FIELDS,
    TOKEN_FIELDS,
    BatchShape,
    packed_batch,
    packed_fields,
)
from alhena.tokens.examples.store import Examples

# Datasets are read in the thread that asks for the next batch: its state is exact.
_IN_CALLER = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


def left_out(sources: Mapping[str, Examples], shape: BatchShape) -> dict[str, dict[str, int]]:
    """Number of examples that do not fit, by source and reason; sources of which all fit are absent."""
    counts = {name: shape.left_out(examples) for name, examples in sources.items()}
    return {name: reasons for name, reasons in counts.items() if reasons}


def _nothing_fits(sources: Mapping[str, Examples], shape: BatchShape) -> str:
    reasons = [
        f"{name}: {count} with {reason}"
        for name, counts in left_out(sources, shape).items()
        for reason, count in counts.items()
    ]
    budgets = f"{shape.tokens} tokens, {shape.patches} patches and {shape.chunks} chunks of audio"
    return f"no example fits a sequence of {budgets} ({'; '.join(reasons)})"


class _Source:
    """Random-access source for grain: an Example as a dict of arrays."""

    def __init__(self, examples: Examples, windows: Int[np.ndarray, "windows 3"]) -> None:
        self._examples, self._windows = examples, windows

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        number, start, size = self._windows[index].tolist()
        return packed_fields(self._examples[number].window(start, size))


def _packed(data: grain.IterDataset, shape: BatchShape, bins: int) -> grain.IterDataset:
    """Sequences packed first-fit, with ``bins`` of them open at a time."""
    lengths = dict.fromkeys(TOKEN_FIELDS, shape.tokens) | dict.fromkeys(PATCH_FIELDS, shape.patches)
    lengths |= dict.fromkeys(CHUNK_FIELDS, shape.chunks)
    return grain.experimental.FirstFitPackIterDataset(data, length_struct=lengths, num_packing_bins=bins)


class Batches:
    """Endless training batches; ``next(batches)``, ``state()`` and ``restore(state)``.

    ``data_shard`` (k, n) is the k-th of n data shards. Each has its own share of the examples and packs its own batches, of
    ``shape.batch_size`` sequences. ``too_large`` counts the examples that do not fit, by source. Raises ValueError when the
    mixture names a source without data, when a source has fewer examples than there are shards, and when no example fits.
    """

    def __init__(
        self,
        sources: Mapping[str, Examples],
        weights: Mapping[str, float],
        shape: BatchShape,
        seed: int,
        data_shard: tuple[int, int] = (0, 1),
    ) -> None:
        unknown = set(weights) - set(sources)
        if unknown:
            raise ValueError(
                f"the mixture weighs {', '.join(sorted(unknown))}, of which there is no data; there is {', '.join(sorted(sources))}"
            )
        self.too_large: dict[str, int] = {}
        datasets, shares = [], []
        for number, name in enumerate(sorted(name for name in weights if weights[name] > 0)):
            windows = self._shard(name, sources[name], shape, data_shard)
            if len(windows):
                data = grain.MapDataset.source(_Source(sources[name], windows))
                datasets.append(data.seed(seed + number).shuffle().repeat(None))
                shares.append(float(weights[name]))
        if not datasets:
            raise ValueError(_nothing_fits(sources, shape))
        mixed = grain.MapDataset.mix(datasets, weights=shares).to_iter_dataset(_IN_CALLER)
        self._iterator = iter(_packed(mixed, shape, bins=2 * shape.batch_size).batch(shape.batch_size))

    def _shard(
        self, name: str, examples: Examples, shape: BatchShape, data_shard: tuple[int, int]
    ) -> Int[np.ndarray, "shard 3"]:
        """The examples of one source, or windows of them, that fit and belong to this data shard."""
        (k, n), windows = data_shard, shape.fitting(examples)
        self.too_large[name] = len(examples) - len(np.unique(windows[:, 0]))
        if 0 < len(windows) < n:
            raise ValueError(f"{name}: {len(windows)} examples cannot be divided among {n} data shards; use fewer")
        return windows[k::n]

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return packed_batch(next(self._iterator))

    def state(self) -> str:
        return json.dumps(self._iterator.get_state())

    def restore(self, state: str) -> None:
        self._iterator.set_state(json.loads(state))


def batches_in_order(sources: Mapping[str, Examples], shape: BatchShape) -> Iterator[Batch]:
    """Every example that fits, long running text as several windows, once, in order and packed; empty sequences fill up the last batch."""
    for name in sorted(sources):
        source = grain.MapDataset.source(_Source(sources[name], shape.fitting(sources[name])))
        data = source.to_iter_dataset(_IN_CALLER)
        sequences = iter(_packed(data, shape, bins=shape.batch_size)) if len(source) else iter(())
        while group := list(islice(sequences, shape.batch_size)):
            empty = {key: np.zeros_like(value) for key, value in group[0].items()}
            group += [empty] * (shape.batch_size - len(group))
            yield packed_batch({key: np.stack([sequence[key] for sequence in group]) for key in empty})
