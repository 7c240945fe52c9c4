"""Batches: sources are shuffled, mixed by weight, packed first-fit into rows with three budgets, and stacked by grain.

    scenes ─ shuffle ─┐
    speech ─ shuffle ─┼─ mix by weight ─ first-fit packing (tokens, patches, chunks) ─ stack rows ─► Batch
    text ─── shuffle ─┘

An iterator's state is a small JSON value; restoring it continues the very same batches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import grain
import numpy as np

from alhena.batch import Batch, Example
from alhena.shapes import Int
from alhena.tokens.store import Examples

_TOKEN_FIELDS = ("tokens", "targets", "weights", "modality")
_PATCH_FIELDS = ("patches", "patch_positions", "patch_images")
_CHUNK_FIELDS = ("frames", "frame_lengths")
_UNITS = {"tokens": "tokens", "patches": "image patches", "frames": "chunks of sound"}
MOST_IMAGES = 256  # images of one document in a row; keeps image numbers unique


@dataclass(frozen=True)
class BatchShape:
    """Budgets of one batch: rows, and per row tokens, patches and audio chunks."""

    batch_size: int
    tokens: int
    patches: int
    chunks: int

    @property
    def budgets(self) -> dict[str, int]:
        """What a row has room for, by the field of an Example that it bounds."""
        return {"tokens": self.tokens, "patches": self.patches, "frames": self.chunks}

    @property
    def batch_tokens(self) -> int:
        """Tokens of a whole batch."""
        return self.batch_size * self.tokens

    def fits(self, example: Example) -> bool:
        return all(len(getattr(example, name)) <= most for name, most in self.budgets.items())

    def fitting(self, examples: Examples) -> Int[np.ndarray, " kept"]:
        """Numbers of the examples that fit, by their lengths alone."""
        return np.flatnonzero(np.all([examples.lengths(name) <= most for name, most in self.budgets.items()], 0))

    def left_out(self, examples: Examples) -> dict[str, int]:
        """How many examples do not fit, by the budgets that they exceed; empty when all do."""
        exceeds = np.stack([examples.lengths(name) > most for name, most in self.budgets.items()], 1)
        out = {}
        for kind, count in zip(*np.unique(exceeds, axis=0, return_counts=True), strict=True):
            named = zip(kind, self.budgets.items(), strict=True)
            reasons = [f"{most} {_UNITS[name]}" for exceeded, (name, most) in named if exceeded]
            if reasons:
                out["more than " + " and ".join(reasons)] = int(count)
        return out


def left_out(sources: Mapping[str, Examples], shape: BatchShape) -> dict[str, dict[str, int]]:
    """Examples that do not fit a row, by source and reason; sources of which all fit are not named."""
    counts = {name: shape.left_out(examples) for name, examples in sources.items()}
    return {name: reasons for name, reasons in counts.items() if reasons}


class _Source:
    """What grain reads: an Example as a dict of arrays."""

    def __init__(self, examples: Examples, keep: np.ndarray) -> None:
        self._examples, self._keep = examples, keep

    def __len__(self) -> int:
        return len(self._keep)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return dict(vars(self._examples[int(self._keep[index])]))


def _batch(row: Mapping[str, Any]) -> Batch:
    """grain's packed fields, named and numbered as a Batch wants them."""
    images = row["patch_images_segment_ids"] * MOST_IMAGES + row["patch_images"]
    return Batch(
        tokens=row["tokens"],
        targets=row["targets"],
        weights=row["weights"],
        modality=row["modality"],
        segments=row["tokens_segment_ids"],
        positions=row["tokens_positions"],
        patches=row["patches"],
        patch_positions=row["patch_positions"],
        patch_images=images * (row["patch_images"] > 0),
        frames=row["frames"].astype(np.float32),
        frame_lengths=row["frame_lengths"],
    )


def _packed(data: Any, shape: BatchShape, bins: int) -> Any:
    lengths = dict.fromkeys(_TOKEN_FIELDS, shape.tokens) | dict.fromkeys(_PATCH_FIELDS, shape.patches)
    lengths |= dict.fromkeys(_CHUNK_FIELDS, shape.chunks)
    return grain.experimental.FirstFitPackIterDataset(data, length_struct=lengths, num_packing_bins=bins)


class Batches:
    """Endless training batches; ``next(batches)``, ``state()`` and ``restore(state)``.

    ``part`` (k, n) gives the k-th of n readers, each with documents and rows of its own: ``shape.rows`` is what it packs.
    """

    def __init__(
        self,
        sources: Mapping[str, Examples],
        weights: Mapping[str, float],
        shape: BatchShape,
        seed: int,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        unknown = set(weights) - set(sources)
        if unknown:
            raise ValueError(
                f"the mixture weighs {', '.join(sorted(unknown))}, of which there is no data; there is {', '.join(sorted(sources))}"
            )
        parts, shares = [], []
        self.too_long: dict[str, int] = {}
        for number, name in enumerate(sorted(name for name in weights if weights[name] > 0)):
            examples = sources[name]
            keep = shape.fitting(examples)
            self.too_long[name] = len(examples) - len(keep)
            if 0 < len(keep) < part[1]:
                raise ValueError(
                    f"{name}: {len(keep)} examples cannot be shared by {part[1]} readers; have fewer readers"
                )
            keep = keep[part[0] :: part[1]]
            if len(keep):
                data = grain.MapDataset.source(_Source(examples, keep)).seed(seed + number).shuffle().repeat(None)
                parts.append(data)
                shares.append(float(weights[name]))
        if not parts:
            reasons = "; ".join(
                f"{name}: {count} with {reason}"
                for name, some in left_out(sources, shape).items()
                for reason, count in some.items()
            )
            raise ValueError(
                f"no example fits rows of {shape.tokens} tokens, {shape.patches} patches and {shape.chunks} chunks of sound ({reasons})"
            )
        mixed = grain.MapDataset.mix(parts, weights=shares)
        mixed = mixed.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        self._iterator = iter(_packed(mixed, shape, bins=2 * shape.batch_size).batch(shape.batch_size))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return _batch(next(self._iterator))

    def state(self) -> str:
        return json.dumps(self._iterator.get_state())

    def restore(self, state: str) -> None:
        self._iterator.set_state(json.loads(state))


def batches_in_order(sources: Mapping[str, Examples], shape: BatchShape) -> Iterator[Batch]:
    """Every example that fits, once, in order and packed; the last batch is filled up with empty rows."""
    for name in sorted(sources):
        some = grain.MapDataset.source(_Source(sources[name], shape.fitting(sources[name])))
        read = some.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        rows = iter(_packed(read, shape, bins=shape.batch_size)) if len(some) else iter(())
        while group := list(islice(rows, shape.batch_size)):
            empty = {key: np.zeros_like(value) for key, value in group[0].items()}
            group += [empty] * (shape.batch_size - len(group))
            yield _batch({key: np.stack([row[key] for row in group]) for key in empty})


def padded_batch(examples: Sequence[Example], tokens: int, patches: int, chunks: int) -> Batch:
    """One example a row, right padded: for prompts and for scoring. Raises ValueError when an example does not fit."""
    shape = BatchShape(len(examples), tokens, patches, chunks)
    rows: dict[str, list[np.ndarray]] = {}
    for example in examples:
        if not shape.fits(example):
            sizes = len(example.tokens), len(example.patches), len(example.frames)
            raise ValueError(
                f"a prompt of {sizes[0]} tokens, {sizes[1]} patches, {sizes[2]} sound chunks; {tokens}, {patches}, {chunks} fit"
            )
        for name, value in vars(example).items():
            room = tokens if name in _TOKEN_FIELDS else patches if name in _PATCH_FIELDS else chunks
            padded = np.zeros((room, *value.shape[1:]), value.dtype)
            padded[: len(value)] = value
            rows.setdefault(name, []).append(padded)
        length = np.arange(tokens) < len(example.tokens)
        rows.setdefault("tokens_segment_ids", []).append(length.astype(np.int32))
        rows.setdefault("tokens_positions", []).append(np.arange(tokens, dtype=np.int32) * length)
        rows.setdefault("patch_images_segment_ids", []).append(np.ones(patches, np.int32))
    return _batch({name: np.stack(value) for name, value in rows.items()})
