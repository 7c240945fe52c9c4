"""Prompts that are read together: for evaluations, in which nobody waits for a next token.

    prompts of 8 slots ─ their media, encoded together ─ their next chunks of one length, read together ─► inserted

A group always has the same number of sequences, some of them padding: what is computed for a sequence does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass

import jax
import numpy as np

from alhena.model import model
from alhena.model.config import Model
from alhena.serve.decoding import buckets
from alhena.serve.decoding.sequence import Chunk, Medium, Sequence, encode_media
from alhena.shapes import Int

# Prompts of a group.
GROUP = 8


@dataclass(frozen=True)
class Group:
    """Sequences, their next chunks as one, and where those end."""

    sequences: Items[Sequence]
    chunk: Chunk
    ends: Items[int]

    def finish(
        self, slots: Mapping[Sequence, int], no_slot: int
    ) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
        """After the chunk was computed: slots and positions of the sequences whose prompt is read; ``no_slot`` for the others."""
        at = np.full(GROUP, no_slot, np.int32), np.zeros(GROUP, np.int32)
        for i, (sequence, end) in enumerate(zip(self.sequences, self.ends, strict=True)):
            sequence.finish_chunk(end)
            if sequence.is_read:
                at[0][i], at[1][i] = slots[sequence], sequence.position
        return at


def groups(sequences: Items[Sequence], params: model.Params, c: Model) -> Iterator[Group]:
    """The next chunks of sequences, in groups of one length; of those that would write the same page only the first."""
    ready, keys = list[Sequence](), set[bytes]()
    for sequence in sequences:
        sequence.skip_known()
        key = sequence.next_key
        if key is None or key not in keys:
            ready.append(sequence)
            keys |= {key} if key else set()
    for start in range(0, len(ready), GROUP):
        part = ready[start : start + GROUP]
        _encode(part, params, c)
        by_length: dict[int, list[tuple[Sequence, Chunk, int]]] = {}
        for sequence in part:
            chunk, end = sequence.next_chunk()
            by_length.setdefault(chunk.tokens.shape[1], []).append((sequence, chunk, end))
        for same in by_length.values():
            members, chunks, ends = zip(*same, strict=True)
            yield Group(members, _stacked(chunks), ends)


def _encode(sequences: Items[Sequence], params: model.Params, c: Model) -> None:
    """Encodes the media that the next chunks need, those of one size together."""
    by_size: dict[tuple[bool, int], list[tuple[Sequence, Medium]]] = {}
    for sequence in sequences:
        for medium in sequence.missing():
            patches = buckets.bucket(buckets.PATCHES, len(medium.example.patches), "image patches")
            by_size.setdefault((medium.is_audio, patches), []).append((sequence, medium))
    for same in by_size.values():
        for start in range(0, len(same), GROUP):
            part = same[start : start + GROUP]
            vectors = encode_media(params, c, [medium for _, medium in part], GROUP)
            for (sequence, medium), of_medium in zip(part, vectors, strict=True):
                sequence.media.put(medium, of_medium)


def _stacked(chunks: Items[Chunk]) -> Chunk:
    """Chunks as one of GROUP sequences; padding is not valid and writes nothing."""

    def stack(*rows: object) -> np.ndarray:
        array = np.concatenate([np.asarray(row) for row in rows])
        return np.concatenate([array, np.zeros((GROUP - len(rows), *array.shape[1:]), array.dtype)])

    tokens, at, media = jax.tree.map(stack, *[(chunk.tokens, chunk.at, chunk.media) for chunk in chunks])
    return Chunk(*jax.device_put((tokens, at, media)))
